"""A peg, a shelf to go round and a narrow slot, seen from the front: a scene for learning with demonstrations and corrections.

It plays a person too: `demonstrate` says what somebody would do now who knows the way and has the habits that the options describe.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

WORLD = 32.0
"""Side of the scene in units of length; x runs to the right, y down. At side = 32 a unit is a pixel."""
HALF, STEP, CLEARANCE, SUBSTEPS = 1.0, 1.5, 0.5, 6
SHELF = (1.0, 22.0, 12.0, 14.0)
BLOCK = 22.0
ROUND, UNDER, MOUTH_Y, FLOOR_Y = np.array([26.0, 10.0]), np.array([26.0, 16.0]), 19.5, 28.5
"""Where the way leads: beside the shelf, under it, over the slot, to its floor."""
CELL = 2.0
GAMMA = 0.97
"""Discount per step of what `value` says."""


class Insertion(gym.Env):
    """Take the peg round the shelf and into the slot. What touches a wall stays where it met it until it moves away.

    Observation: uint8 (side, side, 3) picture (red the peg, green the slot's floor, blue the walls), or with see="numbers" the peg's place
    and the slot's, float32 (3,), in [−1, 1].
    Action: Box(2) in [−1, 1], a move by up to 1.5 units along x and y.
    Reward: 1 when the peg is at the floor of the slot, which terminates; otherwise 0.
    Limit: truncated after `limit` steps; the shortest ways take about 20.

    Args:
      speed: the person's largest move, as a share of what is possible.
      bias: units by which the person misjudges the slot until the peg touches its rim, always to the same side.
      noise: standard deviation of the person's actions.
      wrong: share of places (squares of two units) where the person always makes one and the same move, which has nothing to do with the
        way.
      slips: share of steps in which the person does anything.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "axes": ("right", "down")}

    def __init__(
        self,
        see: str = "picture",
        side: int = 32,
        limit: int = 60,
        speed: float = 1.0,
        bias: float = 0.0,
        noise: float = 0.0,
        wrong: float = 0.0,
        slips: float = 0.0,
        render_mode: str | None = "rgb_array",
    ):
        if see not in ("picture", "numbers"):
            raise ValueError(f"see = {see!r}; expected 'picture' or 'numbers'")
        self.see, self.side, self.limit, self.render_mode = see, side, limit, render_mode
        self.speed, self.bias, self.noise, self.slips = speed, bias, noise, slips
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        picture = gym.spaces.Box(0, 255, (side, side, 3), np.uint8)
        self.observation_space = picture if see == "picture" else gym.spaces.Box(-1.0, 1.0, (3,), np.float32)
        cells, rng = int(WORLD / CELL), np.random.Generator(np.random.Philox(7))
        self.habit = rng.uniform(-1.0, 1.0, (cells, cells, 2))
        self.habitual = rng.random((cells, cells)) < wrong

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.at = self.np_random.uniform([3.0, 3.0], [20.0, 9.0])
        self.slot = float(self.np_random.uniform(6.0, 14.0))
        self.steps, self.felt = 0, False
        return self._look(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.at, touches = self._moved(np.asarray(action, float))
        self.felt |= touches and self.at[1] > MOUTH_Y
        self.steps += 1
        inside = self.inserted
        over = not inside and self.steps >= self.limit
        return self._look(), float(inside), inside, over, {"measures": {"success": float(inside), "path": self.left}}

    @property
    def inserted(self) -> bool:
        return bool(self.at[1] >= FLOOR_Y - 0.5)

    def render(self) -> np.ndarray:  # type: ignore[override]
        """The picture of the scene, edges between pixels as shades."""
        edges = np.arange(self.side + 1) * WORLD / self.side

        def cover(low: float, high: float) -> np.ndarray:
            return np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) * self.side / WORLD

        x0, x1, y0, y1 = SHELF
        slot = cover(self.slot - HALF - CLEARANCE, self.slot + HALF + CLEARANCE)
        walls = np.outer(cover(y0, y1), cover(x0, x1)) + np.outer(cover(BLOCK, WORLD), 1 - slot)
        peg = np.outer(cover(self.at[1] - HALF, self.at[1] + HALF), cover(self.at[0] - HALF, self.at[0] + HALF))
        floor = np.outer(cover(FLOOR_Y, WORLD), slot)
        return np.round(255 * np.stack([peg, floor, walls], -1).clip(0, 1)).astype(np.uint8)

    # -- the person ---------------------------------------------------------------------------------------------------------------

    def demonstrate(self) -> np.ndarray:
        """What the person would do now."""
        if self.slips and self.np_random.random() < self.slips:
            return self.np_random.uniform(-1, 1, 2).astype(np.float32)
        row, column = (np.clip(self.at[::-1], 0, WORLD - 1) / CELL).astype(int)
        if self.habitual[row, column]:
            meant = self.habit[row, column]
        else:
            aside = np.array([0.0 if self.felt or self.at[1] > BLOCK - HALF else self.bias, 0.0])
            aim = self._next(self.at - aside) + (aside if self.at[1] >= SHELF[3] + HALF else 0.0)
            meant = np.clip((aim - self.at) / STEP, -self.speed, self.speed)
        return np.clip(meant + self.np_random.normal(0.0, 1.0, 2) * self.noise, -1, 1).astype(np.float32)

    @property
    def left(self) -> float:
        """Units of way to the floor of the slot."""
        return self._left(self.at)

    @property
    def aside(self) -> float:
        """Units between the peg and the nearest point of the way from where it is expected: how far it is astray."""
        corners = [ROUND, UNDER, np.array([self.slot, MOUTH_Y]), np.array([self.slot, FLOOR_Y])]
        first = np.array([min(self.at[0], ROUND[0]), np.clip(self.at[1], 3.0, 10.0)])
        return min(_distance(self.at, a, b) for a, b in zip([first, *corners], corners))

    def value(self, action: Any = None) -> float:
        """γ to the number of steps to success, along the way at full speed: now, or after one action (then times γ)."""
        return (
            GAMMA ** (self.left / STEP) if action is None else GAMMA ** (1 + self._left(self._moved(np.asarray(action, float))[0]) / STEP)
        )

    # -- where things are -----------------------------------------------------------------------------------------------------------

    def _next(self, at: np.ndarray) -> np.ndarray:
        """The next corner of the way."""
        if at[1] > BLOCK - HALF or (at[1] >= SHELF[3] + HALF and abs(at[0] - self.slot) < 0.8 * CLEARANCE):
            return np.array([self.slot, FLOOR_Y])
        if at[1] >= SHELF[3] + HALF:
            return np.array([self.slot, MOUTH_Y])
        return UNDER if at[0] >= SHELF[1] + 2 * HALF else ROUND

    def _left(self, at: np.ndarray) -> float:
        corners = [ROUND, UNDER, np.array([self.slot, MOUTH_Y]), np.array([self.slot, FLOOR_Y])]
        first = self._next(at)
        rest = corners[next(i for i, c in enumerate(corners) if np.array_equal(c, first)) :]
        return float(sum(np.linalg.norm(b - a) for a, b in zip([at, *rest], rest)))

    def _moved(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        """(where a move leads, whether a wall ended it)."""
        at = self.at
        for _ in range(SUBSTEPS):
            onward = at + np.clip(action, -1, 1) * STEP / SUBSTEPS
            if self._blocked(onward):
                return at, True
            at = onward
        return at, False

    def _blocked(self, at: np.ndarray) -> bool:
        x, y = at
        x0, x1, y0, y1 = SHELF
        shelf = x - HALF < x1 and x + HALF > x0 and y - HALF < y1 and y + HALF > y0
        block = y + HALF > BLOCK and abs(x - self.slot) > CLEARANCE
        return bool(shelf or block or not (1 + HALF <= x <= WORLD - 1 - HALF and 1 + HALF <= y <= WORLD - 1 - HALF))

    def _look(self) -> np.ndarray:
        if self.see == "picture":
            return self.render()
        return (np.array([*self.at, self.slot]) / (WORLD / 2) - 1).astype(np.float32)


def _distance(point: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """From a point to the line between two others."""
    along = b - a
    share = np.clip((point - a) @ along / max(float(along @ along), 1e-9), 0, 1)
    return float(np.linalg.norm(point - a - share * along))
