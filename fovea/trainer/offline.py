"""Given answers instead of rollouts: supervised finetuning and preference pairs.

A task's gold response is `meta["response"]`, else its answer inside answer tags. A preference pair is `meta["chosen"]`, `meta["rejected"]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fovea.recipe import Recipe
from fovea.trainer.distributed import ALONE, Team
from fovea.trainer.exchange import shared
from fovea.trainer.on_policy import produced
from fovea.types import Context, Episode, Group, Sampler, Segment, Task, Turn


class Offline:
    """Collects groups whose answers are given: one "gold" episode per task, or a "chosen" and a "rejected" one."""

    unscored: Sequence[Group] = ()

    def __init__(self, recipe: Recipe, policy: Any, sampler: Sampler, pairs: bool, team: Team = ALONE):
        self.team = team
        self.recipe, self.policy, self.sampler, self.pairs = recipe, policy, sampler, pairs

    def collect(self, context: Context, progress: Callable[..., None] | None) -> tuple[list[Group], dict[str, float]]:
        tasks = [self.sampler.next(context) for _ in range(self.recipe.tasks_per_step)]

        def make(positions: Sequence[int]) -> list[Group]:
            return [self._group(tasks[i], context) for i in positions]

        groups = shared(self.team, tasks, make)
        made = produced(groups)
        return groups, made | {"length/mean_tokens": made["length/tokens"] / made["length/episodes"]}

    def _group(self, task: Task, context: Context) -> Group:
        texts = {"chosen": pair_text(task, "chosen"), "rejected": pair_text(task, "rejected")} if self.pairs else {"gold": gold_text(task)}
        prefix = self.policy.encode(task.prompt, task.images)
        return Group(task, [given_episode(self.policy, task, prefix, text, role, context) for role, text in texts.items()])

    def state_dict(self) -> dict[str, Any]:
        return {"sampler": self.sampler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state["sampler"])


def given_episode(policy: Any, task: Task, prefix: Any, text: str, role: str, context: Context) -> Episode:
    """An episode whose answer was not sampled: `text` and the end-of-sequence token, with log-probabilities left at zero."""
    ids = torch.tensor([*policy.encode_text(text), policy.eos_ids[0]])
    n = len(ids)
    segment = Segment(
        prefix=prefix,
        actions=ids,
        mask=torch.ones(n, dtype=torch.bool),
        logp_old=torch.zeros(n),
        turn=torch.zeros(n, dtype=torch.long),
        version=torch.full((n,), context.policy_version),
    )
    return Episode(id=f"{task.id}/{role}", task=task, role=role, segments=[segment], turns=[Turn(text)])


def gold_text(task: Task) -> str:
    if "response" in task.meta:
        return str(task.meta["response"])
    if task.answer is None:
        raise ValueError(f"task {task.id}: no answer and no meta['response']; supervised finetuning needs one of them")
    answer = " ".join(map(str, task.answer)) if isinstance(task.answer, (list, tuple)) else str(task.answer)
    return f"<answer>{answer}</answer>"


def pair_text(task: Task, side: str) -> str:
    if side not in task.meta:
        raise ValueError(f"task {task.id}: meta has no {side!r}; preference learning needs 'chosen' and 'rejected' texts")
    return str(task.meta[side])
