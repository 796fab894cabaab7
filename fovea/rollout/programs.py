"""Episode programs: short coroutines that say how a policy and an environment talk.

A program awaits `policy.act(observation, **overrides)` and steps the environment; the engine records tokens, turns and rewards on the way
and batches the calls of all live programs. Write your own in the same form: two passes, a tool, a game.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from fovea.types import Environment, Task

if TYPE_CHECKING:
    from fovea.rollout.engine import Actor


async def episode(task: Task, policy: Actor, env: Environment) -> None:
    """The default program: reset, then act and step until the environment terminates or truncates."""
    observation = await settled(env.reset(task, policy.seed))
    over = False
    while not over:
        action = await policy.act(observation)
        observation, _, terminated, truncated, _ = await settled(env.step(action))
        over = terminated or truncated


async def settled(result: Any) -> Any:
    """The result itself, awaited first when the environment is asynchronous."""
    return await result if inspect.isawaitable(result) else result
