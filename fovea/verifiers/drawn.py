"""Rewards of what a policy made: procedural ones of pictures, and the distance of a point. Any function of `Episode.drawn` is another one.

Those of pictures lie in [0, 1] but `compressibility`, which is in kilobytes, as in DDPO (Black et al. 2023). `nearness` is in no table of
names: tasks that ask for points carry it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL.Image import Image

from fovea.types import Context, Episode, Score, Verifier
from fovea.verifiers.core import PerEpisode, Unscorable


def on_picture(name: str, judge: Callable[[Image], float]) -> Verifier:
    """A verifier from a function of the picture that a policy drew; an episode without one is a failure."""

    def whole(episode: Episode, context: Context) -> float:
        if episode.drawn is None:
            raise Unscorable("the episode has no picture (Episode.drawn is None); expected a policy that draws")
        return judge(episode.drawn.convert("RGB"))

    return PerEpisode(name, whole)


def brightness() -> Verifier:
    """Mean of all colour values, 0 for a black picture and 1 for a white one."""
    return on_picture("brightness", lambda picture: float(np.asarray(picture).mean()) / 255)


def colour_target(*, colour: Sequence[float] = (255, 0, 0)) -> Verifier:
    """1 − mean distance of the pixels from `colour` (0 to 255), over the largest distance that there can be."""
    if len(colour) != 3 or not all(0 <= c <= 255 for c in colour):
        raise ValueError(f"colour_target: colour is {colour!r}; expected three numbers from 0 to 255")

    def judge(picture: Image) -> float:
        apart = np.linalg.norm(np.asarray(picture, dtype=float) - np.asarray(colour, dtype=float), axis=-1)
        return 1 - float(apart.mean()) / float(np.linalg.norm([max(c, 255 - c) for c in colour]))

    return on_picture("colour_target", judge)


def compressibility(*, quality: int = 95) -> Verifier:
    """Minus the kilobytes (1,000 bytes) of the picture as JPEG of this `quality` (DDPO)."""
    if not 1 <= quality <= 95:
        raise ValueError(f"compressibility: quality is {quality}; expected 1 to 95")

    def judge(picture: Image) -> float:
        file = io.BytesIO()
        picture.save(file, format="JPEG", quality=quality)
        return -file.tell() / 1000

    return on_picture("compressibility", judge)


def nearness(*, weight: float = 1.0, bias: float = 0.0) -> Verifier:
    """bias − weight · ‖point − gold‖², of a sample that is said as numbers; part "nearness" is that without the bias."""

    def judge(episode: Episode, context: Context) -> Score:
        gold, said = [float(x) for x in episode.task.answer], [float(x) for x in episode.text.split()]
        if len(said) != len(gold):
            raise Unscorable(f"the sample has {len(said)} numbers, the gold answer {len(gold)}; expected as many")
        near = -weight * sum((a - b) ** 2 for a, b in zip(said, gold, strict=True))
        return Score(bias + near, parts={"nearness": near})

    return PerEpisode("nearness", judge)


FACTORIES = {"brightness": brightness, "colour_target": colour_target, "compressibility": compressibility}
