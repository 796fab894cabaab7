"""CPU time of a training step by each system over one of plain GRPO at the same setting.

    python benchmarks/speed/methods.py                    measures and writes benchmarks/speed/methods.json

All take turns on the same fresh tasks, one thread on one core, on the checkpoint and pictures of `fovea bench step`. Systems that change
only the reward are measured with their verifier in place of a plain function; grpo-again is GRPO once more, a measure of the noise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from fovea.bench import measure, ours, workload
from fovea.methods.papo import PAPO
from fovea.methods.vision_sr1 import VisionSR1
from fovea.methods.visurf import ViSurf
from fovea.methods.vppo import VPPO
from fovea.rollout.programs import in_lines, words
from fovea.types import Observation, user
from fovea.verifiers import weighted
from fovea.verifiers.readers import READER

MOST = {"papo": 1.35, "vppo": 1.35, "visurf": 1.2, "vision-sr1": 2.1}
"""Aims; 1.05 for what changes the reward alone."""


async def read_all(task: Any, policy: Any, env: Any) -> None:
    """Vision-SR1's program with the whole answer as the description: random weights write no tags, and every answer must be read."""
    observation = env.reset(task, policy.seed)
    action = await policy.act(observation)
    policy.mark("described", [float(2 * i < len(action.token_ids)) for i in range(len(action.token_ids))])
    await policy.branch(READER).act(Observation(messages=user(in_lines(action.value, words(observation.messages)), images=0)))


def arms(cell: workload.Cell) -> dict[str, dict[str, Any]]:
    """System -> what it changes of plain GRPO's recipe. ViSurf's label joins the drawn answers, and a micro-batch is a group in all."""
    return {
        "grpo": {},
        "grpo-again": {},
        "papo": {"method": PAPO(beta=0.0)},
        "vppo": {"method": VPPO()},
        "visurf": {"method": ViSurf(beta=0.0), "micro_batch": cell.group_size + 1},
        "vision-sr1": {
            "method": VisionSR1(beta=0.0),
            "program": read_all,
            "reward": weighted({"answer": (0.9, ours.reward), "format": (0.1, "format"), "visual": (1.0, "readers")}),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cell", default="256+32", help="IMAGE+NEWxGROUP, as in fovea bench step")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each, after one that is not")
    parser.add_argument("--core", type=int)
    parser.add_argument("--only", default="", help="systems, separated by commas")
    parser.add_argument("--out", default=str(Path(__file__).with_suffix(".json")))
    options = parser.parse_args()
    cell = workload.Cell.parse(options.cell)
    chosen = {k: v for k, v in arms(cell).items() if not options.only or k in ("grpo", *options.only.split(","))}
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    with measure.single_thread(options.core), measure.quiet(), tempfile.TemporaryDirectory() as made:
        folder = workload.build_checkpoint(Path(made) / "model")
        trainers = {name: ours.Trainer(ours.recipe(folder, cell, **changes)) for name, changes in chosen.items()}
        for step in range(options.rounds + 1):
            tasks = ours.tasks(step, cell.image_tokens)
            order = list(trainers) if step % 2 else list(trainers)[::-1]
            took = {name: measure.timed(trainers[name], tasks).cpu_s for name in order}
            print(f"step {step}: " + ", ".join(f"{name} {s:.2f}" for name, s in took.items()), flush=True)
            for name, s in took.items() if step else ():
                seconds[name].append(s)
        words = measure.provenance(["python", "benchmarks/speed/methods.py", *sys.argv[1:]])
    ratios = {name: [s / g for s, g in zip(of, seconds["grpo"], strict=True)] for name, of in seconds.items() if name != "grpo"}
    systems = {
        name: {
            "ratio": round(statistics.median(r), 3),
            "ratio_min": round(min(r), 3),
            "ratio_max": round(max(r), 3),
            "cpu_s": round(statistics.median(seconds[name]), 3),
            "most": MOST.get(name, 1.05),
        }
        for name, r in ratios.items()
    }
    result = {"what": "CPU seconds of a step over GRPO's", "cell": str(cell), "rounds": options.rounds, "systems": systems, **words}
    Path(options.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(systems, indent=1))


if __name__ == "__main__":
    main()
