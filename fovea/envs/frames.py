"""What a robot feels and does, told in frames of its own hand (HIL-SERL, arXiv 2410.21845): where its base stands does not matter then.

    place, turn           T_start⁻¹ T: as the hand stood when the episode began
    velocity, spin, force, torque    Rᵀ x: as the hand stands now
    action                a = Ad (v, ω): a move, and a turn where there is one, as the hand stands now; whatever follows stays

An environment says in its `metadata["state"]` which numbers of its state are which, {"place": (0, 3), "turn": (3, 6)}; without a turn the
hand never turns. The state is the part of that name of its observation (`fovea.envs.parts`), or the whole of it.

Departures from the released code: actions move the hand's own point, so the adjoint is that of a frame that is only turned; there the
hand's distance to the base moves it too, in the rows of the turn. Turns are rotation vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from fovea.math.frames import adjoint, inverse, pose, turn

STATE = "state"
"""The part of an observation that is felt."""


class Relative(gym.Wrapper):
    """A wrapper for `Gym.around`, also of held-out episodes. Actions that somebody inside it chose are noted in the hand's frame too."""

    always = True

    def __init__(self, env: gym.Env):
        super().__init__(env)
        scene: Any = env.unwrapped
        self.layout: dict[str, tuple[int, int]] = dict((getattr(scene, "metadata", None) or {}).get(STATE, {}))
        if "place" not in self.layout:
            raise ValueError(
                f"relative: {scene} does not say where its hand is; expected metadata['state'] with 'place': (first, after last)"
            )
        self.parts = tuple(getattr(scene, "parts", ()))
        at = 0
        self.bytes = slice(0)
        for part in self.parts:
            self.bytes = slice(at, at + part.bytes) if part.name == STATE else self.bytes
            at += part.bytes
        self.chunk = int(getattr(scene, "chunk", 1))
        self.start, self.now = np.eye(4), np.eye(4)

    def reset(self, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        obs, info = self.env.reset(**options)
        self.start = self._pose(self._state(obs))
        return self._told(obs), info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        done = self.outward(np.asarray(action))
        before = self.now
        obs, reward, terminated, truncated, info = self.env.step(done)
        if "action" in info.get("noted", {}):
            info = {**info, "noted": {**info["noted"], "action": self._sayable(info["noted"]["action"], before)}}
        return self._told(obs), reward, bool(terminated), bool(truncated), info

    def outward(self, action: np.ndarray) -> np.ndarray:
        """An action as the environment takes it."""
        return self._turned(action, self.now[:3, :3])

    def inward(self, action: np.ndarray) -> np.ndarray:
        """An action of the environment as this wrapper takes it; of one that is beyond its bounds, what is nearest within."""
        return self._sayable(action, self.now)

    def _sayable(self, action: np.ndarray, hand: np.ndarray) -> np.ndarray:
        # the corners of a box that is turned stand out of it, and no policy can say or imitate them
        space: Any = self.action_space
        return np.clip(self._turned(action, hand[:3, :3].T), space.low, space.high)

    def _turned(self, action: np.ndarray, R_33: np.ndarray) -> np.ndarray:
        frame = np.eye(4)
        frame[:3, :3] = R_33
        size = 6 if "turn" in self.layout else 3
        rows = np.array(action, float).reshape(self.chunk, -1)
        rows[:, :size] = rows[:, :size] @ adjoint(frame)[:size, :size].T
        return rows.reshape(np.shape(action)).astype(np.asarray(action).dtype)

    def _state(self, obs: np.ndarray) -> np.ndarray:
        return np.frombuffer(obs[self.bytes].tobytes(), np.float32) if self.parts else np.asarray(obs)

    def _pose(self, state: np.ndarray) -> np.ndarray:
        place, turned = (state[slice(*self.layout[n])] if n in self.layout else np.zeros(3) for n in ("place", "turn"))
        return pose(place, turned)

    def _told(self, obs: np.ndarray) -> np.ndarray:
        state = self._state(obs)
        self.now = self._pose(state)
        since, out = inverse(self.start) @ self.now, state.copy()
        told = {"place": since[:3, 3], "turn": turn(since[:3, :3])}
        for name, (first, end) in self.layout.items():
            out[first:end] = told[name] if name in told else self.now[:3, :3].T @ state[first:end]
        if not self.parts:
            return out
        obs = obs.copy()
        obs[self.bytes] = out.astype(np.float32).view(np.uint8)
        return obs


def turning(env: gym.Env) -> Iterator[Relative]:
    """The wrappers around an environment that tell actions in another frame, the outermost first."""
    while isinstance(env, gym.Wrapper):
        if isinstance(env, Relative):
            yield env
        env = env.env
