"""Gymnasium environments: vectorised for array policies, or shown as pictures to a policy that answers in words."""

from __future__ import annotations

import inspect
import os
from collections import deque
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from fovea.envs.registered import register
from fovea.envs.words import REPLIES, answered, last_named
from fovea.types import Action, Observation, Task, user


def vector(
    make: str | Callable[..., Any],
    num_envs: int,
    stack: int = 1,
    unit_actions: bool = False,
    around: Sequence[Callable[[Any], Any]] = (),
    **kwargs: Any,
) -> Any:
    """`num_envs` copies in lock-step with autoreset off.

    Args:
      make: a registered id, "module:id" where a module registers it, or a function that makes one environment.
      stack: observations in a row that are shown side by side in the last axis; the first is repeated at the start of an episode.
      unit_actions: every dimension of a continuous action is in [−1, 1], whatever the environment's own bounds.
      around: wrappers, the innermost first.
    Raises:
      ImportError: Gymnasium is not installed.
    """
    try:
        import gymnasium
        from gymnasium.vector import AutoresetMode, SyncVectorEnv
    except ImportError as e:
        raise ImportError(f"simulators need gymnasium ({e}); install it with: pip install 'fovea-rl[envs]'") from e

    if isinstance(make, str):
        register(make)

    def made() -> Any:
        env = gymnasium.make(make, **kwargs) if isinstance(make, str) else make(**kwargs)
        if unit_actions and isinstance(env.action_space, gymnasium.spaces.Box):
            one = np.ones(env.action_space.shape, env.action_space.dtype)
            env = gymnasium.wrappers.RescaleAction(env, -one, one)
        for wrap in around:
            env = wrap(env)
        if stack > 1:
            from fovea.envs.stack import Stacked

            env = Stacked(env, stack)
        return env

    return SyncVectorEnv([made] * num_envs, autoreset_mode=AutoresetMode.DISABLED)


def renders(make: Any) -> bool:
    """Whether a registered id makes an environment that renders pictures when asked to; nothing is made."""
    from gymnasium.envs.registration import load_env_creator, registry

    if isinstance(make, str):
        register(make)
        module, _, make = make.rpartition(":")
        if module:
            import_module(module)
    entry = registry[make].entry_point if isinstance(make, str) and make in registry else None
    if entry is None:
        return False
    creator: Any = load_env_creator(entry) if isinstance(entry, str) else entry
    able = "rgb_array" in (getattr(creator, "metadata", None) or {}).get("render_modes", ())
    return able and "render_mode" in inspect.signature(creator).parameters


class InWords:
    """A Gymnasium environment with discrete actions, played in words by a policy that sees pictures of it.

    Every step shows the last pictures alone (the history is trimmed), so each turn is a segment of its own.

    Args:
      make: makes one environment; with `render_mode="rgb_array"`, unless `see` takes its pictures from somewhere else.
      actions: the word of each discrete action; the answer is the one that is named last.
      prompt: what is asked with every picture, or a function of the environment that gives it.
      invalid_reward: reward of an answer that names no action; the environment does not move then. None: an action at random instead.
      max_turns: the episode is cut after so many answers.
      see: (environment, its observation) -> picture, uint8 (H, W, 3).
      frames: pictures in a prompt, the newest last.
      reply: "" reads the whole text, "short" its answer, "json" what stands behind ``"action":``.
      wins: whether an episode that terminates with a reward above 0 is a success.
      fail: added to the last reward of an episode that ends without a reward above 0.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        actions: Sequence[str],
        prompt: str | Callable[[Any], str] = "",
        invalid_reward: float | None = -0.1,
        max_turns: int = 100,
        see: Callable[[Any, Any], Any] | None = None,
        frames: int = 1,
        reply: str = "",
        wins: bool = False,
        fail: float = 0.0,
    ):
        if reply not in ("", *REPLIES):
            raise ValueError(f"reply = {reply!r}; expected '' or one of {', '.join(REPLIES)}")
        self.env, self.actions, self.invalid_reward, self.max_turns = make(), tuple(actions), invalid_reward, max_turns
        self.prompt, self.see, self.reply, self.wins, self.fail = prompt, see or rendered, reply, wins, fail
        self.seen: deque[Any] = deque(maxlen=frames)

    def reset(self, task: Task, seed: int) -> Observation:
        self.turns, self.seed = 0, seed
        self.seen.clear()
        first, _ = self.env.reset(seed=int(task.meta.get("seed", seed)))
        picture = self.see(self.env, first)
        refuse_constant(picture, str(self.env))
        return self._look(picture)

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        said = str(action.value)
        index = last_named(answered(said, self.reply) if self.reply else said, self.actions)
        self.turns += 1
        legal, over = index is not None, self.turns >= self.max_turns
        if index is None and self.invalid_reward is not None:
            return self._look(), self.invalid_reward, False, over, {"invalid": True}
        if index is None:
            index = int(np.random.Generator(np.random.Philox([self.seed, self.turns])).integers(len(self.actions)))
        after, reward, terminated, truncated, info = self.env.step(index)
        cut = (bool(truncated) or over) and not terminated
        won = bool(terminated) and reward > 0
        reward = float(reward) + (self.fail if (terminated or cut) and not reward > 0 else 0.0)
        measures = {"measures": {"success": float(won)}} if self.wins else {}
        return self._look(self.see(self.env, after)), reward, bool(terminated), cut, {**info, "legal": legal, **measures}

    def close(self) -> None:
        self.env.close()

    def _look(self, picture: Any = None) -> Observation:
        from PIL import Image

        if picture is not None:
            self.seen.append(Image.fromarray(np.asarray(picture)).convert("RGB"))
        asked = self.prompt(self.env) if callable(self.prompt) else self.prompt
        asked = asked or f"Choose one of: {', '.join(self.actions)}."
        return Observation(messages=user(asked, images=len(self.seen)), images=tuple(self.seen))


def rendered(env: Any, observation: Any) -> Any:
    """The picture that the environment renders."""
    return env.render()


def refuse_constant(picture: Any, who: str, cause: str = "") -> None:
    """
    Raises:
      RuntimeError: a first picture of one colour, with what it may come from; `cause` where that is no drawing library.
    """
    pixels = np.asarray(picture)
    if pixels.size and (pixels == pixels.reshape(-1, pixels.shape[-1])[0]).all():
        set_to = os.environ.get("SDL_VIDEODRIVER")
        cause = cause or (
            f"SDL_VIDEODRIVER is {set_to!r}, with which some packages draw nothing: unset it"
            if set_to
            else "an OpenGL that draws nothing (MUJOCO_GL=egl, which takes Debian's libegl1, or osmesa; headless pyglet), or no display"
        )
        raise RuntimeError(f"{who}: its first picture is of one colour, {pixels.reshape(-1, pixels.shape[-1])[0].tolist()}; likely {cause}")
