"""Gymnasium environments: vectorised for array policies, or shown as pictures to a policy that answers in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fovea.envs.words import last_named
from fovea.types import Action, Observation, Task, user


def vector(make: str | Callable[..., Any], num_envs: int, stack: int = 1, unit_actions: bool = False, **kwargs: Any) -> Any:
    """`num_envs` copies in lock-step with autoreset off.

    Args:
      make: a registered id, "module:id" where a module registers it, or a function that makes one environment.
      stack: observations in a row that are shown side by side in the last axis; the first is repeated at the start of an episode.
      unit_actions: every dimension of a continuous action is in [−1, 1], whatever the environment's own bounds.
    Raises:
      ImportError: Gymnasium is not installed.
    """
    try:
        import gymnasium
        from gymnasium.vector import AutoresetMode, SyncVectorEnv
    except ImportError as e:
        raise ImportError(f"simulators need gymnasium ({e}); install it with: pip install 'fovea-rl[envs]'") from e

    def made() -> Any:
        env = gymnasium.make(make, **kwargs) if isinstance(make, str) else make(**kwargs)
        if unit_actions and isinstance(env.action_space, gymnasium.spaces.Box):
            one = np.ones(env.action_space.shape, env.action_space.dtype)
            env = gymnasium.wrappers.RescaleAction(env, -one, one)
        if stack > 1:
            from fovea.envs.stack import Stacked

            env = Stacked(env, stack)
        return env

    return SyncVectorEnv([made] * num_envs, autoreset_mode=AutoresetMode.DISABLED)


class InWords:
    """A Gymnasium environment with discrete actions, played in words by a policy that sees its rendered picture.

    Every step shows the current picture alone (the history is trimmed), so each turn is a segment of its own.

    Args:
      make: makes one environment with `render_mode="rgb_array"`.
      actions: the word of each discrete action.
      prompt: what is asked with every picture.
      invalid_reward: reward of an answer that names no action; the environment does not move then.
      max_turns: the episode is cut after so many answers.
    """

    def __init__(
        self, make: Callable[[], Any], actions: Sequence[str], prompt: str = "", invalid_reward: float = -0.1, max_turns: int = 100
    ):
        self.env, self.actions, self.invalid_reward, self.max_turns = make(), tuple(actions), invalid_reward, max_turns
        self.prompt = prompt or f"Choose one of: {', '.join(self.actions)}."

    def reset(self, task: Task, seed: int) -> Observation:
        self.turns = 0
        self.env.reset(seed=int(task.meta.get("seed", seed)))
        return self._look()

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        self.turns += 1
        index = last_named(str(action.value), self.actions)
        if index is None:
            return self._look(), self.invalid_reward, False, self.turns >= self.max_turns, {"invalid": True}
        _, reward, terminated, truncated, info = self.env.step(index)
        return self._look(), float(reward), bool(terminated), bool(truncated) or (self.turns >= self.max_turns and not terminated), info

    def close(self) -> None:
        self.env.close()

    def _look(self) -> Observation:
        from PIL import Image

        return Observation(messages=user(self.prompt), images=(Image.fromarray(self.env.render()).convert("RGB"),))
