"""Every system of perception RL on real pixels: 200 steps of each on small tasks cut from photographs.

    python benchmarks/quality/photographs.py [--only papo vppo]

A check that each method, verifier and program has met photographs, not a benchmark of them: there are seventeen, and held-out tasks show
other ones. Each run is the system's own `tiny` recipe with its own start, reward and program; what is changed stands in `RUNS`. Scenes of
drawn shapes have taught a start little about photographs, so the accuracies are low. One seed, one thread.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import HERE, PARTS, curve, provenance, read, write

STEPS, EDGE, TASKS = 200, 20, 200
RUNS: dict[str, dict[str, Any]] = {
    "vlm-r1": {"data": "photos:detect", "tasks_per_step": 4},
    "vision-r1-criterion": {"data": "photos:detect", "tasks_per_step": 4},
    "v-triune": {"data": "photos:find,count,colour,faces", "tasks_per_step": 8},
    "papo": {"data": "photos:count,colour", "tasks_per_step": 8},
    "vppo": {"data": "photos:count,colour", "tasks_per_step": 8, "dynamic_sampling": False},
    "visual-jigsaw": {"data": "photos:places", "tasks_per_step": 4},
    "vision-sr1": {"data": "photos:count,colour", "tasks_per_step": 8},
    "visurf": {"data": "photos:face,find", "tasks_per_step": 8},
}
"""Slug -> what of its `tiny` recipe is changed, beside steps and seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(RUNS), help="run these alone, and leave the file")
    parser.add_argument("--one", choices=sorted(RUNS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return write(PARTS / f"photographs-{options.one}.json", one(options.one))
    for slug in options.only or RUNS:
        if options.only or not (PARTS / f"photographs-{slug}.json").exists():
            subprocess.run([sys.executable, __file__, "--one", slug], check=True)
    if not options.only:
        write(HERE / "photographs.json", {"steps": STEPS, "runs": {s: read(f"photographs-{s}") for s in RUNS}, **provenance(1)})


def one(slug: str) -> dict[str, Any]:
    import torch

    import fovea
    from fovea import api

    torch.set_num_threads(1)
    recipe = api.resolve(slug, seed=0, threads=1, steps=STEPS, eval_tasks=0, checkpoint_every=STEPS, **RUNS[slug])
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        start = fovea.train(recipe.replace(steps=0, dynamic_sampling=False), out=Path(folder) / "start", quiet=True)
        before = api.evaluate(start.policy, recipe, tasks=TASKS, temperature=1.0)
        run = fovea.train(recipe, out=Path(folder) / "run", quiet=True)
        after = api.evaluate(run.policy, recipe, tasks=TASKS, temperature=1.0)
    rewards = [row["reward/mean"] for row in run.metrics]
    return {
        **RUNS[slug],
        "reward_first": round(sum(rewards[:EDGE]) / EDGE, 4),
        "reward_last": round(sum(rewards[-EDGE:]) / EDGE, 4),
        "heldout_before": rounded(before.accuracy),
        "heldout_after": rounded(after.accuracy),
        "unscored": sum(row["reward/unscored_frac"] for row in run.metrics) / len(rewards),
        "cpu_s": round(time.process_time() - began),
        "curve": curve(run.metrics[EDGE - 1 :: EDGE], "reward/mean", "policy/entropy"),
    }


def rounded(numbers: dict[str, float]) -> dict[str, float]:
    return {k: round(v, 4) for k, v in numbers.items()}


if __name__ == "__main__":
    main()
