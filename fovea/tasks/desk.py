"""Jobs at the desk of `fovea.envs.desk`.

    "desk"             the twelve kinds of job in turn
    "desk:mark,send"   some of them
    "desk:mark,each=4" so many jobs of each kind

As in OSWorld there is a fixed number of jobs, which come again in every epoch. A job is a pure function of (kind, split, seed, index).
Score is the return; right is a job that was done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fovea.envs.desk import JOBS, Desk
from fovea.envs.desk.jobs import deal
from fovea.envs.resolve import options
from fovea.tasks.worlds import SPLITS
from fovea.types import Task

EACH = 16


@dataclass(frozen=True)
class Jobs:
    """A source of `each` jobs of every kind, kind after kind.

    Attributes:
      kinds: keys of `JOBS`. split: "train" or "heldout", which differ in what is asked and where it stands. seed: another one, other jobs.
    """

    kinds: Sequence[str] = tuple(JOBS)
    each: int = EACH
    split: str = "train"
    seed: int = 0

    @classmethod
    def named(cls, what: str, split: str, seed: int) -> Jobs:
        """
        Raises:
          ValueError: an unknown kind or option, with the known ones.
        """
        kinds, given = options(cls, what, f"data 'desk:{what}'")
        if unknown := [k for k in kinds if k not in JOBS]:
            raise ValueError(f"data 'desk:{what}': no job {', '.join(unknown)}; there are: {', '.join(JOBS)}")
        if given.get("each", 1) < 1 or set(given) - {"each"}:
            raise ValueError(f"data 'desk:{what}': found {given}; expected each=N, at least 1")
        return cls(kinds or tuple(JOBS), given.get("each", EACH), split, seed)

    def heldout(self) -> Jobs:
        return replace(self, split="heldout")

    def __len__(self) -> int:
        return len(self.kinds) * self.each

    def __getitem__(self, i: int) -> Task:
        if not 0 <= i < len(self):
            raise IndexError(f"index: found {i}, expected 0 to {len(self) - 1}")
        index, which = divmod(i, len(self.kinds))
        kind = self.kinds[which]
        address = [self.seed, SPLITS.index(self.split), list(JOBS).index(kind), index]
        start = deal(np.random.Generator(np.random.Philox(np.random.SeedSequence(address))))
        name = f"{kind}/{self.split}/{self.seed}/{index}"
        task = Task(name, kind, (), verifier="return", meta={"job": kind, "start": start})
        first = Desk().reset(task, 0)
        return replace(task, prompt=first.messages, images=first.images)
