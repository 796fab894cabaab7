"""How busy environments are, and how many episodes train per second, with services that do not wait for each other and with a loop that
takes turns: the same recipe, model, machine and environments, of which there are sixteen whose answers take lognormal times (sigma 1).

    python benchmarks/speed/dart.py                      measures and writes benchmarks/speed/dart.json

An environment is busy while it carries out an action. The loop that takes turns plays one episode in each environment, waits for the last
of them, and trains; the services train on as many episodes per update. Both are measured from the end of their first step, in alternation.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import fovea
from fovea.envs.desk import Desk
from fovea.files import write_json
from fovea.methods.dart import DART
from fovea.report.run import surroundings
from fovea.rollout.sampling import Sampling
from fovea.rollout.services import Services

ENVIRONMENTS, GROUP = 16, 8
LOOPS = {"in turns": Services(), "services": Services(workers=1, newest=8)}


class Busy:
    """Adds up the seconds in which environments carry out an action."""

    def __init__(self) -> None:
        self.seconds, self.now, self.since = 0.0, 0, time.perf_counter()

    async def sleep(self, seconds: float) -> None:
        self.count(1)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.count(-1)

    def count(self, change: int) -> float:
        now = time.perf_counter()
        self.seconds += self.now * (now - self.since)
        self.now, self.since = self.now + change, now
        return self.seconds


def measure(services: Services, steps: int, latency: float, slow: bool, seed: int) -> dict[str, float]:
    """One run; what happened after its first step."""
    busy, marks = Busy(), []
    recipe = fovea.Recipe(
        name="dart-speed",
        data="desk",
        environment=partial(Desk, latency=latency, slow=slow, sleep=busy.sleep),
        reward=lambda text, task: float(len(text) % 2),  # an untrained policy earns it half of the time
        method=DART(beta=0.0),
        sampling=Sampling(max_new_tokens=8),
        tasks_per_step=ENVIRONMENTS // GROUP,
        group_size=GROUP,
        max_rows=ENVIRONMENTS,
        services=services,
        steps=steps + 1,
        eval_tasks=0,
        checkpoint_every=1000,
        log_every=1000,
        threads=1,
        seed=seed,
    )

    def on_step(step: int, metrics: dict[str, float]) -> None:
        marks.append((time.perf_counter(), busy.count(0), metrics))

    with tempfile.TemporaryDirectory() as folder:
        fovea.train(recipe, out=Path(folder) / "run", quiet=True, on_step=on_step)
    (began, before, _), (ended, after, _) = marks[0], marks[-1]
    wall, later = ended - began, [m for *_, m in marks[1:]]
    return {
        "busy": (after - before) / (ENVIRONMENTS * wall),
        "episodes_per_s": steps * ENVIRONMENTS / wall,
        "stale_frac": statistics.fmean(m.get("services/stale_frac", 0.0) for m in later),
        "staleness": statistics.fmean(m["policy/staleness"] for m in later),
        "update_s": statistics.fmean(m["time/update_s"] + m["time/prepare_s"] for m in later),
        "wall_s": wall,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", type=float, default=0.5, help="median of an environment's answer, in seconds")
    parser.add_argument("--by-turn", action="store_true", help="latency is drawn for every turn, not for every episode")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in LOOPS}
    for i in range(given.rounds):
        for name, services in LOOPS.items():
            found[name].append(measure(services, given.steps, given.latency, not given.by_turn, seed=i))
            print(name, json.dumps({k: round(v, 3) for k, v in found[name][-1].items()}), flush=True)
    medians = {name: {k: statistics.median(r[k] for r in rows) for k in rows[0]} for name, rows in found.items()}
    turns, services = medians["in turns"], medians["services"]
    result: dict[str, Any] = {
        "environments": ENVIRONMENTS,
        "latency_s": given.latency,
        "drawn_by": "turn" if given.by_turn else "episode",
        "steps": given.steps,
        "rounds": given.rounds,
        "medians": medians,
        "busy_ratio": services["busy"] / turns["busy"],
        "episodes_ratio": services["episodes_per_s"] / turns["episodes_per_s"],
        "hardware": {k: surroundings()[k] for k in ("processor", "cores")},
        "commit": surroundings()["commit"],
    }
    write_json(given.out, result)
    print(json.dumps({k: result[k] for k in ("busy_ratio", "episodes_ratio")}))


if __name__ == "__main__":
    main()
