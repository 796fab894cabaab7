"""Walks through houses for `fovea.envs.house`.

    "house"         the three kinds in turn: "near" (a thing in the same room), "next" (in the room next door), "far" (farther)
    "house:near"    one of them; several are separated by commas
    "house:near,side=224,reply=json"    options of the environment, which shows the tasks as it will

A walk is a pure function of (kind, split, seed, index). One house in five is held out. Score is the return; right is a stop near the goal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fovea.envs.house import KINDS, House
from fovea.envs.resolve import options
from fovea.tasks.worlds import SPLITS, split_of
from fovea.types import Task


@dataclass(frozen=True)
class Walks:
    """An infinite source without state, kind after kind; see the file's head.

    Attributes:
      kinds: keys of `KINDS`. split: "train" or "heldout". seed: another seed is another stream of the same split.
      shown: options of `House`.
    """

    kinds: Sequence[str] = tuple(KINDS)
    split: str = "train"
    seed: int = 0
    shown: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def named(cls, what: str, split: str, seed: int) -> Walks:
        """
        Raises:
          ValueError: an unknown kind or option, with the known ones.
        """
        kinds, shown = options(House, what, f"data 'house:{what}'")
        if unknown := [k for k in kinds if k not in KINDS]:
            raise ValueError(f"data 'house:{what}': no kind {', '.join(unknown)}; there are: {', '.join(KINDS)}")
        return cls(kinds or tuple(KINDS), split, seed, shown)

    def heldout(self) -> Walks:
        return replace(self, split="heldout")

    def __getitem__(self, i: int) -> Task:
        if i < 0:
            raise IndexError(f"index: found {i}, expected 0 or more (walks have no end to count from)")
        index, which = divmod(i, len(self.kinds))
        kind = self.kinds[which]
        rng = np.random.Generator(
            np.random.Philox(np.random.SeedSequence([self.seed, SPLITS.index(self.split), list(KINDS).index(kind), index]))
        )
        while split_of(("house", house := int(rng.integers(2**31)))) != self.split:
            pass
        task = Task(id=f"{kind}/{self.split}/{self.seed}/{index}", source=kind, prompt=(), verifier="return", meta={"house": (kind, house)})
        first = House(**self.shown).reset(task, 0)
        return replace(task, prompt=first.messages, images=first.images)
