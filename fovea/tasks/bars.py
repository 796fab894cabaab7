"""Bars with a hint in the question: "Is it 4? How tall is the red bar?"

    "bars"         the hint is right in 70 % of the tasks while training; held out, source "hinted" keeps that and "broken" never is right
    "bars:warm"    what a start is taught: to describe all bars, every second height wrong, before a right answer; and, without a
                     picture, to answer from a description

The description is ``red 3 blue 7 green 2``, bars from left to right. `meta` holds it as "caption", the bar that is asked for as "asked",
and a second question as `meta["probes"]["other"]`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from fovea.tasks.endless import Endless
from fovea.tasks.worlds import draw, make
from fovea.types import Task, user

KINDS = ("", "warm")
RIGHT, WRONG_FACTS = 0.7, 0.5  # shares of right hints, and of wrong heights in what a start is taught


@dataclass(frozen=True)
class Bars(Endless):
    """See the file's head.

    Attributes:
      what: one of `KINDS`.
    """

    what: str = ""

    @classmethod
    def named(cls, what: str, split: str, seed: int) -> Bars:
        """
        Raises:
          ValueError: an unknown kind, with the known ones.
        """
        if what not in KINDS:
            raise ValueError(f"data 'bars:{what}': no such kind; there are: {', '.join(map(repr, KINDS))}")
        return cls(what, split=split, seed=seed)

    def deal(self, i: int) -> Task:
        rng = self.rng(i)
        broken = self.split == "heldout" and i % 2 == 1
        task = make("chart", i, self.split, self.seed, 1)
        heights, question = facts(task.meta["caption"]), str(task.prompt[0]["content"][-1]["text"])
        asked = next(c for c in heights if f" {c} " in question)
        other = next(c for c in heights if c != asked)
        right = heights[asked]
        hint = right if not broken and rng.random() < RIGHT else wrong(rng, right)
        meta = {
            **task.meta,
            "asked": asked,
            "hint": hint,
            "probes": {"other": (question.replace(asked, other), heights[other])},
            "response": f"<think>{task.meta['caption']}</think><answer>{right}</answer>",
        }
        task = replace(
            task,
            id=task.id.replace("chart", "hinted", 1),
            source="broken" if broken else "hinted",
            prompt=user(f"Is it {hint}? {question}"),
            meta=meta,
        )
        return self._warm(task, question, rng, reads=i % 4 == 3) if self.what == "warm" else task

    def _warm(self, task: Task, question: str, rng: np.random.Generator, reads: bool) -> Task:
        said = {c: wrong(rng, h) if rng.random() < WRONG_FACTS else h for c, h in facts(task.meta["caption"]).items()}
        described = " ".join(f"{c} {h}" for c, h in said.items())
        if not reads:
            return replace(task, meta={**task.meta, "response": f"<think>{described}</think><answer>{task.answer}</answer>"})
        asked, height = task.meta["asked"], said[task.meta["asked"]]
        hint = f"Is it {rng.integers(1, draw.CHART_MAX + 1)}? " if rng.random() < 0.5 else ""
        look = described.replace(f"{asked} {height}", f"{asked} {height} is {height}")
        meta = {**task.meta, "response": f"<think>{look}</think><answer>{height}</answer>"}
        return replace(task, prompt=user(as_practised(described, hint + question), images=0), images=(), answer=height, meta=meta)


def as_practised(description: str, question: str) -> str:
    """A description and a question in the form in which the tiny base has practised to answer without a picture."""
    return f"{description.title()}\n{question}"


def facts(description: str) -> dict[str, int]:
    """Heights by colour of "red 3 blue 7", as far as it reads so; a colour named again counts as said last."""
    said = description.split()
    return {c: int(h) for c, h in pairwise(said) if c in draw.PALETTE and h.isdecimal() and len(h) < 4}


def wrong(rng: np.random.Generator, right: int) -> int:
    """Another height."""
    return (right - 1 + int(rng.integers(1, draw.CHART_MAX))) % draw.CHART_MAX + 1
