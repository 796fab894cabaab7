"""How many answers with many boxes the detection verifiers judge in a second of one core.

    python benchmarks/speed/verifiers.py                 measures and writes benchmarks/speed/verifiers.json

Every answer holds 20 boxes of 4 labels as JSON in pixels and is judged against 20 gold boxes. Three in four predictions lie near a gold
box of their label, the others anywhere. All that scoring an answer takes is timed: finding the answer, reading it, matching, the score's
parts. The gold boxes are read once for each task, as in a run with `GROUP` answers to each. CPU seconds, best and median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from fovea.bench.measure import provenance
from fovea.types import Context, Episode, Group, Task, Turn, user
from fovea.verifiers import build

BOXES, GROUP, LABELS = 20, 8, ("person", "traffic light", "car", "dog")
VERIFIERS: dict[str, tuple[dict[str, Any], float]] = {
    "detection map": ({"reward": "map"}, 2000),
    "detection od_length": ({"reward": "od_length"}, 2000),
    "detection weighted_sum": ({"reward": "weighted_sum"}, 5000),
    "criterion": ({}, 5000),
}
"""Name -> parameters, and the goal in answers per second."""


def listed(box_N4: np.ndarray, labels: list[str]) -> list[dict[str, Any]]:
    return [{"bbox_2d": [int(v) for v in box], "label": label} for box, label in zip(box_N4, labels, strict=True)]


def groups(tasks: int, boxes: int, seed: int = 0) -> list[Group]:
    """Groups of `GROUP` answers."""
    rng = np.random.default_rng(seed)

    def anywhere(n: int) -> np.ndarray:
        low = rng.uniform(0, 500, (n, 2))
        return np.concatenate([low, low + rng.uniform(30, 200, (n, 2))], 1)

    made = []
    for i in range(tasks):
        gold, labels = anywhere(boxes), list(rng.choice(LABELS, boxes))
        task = Task(f"t{i}", "made", user("Where?", images=0), answer=listed(gold, labels), verifier="detection")
        episodes = []
        for g in range(GROUP):
            near = rng.random(boxes) < 0.75
            said = listed(np.where(near[:, None], gold + rng.normal(0, 6, gold.shape), anywhere(boxes)), labels)
            episodes.append(Episode(f"e{g}", task, turns=[Turn(f"<think>so</think><answer>```json\n{json.dumps(said)}\n```</answer>")]))
        made.append(Group(task, episodes))
    return made


def measure(rounds: int, tasks: int) -> dict[str, dict[str, float]]:
    found = {}
    work = groups(tasks, BOXES)
    for name, (params, goal) in VERIFIERS.items():
        verifier = build(name.split()[0], params)
        rates = []
        for _ in range(rounds + 1):
            began = time.process_time()
            scores = [s for group in work for s in verifier.score(group, Context())]
            rates.append(len(scores) / (time.process_time() - began))
            assert all(s.ok for s in scores)
        rates = sorted(rates[1:])  # the first round loads what is imported late
        found[name] = {"answers_per_s": round(statistics.median(rates)), "best": round(rates[-1]), "goal": goal}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tasks", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    found = measure(options.rounds, options.tasks)
    result = {
        "boxes": BOXES,
        "verifiers": found,
        **provenance(["python", "benchmarks/speed/verifiers.py", *sys.argv[1:]], 1),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, row in found.items():
        print(f"{name:24} {row['answers_per_s']:7.0f} answers/s (goal {row['goal']:.0f})")
    return int(any(row["answers_per_s"] < row["goal"] for row in found.values()))


if __name__ == "__main__":
    sys.exit(main())
