"""Small worlds in pixels: reach the green square. For tests, spikes and first steps; seconds to solve."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from fovea.envs.drift import Drift
from fovea.envs.insertion import Insertion as Insertion  # by its id, "fovea/Insertion-v0", like the classes here

MOVES = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])  # up, down, left, right as (row, column)
WHITE, GREEN, RED = (np.array(c, np.uint8) for c in ((255, 255, 255), (0, 200, 0), (255, 0, 0)))


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


class PointMass(gym.Env):
    """A red square is moved towards a green one that stands still, before a background that drifts as it likes.

    Observation: uint8 (32, 32, 3) picture; squares of 4 pixels, the red one in front.
    Action: Box(2) in [-1, 1], a move by that times 0.1 in (x, y); the world is the unit square.
    Reward: `paid` times exp(-4 d) after the move, d the distance of the squares.
    Limit: truncated after `limit` steps.
    Info: "truth", what a probe may ask for: "agent", (x, y), and "background", sines and cosines of its phases.

    Args:
      distractors: whether there is a background (`fovea.envs.drift.Drift`); black otherwise.
      textures: which textures it is made of. loud: its amplitude, as a part of the range of a colour.
      inverted: every colour is shown as its complement.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}
    SIZE, SQUARE, STEP = 32, 4, 0.1
    GOAL = np.array([0.7, 0.3])

    def __init__(
        self,
        distractors: bool = True,
        textures: int = 0,
        inverted: bool = False,
        paid: float = 5.0,
        limit: int = 40,
        loud: float = 0.5,
        render_mode: str = "rgb_array",
    ):
        self.drift = Drift(self.SIZE, self.SIZE, seed=textures) if distractors else None
        self.inverted, self.paid, self.limit, self.loud, self.render_mode = inverted, paid, limit, loud, render_mode
        self.observation_space = gym.spaces.Box(0, 255, (self.SIZE, self.SIZE, 3), np.uint8)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.at, self.steps = self.np_random.uniform(0, 1, 2), 0
        self.phase = self.drift.begin(self.np_random) if self.drift else np.zeros(0)
        return self.render(), self._truth()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.at = np.clip(self.at + self.STEP * np.clip(np.asarray(action, float), -1, 1), 0, 1)
        self.steps += 1
        if self.drift:
            self.phase = self.drift.go_on(self.phase, self.np_random)
        reward = self.paid * float(np.exp(-4 * np.linalg.norm(self.at - self.GOAL)))
        return self.render(), reward, False, self.steps >= self.limit, self._truth()

    def render(self) -> np.ndarray:  # type: ignore[override]
        if self.drift:
            shown = np.clip(127.5 + 255 * self.loud * self.drift.draw(self.phase), 0, 255).astype(np.uint8)
        else:
            shown = np.zeros((self.SIZE, self.SIZE, 3), np.uint8)
        for at, colour in ((self.GOAL, GREEN), (self.at, RED)):
            column, row = np.round(at * (self.SIZE - self.SQUARE)).astype(int)
            shown[row : row + self.SQUARE, column : column + self.SQUARE] = colour
        return 255 - shown if self.inverted else shown

    def _truth(self) -> dict[str, Any]:
        return {"truth": {"agent": self.at.copy(), "background": np.concatenate([np.cos(self.phase), np.sin(self.phase)])}}
