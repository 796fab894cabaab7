"""Whether readers of a description could answer from it: the verdicts about an episode's branches."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fovea.types import Context, Episode, Group, Score, Task
from fovea.verifiers.core import Unscorable, reason_of

READER = "reader"
"""The branch that answers the task's own question; every other one answers the probe of its name."""


def asked(task: Task, branch: str) -> Task:
    """The task that a branch answers: the task's own, or the question and answer in `meta["probes"][branch]`.

    Raises:
      Unscorable: the task has no such probe.
    """
    if branch == READER:
        return task
    probes = task.meta.get("probes", {})
    if branch not in probes:
        raise Unscorable(f"task {task.id!r} has no probe {branch!r}; its meta['probes'] has {', '.join(probes) or 'none'}")
    return replace(task, answer=probes[branch][1])


@dataclass(frozen=True)
class Readers:
    """1 where every reader's answer is right by the task's own verifier, 0 where one is wrong or nobody had anything to read."""

    name: str = "readers"
    scope: str = field(default="episode", init=False)

    def score(self, group: Group, context: Context) -> list[Score]:
        return [self._one(e, context) for e in group.episodes]

    def _one(self, episode: Episode, context: Context) -> Score:
        try:
            verdicts = [self._verdict(episode, name, context) for name in episode.branches]
        except Exception as error:
            return Score.failed(f"{self.name}: {reason_of(error)}")
        if failed := [v.reason for v in verdicts if not v.ok]:
            return Score.failed(f"{self.name}: {failed[0]}")
        right = bool(verdicts) and all(v.value >= 1 if v.correct is None else v.correct for v in verdicts)
        return Score(float(right), {"read": float(bool(verdicts))}, correct=right)

    def _verdict(self, episode: Episode, branch: str, context: Context) -> Score:
        from fovea.verifiers import resolve

        task = asked(episode.task, branch)
        said = Episode(f"{episode.id}/{branch}", task, turns=list(episode.branches[branch]))
        return resolve(task).score(Group(task, [said]), context)[0]


def readers() -> Readers:
    """1 when everybody who read only the episode's description answered right, by the task's own verifier; 0 where nobody read."""
    return Readers()
