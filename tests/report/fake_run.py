"""A deterministic run that was never trained: real procedural tasks, invented answers that get better, and the numbers they give."""

from __future__ import annotations

import math
import random
from pathlib import Path

import torch

from fovea.batch import Batch, collate
from fovea.report.metrics import batch_metrics, group_metrics, interval, time_metrics
from fovea.report.run import RunFolder
from fovea.tasks import worlds
from fovea.types import Context, Episode, Group, Score, Segment, Task, Turn

FAMILIES = tuple(worlds.FAMILIES)


class Words:
    """A tokenizer of whole pieces: ids stand for the pieces it has seen."""

    def __init__(self):
        self.pieces: list[str] = []

    def ids(self, pieces: list[str]) -> list[int]:
        for p in pieces:
            if p not in self.pieces:
                self.pieces.append(p)
        return [self.pieces.index(p) for p in pieces]

    def decode_text(self, ids, skip_special=True):
        return "".join(self.pieces[i] for i in ids)


def skill(step: int, steps: int, family: str) -> float:
    """Invented chance of a right answer, rising from about .35 to .9, at another pace for each family."""
    k = FAMILIES.index(family)
    return 0.30 + 0.02 * k + (0.58 - 0.02 * k) / (1 + math.exp(-9 * (step / steps - 0.25 - 0.04 * k)))


def episode(task: Task, rng: random.Random, p: float, words: Words, id: str) -> Episode:
    right = rng.random() < p
    answer = worlds.gold_response(task) if right else worlds.glance_response(task)
    inner = answer.removeprefix("<answer>").removesuffix("</answer>")
    thought = ["I", " look", " at", " the", " picture", ":", " "] if rng.random() < p else []
    cut = not thought and rng.random() < 0.05
    pieces = [*thought, "<answer>", *(f"{w} " for w in inner.split()[:-1]), inner.split()[-1], *([] if cut else ["</answer>", "<|end|>"])]
    ids = words.ids(pieces)
    sure = [0.55 + 0.45 * rng.random() if q.startswith("<") else max(0.02, rng.random() ** (1.5 - p)) for q in pieces]
    T = len(ids)
    segment = Segment(
        prefix=None,
        actions=torch.tensor(ids),
        mask=torch.ones(T, dtype=torch.bool),
        logp_old=torch.tensor([math.log(s) for s in sure]),
        turn=torch.zeros(T, dtype=torch.long),
        version=torch.zeros(T, dtype=torch.long),
    )
    text = "".join(q for q in pieces if q != "<|end|>")
    score = Score(
        0.9 * (right and not cut) + 0.1 * (not cut),
        {"answer": float(right and not cut), "format": float(not cut)},
        correct=right and not cut,
    )
    return Episode(id, task, segments=[segment], turns=[Turn(text)], stop="length" if cut else "eos", score=score)


def groups_at(
    step: int, steps: int, words: Words, tasks: int = 12, group_size: int = 8, split: str = "train", seed: int = 0
) -> list[Group]:
    rng = random.Random(f"{seed} {step} {split}")
    out = []
    for n in range(tasks):
        family = FAMILIES[n % len(FAMILIES)]
        task = worlds.make(family, step * tasks + n if split == "train" else n, split=split)
        members = [episode(task, rng, skill(step, steps, family), words, f"{step}-{n}-{g}") for g in range(group_size)]
        out.append(Group(task, members))
    return out


def credited(groups: list[Group], step: int) -> Batch:
    batch = collate(groups, Context(step, 100, step))
    mean_E = torch.stack([batch.score_E[batch.group_E == g].mean() for g in batch.group_E])
    batch.adv_BT = batch.per_row(batch.score_E - mean_E) * batch.mask_BT
    return batch


def evaluation(groups: list[Group]) -> dict[str, float]:
    """Held-out numbers under the names that the trainer uses."""
    out: dict[str, float] = {}
    for family in FAMILIES:
        found = [e.score.correct for g in groups for e in g.episodes if g.task.source == family]
        out[f"eval/accuracy/{family}"] = sum(found) / len(found)
    n = sum(len(g.episodes) for g in groups)
    accuracy = sum(out.values()) / len(out)
    low, high = interval(accuracy * n, n)
    return {"eval/accuracy": accuracy, "eval/accuracy_low": low, "eval/accuracy_high": high, **out}


def fake_step(step: int, steps: int, words: Words, **sizes) -> tuple[list[Group], Batch, dict[str, float]]:
    """Groups, credited batch and metrics of one step."""
    rng = random.Random(step)
    groups = groups_at(step, steps, words, **sizes)
    batch = credited(groups, step)
    done = step / steps
    metrics = group_metrics(groups) | batch_metrics(batch)
    metrics |= {
        "length/tokens": float(sum(e.length for g in groups for e in g.episodes)),
        "length/episodes": float(sum(len(g.episodes) for g in groups)),
        "policy/entropy": 0.9 * math.exp(-1.6 * done) + 0.04 * rng.random(),
        "policy/kl": 4e-4 + 6e-4 * rng.random(),
        "policy/clip_frac": 0.004 + 0.01 * rng.random(),
        "optim/grad_norm": 0.4 + 0.5 * rng.random() + 0.5 * math.exp(-5 * done),
        "optim/learning_rate": 3e-4 * min(1.0, step / 5),
        "loss/total": 1e-6 * rng.random(),
    }
    parts = {"generate": 1.1 + 0.2 * rng.random(), "score": 0.05, "prepare": 0.1, "update": 0.8 + 0.1 * rng.random()}
    metrics |= time_metrics({**parts, "step": sum(parts.values())}, metrics["length/tokens"], metrics["length/episodes"])
    return groups, batch, metrics


def write(path: Path, steps: int = 60, eval_every: int = 10, rollout_every: int = 5, tensorboard: bool = False, **sizes) -> RunFolder:
    """A whole fake run in `path`, report included."""
    words = Words()
    run = RunFolder(path, rollout_every=rollout_every, tensorboard=tensorboard)
    config = {"name": "tiny-worlds", "model": "tiny", "data": "worlds", "seed": 0, "steps": steps, "group_size": 8, "eval_tasks": 400}
    run.describe({**config, "method": {"type": "GRPO", "clip_low": 0.2, "clip_high": 0.28}}, ["fovea", "train", "--steps", str(steps)])
    for step in range(steps + 1):
        if step % eval_every == 0:
            held = groups_at(step, steps, words, tasks=100 if steps > 20 else 20, group_size=1, split="heldout")
            run.log(step, evaluation(held))
            run.log_groups(step, held, words, split="eval")
        if step:
            groups, batch, metrics = fake_step(step, steps, words, **sizes)
            run.log(step, metrics)
            run.log_groups(step, groups, words, batch)
    run.write_report()
    return run
