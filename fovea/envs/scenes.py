"""Two small MuJoCo scenes of our own: a hand over coloured pads, and a peg over holes. Milliseconds a step, with an expert.

The hand slides along x, y (and z) behind a target that actions move by up to `STEP` metres. Where things lie is drawn from the seed.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from fovea.envs.mujoco import Lens, offscreen, unforgiving

STEP, SUBSTEPS = 0.03, 5
"""Metres that an action of 1 moves the target; steps of 20 ms of physics in a step of control."""
COLOURS = {"red": "0.85 0.1 0.1 1", "green": "0.1 0.65 0.15 1", "blue": "0.15 0.25 0.9 1"}
REACH, RADIUS = 0.25, 0.05
"""Half of the table's side and a pad's radius, metres."""
HIGH, TOP, HOLE, DEEP = 0.14, 0.06, 0.028, 0.035
"""Heights in metres: of the peg's tip when it travels, and of the blocks; half of a hole's side; tip height that counts as inserted."""

_FRAME = """
<mujoco>
  <option timestep="0.02" integrator="implicitfast" gravity="0 0 0"/>
  <visual><headlight ambient="0.6 0.6 0.6" diffuse="0.4 0.4 0.4" specular="0 0 0"/></visual>
  <worldbody>
    <geom type="plane" size="0.6 0.6 0.1" rgba="0.86 0.84 0.8 1" contype="0" conaffinity="0"/>
    <camera name="top" pos="0 0 1" fovy="36" xyaxes="1 0 0 0 1 0"/>
    <camera name="front" pos="0 -0.75 0.6" fovy="45" xyaxes="1 0 0 0 0.62 0.78"/>
    {things}
    <body name="hand">
      <joint name="x" type="slide" axis="1 0 0" damping="4"/><joint name="y" type="slide" axis="0 1 0" damping="4"/>
      <joint name="z" type="slide" axis="0 0 1" damping="4"/>
      {hand}
    </body>
  </worldbody>
  <actuator>
    <position joint="x" kp="60" forcerange="-6 6"/><position joint="y" kp="60" forcerange="-6 6"/>
    <position joint="z" kp="60" forcerange="-6 6"/>
  </actuator>
</mujoco>
"""


class Scene:
    """What the scenes share; a subclass says what lies on the table and when the task is done.

    Attributes:
      instruction: what is to be done, from `reset` on. limit: steps of control. axes: where actions lead, as the top camera sees it.
    """

    cameras: tuple[str, ...] = ("top", "front")
    axes, layout = ("right", "up", "rise"), {"place": (0, 3), "velocity": (3, 6)}
    dims, limit = 3, 30
    instruction = ""
    model: Any

    def __init__(self, size: int = 32, shadows: bool = False):
        offscreen()
        self.mj: Any = import_module("mujoco")
        self.model = unforgiving(_compiled(type(self).__name__, shadows))
        self.data, self.size, self.shadows = self.mj.MjData(self.model), size, shadows
        self.target = np.zeros(3)

    def reset(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.mj.mj_resetData(self.model, self.data)
        self.colour = str(rng.choice(list(COLOURS)))
        self._place(rng)
        self.data.qpos[:], self.data.ctrl[:] = self.target, self.target
        self.mj.mj_forward(self.model, self.data)

    def step(self, action: np.ndarray) -> tuple[float, bool]:
        """(reward, done): 1 where the task is done."""
        self.target = self._moved(self.target, action)
        self.data.ctrl[:] = self.target
        self.mj.mj_step(self.model, self.data, SUBSTEPS)
        done = self.done
        return float(done), done

    def state(self) -> np.ndarray:
        """Place and speed of the hand, metres and metres per second: (6,) float32."""
        return np.concatenate([self.data.qpos, self.data.qvel]).astype(np.float32)

    def picture(self, camera: str) -> np.ndarray:
        return _lens(type(self).__name__, self.size, self.shadows).picture(self.data, camera)

    def plan(self, steps: int) -> np.ndarray:
        """The expert's next actions, (steps, dims) in [−1, 1]."""
        target, out = self.target, []
        for _ in range(steps):
            out.append(np.clip((self._aim(target) - target)[: self.dims] / STEP, -1, 1))
            target = self._moved(target, out[-1])
        return np.array(out, np.float32)

    def close(self) -> None:
        """The renderer belongs to all copies of the scene."""

    def _moved(self, target: np.ndarray, action: np.ndarray) -> np.ndarray:
        move = np.zeros(3)
        move[: self.dims] = np.clip(action, -1, 1) * STEP
        return np.clip(target + move, (-REACH, -REACH, 0.0), (REACH, REACH, HIGH))

    def _lay(self, rng: np.random.Generator, apart: float, within: float) -> dict[str, np.ndarray]:
        """A place for each colour, at least `apart` from the others."""
        while True:
            at = rng.uniform(-within, within, (len(COLOURS), 2))
            gaps = np.linalg.norm(at[:, None] - at[None], axis=-1) + 9 * np.eye(len(at))
            if gaps.min() > apart:
                break
        for body, place in zip(COLOURS, at):
            self.data.mocap_pos[self.model.body(body).mocapid[0]][:2] = place
        return dict(zip(COLOURS, at))

    def _place(self, rng: np.random.Generator) -> None:
        raise NotImplementedError

    def _aim(self, target: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    @property
    def done(self) -> bool:
        raise NotImplementedError


class Reach(Scene):
    """Bring the hand over the pad of the colour that the instruction names. Two dimensions."""

    dims, limit = 2, 20
    XML = _FRAME.format(
        things="\n".join(
            f'<body name="{c}" mocap="true" pos="0 0 0.004"><geom type="cylinder" size="{RADIUS} 0.004" rgba="{rgba}" contype="0" '
            f'conaffinity="0"/></body>'
            for c, rgba in COLOURS.items()
        ),
        hand='<geom type="sphere" size="0.03" mass="0.2" rgba="0.1 0.1 0.1 1" contype="0" conaffinity="0"/>',
    )

    def _place(self, rng: np.random.Generator) -> None:
        self.pads = self._lay(rng, 3.2 * RADIUS, REACH - RADIUS)
        self.target = np.array([*rng.uniform(-REACH, REACH, 2), 0.05])
        self.instruction = f"reach the {self.colour} pad"

    def _aim(self, target: np.ndarray) -> np.ndarray:
        return np.array([*self.pads[self.colour], target[2]])

    @property
    def done(self) -> bool:
        return bool(np.linalg.norm(self.data.qpos[:2] - self.pads[self.colour]) < RADIUS * 0.8)


class Insert(Scene):
    """Bring the peg over the hole of the colour that the instruction names, and down into it. Three dimensions, with contact."""

    limit = 40
    XML = _FRAME.format(
        things="\n".join(
            f'<body name="{c}" mocap="true" pos="0 0 {TOP / 2}">'
            + "".join(
                f'<geom type="box" pos="{x} {y} 0" size="{a} {b} {TOP / 2}" rgba="{rgba}" condim="3" friction="0.2"/>'
                for x, y, a, b in (
                    *((s * (HOLE + 0.015), 0, 0.015, HOLE + 0.03) for s in (-1, 1)),
                    *((0, s * (HOLE + 0.015), HOLE, 0.015) for s in (-1, 1)),
                )
            )
            + "</body>"
            for c, rgba in COLOURS.items()
        ),
        hand='<geom type="capsule" fromto="0 0 0.02 0 0 0.1" size="0.02" mass="0.2" rgba="0.1 0.1 0.1 1" friction="0.2"/>',
    )

    def _place(self, rng: np.random.Generator) -> None:
        self.holes = self._lay(rng, 0.15, REACH - 0.06)
        self.target = np.array([*rng.uniform(-REACH, REACH, 2), HIGH])
        self.instruction = f"put the peg into the {self.colour} hole"

    def _aim(self, target: np.ndarray) -> np.ndarray:
        hole = self.holes[self.colour]
        near = np.abs(target[:2] - hole).max() < 0.004
        return np.array([*hole, 0.0 if near else HIGH])

    @property
    def done(self) -> bool:
        inside = np.abs(self.data.qpos[:2] - self.holes[self.colour]).max() < HOLE
        return bool(inside and self.data.qpos[2] < DEEP)


SCENES: dict[str, type[Scene]] = {"reach": Reach, "insert": Insert}


@cache
def _compiled(name: str, shadows: bool) -> Any:
    """One for each way to draw, because a `Lens` changes how its model is drawn."""
    mujoco: Any = import_module("mujoco")
    return mujoco.MjModel.from_xml_string({s.__name__: s for s in SCENES.values()}[name].XML)  # type: ignore[attr-defined]


@cache
def _lens(name: str, size: int, shadows: bool) -> Lens:
    """One for all copies: a context of OpenGL takes tens of megabytes."""
    return Lens(_compiled(name, shadows), size, shadows)
