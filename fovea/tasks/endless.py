"""What procedural sources share: tasks without end, of two splits, dealt without state."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from fovea.types import Task

SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class Endless(ABC):
    """A source whose task i is a pure function of its fields and i.

    Attributes:
      split: "train" or "heldout". seed: another seed is another stream of the same split.
    """

    split: str = field(default="train", kw_only=True)
    seed: int = field(default=0, kw_only=True)

    @abstractmethod
    def deal(self, i: int) -> Task:
        """Task i, from 0 on."""

    def __getitem__(self, i: int) -> Task:
        if i < 0:
            raise IndexError(f"index: found {i}, expected 0 or more ({type(self).__name__} has no end to count from)")
        return self.deal(i)

    def __iter__(self) -> Iterator[Task]:
        return map(self.deal, itertools.count())

    def heldout(self) -> Self:
        return replace(self, split="heldout")

    def rng(self, *address: int) -> np.random.Generator:
        """The generator of what has this address in this split and stream."""
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, SPLITS.index(self.split), *address])))
