"""The actors of a run, and what stands for each of them in the process that trains."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import logging
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fovea.policies.lora import adapted, weight_of
from fovea.rollout.engine import TRIES, Engine, Lost
from fovea.rollout.rayed.actors import PROMPTS, Responder, Stage, WorkerFailed, heard, packed
from fovea.rollout.rayed.cluster import Ray, connect
from fovea.rollout.sampling import Sampling
from fovea.rollout.services import Answer, Question, RolloutService, Services, Weights
from fovea.types import Action, Observation, Task

log = logging.getLogger(__name__)

CALLS = 4096  # of one actor at a time
PATIENCE_S = 60.0  # with an actor that may have no place to begin


class Crew:
    """The actors of a run.

    Args:
      policy: the trainer's; what the copies are made of.
      environment: its name in the recipe, where environment workers hold it.
      services: how many workers there are and how they hold the weights, where they run beside the trainer.
    Attributes:
      policy: encodes prompts, also in another thread than the trainer's; it draws nothing.
      workers: as `RolloutService` wants them. environment: as `Engine` does; None where no worker holds any.
      counts: workers_lost, environment_workers_lost, questions_again (of earlier services).
    """

    def __init__(
        self,
        where: Ray,
        policy: Any,
        sampling: Sampling,
        environment: Any = None,
        services: Services = Services(),  # noqa: B008 - frozen
        dtype: str = "float32",
    ):
        where, rounding = replace(where, workers=services.workers or where.workers), services.rounding
        if where.environments and not isinstance(environment, str):
            raise ValueError(
                f"environment = {environment!r} with engine.environments = {where.environments}; expected a name or FILE.py:NAME, because "
                "every worker makes its own, or engine.environments = 0"
            )
        self.where, self.counts, self.numbers = where, Counter[str](), itertools.count()
        self.ray, self.started = connect(where, sum(x.nbytes for x in policy.model.parameters()))
        self.policy, self.prompts = type(policy)(policy.model, copy.deepcopy(policy.processor), policy.path), OrderedDict[str, Any]()
        options = {"dtype": "bfloat16" if rounding == "bfloat16" else dtype, "device": "cuda" if where.gpus else "cpu"}
        self._responder = (self._put(files(policy)), options, asdict(sampling), rounding)
        self._stored: tuple[int, Future[Any]] | None = None
        self._storing = ThreadPoolExecutor(1, "fovea-weights")
        self.workers = [FarWorker(self) for _ in range(where.workers)]
        self.environment, self.stages = None, [Hand(self._stage(environment)) for _ in range(where.environments)]
        self._named = environment
        if self.stages:
            self.environment = partial(Demonstrating if self._demonstrates() else FarEnvironment, self)

    def close(self) -> None:
        """End the actors, and the cluster where it was started here."""
        self._storing.shutdown()
        for actor in [*(w.actor for w in self.workers), *(s.actor for s in self.stages)]:
            self.kill(actor)
        if self.started:
            self.ray.shutdown()

    def begin(self, weights: Weights) -> list[Any]:
        """Nothing but what the service does runs beside it: actors run by themselves."""
        return []

    def published(self, policy: Any) -> dict[str, Tensor]:
        return published(policy)

    def metrics(self, engine: Engine, service: RolloutService) -> dict[str, float]:
        """What had to be done again since the run began, or went on."""
        counts = {name: self.counts[name] for name in ("workers_lost", "environment_workers_lost")}
        counts |= {"questions_again": self.counts["questions_again"] + service.again, "episodes_again": engine.counts["again"]}
        return {f"ray/{name}": float(n) for name, n in counts.items()}

    async def reach(self, call: Any) -> Any:
        """What an actor's method returned.

        Raises:
          Lost: the actor has gone, or cannot be reached. WorkerFailed: what it raised, or that it cannot be made.
        """
        try:
            return heard(await call)
        except self.ray.exceptions.RayTaskError as e:
            raise WorkerFailed(str(e)) from None
        except self.ray.exceptions.RayError as e:
            raise Lost(str(e)) from None

    def kill(self, actor: Any) -> None:
        """See to it that an actor is gone."""
        if actor is not None:
            with contextlib.suppress(self.ray.exceptions.RayError):
                self.ray.kill(actor)

    # -- rollout workers ------------------------------------------------------------------------------------------------------

    def responder(self) -> Any:
        return self._actor(Responder, self._responder, self.where.cpus, self.where.gpus, self.where.on)

    def prompt(self, question: Question) -> Any:
        """Messages and images in the object store, once for all who ask about them."""
        key = question.prefix.key
        if key not in self.prompts:
            self.prompts[key] = self._put(question.shown)
            if len(self.prompts) > PROMPTS:
                self.prompts.popitem(last=False)
        return self.prompts[key]

    async def stored(self, weights: Weights) -> Any:
        """The weights in the object store, once for all workers; they are put there by a thread, because it takes its time."""
        if self._stored is None or self._stored[0] != weights.version:
            content = {"version": weights.version, "tensors": weights.tensors}
            self._stored = weights.version, self._storing.submit(self._put, content)
        return await asyncio.wrap_future(self._stored[1])

    # -- environment workers --------------------------------------------------------------------------------------------------

    def hand(self) -> Hand:
        """The environment worker with the fewest environments."""
        return min(self.stages, key=lambda s: s.load)

    def replaced(self, hand: Hand) -> None:
        """Put another actor where an environment worker has gone."""
        if hand in self.stages:
            self.kill(hand.actor)
            self.counts["environment_workers_lost"] += 1
            self.stages[self.stages.index(hand)] = Hand(self._stage(self._named))

    def _stage(self, name: Any) -> Any:
        return self._actor(Stage, (name,), self.where.environment_cpus, 0, self.where.environments_on)

    def _demonstrates(self) -> bool:
        try:
            return self.ray.get(self.stages[0].actor.demonstrates.remote())
        except self.ray.exceptions.RayError as e:
            self.close()
            raise WorkerFailed(f"environment = {self._named!r} in a worker: {e}") from None

    def _actor(self, kind: type, given: tuple[Any, ...], cpus: float, gpus: float, on: str) -> Any:
        wants = {"num_cpus": cpus, "num_gpus": gpus, "resources": {on: 1} if on else {}}
        return self.ray.remote(kind).options(**wants, scheduling_strategy="SPREAD", max_concurrency=CALLS).remote(*given)

    def _put(self, value: Any) -> Any:
        return self.ray.put(packed(value))


class FarWorker:
    """A rollout worker as the service sees it.

    Attributes:
      actor, version: None while it has to be brought back.
      fruitless: how often in a row it has gone without an answer; why: the last time.
    """

    def __init__(self, crew: Crew):
        self.crew, self.actor, self.version, self.fruitless, self.why = crew, None, None, 0, ""

    async def answer(self, question: Question) -> Answer:
        sent = {"prompt": question.prefix.key, "said": question.said, "sampling": asdict(question.sampling)}
        sent |= {"room": question.room, "key": question.key, "given": question.given}
        answer = await self._ask("answer", packed(sent), self.crew.prompt(question))
        self.fruitless = 0
        return Answer(**answer)

    async def renew(self, weights: Weights) -> None:
        """
        Raises:
          Lost: it has gone. WorkerFailed: it goes again and again.
        """
        if self.fruitless >= TRIES:
            raise WorkerFailed(f"a rollout worker has ended {self.fruitless} times without an answer, the last time: {self.why}")
        if self.actor is None:
            self.actor = self.crew.responder()
        number = self.crew.workers.index(self) + 1
        with saying(f"rollout worker {number} of {len(self.crew.workers)} to take version {weights.version} of the weights"):
            await self._ask("renew", await self.crew.stored(weights))
        self.version = weights.version

    async def _ask(self, what: str, *given: Any) -> Any:
        actor = self.actor
        if actor is None:
            raise Lost("a rollout worker has gone")
        try:
            return await self.crew.reach(getattr(actor, what).remote(*given))
        except Lost as e:
            if actor is self.actor:
                self._gone(str(e))
            raise

    def _gone(self, why: str) -> None:
        """Make it one that `renew` brings back."""
        self.crew.kill(self.actor)
        self.actor = self.version = None
        self.fruitless, self.why = self.fruitless + 1, why
        self.crew.counts["workers_lost"] += 1
        log.warning("a rollout worker is lost (%d in a row without an answer): %s", self.fruitless, why.partition("\n")[0])


@dataclass(eq=False)
class Hand:
    """An environment worker, and how many environments it holds for us."""

    actor: Any
    load: int = 0


class FarEnvironment:
    """One environment in an environment worker; made where `reset` is first called."""

    def __init__(self, crew: Crew):
        self.crew, self.number, self.hand = crew, next(crew.numbers), crew.hand()
        self.hand.load += 1

    async def reset(self, task: Task, seed: int) -> Observation:
        task = replace(task, verifier="", params={})  # which may be no plain data, and are not for it
        with saying(f"an environment worker to begin task {task.id!r}"):
            return await self._ask("reset", task, seed)

    async def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        return await self._ask("step", action)

    def close(self) -> None:
        self.hand.load -= 1
        self.hand.actor.close.remote(self.number)

    async def _ask(self, what: str, *given: Any) -> Any:
        try:
            return await self.crew.reach(getattr(self.hand.actor, what).remote(self.number, packed(given)))
        except Lost:
            self.crew.replaced(self.hand)
            raise


class Demonstrating(FarEnvironment):
    """One that knows what a good player would say."""

    async def demonstrate(self) -> str:
        return await self._ask("demonstrate")


@contextlib.contextmanager
def saying(who: str) -> Iterator[None]:
    """Who is waited for, said once where the block takes long: where a machine has left the cluster an actor may find no place again."""
    words = f"since {PATIENCE_S:g} s a run waits for {who}; if a machine has left the cluster, `ray status` shows what has no room"
    late = asyncio.get_running_loop().call_later(PATIENCE_S, log.warning, words)
    try:
        yield
    finally:
        late.cancel()


def files(policy: Any) -> dict[str, np.ndarray]:
    """Bytes of the policy's checkpoint by file name, adapters folded in."""
    with tempfile.TemporaryDirectory(prefix="fovea-policy-") as folder:
        policy.save(Path(folder), merged=True)
        return {f.name: np.fromfile(f, np.uint8) for f in Path(folder).iterdir()}


def published(policy: Any) -> dict[str, Tensor]:
    """What training changes, by the name that it has in a policy without adapters or a value head."""
    if policy.model.adapters:
        return {f"vlm.{name}.weight": weight_of(linear).detach() for name, linear in adapted(policy.model.vlm)}
    return {name: p.detach() for name, p in policy.named_parameters() if not name.startswith("value.")}
