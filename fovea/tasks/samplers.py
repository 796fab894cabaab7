"""Which task next? Samplers whose whole state is a position: draw n of a run is a function of (seed, n), so resuming repeats nothing.

A source is anything with `source[i] -> Task`; one without a length is infinite and is read in order (its items are random already).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from fovea.types import Context, Group, Sampler, Task


def size_of(source: Any) -> int | None:
    """Number of tasks of a source, None when it is infinite."""
    if not hasattr(source, "__len__"):
        return None
    if len(source) == 0:
        raise ValueError("the source is empty; expected at least one task")
    return len(source)


def permutation(n: int, *address: int) -> np.ndarray:
    """A permutation of 0..n-1 that depends on nothing but its address."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(list(address)))).permutation(n)


class Sequential:
    """The tasks in their order, from the beginning again at the end."""

    def __init__(self, source: Any):
        self.source, self.position = source, 0
        self.size = size_of(source)

    def next(self, context: Context) -> Task:
        index = self.index(self.position)
        self.position += 1
        return self.source[index]

    def index(self, position: int) -> int:
        """The source's index that draw `position` takes."""
        return position if self.size is None else position % self.size

    def observe(self, groups: Sequence[Group]) -> None:
        """Nothing is learned from the groups."""

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "size": self.size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved position; a source of another size would silently be dealt differently, so that is an error."""
        if state.get("size", self.size) != self.size:
            raise ValueError(f"the saved sampler dealt a source of {state['size']} tasks, this one has {self.size}; the data has changed")
        self.position = int(state["position"])


class Shuffled:
    """Every task once per epoch, in an order addressed by (seed, epoch)."""

    def __init__(self, source: Any, seed: int = 0):
        self.source, self.seed, self.position = source, seed, 0
        self.size = size_of(source)
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def next(self, context: Context) -> Task:
        index = self.index(self.position)
        self.position += 1
        return self.source[index]

    def index(self, position: int) -> int:
        """The source's index that draw `position` takes."""
        if self.size is None:
            return position
        epoch, place = divmod(position, self.size)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, permutation(self.size, self.seed, epoch)
        return int(self._order[place])

    def observe(self, groups: Sequence[Group]) -> None:
        """Nothing is learned from the groups."""

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "size": self.size, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved position; another source or seed would silently be dealt differently, so that is an error."""
        if state.get("size", self.size) != self.size:
            raise ValueError(f"the saved sampler dealt a source of {state['size']} tasks, this one has {self.size}; the data has changed")
        if state.get("seed", self.seed) != self.seed:
            raise ValueError(f"the saved sampler had seed {state['seed']}, this one has seed {self.seed}")
        self.position = int(state["position"])


class Mixture:
    """Draws from several sources with given weights; draw n takes its part by a number addressed by (seed, n).

    Args:
      parts: (source or sampler, weight) pairs; a source is dealt by `Shuffled`.
    """

    def __init__(self, parts: Sequence[tuple[Any, float]], seed: int = 0):
        weights = [weight for _, weight in parts]
        if not parts or any(not w >= 0 for w in weights) or not sum(weights) > 0:
            raise ValueError(f"mixture weights are {weights}; expected at least one, none negative, with a positive sum")
        self.samplers: list[Sampler] = [p if isinstance(p, Sampler) else Shuffled(p, seed=seed + i) for i, (p, _) in enumerate(parts)]
        self.edges = [edge / sum(weights) for edge in itertools.accumulate(weights)]
        self.seed, self.position = seed, 0

    def next(self, context: Context) -> Task:
        draw = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, self.position]))).random()
        self.position += 1
        # the last edge may fall short of 1 by rounding
        part = next((i for i, edge in enumerate(self.edges) if draw < edge), len(self.edges) - 1)
        return self.samplers[part].next(context)

    def observe(self, groups: Sequence[Group]) -> None:
        for sampler in self.samplers:
            sampler.observe(groups)

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "parts": [s.state_dict() for s in self.samplers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state["parts"]) != len(self.samplers):
            raise ValueError(f"the saved mixture had {len(state['parts'])} parts, this one has {len(self.samplers)}")
        self.position = int(state["position"])
        for sampler, part in zip(self.samplers, state["parts"], strict=True):
            sampler.load_state_dict(part)
