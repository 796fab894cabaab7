"""Rollouts in turns: the engine of one process, whose turns and environments are the crew's."""

from __future__ import annotations

from functools import partial
from typing import Any

from fovea.rollout.engine import Call, Engine, Rollout
from fovea.rollout.rayed.cluster import Ray
from fovea.rollout.rayed.crew import Crew
from fovea.rollout.sampling import Sampling
from fovea.rollout.services import RolloutService, Weights, asked, running


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
