"""The on-policy loop without waiting: episodes go on while weights change (DART, arXiv 2509.23866). Blind to the method.

Four services: a cluster of environments and a rollout service (`fovea.rollout.services`), a data manager that knows what is to be played
and what may train, and the trainer, which is the session's own loop in its own thread; the other three share a thread beside it.

What is promised: every episode that was begun is trained on once or is counted as dropped, also across an interruption. A checkpoint names
the groups that were open; going on plays these again, from the same tasks. Numbers are not repeated, because they depend on time.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fovea.recipe import Recipe
from fovea.report.metrics import group_metrics
from fovea.rollout.engine import Engine
from fovea.rollout.services import Cluster, Copies, Job, RolloutService, Weights, running
from fovea.tasks.curation import Curator, Recorded
from fovea.trainer.on_policy import NothingToTrain, placeholders, produced, why
from fovea.trainer.update import trainable
from fovea.types import Context, Episode, Group, Sampler

PATIENCE_S = 0.2  # between two looks at whether somebody asks to stop


@dataclass
class Open:
    """A group that has been dealt and is neither trained on nor dropped.

    Attributes:
      before: the sampler's state before its task was drawn.
      seen: the episodes as they were played, before one made room for a recorded one.
      jobs: episodes that nobody has begun. left: how many have not ended.
    """

    number: int
    group: Group
    before: dict[str, Any]
    jobs: list[Job]
    left: int
    seen: Group
    places: dict[str, tuple[int | str, ...]]
    rescued: bool = False


class DataManager:
    """What is to be played, what has been, and what of it may train; it is asked from two threads.

    Attributes:
      published: versions of the weights that were handed out, oldest first.
      counts: groups and episodes by what became of them: "trained", "stale", "dropped" (of no use to the method, or not scored).
    """

    def __init__(self, recipe: Recipe, sampler: Sampler, curator: Curator, scorer: Any):
        self.recipe, self.sampler, self.curator, self.scorer = recipe, sampler, curator, scorer
        self.changed = threading.Condition()
        self.context = Context()
        self.open: dict[int, Open] = {}
        self.ready: list[int] = []
        self.again: list[Job] = []
        self.number, self.closed = 0, set[int]()
        self.published: list[int] = []
        self.counts: Counter[str] = Counter()
        self.wake, self.whole = asyncio.Event(), asyncio.Queue[Open]()
        self._settled: list[Group] = []

    # -- asked by the cluster -------------------------------------------------------------------------------------------------

    async def next(self) -> Job:
        """The next episode to be played; waits while enough of them wait to be trained on."""
        while True:
            self.wake.clear()
            with self.changed:
                if (job := self._next()) is not None:
                    return job
            await self.wake.wait()

    async def finished(self, job: Job) -> None:
        """An episode has ended; when it was its group's last one, the group can be judged."""
        with self.changed:
            group = self.open[job.group]
            group.left -= 1
            if group.left == 0:
                self.whole.put_nowait(group)

    async def judge(self) -> None:
        """Score whole groups, add what is recorded where it helps, and lay them ready; until cancelled."""
        while True:
            found = await self.whole.get()
            await asyncio.to_thread(self.scorer.score, [found.group], self.context)
            with self.changed:
                if not found.rescued:
                    self.curator.observe(found.group, found.places)
                    if (past := self.curator.rescue(found.group)) is not None:
                        self._rescue(found, past)
                        continue
                found.seen.episodes += [e for e in found.group.episodes if e.role == "gold" and e.score and not e.score.ok]  # is told of
                self.ready.append(found.number)
                self.changed.notify_all()

    def _next(self) -> Job | None:
        if self.again:
            return self.again.pop(0)
        for group in self.open.values():
            if group.jobs:
                return group.jobs.pop(0)
        ahead = self.recipe.tasks_per_step * max(1, self.recipe.services.newest - 1)
        return self._deal().jobs.pop(0) if len(self.ready) < ahead else None

    def _deal(self) -> Open:
        """Draw the next task that is not closed yet."""
        while True:
            before, task = self.sampler.state_dict(), self.sampler.next(self.context)
            number, self.number = self.number, self.number + 1
            if number not in self.closed:
                break
            self.closed.remove(number)
        name, recipe = f"{number}/{task.id}", self.recipe
        roles = ["sample"] * self.curator.size(task) + list(recipe.method.needs.members)
        episodes = [Episode(f"{name}/{e}", task, role) for e, role in enumerate(roles)]
        places = {e.id: (recipe.seed, "services", name, i) for i, e in enumerate(episodes)}
        jobs = [Job(e, number, places[e.id], self.curator.turns(task)) for e in episodes]
        group = Group(task, episodes)
        self.open[number] = Open(number, group, before, jobs, len(jobs), Group(task, list(episodes)), places)
        return self.open[number]

    def _rescue(self, found: Open, past: Recorded) -> None:
        """A recorded success takes the place of the episode that ended first in line."""
        given = Episode(f"{found.number}/{found.group.task.id}/pool", found.group.task, role="gold")
        first = next(i for i, e in enumerate(found.group.episodes) if e.role == "sample")
        found.group.episodes[first] = given
        found.rescued, found.left = True, 1
        place = past.place or next(iter(found.places.values()))
        self.again.append(Job(given, found.number, place, said=past.said))
        self.wake.set()

    # -- asked by the trainer -------------------------------------------------------------------------------------------------

    def take(self, count: int, most: int) -> tuple[list[Group], list[Group]] | None:
        """`count` groups that train now, oldest first, and as they were played all groups that were closed meanwhile; None: not yet.

        Those that cannot train any more are closed on the way; when `most` have been, what there is must do.
        """
        oldest = self.published[-self.recipe.services.newest :][0]
        fit: list[tuple[int, Group]] = []
        for number in sorted(self.ready):
            found = self.open[number]
            fresh = [e for e in found.group.episodes if made_by(e) >= oldest]
            kept = trainable([Group(found.group.task, fresh)], self.recipe.group_size)
            if kept and self.curator.admit(kept[0]):
                fit.append((number, kept[0]))
            else:
                self._close(number, "stale" if len(fresh) < len(found.group.episodes) else "dropped")
        if len(fit) < count and len(self._settled) < most:
            return None
        for number, _ in fit[:count]:
            self._close(number, "trained")
        seen, self._settled = self._settled, []
        return [group for _, group in fit[:count]], seen

    def _close(self, number: int, why: str) -> None:
        group = self.open.pop(number)
        self.ready.remove(number)
        self._settled.append(group.seen)
        self.counts[f"groups_{why}"] += 1
        self.counts[f"episodes_{why}"] += len(group.seen.episodes)

    def state_dict(self) -> dict[str, Any]:
        """The open groups by number, and the sampler as it was before the oldest of them was drawn."""
        with self.changed:
            first = min(self.open, default=self.number)
            sampler = self.open[first].before if first in self.open else self.sampler.state_dict()
            done = [n for n in range(first, self.number) if n not in self.open]
            ahead = sorted(n for n in self.closed if n >= self.number)
            return {
                "sampler": sampler,
                "next": first,
                "closed": done + ahead,
                "curator": self.curator.state_dict(),
                "counts": dict(self.counts),
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sampler.load_state_dict(state["sampler"])
        self.number, self.closed = int(state["next"]), set(state["closed"])
        self.curator.load_state_dict(state["curator"])
        self.counts = Counter(state["counts"])


def made_by(episode: Episode) -> int:
    """The version of the weights that drew an episode's oldest token."""
    return min(int(s.version[s.mask].min()) for s in episode.segments) if episode.segments else 0


class Asynchronous:
    """Takes groups of the services and hands them the weights; see the file's head.

    Args:
      engine: whose program, environment and `max_rows` the cluster takes.
      scorer: of the step: how many episodes may stay without a score. The manager's own scores them.
    """

    def __init__(self, recipe: Recipe, policy: Any, engine: Engine, manager: DataManager, scorer: Any):
        self.recipe, self.policy, self.engine, self.manager, self.scorer = recipe, policy, engine, manager, scorer
        self.unscored: Sequence[Group] = ()
        self.thread: threading.Thread | None = None
        self.failure: BaseException | None = None
        self.loop: Any = None
        self.stop: Any = None
        self.looked = (0.0, 0.0)  # seconds on the clock, and of play, when utilisation was last looked at

    def collect(self, context: Context, progress: Callable[..., None] | None) -> tuple[list[Group], dict[str, float]]:
        manager, count = self.manager, self.recipe.tasks_per_step
        self.publish(context)
        before = Counter(manager.counts)
        while (taken := self._take(count)) is None:
            if self.failure is not None:
                raise self.failure
            if progress is not None:
                progress(min(count - 1, len(manager.ready)), count)
        groups, seen = taken
        self.unscored = [g for g in seen if any(e.score is not None and not e.score.ok for e in g.episodes)]
        self.scorer.check([e for g in seen for e in g.episodes])
        if not groups:
            raise NothingToTrain(why(seen, self.recipe.max_resample, manager.curator if self.recipe.curation.mixed else None))
        metrics = group_metrics(seen) | produced(seen, given=False) | placeholders(self.engine, seen)
        return groups, metrics | self._metrics(groups, seen, manager.counts - before)

    def publish(self, context: Context) -> None:
        """Hand out the present weights, unless that has been done; the first time, start the services."""
        manager = self.manager
        with manager.changed:
            manager.context = context
            fresh = not manager.published or manager.published[-1] != context.policy_version
            if fresh:
                manager.published.append(context.policy_version)
        if not fresh:
            return
        if self.thread is None:
            self.crew = self._crew()
        held = {name: x.clone() for name, x in self.crew.published(self.policy).items()}
        weights = Weights(context.policy_version, held)
        if self.thread is None:
            self._start(weights, context)
        else:
            self.cluster.context = context
            self._tell(self.service.publish, weights)

    def state_dict(self) -> dict[str, Any]:
        return self.manager.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.manager.load_state_dict(state)

    def close(self) -> None:
        """End the services; what they are at is played again by a run that goes on."""
        if self.thread is not None:
            self._tell(self.stop.set)
            self.thread.join()
            self.thread = None
            self.crew.close()
        self.manager.scorer.close()

    def _tell(self, what: Callable[..., Any], *args: Any) -> None:
        """Have the services' thread call `what`, unless it has ended; why it did is raised where the step waits."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(what, *args)

    def _take(self, count: int) -> tuple[list[Group], list[Group]] | None:
        manager = self.manager
        with manager.changed:
            waiting = len(manager.ready)
            taken = manager.take(count, count * self.recipe.max_resample)
            if len(manager.ready) < waiting:
                self._tell(manager.wake.set)  # environments may rest because enough waited, of which nothing may be left
            if taken is None and self.failure is None:
                manager.changed.wait(PATIENCE_S)
        return taken

    def _metrics(self, groups: Sequence[Group], seen: Sequence[Group], counts: Mapping[str, int]) -> dict[str, float]:
        now = time.monotonic(), self.cluster.played_s
        wall, played = (a - b for a, b in zip(now, self.looked))
        self.looked = now
        versions = [{int(v) for s in e.segments for v in s.version[s.mask].unique()} for g in groups for e in g.episodes]
        episodes = sum(len(g.episodes) for g in seen)
        return {
            "group/admitted_frac": len(groups) / max(1, len(seen)),
            "services/utilisation": played / max(1e-9, wall * self.engine.max_rows),
            "services/stale_frac": counts.get("episodes_stale", 0) / max(1, episodes),
            "services/mixed_frac": sum(len(v) > 1 for v in versions) / max(1, len(versions)),
            "services/group_size": episodes / max(1, len(seen)),
        } | self.crew.metrics(self.engine, self.service)

    # -- the services' thread -------------------------------------------------------------------------------------------------

    def _start(self, weights: Weights, context: Context) -> None:
        self.service = RolloutService(self.crew.workers)
        serving = self.crew.begin(weights)
        self.service.publish(weights)
        engine = copy.copy(self.engine)
        engine.policy, engine.environment = self.crew.policy, self.crew.environment or engine.environment
        self.cluster = Cluster(engine, self.recipe.sampling, self.service, self.manager)
        self.cluster.context, self.looked = context, (time.monotonic(), 0.0)
        begun = threading.Event()

        async def live() -> None:
            self.loop, self.stop = asyncio.get_running_loop(), asyncio.Event()
            begun.set()
            parts = [self.cluster.run(), self.service.sync(), self.manager.judge(), self.stop.wait(), *serving]
            async with running(parts) as tasks:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()

        def work() -> None:
            try:
                asyncio.run(live())
            except BaseException as e:
                with self.manager.changed:
                    self.failure = e
                    self.manager.changed.notify_all()

        self.thread = threading.Thread(target=work, name="fovea-services", daemon=True)
        self.thread.start()
        begun.wait()

    def _crew(self) -> Any:
        """Who answers, and where environments are: in this process, or in the actors of a cluster."""
        recipe = self.recipe
        if recipe.engine == "local":
            return Copies(self.policy, recipe.sampling, recipe.services)
        from fovea.rollout.rayed import Crew

        return Crew(recipe.engine, self.policy, recipe.sampling, recipe.environment, recipe.services, recipe.dtype)
