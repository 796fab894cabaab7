"""Episode programs: short coroutines that say how a policy and an environment talk.

A program awaits `policy.act(observation, **overrides)` and steps the environment; the engine records tokens, turns and rewards on the way
and batches the calls of all live programs. Write your own in the same form: two passes, a tool, a game.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fovea.types import Action, Environment, Message, Observation, Task, user
from fovea.verifiers.parse import description
from fovea.verifiers.readers import READER

if TYPE_CHECKING:
    from fovea.rollout.engine import Actor


async def episode(task: Task, policy: Actor, env: Environment, after: Callable[[Action], None] = lambda _: None) -> None:
    """The default program: reset, then act and step until the environment terminates or truncates. `after` sees every action."""
    observation = await settled(env.reset(task, policy.seed))
    over = False
    while not over:
        action = await policy.act(observation)
        after(action)
        observation, _, terminated, truncated, _ = await settled(env.step(action))
        over = terminated or truncated


@dataclass(frozen=True)
class ActionMarked:
    """The default program; the units of a reply from `opens` on, the action behind its thought, are marked "action" (RL4VLM).

    Where a reply does not say `opens`, its last four units are.
    """

    opens: str = "<answer>"
    LAST: ClassVar[int] = 4

    async def __call__(self, task: Task, policy: Actor, env: Environment) -> None:
        def mark(action: Action) -> None:
            at, n = action.value.rfind(self.opens), len(action.token_ids)
            thought = max(0, n - self.LAST) if at < 0 else policy.reach(action.value[:at])
            policy.mark("action", [0.0] * thought + [1.0] * (n - thought))

        await episode(task, policy, env, mark)


async def settled(result: Any) -> Any:
    """The result itself, awaited first when the environment is asynchronous."""
    return await result if inspect.isawaitable(result) else result


def words_only(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages without their pictures and clips."""
    return tuple({**m, "content": _texts(m)} for m in messages)


def _texts(m: Message) -> Any:
    return m["content"] if isinstance(m["content"], str) else [p for p in m["content"] if p.get("type") == "text"]


def words(messages: Sequence[Message]) -> str:
    """The text of the messages."""
    texts = (m["content"] if isinstance(m["content"], str) else "".join(p["text"] for p in m["content"]) for m in words_only(messages))
    return "\n".join(texts)


def in_lines(description: str, question: str) -> str:
    """The description and, in the next line, the question."""
    return f"{description}\n{question}"


@dataclass(frozen=True)
class Described:
    """Describe and answer; then answer once more from the description alone, in a branch that never sees the picture (Vision-SR1).

    The reader is the policy itself at its present weights, asked once per episode; where there is no description, nobody reads. The units
    up to the end of the description are marked "described".

    Attributes:
      tag: the description is what stands in this tag.
      ask: (description, question) -> what a reader is shown.
      probes: other questions about the same description, each with a reader of its own: `meta["probes"]`, name -> (question, answer).
    """

    tag: str = "description"
    ask: Callable[[str, str], str] = in_lines
    probes: bool = False

    async def __call__(self, task: Task, policy: Actor, env: Environment) -> None:
        observation = await settled(env.reset(task, policy.seed))
        action = await policy.act(observation)
        said = description(action.value, self.tag)
        n = policy.reach(f"</{self.tag}>") if said else 0
        policy.mark("described", [1.0] * n + [0.0] * (len(action.token_ids) - n))
        questions = {READER: words(observation.messages)}
        if self.probes:
            questions |= {name: asked for name, (asked, _) in task.meta.get("probes", {}).items()}
        if said:
            shown = {name: user(self.ask(said, question), images=0) for name, question in questions.items()}
            await asyncio.gather(*(policy.branch(name).act(Observation(messages=m)) for name, m in shown.items()))
        await settled(env.step(action))
