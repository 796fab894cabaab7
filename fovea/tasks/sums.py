"""Two places of a grid to be added: few words of the answer depend on the picture.

    >>> Sums.named("", "train", 0)[0].meta["response"]
    '<think>row of yellow 2 and column of green 3 / so the answer is</think><answer>5</answer>'

A response says what it reads between words that are always the same. ``noisy`` is for warm starts: each number of `meta["response"]` is
guessed in 4 of 10 cases, and the sum follows what was read or guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fovea.math.options import check
from fovea.tasks.worlds import SPLITS, draw, split_of
from fovea.tasks.worlds.families import COLOURS, SHAPES, one, pick, scatter, scene_key
from fovea.types import Task, user

FORMS = ("plain", "noisy")
GUESSED = 0.4
SHOWN = 4


def said(first: str, row: int, second: str, column: int) -> str:
    think = f"row of {first} {row} and column of {second} {column} / so the answer is"
    return f"<think>{think}</think><answer>{row + column}</answer>"


def make(index: int, split: str = "train", seed: int = 0, form: str = "plain") -> Task:
    """The index-th task of a split: shapes of `SHOWN` colours, of two of which the row and the column are asked for."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, FORMS.index(form), SPLITS.index(split), index])))
    while True:
        things = scatter(rng, [(colour, one(rng, SHAPES)) for colour in pick(rng, COLOURS, SHOWN)])
        if split_of(("sums", *scene_key(things))) == split:
            break
    a, b = pick(rng, things, 2)
    true = (a.cell // 3 + 1, b.cell % 3 + 1)
    row, column = (int(rng.integers(1, 4)) if form == "noisy" and rng.random() < GUESSED else n for n in true)
    paper = draw.PAPERS[int(rng.integers(len(draw.PAPERS)))]
    return Task(
        id=f"sums/{form}/{split}/{seed}/{index}",
        source="sums",
        prompt=user(f"Add the row of the {a.colour} shape and the column of the {b.colour} shape."),
        images=(draw.polygons([(t.points, draw.shade(t.colour, t.tint)) for t in things], paper),),
        answer=sum(true),
        verifier="number",
        meta={"response": said(a.colour, row, b.colour, column), "gold": str(sum(true)), "split": split},
    )


@dataclass(frozen=True)
class Sums:
    """An infinite source without state. form: "plain" or "noisy"; split, seed: as in `fovea.tasks.worlds.World`."""

    form: str = "plain"
    split: str = "train"
    seed: int = 0

    @classmethod
    def named(cls, what: str, split: str, seed: int) -> Sums:
        """`what` is the form, "" for "plain".

        Raises:
          ValueError: an unknown form, with the known ones.
        """
        check("data 'sums': form", what or "plain", FORMS)
        return cls(what or "plain", split, seed)

    def heldout(self) -> Sums:
        return replace(self, split="heldout")

    def __getitem__(self, i: int) -> Task:
        return make(i, self.split, self.seed, self.form)
