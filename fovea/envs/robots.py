"""Robots in simulators: an instruction in words, cameras, proprioception, actions by the chunk, success.

    scene:reach   scene:insert                    our own, small and fast, with an expert
    metaworld:button-press-v3                     50 tasks of one arm, with experts; several in turn are joined by "+"
    gymrobotics:FetchReach-v4                     Fetch, Shadow hand, Adroit, kitchen (mazes have no camera)

A `Robot` is a Gymnasium environment of arrays, for `data="robot:scene:reach"`; a `Told` one is the same for a policy that is shown pictures
and told the instruction (`environment="scene:reach"`). The same seed shows the same first frame, so a group shares its start by its seed.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol
from weakref import WeakValueDictionary

import gymnasium as gym
import numpy as np

from fovea.envs.gym import refuse_constant
from fovea.envs.mujoco import Lens, offscreen, unforgiving
from fovea.envs.parts import Part, pack
from fovea.envs.scenes import SCENES
from fovea.types import Action, Observation, Task, user

LETTERS = 96
"""Bytes of an instruction that a policy of arrays is told."""
UPRIGHT = "corner2"
"""Meta-World's usual camera."""
LONGEST = 500
"""Actions after which Meta-World's simulators refuse to go on."""


class Body(Protocol):
    """One simulated robot with one task.

    Attributes:
      instruction: what is to be done, from `reset` on. dims: numbers of an action. limit: steps before an episode is cut.
      cameras: their names. A body may say more: `axes`, see `fovea.envs.page`, and `layout`, which numbers of the state are what, see
        `fovea.envs.frames`.
    """

    instruction: str
    dims: int
    limit: int
    cameras: tuple[str, ...]

    def reset(self, seed: int) -> None: ...
    def step(self, action: np.ndarray) -> tuple[float, bool]: ...
    def state(self) -> np.ndarray: ...
    def picture(self, camera: str) -> np.ndarray: ...
    def plan(self, steps: int) -> np.ndarray: ...
    def close(self) -> None: ...


class Robot(gym.Env):
    """A body, as a policy meets it.

    Observation: one row of bytes (`fovea.envs.parts`): the picture of each camera, uint8 (H, W, 3), under the camera's name; "state",
    float32; "told", the instruction in UTF-8, filled up with 0. Action: Box(chunk · dims) in [−1, 1], a chunk of consecutive actions, flat.
    Reward: the sum over the chunk, which ends early where the task does. Limit: that of the body.

    A body that raises, or whose state is not finite, is replaced: its episode is cut, counted in `crashes` and said aloud.

    Args:
      make: makes a body. cameras: those that are looked through. chunk: actions that are taken before the policy looks again.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - of the class in Gymnasium, of the body here

    def __init__(self, make: Callable[[], Body], cameras: Sequence[str] = (), chunk: int = 1):
        self.make, self.body, self.chunk, self.render_mode = make, make(), chunk, "rgb_array"
        self.cameras = tuple(cameras) or self.body.cameras[:1]
        if unknown := sorted(set(self.cameras) - set(self.body.cameras)):
            raise ValueError(f"camera {unknown[0]!r}; expected one of {', '.join(self.body.cameras)}")
        if len(set(self.cameras)) < len(self.cameras):
            raise ValueError(f"camera {'+'.join(self.cameras)!r}; expected each of them once")
        if chunk < 1:
            raise ValueError(f"chunk = {chunk}; expected at least 1")
        self.body.reset(0)
        sizes = {c: self.body.picture(c).shape for c in self.cameras}
        self.parts = (
            *(Part(c, sizes[c], "uint8") for c in self.cameras),
            Part("state", self.body.state().shape),
            Part("told", (LETTERS,), "uint8"),
        )
        self.observation_space = gym.spaces.Box(0, 255, (sum(p.bytes for p in self.parts),), np.uint8)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (chunk * self.body.dims,), np.float32)
        self.metadata = {**self.metadata, "axes": getattr(self.body, "axes", ()), "state": getattr(self.body, "layout", {})}
        self.crashes, self.steps = 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.body.reset(int(self.np_random.integers(2**31)) if seed is None else seed)
        self.steps = 0
        senses = self.senses()
        for camera in self.cameras:
            refuse_constant(senses[camera], f"{type(self.body).__name__}, camera {camera!r}")
        self.seen = pack(self.parts, senses)
        return self.seen, {"instruction": self.body.instruction}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        total, done = 0.0, False
        actions = np.asarray(action, float).reshape(self.chunk, self.body.dims)
        if not np.isfinite(actions).all():
            raise ValueError(f"{self.body.instruction!r}, step {self.steps}: found the action {actions.tolist()}, expected finite numbers")
        try:
            for one in actions:
                reward, done = self.body.step(np.clip(one, -1, 1))
                if not np.isfinite(self.body.state()).all():
                    raise FloatingPointError("the state of the simulation is not finite")
                total, self.steps = total + reward, self.steps + 1
                if done or self.steps >= self.body.limit:
                    break
            self.seen = pack(self.parts, self.senses())
        except Exception as e:  # whatever a simulator may raise: it costs this episode
            return self._replaced(e)
        cut = not done and self.steps >= self.body.limit
        return self.seen, total, done, cut, {"measures": {"success": float(done)}}

    def demonstrate(self) -> np.ndarray:
        """What the expert would do now, a chunk as `step` takes it."""
        return self.body.plan(self.chunk).reshape(-1)

    def senses(self) -> dict[str, np.ndarray]:
        """The parts of what is seen now."""
        return {c: self.body.picture(c) for c in self.cameras} | {"state": self.body.state(), "told": spelled(self.body.instruction)}

    def render(self) -> np.ndarray:  # type: ignore[override]
        return self.body.picture(self.cameras[0])

    def close(self) -> None:
        self.body.close()

    def _replaced(self, e: Exception) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.crashes += 1
        warnings.warn(f"{type(self.body).__name__} ({self.body.instruction!r}) is replaced: {type(e).__name__}: {e}", stacklevel=3)
        with contextlib.suppress(Exception):  # what is broken may not close either
            self.body.close()
        self.body = self.make()
        self.body.reset(0)
        return self.seen, 0.0, False, True, {"crashed": True, "measures": {"success": 0.0}}


class Told:
    """A `Robot` for a policy that is shown pictures and told the instruction; an action is the numbers of a chunk, or their text."""

    def __init__(self, env: Robot):
        self.env = env

    def reset(self, task: Task, seed: int) -> Observation:
        self.env.reset(seed=int(task.meta.get("seed", seed)))
        return self._seen()

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        size = self.env.action_space.shape[0]  # type: ignore[index]
        found = action.value
        if isinstance(found, str):
            found = [float(x) for x in re.findall(r"-?\d+(?:\.\d+)?", found)]
        numbers = np.asarray(found, float).reshape(-1)
        legal = len(numbers) == size
        after = self.env.step(numbers if legal else np.zeros(size))
        return self._seen(), after[1], after[2], after[3], {**after[4], "legal": legal}

    def demonstrate(self) -> str:
        """The expert's chunk as text."""
        return " ".join(f"{x:.2f}" for x in self.env.demonstrate())

    def close(self) -> None:
        self.env.close()

    def _seen(self) -> Observation:
        from PIL import Image

        seen = self.env.senses()
        pictures = tuple(Image.fromarray(seen[c]) for c in self.env.cameras)
        asked = f"{self.env.body.instruction[:1].upper()}{self.env.body.instruction[1:]}. Move by {self.env.action_space.shape[0]} numbers."  # type: ignore[index]
        return Observation(messages=user(asked, images=len(pictures)), images=pictures, array=seen)


def spelled(text: str) -> np.ndarray:
    """An instruction as bytes, uint8 (LETTERS,)."""
    return np.frombuffer(text.encode()[:LETTERS].ljust(LETTERS, b"\0"), np.uint8)


# -- by name ------------------------------------------------------------------------------------------------------------------


def scene(name: str = "reach", size: int = 32, camera: str = "top", chunk: int = 4, shadows: bool = False) -> Told:
    """Our own scenes: "reach" or "insert".

    Args:
      size: of the pictures in pixels. camera: names, joined by "+". chunk: actions in a step. shadows: slow and pretty.
    """
    if name not in SCENES:
        raise ValueError(f"no scene {name!r}; there are: {', '.join(SCENES)}")
    return Told(Robot(lambda: SCENES[name](size, shadows), camera.split("+"), chunk))


def metaworld(
    name: str = "button-press-v3", size: int = 64, camera: str = UPRIGHT, chunk: int = 5, shadows: bool = False, limit: int = 200
) -> Told:
    """A task of Meta-World, or several in turn with "+" between (`turn`); options as in `scene`. Pictures of cameras that hang upside
    down are turned.

    Args:
      limit: single actions before an episode is cut.
    """
    offscreen()
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    names = name.split("+")
    if unknown := [n for n in names if n not in ALL_V3_ENVIRONMENTS]:
        raise ValueError(f"no task {unknown[0]!r} in Meta-World; there are: {', '.join(sorted(ALL_V3_ENVIRONMENTS))}")
    if not 1 <= limit <= LONGEST:
        raise ValueError(f"limit = {limit}; expected 1 to {LONGEST} actions")
    return Told(Robot(lambda: MetaWorld(names, size, shadows, limit), camera.split("+"), chunk))


def gymrobotics(name: str = "FetchReach-v4", size: int = 64, camera: str = "", chunk: int = 2, shadows: bool = False) -> Told:
    """An environment of Gymnasium-Robotics; options as in `scene`, the default camera is the model's first."""
    return Told(Robot(lambda: GymRobotics(name, size, shadows), camera.split("+") if camera else (), chunk))


def turn(names: Sequence[str], seed: int) -> str:
    """Which of several tasks an episode with this seed is."""
    return names[seed % len(names)]


class Spare(list[tuple[Any, Any]]):
    """(simulator, expert) of one task of Meta-World in which nobody plays now; each takes 60 megabytes, so they are lent on."""


_SPARE: WeakValueDictionary[str, Spare] = WeakValueDictionary()
"""By the name of the task, as long as there is a body that has it."""
_LENSES: dict[tuple[str, int, bool], Lens] = {}
"""By the name of the task, the size of pictures and whether with shadows; all copies share one, which takes 120 megabytes and a second."""


class MetaWorld:
    """Reward is 1 when the package says that the task is done, which ends it; proprioception is the hand's place and its opening.

    Args:
      names: of the tasks; the seed of an episode says which it is.
    """

    dims = 4
    layout: ClassVar = {"place": (0, 3)}

    def __init__(self, names: Sequence[str], size: int, shadows: bool, limit: int = 200):
        self.names, self.looks, self.limit, self.name = tuple(names), (size, shadows), limit, ""
        self.spare = {n: _SPARE.setdefault(n, Spare()) for n in names}
        self._play(self.names[0])
        self.cameras = tuple(self.env.model.camera(i).name for i in range(self.env.model.ncam))

    def reset(self, seed: int) -> None:
        if (name := turn(self.names, seed)) != self.name:
            self.spare[self.name].append((self.env, self.expert))
            self._play(name)
        self.env.seed(seed)
        self.obs, _ = self.env.reset()

    def step(self, action: np.ndarray) -> tuple[float, bool]:
        self.obs, _, _, _, info = self.env.step(np.asarray(action, np.float32))
        done = bool(info["success"])
        return float(done), done

    def state(self) -> np.ndarray:
        return np.asarray(self.obs[:4], np.float32)

    def picture(self, camera: str) -> np.ndarray:
        return self.lens.picture(self.env.data, camera, self.env.model)

    def plan(self, steps: int) -> np.ndarray:
        """The package's expert for what is seen now, held for the whole chunk."""
        return np.tile(np.clip(self.expert.get_action(self.obs), -1, 1).astype(np.float32), (steps, 1))

    def close(self) -> None:
        """The renderer belongs to all copies; a simulator may be broken and is not lent on."""
        self.spare = {}
        self.env.close()

    def _play(self, name: str) -> None:
        self.env, self.expert = self.spare[name].pop() if self.spare[name] else _simulator(name)
        key = (name, *self.looks)
        if key not in _LENSES:
            _LENSES[key] = Lens(self.env.model, *self.looks)
        self.name, self.lens = name, _LENSES[key]
        self.instruction = re.sub(r"-v\d+$", "", name).replace("-", " ")


def _simulator(name: str) -> tuple[Any, Any]:
    """A task of Meta-World and its expert, who knows the goal; it is not among the senses."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    from metaworld.policies import ENV_POLICY_MAP

    env: Any = ALL_V3_ENVIRONMENTS[name]()
    env._set_task_called, env._freeze_rand_vec, env.seeded_rand_vec = True, False, True
    env._partially_observable = False
    # bounds that were worked out while the goal was hidden cut it to 0 after every step
    env.__dict__.pop("sawyer_observation_space", None)
    unforgiving(env.model)
    return env, ENV_POLICY_MAP[name]()


class GymRobotics:
    """Reward is 1 when the goal is reached, which ends the episode; proprioception is the package's own observation and the goal."""

    def __init__(self, name: str, size: int, shadows: bool):
        offscreen()
        import gymnasium_robotics

        gym.register_envs(gymnasium_robotics)
        self.env: Any = gym.make(name, disable_env_checker=True)
        inner = self.env.unwrapped
        inner = inner if hasattr(inner, "model") else getattr(inner, "point_env", getattr(inner, "robot_env", inner)).unwrapped
        self.model, self.data = unforgiving(inner.model), inner.data
        self.mark_goal = getattr(inner, "_render_callback", lambda: None)  # it moves the mark to where the goal is
        self.lens = Lens(self.model, size, shadows)
        self.cameras = tuple(self.model.camera(i).name for i in range(self.model.ncam))
        if not self.cameras:
            raise ValueError(f"{name}: found no camera in its model; expected at least one")
        self.dims, self.limit = int(np.prod(self.env.action_space.shape)), int(self.env.spec.max_episode_steps or 200)
        self.instruction = " ".join(re.findall(r"[A-Z][a-z]*|\d+", re.sub(r"-v\d+$", "", name))).lower()

    def reset(self, seed: int) -> None:
        self.obs, _ = self.env.reset(seed=seed)

    def step(self, action: np.ndarray) -> tuple[float, bool]:
        low, high = self.env.action_space.low, self.env.action_space.high
        self.obs, _, _, _, info = self.env.step((low + (action + 1) / 2 * (high - low)).astype(np.float32))
        done = bool(info.get("is_success", info.get("success", False)))
        return float(done), done

    def state(self) -> np.ndarray:
        seen = [self.obs[k] for k in ("observation", "desired_goal") if k in self.obs] if isinstance(self.obs, dict) else [self.obs]
        rows = [np.concatenate([np.ravel(v) for v in x.values()]) if isinstance(x, dict) else np.ravel(x) for x in seen]
        return np.concatenate(rows).astype(np.float32)

    def picture(self, camera: str) -> np.ndarray:
        self.mark_goal()
        return self.lens.picture(self.data, camera)

    def plan(self, steps: int) -> np.ndarray:
        raise NotImplementedError(f"{self.instruction}: Gymnasium-Robotics has no experts")

    def close(self) -> None:
        self.lens.close()
        self.env.close()
