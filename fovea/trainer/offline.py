"""Given answers instead of rollouts: supervised finetuning and preference pairs.

The gold response is that of `fovea.rollout.given`; with an environment, what it demonstrates, turn by turn. A preference pair is
`meta["chosen"]`, `meta["rejected"]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fovea.policies.pixel import normals
from fovea.recipe import Recipe
from fovea.rollout.given import given_episode, gold_text
from fovea.rollout.sampling import address, uniforms
from fovea.trainer.distributed import ALONE, Team
from fovea.trainer.exchange import shared
from fovea.trainer.on_policy import NothingToTrain, Sampled, produced, why
from fovea.types import Context, Episode, Group, Sampler, Segment, Task, Turn


class Offline(Sampled):
    """Collects groups whose answers are given: one "gold" episode per task, or a "chosen" and a "rejected" one.

    `engine` plays the episodes of a recipe with an environment; one that ends with an error is left out and counted as unscored.
    """

    def __init__(self, recipe: Recipe, policy: Any, sampler: Sampler, pairs: bool, team: Team = ALONE, engine: Any = None):
        self.team, self.engine = team, engine
        self.unscored: Sequence[Group] = ()
        self.recipe, self.policy, self.sampler, self.pairs = recipe, policy, sampler, pairs

    def collect(self, context: Context, progress: Callable[..., None] | None) -> tuple[list[Group], dict[str, float]]:
        tasks = [self.sampler.next(context) for _ in range(self.recipe.tasks_per_step)]

        def make(positions: Sequence[int]) -> list[Group]:
            if self.recipe.environment is None or not positions:
                return [self._group(tasks[i], context) for i in positions]
            return self.engine.rollout([tasks[i] for i in positions], 0, self.recipe.sampling, context, members=("gold",))

        seen = shared(self.team, tasks, make)
        self.unscored = [g for g in seen if any(e.error for e in g.episodes)]
        groups = [g for g in seen if not any(e.error for e in g.episodes)]
        if not groups:
            raise NothingToTrain(why(seen, 1, None))
        made = produced(groups)
        return groups, made | {"length/mean_tokens": made["length/tokens"] / made["length/episodes"]}

    def _group(self, task: Task, context: Context) -> Group:
        texts = {"chosen": pair_text(task, "chosen"), "rejected": pair_text(task, "rejected")} if self.pairs else {"gold": gold_text(task)}
        prefix = self.policy.encode(task.prompt, task.images)
        return Group(task, [given_episode(self.policy, task, prefix, text, role, context) for role, text in texts.items()])


class Recorded(Sampled):
    """Collects what a robot did: the chunk of actions at one frame is an episode of one unit, with noise and a time for flow matching.

    A task's `meta` has "obs", what was seen, and "actions", the chunk; both draws are addressed by the step and the task.
    """

    unscored: Sequence[Group] = ()

    def __init__(self, recipe: Recipe, sampler: Sampler):
        self.recipe, self.sampler = recipe, sampler

    def collect(self, context: Context, progress: Callable[..., None] | None) -> tuple[list[Group], dict[str, float]]:
        groups = [self._group(self.sampler.next(context), context, i) for i in range(self.recipe.tasks_per_step)]
        return groups, produced(groups)

    def _group(self, task: Task, context: Context, i: int) -> Group:
        actions = torch.as_tensor(task.meta["actions"])[None]
        draws = uniforms([address(self.recipe.seed, context.step, task.id, i)] * (actions.numel() + 1), range(actions.numel() + 1))
        one = torch.zeros(1, dtype=torch.long)
        segment = Segment(
            prefix=None,
            actions=actions,
            mask=torch.ones(1, dtype=torch.bool),
            logp_old=torch.zeros(1),
            turn=one,
            version=one + context.policy_version,
            extras={
                "obs": torch.as_tensor(task.meta["obs"])[None],
                "noise": normals(draws[:-1]).float()[None],
                "time": 1 - draws[-1:].float(),
            },
        )
        return Group(task, [Episode(f"{context.step}/{task.id}/{i}", task, "gold", [segment], [Turn("")])])


def pair_text(task: Task, side: str) -> str:
    if side not in task.meta:
        raise ValueError(f"task {task.id}: meta has no {side!r}; preference learning needs 'chosen' and 'rejected' texts")
    return str(task.meta[side])
