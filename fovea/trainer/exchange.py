"""Tasks are dealt to the processes by position; the finished groups come back to all of them.

Random draws are addressed by task and sample, so it does not matter which process draws them. Pixels and other prompt data stay where they
were made: an episode knows its `home`, the process that will compute its rows.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fovea.rollout.sampling import Sampling
from fovea.trainer.distributed import Team
from fovea.types import Context, Episode, Group, Observation, Prefix, Task, Turn
from fovea.verifiers.scorer import TooManyUnscored


def rollout(
    team: Team,
    engine: Any,
    tasks: Sequence[Task],
    group_size: int,
    sampling: Sampling,
    context: Context,
    *,
    members: Sequence[str] = (),
    score: Any = None,
    on_progress: Callable[..., None] | None = None,
    attempt: int = 0,
) -> list[Group]:
    """`engine.rollout` of all tasks, each on one process; every process returns all groups, in the order of `tasks`.

    Raises:
      TooManyUnscored: more than the allowed fraction of all episodes, on every process alike.
    """
    options: dict[str, Any] = {"members": members, "on_progress": on_progress, "attempt": attempt}
    if team.size == 1:
        return engine.rollout(tasks, group_size, sampling, context, score=score, **options)
    named = _named_apart(tasks)

    def make(positions: Sequence[int]) -> list[Group]:
        if not positions:
            return []
        own = _Lenient(score) if score is not None else None
        return engine.rollout([named[i] for i in positions], group_size, sampling, context, score=own, **options)

    groups = shared(team, tasks, make)
    if score is not None:
        score.check([e for g in groups for e in g.episodes])
    return groups


def shared(team: Team, tasks: Sequence[Task], make: Callable[[Sequence[int]], list[Group]]) -> list[Group]:
    """`make(positions)` on every process for its share of `tasks`; all groups, in order, on all of them."""
    if team.size == 1:
        return make(range(len(tasks)))
    own: list[Group] = []

    def work() -> list[list[Episode]]:
        own.extend(make(range(team.rank, len(tasks), team.size)))
        return [[_to_send(e) for e in g.episodes] for g in own]

    parts = team.gather(work)
    held = {s.prefix.key: s.prefix for g in own for e in g.episodes for s in e.segments if s.prefix is not None}
    out = []
    for position, task in enumerate(tasks):
        index, rank = divmod(position, team.size)
        prompt = Observation(task.prompt, task.images)
        episodes = own[index].episodes if rank == team.rank else parts[rank][index]
        for e in episodes:
            e.task, e.home = task, rank
            e.turns = [t if t.observation is not None else replace(t, observation=prompt) for t in e.turns]
            for s in e.segments:
                # a prompt that this process holds too must stay the one with its pixels in the batch's table
                s.prefix = held.get(s.prefix.key, s.prefix) if s.prefix is not None else None
        out.append(Group(task, episodes))
    return out


class _Lenient:
    """A scorer for one process's share: how many episodes may fail is asked of all shares together."""

    def __init__(self, score: Any):
        self.score, self.submit = score, score.submit

    def finish(self) -> None:
        with contextlib.suppress(TooManyUnscored):
            self.score.finish()


def _named_apart(tasks: Sequence[Task]) -> list[Task]:
    """A task that occurs again is named as the engine would name it if it saw all tasks, so that it draws the same."""
    seen, out = Counter[str](), []
    for task in tasks:
        out.append(replace(task, id=f"{task.id}#{seen[task.id]}") if seen[task.id] else task)
        seen[task.id] += 1
    return out


def _to_send(e: Episode) -> Episode:
    """The episode without what the receiver has (its task, the prompt in its turns) or does not need (prompt data)."""
    task: Any = None
    segments = [replace(s, prefix=Prefix(s.prefix.key, None, s.prefix.length) if s.prefix is not None else None) for s in e.segments]
    return replace(e, task=task, segments=segments, turns=[_without_prompt(t, e.task) for t in e.turns])


def _without_prompt(turn: Turn, task: Task) -> Turn:
    seen = turn.observation
    same = seen.messages is task.prompt and len(seen.images) == len(task.images) and all(map(lambda a, b: a is b, seen.images, task.images))
    nothing: Any = None
    return replace(turn, observation=nothing) if same else turn
