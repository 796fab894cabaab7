"""Given answers instead of rollouts: supervised finetuning and preference pairs.

The gold response is that of `fovea.rollout.given`; with an environment, what it demonstrates, turn by turn. A preference pair is
`meta["chosen"]`, `meta["rejected"]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fovea.recipe import Recipe
from fovea.rollout.given import given_episode, gold_text
from fovea.trainer.distributed import ALONE, Team
from fovea.trainer.exchange import shared
from fovea.trainer.on_policy import NothingToTrain, produced, why
from fovea.types import Context, Group, Sampler, Task


class Offline:
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

    def state_dict(self) -> dict[str, Any]:
        return {"sampler": self.sampler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state["sampler"])


def pair_text(task: Task, side: str) -> str:
    if side not in task.meta:
        raise ValueError(f"task {task.id}: meta has no {side!r}; preference learning needs 'chosen' and 'rejected' texts")
    return str(task.meta[side])
