"""Environments that never wait for each other: a cluster plays episodes, several policies answer it (DART, arXiv 2509.23866).

Rollout-wise scheduling: as soon as one episode has ended, its place takes the next (task, episode) job; there is no barrier. Per-worker
sync: the workers take new weights one after the other while the others serve, each between two turns, so every token was drawn with the
weights of one version, which is recorded, and an episode may hold several. Nothing here knows what is trained or how.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, get_type_hints

import torch
from torch import Tensor

from fovea.math.options import check
from fovea.rollout.engine import TRIES, Call, Decoder, Engine, Lost, Units, play
from fovea.rollout.sampling import Sampling
from fovea.types import Context, Episode, Message, Prefix, Task

LEVELS = 127  # of 8 bits on either side of zero


@dataclass(frozen=True)
class Services:
    """Environments, answers, data and training as four services that do not wait for each other.

    Attributes:
      workers: copies of the policy that answer the environments, of which there are `max_rows`; 0: rollouts and updates take turns.
      newest: episodes train that were played with one of the last so many published weights, their oldest token counting.
      rounding: how the copies hold the weights: "" as the trainer, "bfloat16", or "int8" (matrices, one scale for each row).
      correct: importance weights against what that and staleness do, for a method whose `behaviour` is "none".
    """

    workers: int = 0
    newest: int = 2
    rounding: Literal["", "bfloat16", "int8"] = ""
    correct: Literal["none", "token", "sequence", "sequence-mask"] = "token"

    def __post_init__(self) -> None:
        if self.workers < 0 or self.newest < 1:
            raise ValueError(f"services.workers = {self.workers}, services.newest = {self.newest}; expected 0 or more, at least 1")
        for name in ("rounding", "correct"):
            check(f"services.{name}", getattr(self, name), get_args(get_type_hints(type(self))[name]))


@dataclass(frozen=True)
class Question:
    """One turn that is to be drawn.

    Attributes:
      said: the units after the prompt so far. given: the tokens of the turn where they are not drawn.
      shown: messages and images that the prompt was made from, for workers that encode it themselves.
    """

    prefix: Prefix
    said: tuple[int, ...]
    sampling: Sampling
    room: int
    key: int
    given: tuple[int, ...] = ()
    shown: tuple[Sequence[Message], Sequence[Any]] = ((), ())


@dataclass(frozen=True)
class Answer:
    """The tokens of a turn, both log-probabilities of each (nats), the version of the weights that drew them, and why the turn stopped."""

    ids: tuple[int, ...]
    logp_old: tuple[float, ...]
    logp_behaviour: tuple[float, ...]
    version: int
    stop: str


@dataclass(frozen=True)
class Weights:
    """What the trainer publishes: tensors by the name that the workers' policy gives them."""

    version: int
    tensors: Mapping[str, Tensor]


class Worker(Decoder):
    """One copy of the policy that answers questions; `serve` must run beside.

    Args:
      policy: its own copy.
      trained_at: temperature of the trainer's softmax.
      rounding: "int8" keeps matrices to 8 bits, one scale for each row, as a cheap engine would; "" as they are published.
    """

    def __init__(self, policy: Any, sampling: Sampling, rounding: str = ""):
        super().__init__(Engine(policy), sampling)
        self.rounding, self.newer, self.task = rounding, None, Task("", "", ())
        self.versions, self.wake = [policy.version], asyncio.Event()

    @property
    def version(self) -> int:
        return self.versions[-1]

    async def answer(self, question: Question) -> Answer:
        units, start = Units(question.prefix, ids=list(question.said)), len(question.said)
        done = asyncio.get_running_loop().create_future()
        call = Call(units, question.sampling, question.room, question.key, 0, start, self.task, done, question.given)
        self.pending.append(call)
        self.wake.set()
        stop = await done
        (version,) = set(units.version)
        return Answer(tuple(units.ids[start:]), tuple(units.logp_old), tuple(units.logp_behaviour), version, stop)

    async def renew(self, weights: Weights) -> None:
        """Take new weights as soon as the turns that are being drawn are complete; returns then. Waiting turns are drawn with them."""
        taken = asyncio.get_running_loop().create_future()
        self.newer = (weights, taken)
        self.wake.set()
        await taken

    async def serve(self) -> None:
        """Answer until cancelled; other coroutines run between two tokens."""
        while True:
            if self.newer is not None and not self.rows:
                (weights, taken), self.newer = self.newer, None
                self.take(weights)
                taken.set_result(None)
            if self.pending and self.newer is None:
                self.admit()
            if self.rows:
                self.step()
                await asyncio.sleep(0)
            elif not (self.pending or self.newer):
                self.wake.clear()
                await self.wake.wait()

    @torch.no_grad()
    def take(self, weights: Weights) -> None:
        own = dict(self.policy.named_parameters())
        for name, x in weights.tensors.items():
            x = x.to(own[name].device)
            own[name].copy_(eight_bits(x) if self.rounding == "int8" and x.ndim == 2 else x)
        self.policy.version = weights.version
        self.versions.append(weights.version)


def eight_bits(x_OI: Tensor) -> Tensor:
    """Every row rounded to 255 levels between ± its largest magnitude."""
    scale_O1 = (x_OI.abs().amax(1, keepdim=True) / LEVELS).clamp(min=1e-12)
    return (x_OI / scale_O1).round() * scale_O1


class Copies:
    """Workers in this process: copies of the policy that answer by turns with all else in their thread.

    Attributes:
      policy: encodes prompts. environment: None, the engine's own.
    """

    environment = None

    def __init__(self, policy: Any, sampling: Sampling, services: Services):
        dtype = "bfloat16" if services.rounding == "bfloat16" else ""
        self.workers = [Worker(policy.twin(dtype), sampling, services.rounding) for _ in range(services.workers)]
        self.policy = self.workers[0].policy

    def begin(self, weights: Weights) -> list[Coroutine[Any, Any, None]]:
        """Have every worker hold these; what must run beside the services."""
        for worker in self.workers:
            worker.take(weights)
        return [worker.serve() for worker in self.workers]

    def published(self, policy: Any) -> dict[str, Tensor]:
        """What training changes, by name."""
        return {name: p.detach() for name, p in policy.named_parameters()}

    def metrics(self, engine: Engine, service: RolloutService) -> dict[str, float]:
        return {}

    def close(self) -> None:
        """Nothing: the workers end with the thread that serves them."""


class Answers(Protocol):
    """What the service asks of a worker. One that has gone raises `Lost`; to `renew` it brings it back.

    `version` is that of the weights it holds; None: it has none yet, or has gone.
    """

    @property
    def version(self) -> int | None: ...

    async def answer(self, question: Question) -> Answer: ...

    async def renew(self, weights: Weights) -> None: ...


class RolloutService:
    """Several workers: a question goes to the one with the fewest, and new weights to one after the other while the rest answer.

    A question whose worker has gone is asked again: what is drawn depends on its key alone.

    Args:
      strict: only workers with the newest weights are asked, and all take them at once.
    Attributes:
      newest: what was published last; None before.
      again: questions that were asked again.
    """

    def __init__(self, workers: Sequence[Answers], strict: bool = False):
        self.workers, self.strict, self.newest = list(workers), strict, None
        self.load = [0] * len(self.workers)
        self.again = 0
        self.renewing: set[int] = set()
        self._turn, self._news = asyncio.Lock(), asyncio.Event()

    async def answer(self, question: Question) -> Answer:
        """
        Raises:
          Lost: every worker that was asked has gone meanwhile.
        """
        for tries in range(1, TRIES + 1):
            w = await self._free()
            self.load[w] += 1
            try:
                return await self.workers[w].answer(question)
            except Lost:
                self._tell()
                if tries == TRIES:
                    raise
                self.again += 1
            finally:
                self.load[w] -= 1
        raise AssertionError

    def publish(self, weights: Weights) -> None:
        self.newest = weights
        self._tell()

    async def sync(self) -> None:
        """Hand out what is published, until cancelled; of what is published meanwhile only the newest counts."""
        async with running(self._tend(i) for i in range(len(self.workers))) as tasks:
            await asyncio.gather(*tasks)

    async def _tend(self, i: int) -> None:
        """Have worker i hold the newest weights; who has gone is brought back out of turn."""
        worker = self.workers[i]
        while True:
            while self.newest is None or worker.version == self.newest.version:
                await self._news.wait()
            gone = worker.version is None
            async with contextlib.nullcontext() if gone or self.strict else self._turn:
                self.renewing.add(i)
                with contextlib.suppress(Lost):
                    await worker.renew(self.newest)
                self.renewing.remove(i)
            self._tell()

    async def _free(self) -> int:
        """The worker to ask, waited for while there is none."""
        while True:
            able = [i for i, w in enumerate(self.workers) if w.version is not None and not (self.strict and self._behind(w))]
            if able:
                return min(able, key=lambda i: (i in self.renewing, self.load[i]))
            await self._news.wait()

    def _behind(self, worker: Answers) -> bool:
        return self.newest is not None and worker.version != self.newest.version

    def _tell(self) -> None:
        """Wake all who wait."""
        self._news.set()
        self._news.clear()


async def asked(service: RolloutService, call: Call) -> Answer:
    """The turn that some worker has drawn; its tokens stand in the call's books then."""
    units = call.units
    question = Question(units.prefix, tuple(units.ids), call.sampling, call.room, call.key, call.given, units.shown)
    answer = await service.answer(question)
    for token, old, behaviour in zip(answer.ids, answer.logp_old, answer.logp_behaviour, strict=True):
        units.add(token, old, behaviour, call.turn, answer.version)
    return answer


@dataclass(frozen=True)
class Job:
    """One episode to be played.

    Attributes:
      place: random address; what comes before its last part is shared by the group, which so shares its start.
      group: number of its group.
      turns: the episode is cut after so many; 0 leaves that to the environment.
      said: what it says turn by turn where it is recorded.
    """

    episode: Episode
    group: int
    place: tuple[int | str, ...]
    turns: int = 0
    said: tuple[str, ...] = ()


class Jobs(Protocol):
    """Who knows what is to be played next."""

    async def next(self) -> Job: ...

    async def finished(self, job: Job) -> None: ...


async def keep_busy(places: int, following: Callable[[], Awaitable[Any]], work: Callable[[Any], Awaitable[None]]) -> None:
    """Each of `places` does the next job as soon as it is done with the one before; ends with the first error, or when cancelled."""

    async def one() -> None:
        while True:
            await work(await following())

    async with running(one() for _ in range(places)) as tasks:
        await asyncio.gather(*tasks)


@contextlib.asynccontextmanager
async def running(coroutines: Any) -> AsyncIterator[list[asyncio.Task[None]]]:
    """The coroutines as tasks that end with the block."""
    tasks = [asyncio.ensure_future(c) for c in coroutines]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Cluster:
    """The environments: each plays one episode after another and asks the service what the policy says.

    Args:
      engine: its program, environment, and `max_rows`, the number of environments; its policy encodes prompts and draws nothing.
    Attributes:
      context: where training stands.
    """

    def __init__(self, engine: Engine, sampling: Sampling, service: RolloutService, jobs: Jobs):
        self.engine, self.policy, self.sampling, self.service, self.jobs = engine, engine.policy, sampling, service, jobs
        self.context, self.counts, self._ended_s = Context(), Counter[str](), 0.0
        self._began: dict[int, float] = {}  # of the episodes that go on
        self._clock = time.monotonic

    async def run(self) -> None:
        await keep_busy(self.engine.max_rows, self.jobs.next, self.play)

    @property
    def played_s(self) -> float:
        """Seconds in which environments had an episode, added up; of those that go on, so far."""
        now = self._clock()
        return self._ended_s + sum(now - began for began in list(self._began.values()))

    async def play(self, job: Job) -> None:
        self._clock = asyncio.get_running_loop().time
        self._began[id(job)] = self._clock()
        try:
            await play(self, job.episode, job.place, job.turns, job.said)
        finally:
            self._ended_s += self._clock() - self._began.pop(id(job))
        self.counts["episodes"] += 1
        await self.jobs.finished(job)

    # -- what an actor asks ---------------------------------------------------------------------------------------------------

    def encode(self, messages: tuple[Message, ...], images: tuple[Any, ...]) -> Prefix:
        return self.policy.encode(messages, images)

    async def submit(self, call: Call) -> str:
        """The turn, as some worker draws it. The trainer has other weights by then, so how likely it was is for the trainer to say."""
        call.units.remote = True
        answer = await asked(self.service, call)
        self.counts["tokens"] += len(answer.ids)
        return answer.stop
