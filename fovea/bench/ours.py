"""Our side: the trainer's own parts (collect, prepare, optimizer step) on the benchmark's checkpoint, pictures and reward.

What is timed is what a run reports as `time/step_s`: rollout, scoring, credit, update. Run folders, checkpoints and evaluation are not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fovea.batch import Batch
from fovea.bench import workload
from fovea.bench.workload import LEARNING_RATE, QUESTION, TASKS_PER_STEP, Cell
from fovea.methods.grpo import GRPO
from fovea.recipe import Recipe
from fovea.rollout.sampling import Sampling
from fovea.trainer.on_policy import OnPolicy
from fovea.trainer.update import Adam, optimizer_step, prepare
from fovea.types import Context, Group, Task, user


def reward(text: str, task: Task) -> float:
    """The shared reward in the form of a user's plain function."""
    return workload.reward(text, task.answer)


def tasks(step: int, image_tokens: int) -> list[Task]:
    return [Task(r.id, "circles", user(QUESTION), (r.image,), r.answer) for r in workload.rows(step, image_tokens)]


class Feed:
    """A sampler that hands out exactly the tasks it was given."""

    def __init__(self) -> None:
        self.waiting: list[Task] = []

    def next(self, context: Context) -> Task:
        return self.waiting.pop(0)

    def observe(self, groups: Any) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def recipe(folder: Path, cell: Cell, **changes: Any) -> Recipe:
    """The recipe of one cell: GRPO without a reference model, one update per rollout, answers of exactly `new_tokens`."""
    settings: dict[str, Any] = dict(
        model=str(folder),
        reward=reward,
        method=GRPO(beta=0.0),
        tasks_per_step=TASKS_PER_STEP,
        group_size=cell.group_size,
        micro_batch=cell.group_size,
        sampling=Sampling(max_new_tokens=cell.new_tokens, min_new_tokens=cell.new_tokens),
        learning_rate=LEARNING_RATE,
        warmup_steps=0,
        betas=(0.9, 0.999),
    )
    return Recipe(**(settings | changes))


class Trainer:
    """One policy with its optimizer; calling it takes one optimizer step on fresh tasks."""

    def __init__(self, recipe: Recipe, policy: Any = None):
        from fovea.api import build_engine, build_policy, build_scorer

        self.recipe = recipe
        self.policy = build_policy(recipe) if policy is None else policy
        self.feed = Feed()
        self.collector = OnPolicy(recipe, build_engine(recipe, self.policy), self.feed, build_scorer(recipe))
        self.adam = Adam(recipe.learning_rate, recipe.warmup_steps, betas=recipe.betas, max_grad_norm=recipe.max_grad_norm)
        self.optimizer = self.adam.build(self.policy)
        self.step = 0

    def collect(self, tasks: list[Task]) -> list[Group]:
        self.feed.waiting = list(tasks)
        return self.collector.collect(self.context, None)[0]

    def prepare(self, groups: list[Group]) -> Batch:
        return prepare(self.policy, self.recipe.method, groups, self.context, self.recipe.micro_batch)

    def update(self, batch: Batch) -> dict[str, float]:
        metrics = optimizer_step(
            self.policy,
            self.recipe.method,
            batch,
            self.optimizer,
            lr=self.adam.lr_at(self.step),
            micro_batch=self.recipe.micro_batch,
            max_grad_norm=self.recipe.max_grad_norm,
            max_tokens=self.recipe.sampling.max_new_tokens,
        )
        self.step += 1
        self.policy.version = self.step
        return metrics

    def __call__(self, tasks: list[Task]) -> dict[str, float]:
        return self.update(self.prepare(self.collect(tasks)))

    @property
    def context(self) -> Context:
        return Context(self.step, 10**6, self.step)
