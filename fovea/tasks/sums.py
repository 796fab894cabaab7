"""Two shapes to be read and added: few words of the answer depend on the picture.

    >>> Sums.named("", "train", 0)[0].meta["response"]
    '<think>row 1 column 1 is circle 1 and row 3 column 1 is triangle 3 / so the answer is</think><answer>4</answer>'

Shapes stand in the four corners; a circle counts 1, then square, triangle, star and cross 2 to 5. A response says what it reads between
words that the question decides. ``noisy`` is for warm starts: each shape of `meta["response"]` is guessed in 4 of 10 cases, and the sum
follows what was read or guessed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fovea.math.options import check
from fovea.tasks.detect import CELLS
from fovea.tasks.endless import SPLITS, Endless
from fovea.tasks.worlds import draw, split_of
from fovea.tasks.worlds.families import COLOURS, SHAPES, one, pick, scatter, scene_key
from fovea.types import Task, user

FORMS = ("plain", "noisy")
GUESSED = 0.4


def value(shape: str) -> int:
    return SHAPES.index(shape) + 1


def said(first: str, m: str, second: str, n: str) -> str:
    """The response of somebody who reads shapes m and n in these places."""
    think = f"{first} is {m} {value(m)} and {second} is {n} {value(n)} / so the answer is"
    return f"<think>{think}</think><answer>{value(m) + value(n)}</answer>"


def make(index: int, split: str = "train", seed: int = 0, form: str = "plain") -> Task:
    """The index-th task of a split: a shape in each corner, of which two are asked for."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, FORMS.index(form), SPLITS.index(split), index])))
    while True:
        things = scatter(rng, [(one(rng, COLOURS), one(rng, SHAPES)) for _ in CELLS], CELLS)
        if split_of(("sums", *scene_key(things))) == split:
            break
    a, b = pick(rng, things, 2)
    total = value(a.shape) + value(b.shape)
    read = [one(rng, SHAPES) if form == "noisy" and rng.random() < GUESSED else t.shape for t in (a, b)]
    paper = draw.PAPERS[int(rng.integers(len(draw.PAPERS)))]
    return Task(
        id=f"sums/{form}/{split}/{seed}/{index}",
        source="sums",
        prompt=user(f"Add the shapes at {a.place} and {b.place}."),
        images=(draw.polygons([(t.points, draw.shade(t.colour, t.tint)) for t in things], paper),),
        answer=total,
        verifier="number",
        meta={"response": said(a.place, read[0], b.place, read[1]), "gold": str(total), "split": split},
    )


@dataclass(frozen=True)
class Sums(Endless):
    """See the file's head. form: "plain" or "noisy"."""

    form: str = "plain"

    @classmethod
    def named(cls, what: str, split: str, seed: int) -> Sums:
        """`what` is the form, "" for "plain".

        Raises:
          ValueError: an unknown form, with the known ones.
        """
        check("data 'sums': form", what or "plain", FORMS)
        return cls(what or "plain", split=split, seed=seed)

    def deal(self, i: int) -> Task:
        return make(i, self.split, self.seed, self.form)
