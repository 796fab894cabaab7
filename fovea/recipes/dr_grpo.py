"""Dr. GRPO: no division by the standard deviation, constant length normalisation.

The claim is about the length of wrong answers, which can only grow where an answer may go on after it has been given: `answer_first`
lets the policy answer in a few tokens, asks again, and pays for the first answer alone.
"""

from dataclasses import replace
from typing import Any

from fovea.ledger import Claim, Length
from fovea.methods.dr_grpo import DrGRPO
from fovea.methods.grpo import GRPO
from fovea.recipes import grpo
from fovea.rollout.programs import settled, words_only
from fovea.types import Context, Group, Observation, Score, Task
from fovea.verifiers import resolve

tiny = grpo.tiny.replace(name="dr_grpo", method=DrGRPO())
real = grpo.real.replace(name="dr_grpo-real", method=DrGRPO())


async def answer_first(task: Task, policy: Any, env: Any) -> None:
    """A short answer, then the question again and as much text as the policy likes."""
    observation = await settled(env.reset(task, policy.seed))
    await policy.act(observation, max_new_tokens=16)
    await policy.act(Observation(messages=words_only(task.prompt), append=True))


class FirstAnswer:
    """The task's own verdict about the first turn; what came after it counts nothing."""

    scope = "episode"

    def score(self, group: Group, context: Context) -> list[Score]:
        first = [replace(e, turns=e.turns[:1]) for e in group.episodes]
        return resolve(group.task).score(Group(group.task, first), context)


FREE = {"program": answer_first, "reward": FirstAnswer(), "steps": 40, "tasks_per_step": 16}

CLAIM = Claim(
    says="Where text after the answer is free, GRPO lets wrong answers grow long, and Dr. GRPO does not.",
    arms={
        "dr_grpo": {**FREE},
        "token_mean": {**FREE, "method": GRPO(beta=0.0, aggregation="token-mean")},
        "grpo": {**FREE, "method": GRPO(beta=0.0)},
        "random": {**FREE, "method": GRPO(beta=0.0), "reward": "random"},
        "start": {**FREE, "steps": 0},
    },
    method="dr_grpo",
    baseline="grpo",
    control="random",
    metric=Length(of="wrong"),
    direction="less",
    margin=2.0,
    temperature=1.0,
    measured={"reward": FirstAnswer()},
    curve="length/mean_tokens",
    tuning="none",
    notes=(
        "Lengths wander and do not drift: single runs of GRPO end at 25 to 36 tokens, those on a random reward at 14 to 44, from 30. First "
        "answers of at most 16 tokens leave no room to look, so one in eight is right after 40 steps, and few groups teach anything; the "
        "paper sees the growth over hundreds of steps with far longer answers.",
    ),
)
