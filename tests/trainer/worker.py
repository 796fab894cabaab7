"""One process of a team: runs the jobs of a JSON file one after the other; each leaves its weights and metrics, or its error.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=… MASTER_PORT=… python -m tests.trainer.worker JOBS.json

A job is {"out": folder, "changes": recipe fields, "event": what happens on the way}. The same `run` serves a single process.
"""

import json
import os
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

import fovea
from fovea.methods.grpo import GRPO
from fovea.types import Task, user
from tests.policies.tiny_checkpoints import picture

RANK = int(os.environ.get("RANK", "0"))
SIZES = ((56, 56), (112, 56), (84, 140), (56, 112), (112, 112))


class Pictures:
    """Questions about pictures of several sizes: every third has two, every fourth none. Fewer than a step's tasks, so some come twice."""

    name = "pictures"

    def __init__(self, n: int = 4, broken_on: int = -1, shown: bool = True):
        self.n, self.broken_on, self.shown, self.read = n, broken_on, shown, 0

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Task:
        self.read += 1
        if self.broken_on == RANK and self.read > 10:
            raise OSError("the disk is gone")
        count = 0 if i % 4 == 3 or not self.shown else 1 + (i % 3 == 0)
        images = tuple(picture(10 * i + k, *SIZES[(i + k) % len(SIZES)]) for k in range(count))
        meta = {"response": f"{i} red squares", "chosen": f"red {i}", "rejected": "blue square 9"}
        return Task(f"p/{i}", "pictures", user(f"How many circles {i}", count), images, answer=str(i), meta=meta)


class Reward:
    """A score that differs from answer to answer; on process `rank`, call number `call` does something else instead."""

    def __init__(self, event: str = "", rank: int = 0, call: int = 0):
        self.event, self.rank, self.call, self.calls = event, rank, call, 0

    def __call__(self, answer: str, task: Task) -> float:
        self.calls += 1
        if self.event == "huge":
            return 1e39 if self.calls > self.call else 0.0
        if self.event and self.rank == RANK and self.calls == self.call:
            os.kill(os.getpid(), signal.Signals[self.event])
        return sum(answer.encode()) % 7 / 7 + len(answer) % 3


@dataclass(frozen=True)
class Broken(GRPO):
    """Fails in the loss on one process."""

    on: int = 0

    def loss(self, out, batch):
        if self.on == RANK:
            raise ArithmeticError("the abacus is broken")
        return super().loss(out, batch)


def run(job: dict) -> "fovea.api.Run":
    changes, event = dict(job["changes"]), dict(job.get("event", {}))
    stop, broken = event.pop("stop", None), event.pop("broken_on", -1)
    if "broken_loss" in event:
        changes["method"] = Broken(on=event.pop("broken_loss"))
    base = dict(
        method=changes.pop("method", "grpo"),
        data=Pictures(broken_on=broken, shown=changes.pop("data", "") != "text"),
        heldout=Pictures(3),
        reward=Reward(**event),
        dtype="float64",
        tasks_per_step=5,
        group_size=3,
        micro_batch=2,
        max_rows=8,
        steps=5,
        learning_rate=1e-3,
        sampling__max_new_tokens=5,
        eval_tasks=0,
        checkpoint_every=2,
        quiet=True,
    )
    return fovea.train("grpo", out=job["out"], on_step=lambda step, metrics: step == stop, **{**base, **changes})


def weights(policy) -> dict[str, torch.Tensor]:
    return {k: p.detach().clone().contiguous() for k, p in policy.model.named_parameters()}


def main(jobs: list[dict]) -> None:
    torch.set_num_threads(1)
    for job in jobs:
        out = Path(job["out"])
        try:
            trained = run(job)
            save_file(weights(trained.policy), out / f"weights-{RANK}.safetensors")
            (out / f"metrics-{RANK}.json").write_text(json.dumps(trained.metrics))
        except BaseException as e:
            traceback.print_exc()
            (out / f"error-{RANK}.txt").write_text(f"{type(e).__name__}: {e}")


if __name__ == "__main__":
    from tests.trainer.worker import main  # under its own name, which a run stores

    main(json.loads(Path(sys.argv[1]).read_text()))
