"""A small world in pixels: reach the green square. For tests, spikes and first steps; seconds to solve."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

MOVES = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])  # up, down, left, right as (row, column)
WHITE, GREEN = np.array([255, 255, 255], np.uint8), np.array([0, 200, 0], np.uint8)


class Reach(gym.Env):
    """Move the white square onto the green one.

    Observation: uint8 (size, size, 3) picture; each square is `square` pixels wide, its corner (row, column) inclusive.
    Action: Discrete(4) steps of `square` pixels (up, down, left, right), or Box(2) in [-1, 1] for (rows, columns) in units of `square`.
    Reward: +1 when the squares overlap by at least half in both directions, which terminates; otherwise `step_reward`.
    Limit: truncated after `limit` steps.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}

    def __init__(self, size: int = 16, square: int = 4, limit: int = 12, continuous: bool = False, step_reward: float = -0.02):
        self.size, self.square, self.limit, self.continuous, self.step_reward = size, square, limit, continuous, step_reward
        self.observation_space = gym.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32) if continuous else gym.spaces.Discrete(4)
        self.render_mode = "rgb_array"

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        cells = self.size // self.square
        at, target = self.np_random.choice(cells * cells, 2, replace=False)
        self.at = np.array(divmod(int(at), cells), float) * self.square
        self.target = np.array(divmod(int(target), cells), float) * self.square
        self.steps = 0
        return self.render(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        move = np.clip(np.asarray(action, float), -1, 1) if self.continuous else MOVES[int(action)]
        self.at = np.clip(self.at + self.square * move, 0, self.size - self.square)
        self.steps += 1
        reached = bool(np.all(np.abs(self.at - self.target) <= self.square / 2))
        return self.render(), 1.0 if reached else self.step_reward, reached, not reached and self.steps >= self.limit, {}

    def render(self) -> np.ndarray:  # type: ignore[override]
        picture = np.zeros((self.size, self.size, 3), np.uint8)
        for corner, colour in ((self.target, GREEN), (self.at, WHITE)):
            row, column = np.round(corner).astype(int)
            picture[row : row + self.square, column : column + self.square] = colour
        return picture
