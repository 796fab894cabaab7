"""Find a shape that may not be there: boxes of shapes, "none" where the picture shows writing or a chart instead.

"absent"             present and absent in turn; held out also the counts of the `count` family, which training never asks for
"absent:mislabelled" the same, each with the gold response of another task: a control
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fovea.tasks.endless import Endless
from fovea.tasks.worlds import make
from fovea.types import Task

KINDS = ("", "mislabelled")


@dataclass(frozen=True)
class Absent(Endless):
    """See the file's head.

    Attributes:
      what: one of `KINDS`.
    """

    what: str = ""

    @classmethod
    def named(cls, what: str, split: str, seed: int) -> Absent:
        """
        Raises:
          ValueError: an unknown kind, with the known ones.
        """
        if what not in KINDS:
            raise ValueError(f"data 'absent:{what}': no such kind; there are: {', '.join(map(repr, KINDS))}")
        return cls(what, split=split, seed=seed)

    def deal(self, i: int) -> Task:
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
        """A question about a shape, put to a picture of writing or of a bar chart."""
        task, other = self._present(i), make(("read", "chart")[i // 2 % 2], i, self.split, self.seed)
        meta = {**other.meta, "family": "absent", "gold": "none", "response": "<answer>none</answer>"}
        return Task(task.id.replace("find", "absent", 1), "absent", task.prompt, other.images, "none", "exact", meta=meta)
