"""Eight kinds of visual tasks in one batch, each sample with a verifier and weights of its own (V-Triune, arXiv 2505.18129).

    "triune"                          all eight, dealt in turn
    "triune:counting,grounding"       some of them
    "triune:grounding_loose"          for warm starts: the box in `meta["response"]` is up to four pixels off on each side

Reasoning: `maths` (a printed sum or difference), `puzzle` (the odd one out), `chart`, `science` (which way a lever tips). Perception:
`grounding` (one box), `detection` (a list of boxes), `counting`, `ocr`. Puzzle, chart, grounding, counting and ocr are families of
`fovea.tasks.worlds`, detection is "detect:ovd"; maths and science are drawn here, and their held-out fifth is told by what is drawn.

The reward of a sample is (w_acc · accuracy + w_fmt · format) / (w_acc + w_fmt), its parts and weights in `Task.params`. The IoU that a box
must reach rises over the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from fovea.tasks import detect, worlds
from fovea.tasks.endless import SPLITS, Endless
from fovea.tasks.worlds import draw, split_of
from fovea.tasks.worlds.families import numbers
from fovea.types import Task, user

RISING = ((0.10, 0.5), (0.25, 0.6), (1.0, 0.7))
"""V-Triune's 0.85, 0.95, 0.99 in reach of boxes of some fifteen pixels."""
WEIGHTS = (1.0, 0.1)
"""Of accuracy and format."""


def _rng(kind: str, index: int, split: str, seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, SPLITS.index(split), index, *kind.encode()])))


def _maths(index: int, split: str, seed: int) -> Task:
    rng = _rng("maths", index, split, seed)
    while True:
        a, b, plus = int(rng.integers(10)), int(rng.integers(10)), bool(rng.integers(2))
        a, b = (a, b) if plus else (max(a, b), min(a, b))
        text, gold = (f"{a}+{b}", a + b) if plus else (f"{a}-{b}", a - b)
        if split_of(("maths", text)) == split:
            return _plain("What does it come to?", str(gold), draw.lettering(text, "printed", rng), answer=gold, verifier="number")


def _science(index: int, split: str, seed: int) -> Task:
    """A lever with up to four unit weights on either side, one to three steps from the middle."""
    rng = _rng("science", index, split, seed)
    while True:
        (n, m), (p, q) = rng.integers(1, 5, 2).tolist(), rng.integers(1, 4, 2).tolist()
        if split_of(("science", n, m, p, q)) == split:
            break
    gold = "same" if n * p == m * q else "left" if n * p > m * q else "right"
    ink, hues = (70, 78, 96), rng.permutation(list(draw.PALETTE.values()))[:2]
    figures: list[tuple[list[draw.Point], tuple[int, int, int]]] = [
        ([(2, 44), (62, 44), (62, 46), (2, 46)], ink),
        ([(32, 46), (40, 60), (24, 60)], ink),
    ]
    for side, count, arm, hue in ((-1, n, p, hues[0]), (1, m, q, hues[1])):
        x = 32 + side * 9 * arm
        for k in range(count):
            top = 44 - 9 * (k + 1)
            figures.append(([(x - 4, top), (x + 4, top), (x + 4, top + 8), (x - 4, top + 8)], (int(hue[0]), int(hue[1]), int(hue[2]))))
    for step in range(-3, 4):
        figures.append(([(31.5 + 9 * step, 46), (32.5 + 9 * step, 46), (32.5 + 9 * step, 48), (31.5 + 9 * step, 48)], ink))
    return _plain("Which side goes down: left, right or the same?", gold, draw.polygons(figures, draw.PAPERS[0]))


def _plain(question: str, gold: str, picture: Any, **fields: Any) -> Task:
    meta = {"gold": gold, "response": f"<answer>{gold}</answer>"}
    return Task("", "", user(question), (picture,), **{"answer": gold, **fields}, meta=meta)


def _world(family: str, index: int, split: str, seed: int) -> Task:
    return worlds.make(family, index, split, seed)


def _grounding(index: int, split: str, seed: int) -> Task:
    return replace(worlds.make("find", index, split, seed), params={"threshold": RISING})


def _grounding_loose(index: int, split: str, seed: int) -> Task:
    task = _grounding(index, split, seed)
    box = detect.loosened(_rng("loose", index, split, seed), task.answer)
    return replace(task, meta={**task.meta, "response": f"<think>{task.meta['look']}</think><answer>{numbers(box)}</answer>"})


def _detection(index: int, split: str, seed: int) -> Task:
    task = detect.make("ovd", index, split, seed)
    gold = task.meta["response"].removeprefix("<answer>").removesuffix("</answer>")
    return replace(task, verifier="boxes", params={**task.params, "threshold": RISING}, meta={**task.meta, "gold": gold})


KINDS: dict[str, Callable[[int, str, int], Task]] = {
    "maths": _maths,
    "puzzle": partial(_world, "odd"),
    "chart": partial(_world, "chart"),
    "science": _science,
    "grounding": _grounding,
    "detection": _detection,
    "counting": partial(_world, "count"),
    "ocr": partial(_world, "read"),
}
EXTRA: dict[str, Callable[[int, str, int], Task]] = {"grounding_loose": _grounding_loose}
"""For warm starts, and none of the eight."""
TAGS = {kind: ("answer",) if kind in ("grounding", "detection", *EXTRA) else ("think", "answer") for kind in (*KINDS, *EXTRA)}
"""What a response must look like: boxes need no thought."""


@dataclass(frozen=True)
class Triune(Endless):
    """Deals its kinds in turn: item i is the (i // K)-th task of kind i mod K.

    Attributes:
      kinds: names of `KINDS`, and of `EXTRA`.
    """

    kinds: Sequence[str] = tuple(KINDS)

    @classmethod
    def named(cls, what: str, split: str, seed: int) -> Triune:
        """
        Raises:
          ValueError: an unknown kind, with the known ones.
        """
        kinds = tuple(k for k in what.split(",") if k) or tuple(KINDS)
        unknown = [k for k in kinds if k not in (*KINDS, *EXTRA)]
        if unknown:
            raise ValueError(f"triune: no kind {', '.join(unknown)}; there are: {', '.join(KINDS)}")
        return cls(kinds, split=split, seed=seed)

    def deal(self, i: int) -> Task:
        turn, which = divmod(i, len(self.kinds))
        kind = self.kinds[which]
        task = (KINDS | EXTRA)[kind](turn, self.split, self.seed)
        accuracy, form = WEIGHTS
        parts = {
            "accuracy": (accuracy, task.verifier, dict(task.params)),
            "format": (form, "format", {"tags": TAGS[kind], "counted": True}),
        }
        return replace(
            task,
            id=f"{kind}/{self.split}/{self.seed}/{turn}",
            source=kind,
            verifier="weighted",
            params={"parts": parts, "correct_from": "accuracy", "mean": True},
        )
