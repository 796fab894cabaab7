"""One arm of a claim with one seed: trained, measured on the held-out tasks, and remembered by everything that decided its numbers.

    runs/reproduce/SLUG/ARM-SEED-KEY/result.json     the held-out answers; its presence means that the run is complete
    runs/reproduce/SLUG/ARM-SEED-KEY/log.txt         what the process said

KEY hashes the arm's settings, the seed, what is measured and the weights of the start. So an interrupted comparison goes on where it was,
a changed arm runs anew while the others stay, and an arm that several claims share runs once.

    python -m fovea.ledger.runs SLUG ARM SEED FOLDER [--quick] [--seconds S]     what the processes are called with
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fovea import starts
from fovea.files import read_jsonl, write_json
from fovea.ledger.claim import Claim, arm_recipe, digest, measured_recipe, read, settings
from fovea.ledger.measures import Finished
from fovea.report.run import surroundings

if TYPE_CHECKING:
    from fovea.recipe import Recipe

RESULT, LOG = "result.json", "log.txt"
QUICK = {"steps": 2, "tasks_per_step": 4, "group_size": 4}
QUICK_TASKS, QUICK_SEEDS = 24, 2


class RunsFailed(RuntimeError):
    """Some runs of a comparison ended with an error; the message names them and quotes their last words."""


@dataclass(frozen=True)
class Job:
    """One run that a comparison needs."""

    slug: str
    arm: str
    seed: int
    folder: Path
    steps: int
    waits_for: str = ""
    quick: bool = False

    @property
    def name(self) -> str:
        return f"{self.arm}, seed {self.seed}"


def plan(slug: str, tiny: Recipe, claim: Claim, arms: Iterable[str], seeds: Iterable[int], quick: bool, home: Path) -> list[Job]:
    """Every run of a comparison, arms in turn for each seed, so that seeds complete one after another."""
    return [_job(slug, tiny, claim, arm, seed, quick, home) for seed in seeds for arm in arms]


def _job(slug: str, tiny: Recipe, claim: Claim, arm: str, seed: int, quick: bool, home: Path) -> Job:
    recipe = run_recipe(tiny, claim, arm, seed, quick)
    key = run_key(tiny, claim, arm, seed, quick)
    shared = sorted(f.parent for f in home.glob(f"*/*-{key}/{RESULT}"))
    name = Path(slug).stem if slug.endswith(".py") else slug
    folder = shared[0] if shared else home / name / f"{arm}-{seed}-{key}"
    return Job(slug, arm, seed, folder, recipe.steps, claim.arms[arm].get("seconds_of", ""), quick)


def run_recipe(tiny: Recipe, claim: Claim, arm: str, seed: int, quick: bool = False) -> Recipe:
    """The recipe as it is run: one thread, no evaluation on the way unless the plot shows it."""
    recipe = arm_recipe(tiny, claim.arms[arm])
    if quick:
        # what another run recorded cannot be had without that run
        model = recipe.model if recipe.method.needs.recorded else starts.root(recipe.model)
        recipe = recipe.replace(model=model, **{k: min(v, getattr(recipe, k)) for k, v in QUICK.items()})
    on_the_way = recipe.eval_tasks if claim.curve.startswith("eval/") else 0
    often = 10 if recipe.steps <= 200 else 50
    return recipe.replace(seed=seed, threads=1, keep=1, checkpoint_every=often, eval_tasks=on_the_way)


def run_key(tiny: Recipe, claim: Claim, arm: str, seed: int, quick: bool = False) -> str:
    """Ten hexadecimal digits over everything that decides a run's numbers, the code excepted."""
    from fovea.recipe import plain

    recipe = run_recipe(tiny, claim, arm, seed, quick)
    other = claim.arms[arm].get("seconds_of")
    limit = run_key(tiny, claim, other, seed, quick) if other else ""
    measured = settings(measured_recipe(tiny, claim, recipe))
    decides = [settings(recipe), measured, seed, tasks_of(claim, quick), claim.temperature, weights(recipe.model), limit]
    return digest(decides + ([plain(claim.examine)] if claim.examine else []))[:10]


def tasks_of(claim: Claim, quick: bool) -> int:
    return min(QUICK_TASKS, claim.tasks) if quick else claim.tasks


@cache
def weights(model: str) -> str:
    """Hash of a checkpoint's weights; the name where they are not here. A model that a recipe makes is made first."""
    from fovea.policies.tiny_vlm import BASE_DIR

    place = BASE_DIR if model == "tiny" else starts.folder(model) if starts.recipe(model) else Path(model)
    files = sorted(place.glob("*.safetensors"))
    if not files:
        return model
    hashes = [hashlib.sha256(f.read_bytes()).hexdigest() for f in files]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:12]


# -- in the process of a run ----------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fovea.ledger.runs")
    parser.add_argument("slug")
    parser.add_argument("arm")
    parser.add_argument("seed", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float, help="training seconds after which the run ends")
    options = parser.parse_args(argv)
    tiny, claim, _ = read(options.slug)
    recipe = run_recipe(tiny, claim, options.arm, options.seed, options.quick)
    asked, parent = measured_recipe(tiny, claim, recipe), os.getppid()
    result = one(recipe, asked, options.folder, tasks_of(claim, options.quick), claim.temperature, options.seconds, claim.examine)
    still_wanted(parent)
    write_json(options.folder / RESULT, result)
    shutil.rmtree(options.folder / "checkpoints")
    shutil.rmtree(options.folder / "replay", ignore_errors=True)
    return 0


def one(
    recipe: Recipe, asked: Recipe, folder: Path, tasks: int, temperature: float, seconds: float | None = None, examine: Any = None
) -> dict[str, Any]:
    """Train by `recipe` in `folder`, from the beginning or from where it was, then answer held-out tasks and `examine` by `asked`."""
    from fovea import api

    run = api.train(recipe, out=folder, on_step=watch(folder, seconds, os.getppid()))
    trained = time.monotonic()
    result = api.evaluate(run.policy, asked, tasks=tasks, temperature=temperature)
    return {
        "answers": [answer for group in result.groups for answer in answers(group)],
        "unscored": result.unscored,
        "found": dict(examine(run.policy, asked)) if examine else {},
        "train_seconds": run.train_seconds,
        "seconds": run.train_seconds + time.monotonic() - trained,
        "weights": weights(recipe.model),
        **{k: v for k, v in surroundings().items() if k in ("commit", "modified", "processor", "cores", "versions", "python", "started")},
    }


def answers(group: Any) -> Iterator[dict[str, Any]]:
    """What a claim may measure of every scored held-out answer."""
    from fovea.trainer.evaluation import outcome

    for e in group.episodes:
        if e.score is not None and e.score.ok:
            known = {"task": e.task.id, "source": e.task.source, "correct": outcome(e), "length": e.length, "cut": e.stop == "length"}
            yield known | {"parts": dict(e.score.parts)}


def watch(folder: Path, seconds: float | None, parent: int) -> Callable[[int, dict[str, float]], bool]:
    """An `on_step` that ends a run once its training steps took `seconds`, those before an interruption included.

    Raises:
      SystemExit: (from the callback) process `parent` is gone; going on would collide with the same run started again.
    """
    spent: dict[int, float] = {}

    def on_step(step: int, metrics: dict[str, float]) -> bool:
        still_wanted(parent)
        if not spent:
            spent.update({r["step"]: r["time/step_s"] for r in read_jsonl(folder / "metrics.jsonl") if "time/step_s" in r})
        spent[step] = metrics["time/step_s"]
        return seconds is not None and sum(spent.values()) >= seconds

    return on_step


def still_wanted(parent: int) -> None:
    """
    Raises:
      SystemExit: process `parent` is gone; going on would collide with the same run started again.
    """
    if os.getppid() != parent:
        raise SystemExit("the comparison that started this run has ended")


# -- around the processes -------------------------------------------------------------------------------------------------------


def finished(job: Job) -> tuple[Finished, dict[str, Any]] | None:
    """A complete run's numbers and its result file; None while it is not complete."""
    if not (job.folder / RESULT).is_file():
        return None
    result = json.loads((job.folder / RESULT).read_text(encoding="utf-8"))
    rows = [r for r in read_jsonl(job.folder / "metrics.jsonl") if r["step"]]
    return Finished(rows, result["answers"], result["unscored"], result.get("found", {})), result


def run_all(jobs: list[Job], at_once: int, note: Callable[[str], None], tick: Callable[[str], None] = lambda _: None) -> None:
    """Run what is missing, `at_once` at a time; runs that wait for another arm's seconds come when that run is complete.

    Args:
      note: gets a line when a run ends. tick: gets a line on what is running, every two seconds.
    Raises:
      RunsFailed: after everything else is done.
    """
    results = {(j.arm, j.seed): j for j in jobs}
    left = [j for j in jobs if finished(j) is None]
    done, running, failed, ticked = len(jobs) - len(left), {}, [], 0.0
    if done:
        note(f"{done} of {len(jobs)} runs are complete already")
    try:
        while left or running:
            for job in [j for j in left if not _waits(j, results)][: at_once - len(running)]:
                left.remove(job)
                running[job] = (_start(job, results), time.monotonic())
            if not running:  # what is left waits for a run that failed
                failed += [f"{j.name}: {j.waits_for} with this seed has no result" for j in left]
                break
            for job in [j for j, (process, _) in running.items() if process.poll() is not None]:
                process, began = running.pop(job)
                done += 1
                if process.returncode or finished(job) is None:
                    failed.append(f"{job.name} ended with status {process.returncode}: {_last_words(job)}")
                    note(f"[{done}/{len(jobs)}] {failed[-1]}")
                else:
                    note(f"[{done}/{len(jobs)}] {job.name}: {time.monotonic() - began:.0f} s")
            if time.monotonic() - ticked > 2:
                tick("   ".join(f"{j.name}: step {_step(j)}/{j.steps}" for j in running))
                ticked = time.monotonic()
            time.sleep(0.1)
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.wait()
    if failed:
        raise RunsFailed(f"{len(failed)} of {len(jobs)} runs failed; the same command runs them again.\n  " + "\n  ".join(failed))


def _waits(job: Job, results: dict[tuple[str, int], Job]) -> bool:
    return bool(job.waits_for) and not (results[job.waits_for, job.seed].folder / RESULT).is_file()


def _start(job: Job, results: dict[tuple[str, int], Job]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "fovea.ledger.runs", job.slug, job.arm, str(job.seed), str(job.folder)]
    command += ["--quick"] if job.quick else []
    other = finished(results[job.waits_for, job.seed]) if job.waits_for else None
    command += ["--seconds", repr(other[1]["train_seconds"])] if other else []
    job.folder.mkdir(parents=True, exist_ok=True)
    with (job.folder / LOG).open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def _step(job: Job) -> int:
    rows = read_jsonl(job.folder / "metrics.jsonl")
    return int(rows[-1]["step"]) if rows else 0


def _last_words(job: Job) -> str:
    lines = (job.folder / LOG).read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it said nothing") + f" ({job.folder / LOG})"


if __name__ == "__main__":
    sys.exit(main())
