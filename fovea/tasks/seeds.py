"""Starts of an environment, for simulators that deal their own tasks: "seeds:NAME", where NAME is what the metrics are called.

    fovea train --data seeds:grid --environment minigrid:BabyAI-GoToLocal-v0
    fovea train --data seeds:click-test-2,click-tab --environment miniwob       in turn, each by its name

Task i is a seed, the same every time; training and held-out seeds are different ones. Score is the return.
"""

from __future__ import annotations

from dataclasses import dataclass

from fovea.tasks.endless import Endless
from fovea.tasks.gym import start_seed
from fovea.types import Task, user


@dataclass(frozen=True)
class Seeds(Endless):
    """See the file's head.

    Attributes:
      name: of the source. Several, with commas between, take turns; `meta["what"]` tells the environment which it is.
    """

    name: str = "start"

    @classmethod
    def named(cls, what: str, split: str, seed: int) -> Seeds:
        return cls(what or "start", split=split, seed=seed)

    def deal(self, i: int) -> Task:
        names = self.name.split(",")
        name, i = names[i % len(names)], i // len(names)
        start = start_seed(name, self.split, self.seed, i)
        meta = {"seed": start, "what": name} if len(names) > 1 else {"seed": start}
        return Task(f"{name}/{self.split}/{self.seed}/{i}", name, user(f"Start {start}", images=0), verifier="return", meta=meta)
