"""Tasks of the DeepMind Control suite in pixels, with a background that drifts (extra `sim`): ``data="gym:dmc/walker-walk-v0"``."""

from __future__ import annotations

import difflib
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from fovea.envs.drift import Drift
from fovea.envs.gym import refuse_constant
from fovea.envs.mujoco import close_first, offscreen


class Suite(gym.Env):
    """A task of `dm_control.suite`, seen by one of its cameras.

    Observation: uint8 (size, size, 3) picture. Action: the task's own Box. Reward: the task's, summed over `repeat` steps of its own.
    Limit: the task's, 1,000 steps of its own; it truncates. Few tasks ever terminate (a discount of 0).
    Info: "truth", what a probe may ask for: "agent", the positions of the joints, and "background", sines and cosines of its phases.

    Args:
      name: DOMAIN-TASK, such as "walker-walk".
      repeat: how often an action is repeated.
      background: pixels in which blue is strictly the strongest colour, which are those of the sky, show grey textures that drift
        (`fovea.envs.drift.Drift`); whatever else is blue is overwritten, too. They begin anew with every seed.
      textures: which textures. loud: their amplitude, as a part of the range of a colour.
      fast: without shadows, reflections and smooth edges, five to sixty times faster.
      camera: its number.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}

    def __init__(
        self,
        name: str,
        size: int = 64,
        repeat: int = 2,
        background: bool = True,
        textures: int = 0,
        loud: float = 0.3,
        fast: bool = True,
        camera: int = 0,
        render_mode: str = "rgb_array",
    ):
        offscreen()  # before dm_control, which chooses when it is imported
        from dm_control import suite

        close_first()
        domain, _, task = name.rpartition("-")
        known = [f"{d}-{t}" for d, t in suite.ALL_TASKS]
        if name not in known:
            near = difflib.get_close_matches(name, known, 3)
            raise ValueError(f"dmc/{name}: no such task; expected DOMAIN-TASK, such as {', '.join(near or ['walker-walk'])}")
        self.name, self.size, self.repeat, self.camera, self.render_mode = name, size, repeat, camera, render_mode
        self.env = suite.load(domain, task, task_kwargs={"random": 0})
        self.flags = {"shadow": False, "reflection": False} if fast else {}
        if fast:  # before the first picture, which makes the renderer
            self.env.physics.model.vis.quality.shadowsize = 0
            self.env.physics.model.vis.quality.offsamples = 0
        self.drift, self.loud, self.checked = Drift(size, size, 1, seed=textures) if background else None, loud, False
        spec = self.env.action_spec()
        low, high = (np.broadcast_to(x, spec.shape).astype(np.float32) for x in (spec.minimum, spec.maximum))
        self.action_space = gym.spaces.Box(low, high, dtype=np.float32)
        self.observation_space = gym.spaces.Box(0, 255, (size, size, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Raises:
          RuntimeError: the first picture is of one colour, with the likely cause.
        """
        super().reset(seed=seed)
        # a task has no other way to be seeded than being loaded anew, which takes a second and another renderer
        self.env.task._random = np.random.RandomState(int(self.np_random.integers(2**31)))
        self.env.reset()
        self.phase = self.drift.begin(self.np_random) if self.drift else np.zeros(0)
        if not self.checked:
            refuse_constant(self._scene(), f"dmc/{self.name}")
            self.checked = True
        return self.render(), self._truth()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward, now = 0.0, None
        for _ in range(self.repeat):
            now = self.env.step(action)
            reward += float(now.reward or 0.0)
            if now.last():
                break
        assert now is not None
        if self.drift:
            self.phase = self.drift.go_on(self.phase, self.np_random)
        ended = now.last() and now.discount == 0
        return self.render(), reward, ended, now.last() and not ended, self._truth()

    def render(self) -> np.ndarray:  # type: ignore[override]
        picture = self._scene()
        if self.drift:
            red, green, blue = picture[..., 0], picture[..., 1], picture[..., 2]
            grey = np.clip(127.5 + 255 * self.loud * self.drift.draw(self.phase), 0, 255).astype(np.uint8)
            picture = np.where(((blue > red) & (blue > green))[..., None], grey, picture)
        return picture

    def close(self) -> None:
        self.env.close()

    def _scene(self) -> np.ndarray:
        return self.env.physics.render(self.size, self.size, camera_id=self.camera, render_flag_overrides=self.flags)

    def _truth(self) -> dict[str, Any]:
        told = np.concatenate([np.cos(self.phase), np.sin(self.phase)])
        return {"truth": {"agent": np.array(self.env.physics.data.qpos), "background": told}}
