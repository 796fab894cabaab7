"""The same simulator beside itself, in another look: pictures of one state in both, without a reward or a label being needed.

Both start from the same seed and do the same, so where a simulator is deterministic and its looks do not move anything, both are always in
the same state. What a unit was chosen on is noted as the other one shows it ("twin"), in the episodes that have a twin ("paired").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np


@dataclass(frozen=True)
class Twin:
    """A wrapper for `Gym.around`, the outermost.

    Attributes:
      changes: arguments of the simulator that are others in the twin: those of its look.
      share: of the episodes, those that have a twin.
      apart: added to the seed of the twin; with another one than 0 it is no twin, and pairs say nothing (a control).
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    share: float = 0.1
    apart: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"Twin.share is {self.share}, expected a share from 0 to 1")

    def __call__(self, env: gym.Env) -> gym.Wrapper:
        """
        Raises:
          ValueError: the simulator is not known by an id, from which another one could be made.
        """
        if env.spec is None:
            raise ValueError(f"{env}: found no id, expected a simulator that Gymnasium knows, to make its twin")
        return Twinned(env, gym.make(env.spec, **self.changes), self)


class Twinned(gym.Wrapper):
    """An environment with a twin."""

    def __init__(self, env: gym.Env, twin: gym.Env, rule: Twin):
        super().__init__(env)
        self.twin, self.rule, self.paired = twin, rule, False
        space = twin.observation_space
        self.sees = np.zeros(space.shape or (), space.dtype)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        seed = int(self.np_random.integers(2**31)) if seed is None else seed  # both need one
        self.paired = bool(np.random.Generator(np.random.Philox(seed)).random() < self.rule.share)
        if self.paired:
            self.sees, _ = self.twin.reset(seed=seed + self.rule.apart, options=options)
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """
        Raises:
          ValueError: the twin has ended and the environment goes on: they are not in the same state.
        """
        obs, reward, terminated, truncated, info = self.env.step(action)
        noted = info.get("noted", {})
        info = {**info, "noted": {**noted, "twin": self.sees, "paired": self.paired}}
        if self.paired:
            self.sees, _, *ended, _ = self.twin.step(noted.get("action", action))
            if any(ended) and not (terminated or truncated):
                if not self.rule.apart:
                    raise ValueError(f"{self.env}: its twin ended before it; expected a deterministic simulator, and changes of its look")
                self.paired = False
        return obs, reward, bool(terminated), bool(truncated), info

    def close(self) -> None:
        self.twin.close()
        super().close()
