"""Which episodes of a task are worth their time? Four answers of DART (arXiv 2509.23866) that are neither a method nor a trainer.

    dynamic rollouts    a task that succeeds often gets fewer episodes:  N = max(least, round(G (1 − s) / (1 − easy))) where s > easy
    dynamic length      an episode is cut after as many turns as the longest success of its task took
    experience pool     a group without a success gets one that is known of its task, in the place of its oldest episode
    mixed               groups whose members all earned the same do not train

s is the share of successes among the last WINDOW episodes. Departures from the paper: it gives no function for N, this is the one that
falls linearly from `easy` to 1; a recorded success is played again, so that its observations are whole and nothing of it is stored but its
words; where the environment is not a function of its start and seed, or of a task that is not drawn again, that is of no use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from fovea.math.options import check
from fovea.tasks.gates import corrects
from fovea.types import Episode, Group, Task

WINDOW = 32


@dataclass(frozen=True)
class Curation:
    """What is done; nothing by default.

    Attributes:
      rollouts: fewer episodes for tasks whose share of successes is above `easy` (paper: 0.6), at least `least`.
      turns: the length cap, `margin` times the longest success, and at least `least_turns`.
      pool: "own" adds the latest success of the task, "demonstrations" what the environment shows where there was none yet.
      mixed: drop groups whose members all earned the same.
      by: successes are counted for each "task", or for all tasks of a "source" together.
    """

    rollouts: bool = False
    easy: float = 0.6
    least: int = 2
    turns: bool = False
    margin: float = 1.0
    least_turns: int = 5
    pool: Literal["", "own", "demonstrations"] = ""
    mixed: bool = False
    by: Literal["task", "source"] = "task"

    def __post_init__(self) -> None:
        for name in ("pool", "by"):
            check(f"curation.{name}", getattr(self, name), get_args(get_type_hints(type(self))[name]))
        if not 0 <= self.easy < 1 or self.least < 1 or self.margin < 1 or self.least_turns < 1:
            raise ValueError(
                f"curation: easy = {self.easy}, least = {self.least}, margin = {self.margin}, least_turns = {self.least_turns}; expected "
                "a share below 1 and three numbers of at least 1"
            )


def rollouts(success: float, group_size: int, easy: float = 0.6, least: int = 2) -> int:
    """Episodes of a task with this share of successes: `group_size` up to `easy`, then linearly down, at least `least`."""
    return group_size if success <= easy else min(group_size, max(least, round(group_size * (1 - success) / (1 - easy))))


@dataclass(frozen=True)
class Recorded:
    """An episode that can be played again: what it said turn by turn, from which start. Without words the environment demonstrates."""

    said: tuple[str, ...] = ()
    place: tuple[int | str, ...] = ()


class Curator:
    """What `Curation` knows of the tasks so far; plain JSON."""

    def __init__(self, curation: Curation, group_size: int):
        self.curation, self.group_size = curation, group_size
        self.outcomes: dict[str, list[int]] = {}
        self.longest: dict[str, int] = {}
        self.pool: dict[str, Recorded] = {}

    def size(self, task: Task) -> int:
        """How many episodes of a task are played."""
        seen = self.outcomes.get(self._key(task))
        if not self.curation.rollouts or not seen:
            return self.group_size
        return rollouts(sum(seen) / len(seen), self.group_size, self.curation.easy, self.curation.least)

    def turns(self, task: Task) -> int:
        """After how many turns they are cut; 0 leaves that to the environment."""
        longest = self.longest.get(self._key(task))
        if not self.curation.turns or longest is None:
            return 0
        return max(self.curation.least_turns, math.ceil(longest * self.curation.margin))

    def rescue(self, group: Group) -> Recorded | None:
        """What may be played again for a group without a success."""
        if not self.curation.pool or not group.samples or any(corrects(group) or ()):
            return None
        return self.pool.get(group.task.id, Recorded() if self.curation.pool == "demonstrations" else None)

    def admit(self, group: Group) -> bool:
        """Whether a group trains: a gate that counts given episodes as members."""
        earned = [e.score.value for e in group.episodes if e.score is not None and e.score.ok and e.role in ("sample", "gold")]
        return not self.curation.mixed or max(earned, default=0.0) - min(earned, default=0.0) > 1e-6

    def observe(self, group: Group, places: Mapping[str, tuple[int | str, ...]]) -> None:
        """Count what a group came to. `places`: the random address of each episode, by its id."""
        won = [e for e in group.samples if e.score is not None and e.score.correct]
        key = self._key(group.task)
        self.outcomes[key] = [*self.outcomes.get(key, ()), *(int(e in won) for e in group.samples)][-WINDOW:]
        if won:
            self.longest[key] = max(self.longest.get(key, 0), *(len(e.turns) for e in won))
        if won and self.curation.pool:
            self.pool[group.task.id] = recorded(won[-1], places[won[-1].id])

    def state_dict(self) -> dict[str, Any]:
        pool = {task: {"said": list(r.said), "place": list(r.place)} for task, r in self.pool.items()}
        return {"outcomes": {k: list(v) for k, v in self.outcomes.items()}, "longest": dict(self.longest), "pool": pool}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.outcomes = {k: list(v) for k, v in state["outcomes"].items()}
        self.longest = dict(state["longest"])
        self.pool = {task: Recorded(tuple(r["said"]), tuple(r["place"])) for task, r in state["pool"].items()}

    def _key(self, task: Task) -> str:
        return task.id if self.curation.by == "task" else task.source


def recorded(episode: Episode, place: Sequence[int | str]) -> Recorded:
    return Recorded(tuple(turn.text for turn in episode.turns), tuple(place))
