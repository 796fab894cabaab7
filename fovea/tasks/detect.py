"""Procedural detection: a few small coloured shapes, and boxes to be told around those that are asked for.

    >>> source = Detect.named("ovd,rec", "train", 0)
    >>> source[0].meta["response"]
    '<answer>orange 47 6 61 18, purple 6 46 18 58</answer>'

Kinds (several, separated by commas, are dealt in turn):

* ``ovd``: the shapes of three colours, some of which are not there: a list of labelled boxes, or "None";
* ``rec``: one named shape among up to four: one box;
* ``ovd_new``, ``rec_new``: the same with smaller shapes, and with pairs of colour and shape, that the others never show;
* ``ovd_noisy``, ``rec_noisy``: for warm starts: in `meta["response"]` a fifth of the boxes is wrong, and some are too many;
* ``ovd_loose``, ``rec_loose``: for warm starts: the boxes of `meta["response"]` are right but for up to four pixels on each side.

Shapes stand as in `fovea.tasks.worlds`, where the tiny model learned to see, and the same pictures are held out. Boxes are in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fovea.tasks.endless import SPLITS, Endless
from fovea.tasks.worlds import draw, split_of
from fovea.tasks.worlds.families import COLOURS, SHAPES, Thing, numbers, one, pick, scatter, scene_key
from fovea.types import Task, user

ASKED = 3
CELLS = (0, 2, 6, 8)
"""The corners of the 3 x 3 grid: few enough places that a short warm start finds most shapes."""
NOISE = 0.2
SPREAD = 4
SMALLER = 2.3
"""Pixels by which a radius of the "new" kinds is less than that of any other, 6.3 to 8.3."""
NEW_PAIRS = frozenset((c, SHAPES[i % len(SHAPES)]) for i, c in enumerate(COLOURS))
"""Pairs of colour and shape that only the "new" kinds show: every colour and every shape is in one of them."""
TASKS = ("ovd", "rec")
FORMS = ("", "_new", "_noisy", "_loose")
KINDS = tuple(t + f for f in FORMS for t in TASKS)

Box = tuple[int, int, int, int]


def scene(rng: np.random.Generator, likely: Sequence[str], new: bool) -> tuple[Thing, ...]:
    """One to four shapes in reading order, three quarters of them in one of the `likely` colours."""
    pairs = []
    for _ in range(int(rng.integers(1, len(CELLS) + 1))):
        colour = one(rng, likely if rng.random() < 0.75 else [c for c in COLOURS if c not in likely])
        pairs.append((colour, one(rng, [s for s in SHAPES if ((colour, s) in NEW_PAIRS) == new])))
    things = scatter(rng, pairs, pick(rng, CELLS, len(pairs)))
    return tuple(replace(t, r=t.r - SMALLER) for t in things) if new else things


def wrong(rng: np.random.Generator, box: Box) -> Box:
    """The box moved by 3 to 10 pixels along each axis, inside the picture."""
    out = list(box)
    for low in (0, 1):
        by = int(rng.integers(3, 11)) * (1 if rng.random() < 0.5 else -1)
        by = max(-box[low], min(draw.SIZE - box[low + 2], by))
        out[low], out[low + 2] = box[low] + by, box[low + 2] + by
    x1, y1, x2, y2 = out
    return x1, y1, x2, y2


def loosened(rng: np.random.Generator, box: Sequence[int]) -> Box:
    """The box with each side moved by up to `SPREAD` pixels, inside the picture."""
    x1, y1, x2, y2 = (min(draw.SIZE, max(0, int(c))) for c in box + rng.integers(-SPREAD, SPREAD + 1, 4))
    return x1, y1, x2, y2


def misread(rng: np.random.Generator, found: Sequence[tuple[str, Box]], asked: Sequence[str]) -> list[tuple[str, Box]]:
    """A fifth of the boxes moved, missed, named wrongly, or told twice with one of the two moved; a box of nothing where none is there."""
    said: list[tuple[str, Box]] = []
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
        said.append((one(rng, asked), wrong(rng, (24, 24, 40, 40))))
    return said


def written(found: Sequence[tuple[str, Box]]) -> str:
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
        things = scene(rng, asked, form == "new")
        names = [t.name for t in things]
        if split_of(scene_key(things)) == split and (task == "ovd" or any(names.count(n) == 1 for n in names)):
            break
    fields = _listing(rng, things, asked, form) if task == "ovd" else _naming(rng, things, form)
    response = fields.pop("response")
    paper = draw.PAPERS[int(rng.integers(len(draw.PAPERS)))]
    return Task(
        id=f"{kind}/{split}/{seed}/{index}",
        source=kind,
        images=(draw.polygons([(t.points, draw.shade(t.colour, t.tint)) for t in things], paper),),
        meta={
            "response": response,
            "shapes": [{"colour": t.colour, "shape": t.shape, "box": list(t.box)} for t in things],
            "split": split,
            "key": repr(scene_key(things)),
        },
        **fields,
    )


def _listing(rng: np.random.Generator, things: Sequence[Thing], asked: Sequence[str], form: str) -> dict[str, Any]:
    found = [(t.colour, t.box) for t in things if t.colour in asked]
    told = misread(rng, found, asked) if form == "noisy" else found
    told = [(label, loosened(rng, box)) for label, box in told] if form == "loose" else told
    return {
        "prompt": user(f"List the {asked[0]}, {asked[1]} and {asked[2]} shapes with their boxes."),
        "answer": [{"label": label, "bbox_2d": list(box)} for label, box in found],
        "verifier": "detection",
        "response": written(told),
    }


def _naming(rng: np.random.Generator, things: Sequence[Thing], form: str) -> dict[str, Any]:
    names = [t.name for t in things]
    target = one(rng, [t for t in things if names.count(t.name) == 1])
    box = wrong(rng, target.box) if form == "noisy" and rng.random() < NOISE else target.box
    box = loosened(rng, box) if form == "loose" else box
    return {
        "prompt": user(f"Find the {target.name}. Give its box."),
        "answer": list(target.box),
        "verifier": "box_iou",
        "params": {"graded": True},
        "response": f"<answer>{numbers(box)}</answer>",
    }


@dataclass(frozen=True)
class Detect(Endless):
    """Deals the kinds in turn: item i is the (i // K)-th task of kind i mod K.

    Attributes:
      kinds: names out of `KINDS`.
    """

    kinds: Sequence[str] = ("ovd",)

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
        return cls(kinds, split=split, seed=seed)

    def deal(self, i: int) -> Task:
        turn, which = divmod(i, len(self.kinds))
        return make(self.kinds[which], turn, self.split, self.seed)
