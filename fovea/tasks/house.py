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

from fovea.envs.house import KINDS, House
from fovea.envs.resolve import options
from fovea.tasks.endless import Endless
from fovea.tasks.worlds import split_of
from fovea.types import Task


@dataclass(frozen=True)
class Walks(Endless):
    """Kind after kind; see the file's head.

    Attributes:
      kinds: keys of `KINDS`.
      shown: options of `House`.
    """

    kinds: Sequence[str] = tuple(KINDS)
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
        return cls(kinds or tuple(KINDS), shown, split=split, seed=seed)

    def deal(self, i: int) -> Task:
        index, which = divmod(i, len(self.kinds))
        kind = self.kinds[which]
        rng = self.rng(list(KINDS).index(kind), index)
        while split_of(("house", house := int(rng.integers(2**31)))) != self.split:
            pass
        task = Task(id=f"{kind}/{self.split}/{self.seed}/{index}", source=kind, prompt=(), verifier="return", meta={"house": (kind, house)})
        first = House(**self.shown).reset(task, 0)
        return replace(task, prompt=first.messages, images=first.images)
