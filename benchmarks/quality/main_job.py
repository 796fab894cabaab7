"""The main job: does reinforcement learning lift the tiny model's held-out accuracy, and does anything else?

    python benchmarks/quality/main_job.py [--seeds 0 1 2 3 4] [--arms rl format random sft]

Arms share base, tasks, seeds and compute. `rl` is the default recipe. `format` rewards exactly one answer tag and nothing else, `random`
rewards by coin flip, `sft` imitates gold answers for as many seconds as `rl` trained. Every arm is measured on the same held-out tasks,
1,000 for each family (`--control-per-family` for the arms that are not `rl`), greedily and sampled at temperature 1; the base also with
pass@8. Each finished run is a file in `parts/`, so an
interrupted benchmark goes on where it stopped; the table is `main_job.json`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from typing import Any

from common import HERE, PARTS, curve, provenance, read, run_parts, write

FAMILIES = ("count", "colour", "chart", "find", "point", "two_step")
DATA = "worlds:" + ",".join(FAMILIES)
ARMS = ("rl", "format", "random", "sft")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--control-seeds", type=int, nargs="+", help="seeds of the other arms; the same unless given")
    parser.add_argument("--per-family", type=int, default=1000)
    parser.add_argument("--control-per-family", type=int, help="held-out tasks for the other arms; the same number unless given")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        arm, seed = options.one.split(":")
        result = base(options.per_family) if arm == "base" else one(arm, int(seed), options.per_family, options.threads)
        write(PARTS / f"main_job-{arm}-{seed}.json", result)
        return
    seeds = {a: options.seeds if a == "rl" else options.control_seeds or options.seeds for a in options.arms}
    tasks = {a: options.per_family if a in ("base", "rl") else options.control_per_family or options.per_family for a in ("base", *ARMS)}
    command = [sys.executable, __file__, "--threads", str(options.threads)]
    others = [("base", 0)] + [(a, s) for a in options.arms if a != "sft" for s in seeds[a]]
    for part in (others, [("sft", s) for s in seeds.get("sft", ())]):
        missing = [(a, s) for a, s in part if not (PARTS / f"main_job-{a}-{s}.json").exists()]
        run_parts(([*command, "--per-family", str(tasks[a]), "--one", f"{a}:{s}"] for a, s in missing), options.jobs)
    write(HERE / "main_job.json", table(options.seeds, seeds) | provenance(options.threads))


def one(arm: str, seed: int, per_family: int, threads: int) -> dict[str, Any]:
    """Train one arm with one seed and measure it."""
    import torch

    import fovea
    from fovea import api, verifiers

    torch.set_num_threads(threads)
    recipe = api.resolve("grpo", seed=seed, threads=threads, eval_tasks=0)
    stop = None
    if arm == "format":
        recipe = recipe.replace(reward=verifiers.format(tags=("answer",)))
    if arm == "random":
        recipe = recipe.replace(reward="random")
    if arm == "sft":
        seconds = read(f"main_job-rl-{seed}")["train_seconds"]
        recipe = api.resolve("sft", seed=seed, threads=threads, eval_tasks=0, steps=100_000)
        spent = [0.0]

        def stop(step: int, metrics: dict[str, float]) -> bool:
            spent[0] += metrics["time/step_s"]
            return spent[0] >= seconds

    with tempfile.TemporaryDirectory() as out:
        run = fovea.train(recipe, out=out, on_step=stop, quiet=True)
        return {
            "arm": arm,
            "seed": seed,
            "train_seconds": run.train_seconds,
            "steps": len(run.metrics),
            "curve": curve(run.metrics, "reward/mean", "length/mean_tokens", "policy/entropy"),
            **measure(run.policy, per_family),
        }


def base(per_family: int) -> dict[str, Any]:
    """The shipped model before any of it, with pass@8."""
    from fovea import api

    policy = api.load_policy("tiny")
    result = api.evaluate(policy, DATA, tasks=count(min(200, per_family)), temperature=1.0, samples=8)
    passed: dict[str, list[bool]] = {}
    for g in result.groups:
        passed.setdefault(g.task.source, []).append(any(e.score and e.score.correct for e in g.episodes))
    return {"arm": "base", "seed": 0, "pass_at_8": {s: sum(p) / len(p) for s, p in passed.items()}, **measure(policy, per_family)}


def measure(policy: Any, per_family: int) -> dict[str, Any]:
    from fovea import api

    greedy = api.evaluate(policy, DATA, tasks=count(per_family), temperature=0.0)
    sampled = api.evaluate(policy, DATA, tasks=count(per_family), temperature=1.0)
    return {
        "greedy": greedy.mean,
        "sampled": sampled.mean,
        "families": {s: {"greedy": a, "sampled": sampled.accuracy[s], "n": greedy.count[s]} for s, a in greedy.accuracy.items()},
        "unscored": greedy.unscored + sampled.unscored,
    }


def count(per_family: int) -> int:
    return per_family * len(FAMILIES)


def table(seeds: list[int], arms: dict[str, list[int]]) -> dict[str, Any]:
    """Everything that was measured, before and after, per arm and family."""
    start = read("main_job-base-0")
    runs = {a: [read(f"main_job-{a}-{s}") for s in ss] for a, ss in arms.items()}
    rl = runs.get("rl", [])
    return {
        "seeds": seeds,
        "before": [start["greedy"]] * len(rl),
        "after": [r["greedy"] for r in rl],
        "train_seconds": [r["train_seconds"] for r in rl],
        "before_sampled": start["sampled"],
        "after_sampled": [r["sampled"] for r in rl],
        "base_pass_at_8": start["pass_at_8"],
        "families": {f: {"base": v, "rl": [r["families"][f] for r in rl]} for f, v in start["families"].items()},
        "controls": {
            a: {
                "greedy": [r["greedy"] for r in rs],
                "sampled": [r["sampled"] for r in rs],
                "mean": statistics.fmean(r["greedy"] for r in rs),
                "per_family": rs[0]["families"][FAMILIES[0]]["n"],
            }
            for a, rs in runs.items()
            if a != "rl" and rs
        },
        "curve": [r["curve"] for r in rl],
    }


if __name__ == "__main__":
    main()
