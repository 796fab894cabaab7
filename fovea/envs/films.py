"""What an episode of a simulator looked like, for people: the pictures that the policy saw, or, where it sees numbers, what is rendered."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from fovea.envs.parts import seen_in

SIDE, FRAMES = 256, 400
"""Longest side of a frame in pixels, and most frames of a film; of longer episodes every second one is kept, and so on."""
FPS = 10.0
"""Frames a second where an environment does not say (`metadata["render_fps"]`)."""


class Film:
    """The frames of one episode.

    Attributes:
      fps: frames of it that were one second.
    """

    def __init__(self, fps: float = FPS):
        self.frames: list[np.ndarray] = []
        self.fps, self._every, self._seen = fps, 1, 0

    def add(self, picture: np.ndarray) -> None:
        """One moment, uint8 (H, W, 3)."""
        if self._seen % self._every == 0:
            self.frames.append(small(picture))
        self._seen += 1
        if len(self.frames) > FRAMES:
            self.frames, self._every, self.fps = self.frames[::2], 2 * self._every, self.fps / 2


def fps_of(env: Any) -> float:
    return float((getattr(env.unwrapped, "metadata", None) or {}).get("render_fps") or FPS)


def moment(env: Any, obs: Any) -> np.ndarray | None:
    """An environment at this moment, uint8 (H, W, 3), cameras side by side; None where there is nothing to see."""
    found = list(pictures(env, obs).values())
    if not found:
        return None
    tallest = max(p.shape[0] for p in found)
    return np.concatenate([np.pad(p, ((0, tallest - p.shape[0]), (0, 0), (0, 0))) for p in found], 1)


def pictures(env: Any, obs: Any) -> dict[str, np.ndarray]:
    """Camera -> picture, uint8 (H, W, 3): those in the observation, of a stack the newest; else what the environment renders."""
    scene, seen = env.unwrapped, np.asarray(obs)
    while env is not scene:
        if hasattr(env, "stacked"):
            seen = seen[..., -(seen.shape[-1] // env.stacked) :]
        env = env.env
    seen = np.repeat(seen, 3, -1) if seen.dtype == np.uint8 and seen.ndim == 3 and seen.shape[-1] == 1 else seen
    if found := seen_in(seen, getattr(scene, "parts", ())):
        return found
    return {"": np.asarray(scene.render())} if getattr(scene, "render_mode", None) == "rgb_array" else {}


def small(picture: np.ndarray) -> np.ndarray:
    """A picture whose longest side is at most `SIDE`."""
    if max(picture.shape[:2]) <= SIDE:
        return np.array(picture)
    from PIL import Image

    shown = Image.fromarray(picture)
    shown.thumbnail((SIDE, SIDE))
    return np.asarray(shown)


class Camera:
    """Films the first episodes of a rollout, and none any more once an environment could not be looked at.

    Args:
      count: how many.
    """

    def __init__(self, count: int):
        self.count, self.broken = count, False

    def look(self, film: Film | None, env: Any, obs: Any) -> None:
        """Add this moment to a film, where there is one."""
        if film is None or self.broken:
            return
        try:
            shown = moment(env, obs)
        except Exception as e:  # what drawing may raise: it costs the film
            self.broken = True
            warnings.warn(f"episodes of {env.unwrapped} are not filmed: {type(e).__name__}: {e}", stacklevel=2)
            return
        if shown is not None:
            film.add(shown)
