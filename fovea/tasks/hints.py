"""Questions of the worlds behind a hint: a shortcut in the text that holds in training and breaks when it counts.

    >>> Hints.named("count", "train", 0)[0].prompt[0]["content"][-1]["text"]
    'Hint: 2. How many circles are there?'

In training the hint is the answer in 17 of 20 tasks, else the answer to the same question about another picture; held out it always is
that. ``kept:count,colour`` keeps the hint as good when held out. ``noisy:count,colour`` is for warm starts: `meta["response"]` looks at the
picture in half of the tasks; in the others it describes, where it should look, another picture for which the hint is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fovea.math.options import check
from fovea.tasks.endless import SPLITS, Endless
from fovea.tasks.worlds import FAMILIES, World, describe, make
from fovea.tasks.worlds.families import Item
from fovea.types import Task, user

RIGHT = 0.85
LOOKS = 0.5
FORMS = ("broken", "kept", "noisy")


def hinted(task: Task, index: int, form: str, seed: int) -> Task:
    """`task` behind a hint; `meta["hint"]` holds it."""
    family, split = task.meta["family"], task.meta["split"]
    rng = np.random.default_rng([seed, FORMS.index(form), SPLITS.index(split), index])
    right = rng.random() < (0.0 if form == "broken" and split == "heldout" else RIGHT)
    question = task.prompt[0]["content"][-1]["text"]
    hint = task.meta["gold"] if right else another(family, question, rng).gold
    imagines = form == "noisy" and rng.random() >= LOOKS
    look = another(family, question, rng, gold=hint).look if imagines else describe(task)
    response = f"<think>{look}</think><answer>{hint if imagines else task.meta['gold']}</answer>"
    return replace(
        task, id=f"hint/{form}/{task.id}", prompt=user(f"Hint: {hint}. {question}"), meta={**task.meta, "hint": hint, "response": response}
    )


def another(family: str, question: str, rng: np.random.Generator, gold: str | None = None) -> Item:
    """An item for which the same is asked; with `gold`, one that has this answer."""
    while True:
        item = FAMILIES[family].sample(rng, int(rng.integers(1, 4)))
        if item.question == question and gold in (None, item.gold):
            return item


@dataclass(frozen=True)
class Hints(Endless):
    """Item i is that of `fovea.tasks.worlds.World`, behind a hint.

    Attributes:
      families: of the worlds, dealt in turn.
      form: "broken", "kept" or "noisy" (see above).
    """

    families: Sequence[str]
    form: str = "broken"

    @classmethod
    def named(cls, what: str, split: str, seed: int) -> Hints:
        """``FAMILIES`` or ``FORM:FAMILIES``.

        Raises:
          ValueError: an unknown form or family, with the known ones.
        """
        form, _, families = what.rpartition(":")
        check("data 'hints': form", form or "broken", FORMS)
        return cls(World.named(families, split, seed).families, form or "broken", split=split, seed=seed)

    def deal(self, i: int) -> Task:
        turn, which = divmod(i, len(self.families))
        return hinted(make(self.families[which], turn, self.split, self.seed), i, self.form, self.seed)
