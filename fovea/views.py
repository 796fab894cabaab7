"""Views: what a policy is shown in place of its pictures, in a second forward over the same answers.

A method names its views in `needs.views`; the streams "NAME/logp" are then those of the present weights under that view. A view is drawn
from an address (prompt, step and, with `per="response"`, episode), so every micro-batch, process and resumed run draws the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from fovea.images import rgb
from fovea.math.options import check

if TYPE_CHECKING:
    from collections.abc import Sequence

PER = ("prompt", "response")


@runtime_checkable
class View(Protocol):
    """`per` says whether the answers to a prompt share one drawing, and with it the prompt's forward. Called, it gives a picture of the
    same size.
    """

    @property
    def per(self) -> str: ...

    def __call__(self, image: Image.Image, draw: np.random.Generator) -> Image.Image: ...


@dataclass(frozen=True)
class PatchMask:
    """Blocks of the picture are black, each by its own draw (PAPO, arXiv 2507.06448; VPPO, arXiv 2510.09285).

    Attributes:
      probability: of a block to be black; 0 leaves the picture, 1 leaves nothing of it.
      patch: side of a block in pixels of the picture as given; blocks at the right and lower border are cut off.
      per: one drawing per "prompt" (its answers share it) or per "response".
    """

    probability: float = 0.6
    patch: int = 14
    per: Literal["prompt", "response"] = "prompt"

    def __post_init__(self) -> None:
        check("PatchMask.per", self.per, PER)
        if not 0 <= self.probability <= 1 or self.patch < 1:
            raise ValueError(f"PatchMask: probability {self.probability} and patch {self.patch}; expected 0 to 1, and 1 pixel or more")

    def __call__(self, image: Image.Image, draw: np.random.Generator) -> Image.Image:
        pixels_HW3 = np.array(rgb(image))
        high, wide = (-(-side // self.patch) for side in pixels_HW3.shape[:2])
        black_HW = np.kron(draw.random((high, wide)) < self.probability, np.ones((self.patch, self.patch), bool))
        pixels_HW3[black_HW[: pixels_HW3.shape[0], : pixels_HW3.shape[1]]] = 0
        return Image.fromarray(pixels_HW3)


def generator(address: Sequence[str | int]) -> np.random.Generator:
    """The draws of an address; texts are taken byte by byte."""
    words = [n for part in address for n in ((len(part), *part.encode()) if isinstance(part, str) else (part,))]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))
