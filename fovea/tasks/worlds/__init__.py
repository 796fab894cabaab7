"""Procedural visual tasks: infinite, seeded, ten families, three levels, and a held-out split by construction.

A task is a pure function of (family, split, seed, index, level). The *logical content* of a picture (which shapes of which colour in
which cell; which bars; which number or word) is hashed, and the hash alone says whether that picture belongs to training or to the
held-out fifth, whatever family, seed or index draws it: a held-out scene can never be drawn in training.

    >>> task = make("count", 0, split="heldout")
    >>> gold_response(task)
    '<answer>3</answer>'
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL.Image import Image

from fovea.tasks.endless import SPLITS, Endless
from fovea.tasks.worlds.families import FAMILIES, Family, Item, scene_boxes
from fovea.types import Task, user

__all__ = ["FAMILIES", "SPLITS", "Family", "World", "describe", "draw_item", "glance_response", "gold_response", "make", "split_of"]

LEVELS = (1, 2, 3)


def split_of(key: tuple[Any, ...]) -> str:
    """The split that a picture with this logical content belongs to; one in five is held out."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return "heldout" if int.from_bytes(digest, "big") % 5 == 0 else "train"


def draw_item(family: str, index: int, split: str = "train", seed: int = 0, level: int | None = None) -> tuple[Item, int]:
    """The index-th item of a family and its level; `level=None` draws one of 1, 2, 3. Rejects until the picture is in `split`."""
    if family not in FAMILIES:
        raise ValueError(f"family: found {family!r}, expected one of {', '.join(FAMILIES)}")
    if split not in SPLITS:
        raise ValueError(f"split: found {split!r}, expected one of {', '.join(SPLITS)}")
    if level is not None and level not in LEVELS:
        raise ValueError(f"level: found {level!r}, expected 1, 2, 3 or None")
    entropy = [seed, list(FAMILIES).index(family), SPLITS.index(split), index]
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
    drawn = int(rng.integers(1, 4))
    while True:
        item = FAMILIES[family].sample(rng, level or drawn)
        if split_of(item.key) == split:
            return item, level or drawn


def make(
    family: str, index: int, split: str = "train", seed: int = 0, level: int | None = None, paint: Callable[[Item], Image] | None = None
) -> Task:
    """The index-th task of a family. `meta` holds family, level, split, key and the texts that pretraining uses.

    paint: draws the item in another way than its own.
    """
    item, drawn = draw_item(family, index, split, seed, level)
    meta = {
        "family": family,
        "level": drawn,
        "split": split,
        "key": repr(item.key),
        "gold": item.gold,
        "response": f"<answer>{item.gold}</answer>",
        "look": item.look,
        "glance": item.glance,
        "caption": item.caption,
        "boxes": scene_boxes(item.things),
    }
    return Task(
        id=f"{family}/{split}/{seed}/{index}" + (f"/L{level}" if level else ""),
        source=family,
        prompt=user(item.question),
        images=(paint(item) if paint else item.paint(),),
        answer=item.answer,
        verifier=item.verifier,
        params=item.params,
        meta=meta,
    )


def describe(task: Task) -> str:
    """What somebody who looks first would note about this task's picture before answering."""
    return task.meta["look"]


def gold_response(task: Task) -> str:
    """A response that earns the full score."""
    return task.meta["response"]


def glance_response(task: Task) -> str:
    """The slip of somebody who answers at a glance: well formed and wrong."""
    return f"<answer>{task.meta['glance']}</answer>"


@dataclass(frozen=True)
class World(Endless):
    """Deals the families in turn: item i is the (i // F)-th task of family i mod F.

    Attributes:
      families: names; all ten by default.
      levels: levels dealt in turn, or empty for a random level per task.
    """

    families: Sequence[str] = tuple(FAMILIES)
    levels: Sequence[int] = ()

    @classmethod
    def named(cls, what: str, split: str, seed: int) -> World:
        """The families of "count,colour"; all of them for "".

        Raises:
          ValueError: an unknown family, with the known ones.
        """
        names = tuple(n for n in what.split(",") if n) or tuple(FAMILIES)
        if unknown := [n for n in names if n not in FAMILIES]:
            raise ValueError(f"data 'worlds:{what}': no family {', '.join(unknown)}; there are: {', '.join(FAMILIES)}")
        return cls(names, split=split, seed=seed)

    def deal(self, i: int) -> Task:
        turn, which = divmod(i, len(self.families))
        level = self.levels[turn % len(self.levels)] if self.levels else None
        return make(self.families[which], turn, self.split, self.seed, level)
