"""Rollouts on many machines, by Ray: copies of the policy and environments are actors, episodes are kept in books here.

The process that trains is the driver. It keeps episode programs, prompts, verifiers and every episode; a rollout worker is an actor with
one copy of the policy, an environment worker an actor with any number of environments. Actors get and give bytes of `fovea.trainer.wire`
only (JSON and safetensors): no model, task or environment is pickled. Weights go through the object store, once for all workers.

A worker that ends takes nothing with it: a question is asked again elsewhere, an episode whose environment is gone begins anew with the
same random numbers, and another actor takes the worker's place. In turns (`RayEngine`) a run therefore computes what it computes in one
process, but for rounding; beside the trainer (`services.workers`) the data manager's books hold, as they do in one process.

Left out: a learner on several machines (`torchrun` does that), and programs that ask environments for more than `reset` and `step`.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import logging
import math
import os
import socket
import tempfile
import traceback
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from fovea.policies.lora import adapted, weight_of
from fovea.rollout.engine import TRIES, Call, Engine, Lost, Rollout
from fovea.rollout.programs import settled
from fovea.rollout.sampling import Sampling
from fovea.rollout.services import Answer, Question, RolloutService, Services, Weights, Worker, asked, running
from fovea.trainer import wire
from fovea.types import Action, Observation, Prefix, Task

log = logging.getLogger(__name__)

CALLS = 4096  # of one actor at a time
PROMPTS = 256  # prompts that stay in the object store, and that a worker keeps encoded
STORE_BYTES = 200 << 20  # of object store beside the weights, where we start Ray ourselves
FINEST = 1e-4  # part of a resource that Ray counts


@dataclass(frozen=True)
class Ray:
    """Where answers are generated and environments live: actors on the machines of a Ray cluster.

    Attributes:
      address: of a running cluster, "auto" or HOST:PORT; "" starts one on this machine for the length of the run.
      workers: copies of the policy; with services, `services.workers` says how many.
      cpus, gpus: of each of them. One with a GPU computes there, else on CPUs.
      environments: processes that hold the environments; 0: the environments stay in the process that trains.
      environment_cpus: of each of them.
      on: a resource of Ray's (`ray start --resources`) of which every rollout worker takes 1, so that they come to chosen machines.
      environments_on: the same for environment workers.
    """

    address: str = ""
    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    environments: int = 0
    environment_cpus: float = 1.0
    on: str = ""
    environments_on: str = ""

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("environments", 0), ("cpus", 0), ("gpus", 0), ("environment_cpus", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"engine.{name} = {getattr(self, name)!r}; expected at least {least}")


class WorkerFailed(RuntimeError):
    """Something was raised in a worker; the message says what, in which line, and on which machine."""


# -- in the actors ------------------------------------------------------------------------------------------------------------


def packed(value: Any) -> np.ndarray:
    """Bytes that Ray moves without looking into them."""
    return np.frombuffer(wire.pack(value), np.uint8)


def unpacked(data: np.ndarray) -> Any:
    return wire.unpack(data.tobytes())


async def told(work: Callable[[], Awaitable[Any]]) -> np.ndarray:
    """What `work` returns, or what it raised, in words: an exception's own object might not be what the other side can read."""
    try:
        return packed({"value": await work()})
    except Exception as e:
        at = traceback.extract_tb(e.__traceback__)[-1]
        return packed({"error": f"{type(e).__name__}: {e} ({at.filename}:{at.lineno} on {socket.gethostname()})"})


def heard(data: np.ndarray) -> Any:
    """
    Raises:
      WorkerFailed: the other side did.
    """
    said = unpacked(data)
    if "error" in said:
        raise WorkerFailed(said["error"])
    return said["value"]


class Responder:
    """A rollout worker: one copy of the policy, made from the files of its checkpoint.

    Args:
      files: bytes of the checkpoint's files by name.
      options: of `HFVLM.load`.
    """

    def __init__(self, files: np.ndarray, options: Mapping[str, Any], sampling: Mapping[str, Any], rounding: str):
        from fovea.api import load_policy

        with tempfile.TemporaryDirectory(prefix="fovea-policy-") as folder:
            for name, content in unpacked(files).items():
                (Path(folder) / name).write_bytes(content.tobytes())
            policy = load_policy(folder, **options)
        self.worker = Worker(policy, Sampling(**sampling), rounding)
        self.prompts: OrderedDict[str, Prefix] = OrderedDict()
        self.serving: asyncio.Task[None] | None = None

    async def answer(self, question: np.ndarray, shown: np.ndarray) -> np.ndarray:
        return await told(lambda: self._answer(question, shown))

    async def renew(self, weights: np.ndarray) -> np.ndarray:
        return await told(lambda: self._while_serving(self.worker.renew(Weights(**unpacked(weights)))))

    async def _answer(self, question: np.ndarray, shown: np.ndarray) -> dict[str, Any]:
        asked = unpacked(question)
        asked["sampling"] = Sampling(**asked["sampling"])
        prefix = self._encoded(asked.pop("prompt"), shown)
        return asdict(await self._while_serving(self.worker.answer(Question(prefix, **asked))))

    def _encoded(self, key: str, shown: np.ndarray) -> Prefix:
        if key not in self.prompts:
            prefix = self.worker.policy.encode(*unpacked(shown))
            if prefix.key != key:
                raise ValueError(f"a prompt became {prefix.key} here and {key} where it was asked; expected the same versions of packages")
            self.prompts[key] = prefix
            if len(self.prompts) > PROMPTS:
                self.prompts.popitem(last=False)
        return self.prompts[key]

    async def _while_serving(self, work: Awaitable[Any]) -> Any:
        """What `work` gives; what ends the worker's own loop ends it too."""
        if self.serving is None or self.serving.done():
            self.serving = asyncio.ensure_future(self.worker.serve())
        task = asyncio.ensure_future(work)
        await asyncio.wait({task, self.serving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            self.serving.result()
        return task.result()


class Stage:
    """An environment worker: environments by number, made from the name that stands in the recipe."""

    def __init__(self, name: str):
        from fovea.api import load_part
        from fovea.envs.resolve import environment

        self.make, self.held = environment(load_part(name)), dict[int, Any]()

    async def demonstrates(self) -> bool:
        """Whether these environments know what a good player would say."""
        made = self.make()
        if hasattr(made, "close"):
            made.close()
        return hasattr(made, "demonstrate")

    async def reset(self, number: int, asked: np.ndarray) -> np.ndarray:
        async def work() -> Any:
            if number not in self.held:
                self.held[number] = self.make()
            return await settled(self.held[number].reset(*unpacked(asked)))

        return await told(work)

    async def step(self, number: int, asked: np.ndarray) -> np.ndarray:
        async def work() -> Any:
            observation, reward, terminated, truncated, info = await settled(self.held[number].step(*unpacked(asked)))
            return observation, float(reward), bool(terminated), bool(truncated), {"measures": info.get("measures")}

        return await told(work)

    async def demonstrate(self, number: int, asked: np.ndarray) -> np.ndarray:
        return await told(lambda: settled(self.held[number].demonstrate(*unpacked(asked))))

    async def close(self, number: int) -> None:
        env = self.held.pop(number, None)
        if hasattr(env, "close"):
            env.close()


# -- in the process that trains -----------------------------------------------------------------------------------------------


def connect(where: Ray, weights: int = 0) -> tuple[ModuleType, bool]:
    """Ray, connected to the cluster, and whether it was started here.

    Args:
      weights: bytes of one version of the weights.
    Raises:
      ImportError: Ray is not installed; the extra that brings it is named.
      RuntimeError: no cluster at the address, or none could be started.
      ValueError: the cluster has no room for what is asked.
    """
    try:
        import ray
    except ImportError:
        raise ImportError("engine = Ray(...): missing ray: pip install 'fovea-rl[ray]'") from None
    started = not ray.is_initialized()
    if started:
        attach(ray, where, weights)
    try:
        check_room(where, [n["Resources"] for n in ray.nodes() if n["Alive"]])
    except ValueError:
        if started:
            ray.shutdown()
        raise
    return ray, started


def attach(ray: ModuleType, where: Ray, weights: int) -> None:
    """Connect to the cluster of the address, or start one here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    asked: dict[str, Any] = {"address": where.address}
    if not where.address:
        cpus = where.workers * where.cpus + where.environments * where.environment_cpus
        own = {name: 1e6 for name in (where.on, where.environments_on) if name}
        store = STORE_BYTES + 3 * weights  # the last one, the next one, and what is on its way
        asked = {
            "address": "local",
            "num_cpus": math.ceil(cpus),
            "resources": own,
            "object_store_memory": store,
            "include_dashboard": False,
        }
    try:
        ray.init(**asked, logging_level=logging.ERROR)
    except Exception as e:  # Ray raises plain Exception where its processes do not start in time
        hint = (
            f"is a cluster running at engine.address = {where.address!r}? `ray start --head` begins one"
            if where.address
            else "on a busy machine its processes may take longer than it waits; begin a cluster with `ray start --head` and say "
            "--engine.address auto"
        )
        raise RuntimeError(f"Ray did not connect: {type(e).__name__}: {e}; {hint}") from e


@dataclass(frozen=True)
class Want:
    """What each of `count` actors takes of a resource, by the field of `Ray` that says so."""

    field: str
    each: float
    resource: str
    count: int
    kind: str


def wanted(where: Ray) -> list[Want]:
    """All that the actors of a run take."""
    answers, stages = (where.workers, "rollout workers"), (where.environments, "environment workers")
    wants = [
        Want("cpus", where.cpus, "CPU", *answers),
        Want("gpus", where.gpus, "GPU", *answers),
        Want("on", 1.0, where.on, *answers),
        Want("environment_cpus", where.environment_cpus, "CPU", *stages),
        Want("environments_on", 1.0, where.environments_on, *stages),
    ]
    return [w for w in wants if w.resource and w.count and w.each]


def places(wants: Sequence[Want], machines: Sequence[Mapping[str, float]]) -> int:
    """How many actors that want all of these the machines hold at a time."""
    return sum(min(int((m.get(w.resource, 0.0) + FINEST) / w.each) for w in wants) for m in machines)


def unmet(wants: Sequence[Want], machines: Sequence[Mapping[str, float]]) -> list[Want]:
    """Those for which the machines have no room, also when nobody else is there."""
    for kind in dict.fromkeys(w.kind for w in wants):
        own = [w for w in wants if w.kind == kind]
        if places(own, machines) < own[0].count:
            return [w for w in own if places([w], machines) < w.count] or own
    for resource in dict.fromkeys(w.resource for w in wants):
        own = [w for w in wants if w.resource == resource]
        if sum(w.count * w.each for w in own) > sum(m.get(resource, 0.0) for m in machines) + FINEST:
            return own
    return []


def check_room(where: Ray, machines: Sequence[Mapping[str, float]]) -> None:
    """
    Args:
      machines: the resources of each by name.
    Raises:
      ValueError: some actors would wait for ever.
    """
    lacking = unmet(wanted(where), machines)
    if not lacking:
        return
    asked = ", ".join(f"engine.{w.field} = {getattr(where, w.field)!r} for each of {w.count} {w.kind}" for w in lacking)
    held = {name: [m.get(name, 0.0) for m in machines] for name in dict.fromkeys(w.resource for w in lacking)}
    has = ", ".join(f"{name} {sum(of):g} (at most {max(of, default=0):g} on one machine)" for name, of in held.items())
    raise ValueError(
        f"{asked}; the cluster has {has}; expected room for all of them at a time, each on one machine, or they wait for ever: ask "
        "for less, or give Ray more there (`ray start --num-cpus, --num-gpus, --resources`)"
    )


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
        return await self._ask("reset", replace(task, verifier="", params={}), seed)  # which may be no plain data, and are not for it

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


class RayEngine(Engine):
    """`Engine` whose turns are drawn, and whose environments may live, in actors; same programs, addresses and books.

    Args:
      where: the cluster.
      sampling: of training; its temperature is the trainer's.
      named: environment as the recipe names it.
      options: of `Engine`.
    """

    def __init__(self, policy: Any, where: Ray, sampling: Sampling, named: Any = None, dtype: str = "float32", **options: Any):
        if where.environments:
            options["environment"] = self._environment
        super().__init__(policy, **options)
        self._make, self._crew = partial(Crew, where, policy, sampling, named, dtype=dtype), None
        self.elsewhere = bool(where.gpus) != (policy.device.type == "cuda")  # then other kernels draw than those that train

    @property
    def crew(self) -> Crew:
        """The actors, made when they are first needed."""
        if self._crew is None:
            self._crew = self._make()
        return self._crew

    def begin(self, *args: Any) -> Rollout:
        return RayRollout(self, *args)

    def metrics(self) -> dict[str, float]:
        return {} if self._crew is None else self._crew.metrics(self, RolloutService(()))

    def close(self) -> None:
        if self._crew is not None:
            self._crew.close()
            self._crew = None

    def _environment(self) -> Any:
        assert self.crew.environment is not None
        return self.crew.environment()


class RayRollout(Rollout):
    """One rollout whose turns are drawn by the crew, with the trainer's present weights and no others."""

    engine: RayEngine

    async def drive(self) -> None:
        if not self.draws:
            return await super().drive()
        crew = self.engine.crew
        self.service = RolloutService(crew.workers, strict=True)
        self.service.publish(Weights(self.policy.version, crew.published(self.policy)))
        async with running([self.service.sync()]) as (self.syncing,):
            try:
                await super().drive()
            finally:
                crew.counts["questions_again"] += self.service.again

    def check(self) -> None:
        super().check()
        if self.draws and self.syncing.done():
            self.syncing.result()

    async def submit(self, call: Call) -> str:
        if call.given and not self.draws:
            return self.give(call)
        call.units.remote = self.engine.elsewhere
        answer = await asked(self.service, call)
        self.tokens += len(answer.ids)
        self.engine.counts["tokens"] += len(answer.ids)
        self.report()
        return answer.stop
