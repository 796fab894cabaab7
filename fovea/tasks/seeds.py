"""Starts of an environment, for simulators that deal their own tasks: "seeds:NAME", where NAME is what the metrics are called.

    fovea train --data seeds:grid --environment minigrid:BabyAI-GoToLocal-v0
    fovea train --data seeds:click-test-2,click-tab --environment miniwob       in turn, each by its name

Task i is a seed, the same every time; training and held-out seeds are different ones. Score is the return.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fovea.tasks.gym import start_seed
from fovea.types import Task, user


@dataclass(frozen=True)
class Seeds:
    """An infinite source without state.

    Attributes:
      name: of the source. Several, with commas between, take turns; `meta["what"]` tells the environment which it is.
      split: "train" or "heldout". seed: another seed is another stream of the same split.
    """

    name: str = "start"
    split: str = "train"
    seed: int = 0

    @classmethod
    def named(cls, what: str, split: str, seed: int) -> Seeds:
        return cls(what or "start", split, seed)

    def heldout(self) -> Seeds:
        return replace(self, split="heldout")

    def __getitem__(self, i: int) -> Task:
        if i < 0:
            raise IndexError(f"index: found {i}, expected 0 or more (seeds have no end to count from)")
        names = self.name.split(",")
        name, i = names[i % len(names)], i // len(names)
        start = start_seed(name, self.split, self.seed, i)
        meta = {"seed": start, "what": name} if len(names) > 1 else {"seed": start}
        return Task(f"{name}/{self.split}/{self.seed}/{i}", name, user(f"Start {start}", images=0), verifier="return", meta=meta)
