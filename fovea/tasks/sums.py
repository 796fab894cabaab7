"""Four coloured digits, two of which are to be added: few words of the answer depend on the picture.

    >>> Sums.named("", "train", 0)[0].meta["response"]
    '<think>the numbers to read and to add are: yellow 0 and orange 2 / so the two give</think><answer>2</answer>'

A response says what it reads between words that are always the same. ``noisy`` is for warm starts: each digit of `meta["response"]` is
misread in 3 of 10 cases, and the sum follows what was read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from fovea.math.options import check
from fovea.tasks.worlds import SPLITS, draw, split_of
from fovea.tasks.worlds.families import COLOURS, pick
from fovea.types import Task, user

FORMS = ("plain", "noisy")
MISREAD = 0.3


def paint(rng: np.random.Generator, digits: list[tuple[str, int]]) -> Image.Image:
    """One digit in each quarter of the picture, in pen strokes."""
    half, side = draw.SIZE / 2, draw.SIZE * draw.SS
    paper = draw.PAPERS[int(rng.integers(len(draw.PAPERS)))]
    big = Image.new("RGB", (side, side), paper)
    for i, (colour, digit) in enumerate(digits):
        x, y = half * (i % 2) + rng.uniform(3, 8), half * (i // 2) + rng.uniform(3, 6)
        box = (draw.SS * x, draw.SS * y, draw.SS * (x + 18), draw.SS * (y + 23))
        tint = draw.shade(colour, rng.uniform(-10, 10, 3).tolist())
        big.paste(tint, mask=draw.glyph(str(digit), rng, box, side, rng.uniform(2.5, 4) * draw.SS))
    return big.resize((draw.SIZE, draw.SIZE), Image.Resampling.BOX)


def said(a: tuple[str, int], b: tuple[str, int]) -> str:
    (first, m), (second, n) = a, b
    think = f"the numbers to read and to add are: {first} {m} and {second} {n} / so the two give"
    return f"<think>{think}</think><answer>{m + n}</answer>"


def make(index: int, split: str = "train", seed: int = 0, form: str = "plain") -> Task:
    """The index-th task of a split."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, FORMS.index(form), SPLITS.index(split), index])))
    while True:
        digits = [(c, int(rng.integers(10))) for c in pick(rng, COLOURS, 4)]
        if split_of(("sums", *digits)) == split:
            break
    a, b = pick(rng, digits, 2)
    read = [(c, int(rng.integers(10)) if form == "noisy" and rng.random() < MISREAD else d) for c, d in (a, b)]
    return Task(
        id=f"sums/{form}/{split}/{seed}/{index}",
        source="sums",
        prompt=user(f"Add the {a[0]} number and the {b[0]} number."),
        images=(paint(rng, digits),),
        answer=a[1] + b[1],
        verifier="number",
        meta={"response": said(*read), "gold": str(a[1] + b[1]), "split": split},
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
