"""FakeDesk: a desktop of 96 x 64 pixels for agents that click and type, with twelve jobs from trivial to hard; our stand-in for OSWorld.

    "desk"                  the job of each task; "desk:send" that one where the task has none
    "desk:latency=0.05"     every answer of the desk takes 0.05 s in the median, lognormal

A reply says one gesture, in the last of its calls: click(x,y), double(x,y), drag(x1,y1,x2,y2), scroll(x,y,up or down), type(text),
hotkey(ctrl,c or v or w), wait(), finished(). A reply without one is a turn in which nothing happens. The episode ends at finished(), or is
cut at the job's horizon; the reward of its last turn is 1 where the job is done then.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from fovea.envs.desk.jobs import JOBS, Job, begin, deal, goal
from fovea.envs.desk.screen import GESTURES, HEIGHT, WIDTH, Screen
from fovea.envs.gestures import gesture
from fovea.envs.words import REPLIES, answered
from fovea.types import Action, Observation, Task, user

__all__ = ["HEIGHT", "JOBS", "WIDTH", "Desk", "Screen"]

DEAL, SLIP, WAIT = range(3)  # what a random number is for
BEGUN = itertools.count()  # episodes of a group share their seed, and are not equally slow for that


class Desk:
    """One job per episode: ``task.meta["job"]`` from ``task.meta["start"]`` where the task has them, else `job`, dealt by the seed.

    Every turn shows the screen, the goal and the last gesture alone (the history is trimmed).

    Args:
      job: one of `JOBS`.
      reply: "" reads the whole reply, "short" its answer, "json" what stands behind ``"action":``.
      ends: "finished": the policy says so itself; "done": the episode also ends when the job is done.
      latency: seconds that the desk takes to answer, in the median; 0 answers at once.
      sigma: of the logarithm of these seconds, drawn for every episode (`slow`) or for every turn.
      slow: an episode that is slow stays slow.
      slips: share of the turns in which `demonstrate` clicks somewhere else.
      sleep: waits for so many seconds.
    """

    def __init__(
        self,
        job: str = "mark",
        reply: str = "",
        ends: str = "finished",
        latency: float = 0.0,
        sigma: float = 1.0,
        slow: bool = True,
        slips: float = 0.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ):
        for name, value, known in (("job", job, tuple(JOBS)), ("reply", reply, ("", *REPLIES)), ("ends", ends, ("finished", "done"))):
            if value not in known:
                raise ValueError(f"desk: {name} = {value!r}; expected one of {', '.join(map(repr, known))}")
        if latency < 0 or sigma < 0 or not 0 <= slips <= 1:
            raise ValueError(f"desk: latency = {latency}, sigma = {sigma}, slips = {slips}; expected 0 or more, 0 or more, and a share")
        self.name, self.reply, self.ends, self.slips = job, reply, ends, slips
        self.latency, self.sigma, self.slow, self.sleep = latency, sigma, slow, sleep

    def reset(self, task: Task, seed: int) -> Any:
        self.job: Job = JOBS[task.meta.get("job", self.name)]
        self.seed, self.turns, self.last, self.number = seed, 0, "", next(BEGUN)
        self.start = task.meta.get("start") or deal(self._rng(DEAL))
        self.screen = begin(self.job, self.start)
        return self._later(self._look()) if self.latency else self._look()

    def step(self, action: Action) -> Any:
        said = str(action.value)
        found = gesture(answered(said, self.reply) if self.reply else said, GESTURES)
        self.turns += 1
        if found is not None:
            self.screen.do(found)
            self.last = found.name
        done = self.job.done(self.screen, self.start)
        over = (found is not None and found.name == "finished") or (done and self.ends == "done")
        cut = self.turns >= self.job.horizon and not over
        reward = float(done and (over or cut))
        info = {"legal": found is not None, "measures": {"success": float(done)}}
        result = Observation() if over or cut else self._look(), reward, over, cut, info
        return self._later(result) if self.latency else result

    def demonstrate(self) -> str:
        """What somebody who knows how does now; as often as `slips` says, a click somewhere."""
        rng = self._rng(SLIP)
        if rng.random() < self.slips:
            said = f"click({int(rng.integers(WIDTH))},{int(rng.integers(HEIGHT))})"
        else:
            said = "finished()" if self.job.done(self.screen, self.start) else self.job.advice(self.screen, self.start)
        return {"": said, "short": f"<answer>{said}</answer>", "json": f'{{"thoughts": "", "action": "{said}"}}'}[self.reply]

    async def _later(self, result: Any) -> Any:
        """The result, after as long as the desk takes."""
        spread = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.number, WAIT, 0 if self.slow else self.turns])))
        await self.sleep(self.latency * float(np.exp(self.sigma * spread.standard_normal())))
        return result

    def _rng(self, purpose: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, purpose, self.turns])))

    def _look(self) -> Observation:
        last = f" Last: {self.last}." if self.last else ""
        return Observation(messages=user(f"{goal(self.job, self.start)}{last}"), images=(self.screen.picture(),))
