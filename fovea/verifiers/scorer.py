"""Scores episodes while others are still generated, each with a deadline; a failure is a failure with a reason, never a zero.

Plain verifiers run on daemon threads, or in `processes` of their own where they compute for long; async ones share one event loop. A job
that passes its deadline is given up: its episodes are unscored, its process is killed, its thread replaced, because a thread cannot be
killed. When too many episodes of a step are unscored the run stops.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fovea.types import Context, Episode, Group, Score, Verifier
from fovea.verifiers.core import reason_of
from fovea.verifiers.worker import packed, scores
from fovea.verifiers.workers import Pool


class TooManyUnscored(RuntimeError):
    """More than the allowed fraction of a step's episodes could not be scored."""


@dataclass(eq=False)
class _Job:
    verifier: Verifier
    group: Group
    context: Context
    started: float | None = None
    done: bool = False


@dataclass(frozen=True)
class _Elsewhere:
    """A verifier that scores in a process of a pool."""

    verifier: Any
    pool: Pool
    named: str
    params: Mapping[str, Any]
    timeout_s: float

    @property
    def name(self) -> str:
        return getattr(self.verifier, "name", self.named)

    @property
    def scope(self) -> str:
        return self.verifier.scope

    def score(self, group: Group, context: Context) -> list[Score]:
        request = packed(group, context, self.named, self.params)
        return scores(self.pool.ask(request, self.timeout_s * len(group.episodes)))


@dataclass
class _Workers:
    """Daemon threads that serve one queue until they are told to stop or their job was given up."""

    run: Callable[[_Job], None]
    jobs: queue.SimpleQueue[_Job | None] = field(default_factory=queue.SimpleQueue)
    threads: list[threading.Thread] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.threads)

    def add(self) -> None:
        self.threads.append(threading.Thread(target=self._serve, name="fovea-scorer", daemon=True))
        self.threads[-1].start()

    def stop(self, patience_s: float = 0.5) -> None:
        """Tell every thread to end and wait a little; one that still hangs in a verifier is left behind."""
        for _ in self.threads:
            self.jobs.put(None)
        ends = time.monotonic() + patience_s
        for thread in self.threads:
            thread.join(max(0.0, ends - time.monotonic()))
        self.threads.clear()

    def _serve(self) -> None:
        while (job := self.jobs.get()) is not None:
            self.run(job)


class Scorer:
    """``submit`` groups (or single episodes) as they finish, ``finish`` waits for the scores; or ``score(groups)`` does both.

    Args:
      override: scores every task in place of the task's own verifier: a verifier, its name, a function `f(answer, task)`, or a mapping
        from source name to one of these (other sources keep their own).
      timeout_s: deadline of scoring one episode, in seconds from when its verifier starts.
      max_unscored: fraction of the episodes between two calls of `finish` that may fail.
      workers: threads; verifiers must allow calls from several threads unless this is 1.
      processes: where more than 0, verifiers given by name score in so many processes, of which one that hangs is killed; pictures do not
        go there, and gold answers must be plain JSON.
    """

    def __init__(self, override: Any = None, *, timeout_s: float = 30.0, max_unscored: float = 0.2, workers: int = 4, processes: int = 0):
        self.override, self.timeout_s, self.max_unscored, self.size = override, timeout_s, max_unscored, processes or workers
        self._pool = Pool(processes, "fovea.verifiers.worker") if processes else None
        self.context = Context()
        self.unscored: list[tuple[str, str]] = []
        self.waited_s = 0.0
        self._changed = threading.Condition()
        self._open: list[_Job] = []
        self._step: dict[int, Episode] = {}
        self._workers = _Workers(self._run)
        self._loop: asyncio.AbstractEventLoop | None = None

    # -- what callers use -----------------------------------------------------------------------------------------------------

    def begin(self, context: Context) -> None:
        """The clock that verifiers of the following submissions see."""
        self.context = context

    def submit(self, item: Group | Episode, context: Context | None = None) -> None:
        """Start scoring; returns at once. A single episode is scored now if its verifier allows it, otherwise with its group."""
        from fovea.verifiers import resolve

        group = item if isinstance(item, Group) else Group(item.task, [item])
        fresh = [e for e in group.episodes if id(e) not in self._step]
        if not fresh:
            return
        override = self._override(group.task.source)
        try:
            verifier = resolve(group.task, override)
        except (TypeError, ValueError) as error:
            return self._fail(fresh, str(error))
        if verifier.scope == "group" and not isinstance(item, Group):
            return
        named = override or group.task.verifier
        if self._pool is not None and isinstance(named, str):
            verifier = _Elsewhere(verifier, self._pool, named, {} if override else group.task.params, self.timeout_s)
        failed = [e for e in fresh if e.stop == "error"]
        self._fail(failed, "")
        rest = [e for e in fresh if e.stop != "error"]
        parts = [[e] for e in rest] if verifier.scope != "group" else [rest] if rest else []
        for episodes in parts:
            self._step.update((id(e), e) for e in episodes)
            self._start(_Job(verifier, Group(group.task, episodes), context or self.context))

    def finish(self) -> None:
        """Wait until every submitted episode has a score.

        Raises:
          TooManyUnscored: with the first reasons and their tasks. Scores are set all the same.
        """
        began = time.monotonic()
        with self._changed:
            while waiting := [job for job in self._open if not job.done]:
                self._changed.wait(self._patience(waiting))
                for job in waiting:
                    self._expire(job)
            self._open.clear()
        self.waited_s += time.monotonic() - began
        episodes, self._step = list(self._step.values()), {}
        self.check(episodes)

    def check(self, episodes: Sequence[Episode]) -> None:
        """Raise `TooManyUnscored` if more than the allowed fraction of these has no score."""
        self.unscored = [(e.task.id, e.score.reason) for e in episodes if e.score is not None and not e.score.ok]
        if episodes and len(self.unscored) > self.max_unscored * len(episodes):
            raise TooManyUnscored(_explain(self.unscored, len(episodes), self.max_unscored))

    def score(self, groups: Sequence[Group], context: Context | None = None) -> Sequence[Group]:
        for group in groups:
            self.submit(group, context)
        self.finish()
        return groups

    def close(self) -> None:
        self._workers.stop()
        if self._pool is not None:
            self._pool.close()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- jobs -----------------------------------------------------------------------------------------------------------------

    def _override(self, source: str) -> Any:
        return self.override.get(source) if isinstance(self.override, Mapping) else self.override

    def _fail(self, episodes: Sequence[Episode], reason: str) -> None:
        for e in episodes:
            self._step[id(e)] = e
            e.score = Score.failed(reason or f"the episode ended in an error: {e.error or 'no reason given'}")

    def _start(self, job: _Job) -> None:
        self._open.append(job)
        if getattr(job.verifier, "is_async", False):
            job.started = time.monotonic()
            asyncio.run_coroutine_threadsafe(self._run_async(job), self._running_loop())
            return
        if self._workers.count < self.size:
            self._workers.add()
        self._workers.jobs.put(job)

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="fovea-scorer-loop", daemon=True).start()
        return self._loop

    def _run(self, job: _Job) -> None:
        with self._changed:
            if job.done:
                return
            job.started = time.monotonic()
            self._changed.notify_all()
        try:
            scores = job.verifier.score(job.group, job.context)
        except Exception as error:
            scores = [Score.failed(reason_of(error))] * len(job.group.episodes)
        self._settle(job, scores)

    async def _run_async(self, job: _Job) -> None:
        try:
            scores = await asyncio.wait_for(job.verifier.score_async(job.group, job.context), self._limit(job))  # pyright: ignore
        except TimeoutError:
            return self._settle(job, self._late(job))
        except Exception as error:
            scores = [Score.failed(reason_of(error))] * len(job.group.episodes)
        self._settle(job, scores)

    def _settle(self, job: _Job, scores: Any) -> None:
        with self._changed:
            if not job.done:
                for episode, score in zip(job.group.episodes, _checked(scores, len(job.group.episodes)), strict=True):
                    episode.score = score
                job.done = True
            self._changed.notify_all()

    def _limit(self, job: _Job) -> float:
        return self.timeout_s * len(job.group.episodes)

    def _late(self, job: _Job) -> list[Score]:
        reason = f"verifier {_name(job.verifier)} gave no score within {self._limit(job):g} s"
        return [Score.failed(reason)] * len(job.group.episodes)

    def _patience(self, waiting: Sequence[_Job]) -> float:
        """Seconds until the next deadline; a queued job has none yet, so look again soon."""
        ends = [j.started + self._limit(j) for j in waiting if j.started is not None]
        return max(0.001, min([min(ends) - time.monotonic()] if ends else [1.0]))

    def _expire(self, job: _Job) -> None:
        if not job.done and job.started is not None and time.monotonic() > job.started + self._limit(job):
            self._settle(job, self._late(job))
            if not getattr(job.verifier, "is_async", False):
                self._workers.add()


def _checked(scores: Any, count: int) -> list[Score]:
    """Exactly one `Score` for each episode, or failures that say what came instead."""
    from fovea.verifiers.core import as_score

    if not isinstance(scores, Sequence) or isinstance(scores, str) or len(scores) != count:
        found = f"{len(scores)} scores" if isinstance(scores, Sequence) else type(scores).__name__
        return [Score.failed(f"verifier returned {found} for {count} episode(s); expected a list of one Score each")] * count
    return [as_score(s) if isinstance(s, Score) else Score.failed(f"verifier returned {s!r:.80}; expected a Score") for s in scores]


def _name(verifier: Any) -> str:
    return repr(getattr(verifier, "name", type(verifier).__name__))


def _explain(unscored: Sequence[tuple[str, str]], total: int, allowed: float) -> str:
    reasons: dict[str, list[str]] = {}
    for task, reason in unscored:
        reasons.setdefault(reason, []).append(task)
    lines = [f"{len(unscored)} of {total} episodes could not be scored; at most {allowed:.0%} may fail. First reasons:"]
    for reason, tasks in list(reasons.items())[:3]:
        names = list(dict.fromkeys(tasks))
        lines.append(f"  {len(tasks)}x {reason} (task {', '.join(names[:3])}{', ...' if len(names) > 3 else ''})")
    lines.append("Unscored episodes are never counted as zero; fix what the reasons name, or raise max_unscored.")
    return "\n".join(lines)
