"""Procedural detection: a few small coloured shapes, and boxes to be told around those that are asked for.

    >>> source = Detect.named("ovd,rec", "train", 0)
    >>> source[0].meta["response"]
    '<answer>green 2 7 4 12, blue 11 6 13 9</answer>'

Kinds (several, separated by commas, are dealt in turn):

* ``ovd``: the shapes of three colours, some of which are not there: a list of labelled boxes, or "None";
* ``rec``: one named shape among up to five: one box;
* ``ovd_new``, ``rec_new``: the same with sides of lengths, and with pairs of colour and shape, that the others never show;
* ``ovd_noisy``, ``rec_noisy``: for warm starts: in `meta["response"]` a fifth of the boxes is wrong, and some are too many.

A picture has 64 x 64 pixels. Gold boxes are pixels, as for every verifier; an answer counts in `GRID` steps over a side, so that a
coordinate is a token or two. Which pictures are held out is decided by what is drawn, as in `fovea.tasks.worlds`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fovea.tasks.worlds import SPLITS, draw, split_of
from fovea.tasks.worlds.families import COLOURS, SHAPES, numbers, one, pick
from fovea.types import Task, user

GRID = 16
STEP = draw.SIZE // GRID
ASKED = 3
MOST = 5
NOISE = 0.2
SIDES, NEW_SIDES = (2, 3, 5), (4, 6)
NEW_PAIRS = frozenset((c, SHAPES[i % len(SHAPES)]) for i, c in enumerate(COLOURS))
"""Pairs of colour and shape that only the "new" kinds show: every colour and every shape is in one of them."""
TASKS = ("ovd", "rec")
FORMS = ("", "_new", "_noisy")
KINDS = tuple(t + f for f in FORMS for t in TASKS)

Cells = tuple[int, int, int, int]


@dataclass(frozen=True)
class Shape:
    """A drawn shape; `box` [x1, y1, x2, y2) in grid steps."""

    colour: str
    shape: str
    box: Cells

    @property
    def pixels(self) -> list[int]:
        return [STEP * v for v in self.box]

    @property
    def points(self) -> list[draw.Point]:
        """The outline stretched so that its bounds are the box."""
        points = draw.outline(self.shape, 0.0, 0.0, 1.0)
        left, top, right, bottom = draw.bounds(points)
        x1, y1, x2, y2 = self.pixels
        return [(x1 + (x - left) / (right - left) * (x2 - x1), y1 + (y - top) / (bottom - top) * (y2 - y1)) for x, y in points]


def spot(rng: np.random.Generator, sides: Sequence[int], taken: Sequence[Shape]) -> Cells | None:
    """A box a step apart from those that are there, or None where no room was found."""
    for _ in range(30):
        w, h = one(rng, sides), one(rng, sides)
        x, y = int(rng.integers(GRID - w + 1)), int(rng.integers(GRID - h + 1))
        if all(x > t.box[2] or x + w < t.box[0] or y > t.box[3] or y + h < t.box[1] for t in taken):
            return x, y, x + w, y + h
    return None


def scene(rng: np.random.Generator, likely: Sequence[str], new: bool) -> tuple[Shape, ...]:
    """One to five shapes from top to bottom, three quarters of them in one of the `likely` colours."""
    shapes: list[Shape] = []
    for _ in range(int(rng.integers(1, MOST + 1))):
        colour = one(rng, likely if rng.random() < 0.75 else [c for c in COLOURS if c not in likely])
        allowed = [s for s in SHAPES if ((colour, s) in NEW_PAIRS) == new]
        box = spot(rng, NEW_SIDES if new else SIDES, shapes)
        if box is not None:
            shapes.append(Shape(colour, one(rng, allowed), box))
    return tuple(sorted(shapes, key=lambda s: (s.box[1], s.box[0])))


def wrong(rng: np.random.Generator, box: Cells) -> Cells:
    """The box moved by one to three steps along each axis, inside the picture."""
    out = list(box)
    for low in (0, 1):
        by = int(rng.integers(1, 4)) * (1 if rng.random() < 0.5 else -1)
        by = max(-box[low], min(GRID - box[low + 2], by))
        out[low], out[low + 2] = box[low] + by, box[low + 2] + by
    x1, y1, x2, y2 = out
    return x1, y1, x2, y2


def misread(rng: np.random.Generator, found: Sequence[tuple[str, Cells]], asked: Sequence[str]) -> list[tuple[str, Cells]]:
    """A fifth of the boxes moved, missed, named wrongly, or told twice with one of the two moved; a box of nothing where none is there."""
    said: list[tuple[str, Cells]] = []
    for label, box in found:
        if rng.random() >= NOISE:
            said.append((label, box))
            continue
        said += [
            [(label, wrong(rng, box))],
            [],
            [(one(rng, asked), box)],
            [(label, wrong(rng, box)), (label, box)],
            [(label, box), (label, wrong(rng, box))],
        ][int(rng.integers(5))]
    if not found and rng.random() < NOISE:
        said.append((one(rng, asked), spot(rng, SIDES, ()) or (0, 0, 2, 2)))
    return said


def written(found: Sequence[tuple[str, Cells]]) -> str:
    return "<answer>" + (", ".join(f"{label} {numbers(box)}" for label, box in found) or "None") + "</answer>"


def make(kind: str, index: int, split: str = "train", seed: int = 0) -> Task:
    """The index-th task of a kind.

    `meta` has `response` (the gold text, or the noisy one), `shapes` (colour, shape and pixel box of everything that is drawn), split, key.

    Raises:
      ValueError: an unknown kind or split.
    """
    if kind not in KINDS or split not in SPLITS:
        raise ValueError(f"detect: found kind {kind!r}, split {split!r}; expected one of {', '.join(KINDS)} and of {', '.join(SPLITS)}")
    task, _, form = kind.partition("_")
    entropy = [seed, KINDS.index(kind), SPLITS.index(split), index]
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
    while True:
        asked = pick(rng, COLOURS, ASKED)
        shapes = scene(rng, asked, form == "new")
        names = [(s.colour, s.shape) for s in shapes]
        key = ("detect", *((s.colour, s.shape, s.box) for s in shapes))
        if split_of(key) == split and (task == "ovd" or any(names.count(n) == 1 for n in names)):
            break
    noisy = form == "noisy"
    fields = _listing(rng, shapes, asked, noisy) if task == "ovd" else _naming(rng, shapes, noisy)
    response = fields.pop("response")
    paper, tints = draw.PAPERS[int(rng.integers(len(draw.PAPERS)))], rng.uniform(-10, 10, (len(shapes), 3))
    return Task(
        id=f"{kind}/{split}/{seed}/{index}",
        source=kind,
        images=(draw.polygons([(s.points, draw.shade(s.colour, t)) for s, t in zip(shapes, tints, strict=True)], paper),),
        meta={
            "response": response,
            "shapes": [{"colour": s.colour, "shape": s.shape, "box": s.pixels} for s in shapes],
            "split": split,
            "key": repr(key),
        },
        **fields,
    )


def _listing(rng: np.random.Generator, shapes: Sequence[Shape], asked: Sequence[str], noisy: bool) -> dict[str, Any]:
    found = [s for c in asked for s in shapes if s.colour == c]
    told = [(s.colour, s.box) for s in found]
    return {
        "prompt": user(f"List the {asked[0]}, {asked[1]} and {asked[2]} shapes with their boxes."),
        "answer": [{"label": s.colour, "bbox_2d": s.pixels} for s in found],
        "verifier": "detection",
        "params": {"scale": GRID},
        "response": written(misread(rng, told, asked) if noisy else told),
    }


def _naming(rng: np.random.Generator, shapes: Sequence[Shape], noisy: bool) -> dict[str, Any]:
    names = [(s.colour, s.shape) for s in shapes]
    target = one(rng, [s for s, n in zip(shapes, names, strict=True) if names.count(n) == 1])
    box = wrong(rng, target.box) if noisy and rng.random() < NOISE else target.box
    return {
        "prompt": user(f"Give the box of the {target.colour} {target.shape}."),
        "answer": target.pixels,
        "verifier": "box_iou",
        "params": {"graded": True, "scale": GRID},
        "response": f"<answer>{numbers(box)}</answer>",
    }


@dataclass(frozen=True)
class Detect:
    """An infinite source that deals the kinds in turn: item i is the (i // K)-th task of kind i mod K. It has no state.

    Attributes:
      kinds: names out of `KINDS`.
      split: "train" or "heldout".
      seed: another seed is another stream of the same split.
    """

    kinds: Sequence[str] = ("ovd",)
    split: str = "train"
    seed: int = 0

    @classmethod
    def named(cls, what: str, split: str, seed: int) -> Detect:
        """The source of ``data="detect:WHAT"``.

        Raises:
          ValueError: an unknown kind, named with the known ones.
        """
        kinds = tuple(k for k in what.split(",") if k) or ("ovd",)
        unknown = [k for k in kinds if k not in KINDS]
        if unknown:
            raise ValueError(f"data 'detect:{what}': no kind {', '.join(unknown)}; there are: {', '.join(KINDS)}")
        return cls(kinds, split, seed)

    def heldout(self) -> Detect:
        return Detect(self.kinds, "heldout", self.seed)

    def __getitem__(self, i: int) -> Task:
        if i < 0:
            raise IndexError(f"index: found {i}, expected 0 or more (the source has no end to count from)")
        turn, which = divmod(i, len(self.kinds))
        return make(self.kinds[which], turn, self.split, self.seed)
