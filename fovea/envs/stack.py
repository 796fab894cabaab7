"""Several observations in a row shown side by side, so that a policy without memory sees what moves (Mnih et al. 2015)."""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np


class Stacked(gym.Wrapper):
    """The last `count` observations, oldest first, joined in their last axis; the first of an episode is repeated.

    A replay that is told of it stores only the newest (`fovea.trainer.replay`).
    """

    def __init__(self, env: gym.Env, count: int):
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, gym.spaces.Box):
            raise ValueError(f"observations of {type(space).__name__} cannot be stacked; expected a Box")
        self.stacked = count
        self.seen: deque[np.ndarray] = deque(maxlen=count)
        low, high = (np.concatenate([bound] * count, axis=-1) for bound in (space.low, space.high))
        self.observation_space = gym.spaces.Box(low, high, dtype=space.dtype.type)  # type: ignore[union-attr]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        self.seen.extend([obs] * (self.seen.maxlen or 1))
        return self._shown(), info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.seen.append(obs)
        return self._shown(), reward, terminated, truncated, info

    def _shown(self) -> np.ndarray:
        return np.concatenate(list(self.seen), axis=-1)
