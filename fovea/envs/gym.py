"""Gymnasium environments: vectorised for array policies, or shown as pictures to a policy that answers in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fovea.envs.words import last_named
from fovea.types import Action, Observation, Task, user


def vector(make: str | Callable[[], Any], num_envs: int, **kwargs: Any) -> Any:
    """`num_envs` copies in lock-step with autoreset off; `make` is a registered id or a function that makes one environment."""
    import gymnasium
    from gymnasium.vector import AutoresetMode, SyncVectorEnv

    if isinstance(make, str):
        return gymnasium.make_vec(
            make, num_envs, vectorization_mode="sync", vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED}, **kwargs
        )
    return SyncVectorEnv([lambda: make(**kwargs)] * num_envs, autoreset_mode=AutoresetMode.DISABLED)


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
