"""Find a shape that may not be there: boxes of shapes, "none" for those that the picture does not show.

"absent"             present and absent in turn; held out also the counts of the `count` family, which training never asks for
"absent:mislabelled" the same, each with the gold response of another task: a control
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fovea.tasks.worlds import SPLITS, draw_item, make
from fovea.tasks.worlds.families import COLOURS, SHAPES, Item, numbers, one
from fovea.types import Task, user

KINDS = ("", "mislabelled")


@dataclass(frozen=True)
class Absent:
    """An infinite source without state; see the file's head.

    Attributes:
      what: one of `KINDS`. split: "train" or "heldout". seed: another seed is another stream of the same split.
    """

    what: str = ""
    split: str = "train"
    seed: int = 0

    @classmethod
    def named(cls, what: str, split: str, seed: int) -> Absent:
        """
        Raises:
          ValueError: an unknown kind, with the known ones.
        """
        if what not in KINDS:
            raise ValueError(f"data 'absent:{what}': no such kind; there are: {', '.join(map(repr, KINDS))}")
        return cls(what, split, seed)

    def heldout(self) -> Absent:
        return replace(self, split="heldout")

    def __getitem__(self, i: int) -> Task:
        task = self._task(i)
        if self.what == "mislabelled" and self.split == "train":
            return replace(task, meta={**task.meta, "response": self._task(i + 1).meta["response"]})
        return task

    def _task(self, i: int) -> Task:
        kinds = (self._present, self._absent, lambda i: make("count", i, self.split, self.seed, 1))
        return kinds[i % (2 if self.split == "train" else 3)](i)

    def _present(self, i: int) -> Task:
        return make("find", i, self.split, self.seed, 1)

    def _absent(self, i: int) -> Task:
        """The question about a shape that is not in the picture, of a colour or kind that is."""
        task, (item, _), rng = self._present(i), draw_item("find", i, self.split, self.seed, 1), self._rng(i)
        there = {(t.colour, t.shape) for t in item.things}
        hues, kinds = {c for c, _ in there}, {s for _, s in there}
        near = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in there and (c in hues or s in kinds)]
        asked = item.question.replace(target(item), " ".join(one(rng, near)))
        meta = {**task.meta, "family": "absent", "gold": "none", "response": "<answer>none</answer>"}
        name = task.id.replace("find", "absent", 1)
        return Task(name, "absent", user(asked), task.images, "none", "exact", meta=meta)

    def _rng(self, i: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, SPLITS.index(self.split), i])))


def target(item: Item) -> str:
    """The shape that a question of the `find` family asks for at level 1: colour and kind."""
    return next(t.name for t in item.things if numbers(t.box) == item.gold)
