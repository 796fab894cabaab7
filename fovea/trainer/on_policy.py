"""Rollouts with the current weights: sampler → engine → verifier → gate."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fovea.recipe import Recipe
from fovea.report.metrics import group_metrics
from fovea.trainer.distributed import ALONE, Team
from fovea.trainer.exchange import rollout
from fovea.trainer.update import trainable
from fovea.types import Context, Gate, Group, Sampler


class NothingToTrain(RuntimeError):
    """No group of a step could train; the message says what was seen."""


class Sampled:
    """A collector of which a checkpoint keeps the sampler alone."""

    sampler: Sampler

    def state_dict(self) -> dict[str, Any]:
        return {"sampler": self.sampler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state["sampler"])


class OnPolicy(Sampled):
    """Collects `tasks_per_step` groups with the current weights; with a gate, keeps drawing until that many are admitted."""

    def __init__(self, recipe: Recipe, engine: Any, sampler: Sampler, scorer: Any, gate: Gate | None = None, team: Team = ALONE):
        self.team = team
        self.recipe, self.engine, self.sampler, self.scorer, self.gate = recipe, engine, sampler, scorer, gate
        self.unscored: Sequence[Group] = ()
        self.waits = getattr(engine, "waits", team.waits)

    def collect(self, context: Context, progress: Callable[..., None] | None) -> tuple[list[Group], dict[str, float]]:
        policy = getattr(self.engine, "policy", None)
        with getattr(policy, "update_follows", contextlib.nullcontext)():
            return self._collect(context, progress)

    def _collect(self, context: Context, progress: Callable[..., None] | None) -> tuple[list[Group], dict[str, float]]:
        recipe = self.recipe
        seen: list[Group] = []
        kept: list[Group] = []
        rounds = 0
        self.scorer.begin(context)
        waited_s = self.scorer.waited_s
        while len(kept) < recipe.tasks_per_step and rounds < (recipe.max_resample if self.gate else 1):
            tasks = [self.sampler.next(context) for _ in range(recipe.tasks_per_step)]
            groups = rollout(
                self.team,
                self.engine,
                tasks,
                recipe.group_size,
                recipe.sampling,
                context,
                members=recipe.method.needs.members,
                score=self.scorer,
                on_progress=progress,
                attempt=rounds,
            )
            rounds += 1
            seen += groups
            kept += [g for g in trainable(groups, recipe.group_size) if self.gate is None or self.gate.admit(g)]
        self.sampler.observe(seen)
        self.unscored = [g for g in seen if any(e.score is not None and not e.score.ok for e in g.episodes)]
        if not kept:
            raise NothingToTrain(why(seen, rounds, self.gate))
        made = produced(seen, given=False)
        metrics = group_metrics(seen) | made | placeholders(self.engine, seen) | {"time/score_s": self.scorer.waited_s - waited_s}
        metrics |= getattr(self.engine, "metrics", dict)()
        if self.gate is not None:
            metrics |= {"group/rounds": float(rounds), "group/admitted_frac": len(kept) / len(seen)}
        return kept[: recipe.tasks_per_step], metrics


def produced(groups: list[Group], given: bool = True) -> dict[str, float]:
    """How much was generated or, where answers are `given`, read: tokens and episodes."""
    episodes = [e for g in groups for e in g.episodes if given or e.role != "gold"]
    return {"length/tokens": float(sum(e.length for e in episodes)), "length/episodes": float(len(episodes))}


def placeholders(engine: Any, groups: list[Group]) -> dict[str, float]:
    """How many units of the answers stand for pictures: 0, because the policy gives them no probability; a server might."""
    banned = getattr(getattr(engine, "policy", None), "banned_ids", ())
    if not banned:
        return {}
    segments = [s for g in groups for e in g.episodes for s in e.segments]
    return {"length/image_tokens": float(sum(int(torch.isin(s.actions[s.mask], torch.tensor(banned)).sum()) for s in segments))}


def why(groups: list[Group], rounds: int, gate: Gate | None) -> str:
    reasons = [e.score.reason for g in groups for e in g.episodes if e.score is not None and not e.score.ok]
    if reasons:
        return f"no group could be scored: {len(reasons)} episodes failed, first: {reasons[0]}"
    values = [e.score.value for g in groups for e in g.samples if e.score is not None]
    spread = f"scores between {min(values):g} and {max(values):g}" if values else "no scores"
    gate_name = type(gate).__name__ if gate else "none"
    return (
        f"{len(groups)} groups in {rounds} rounds, none admitted by gate {gate_name} ({spread}). Expected groups with both right and wrong "
        "answers: the tasks are all too easy or all too hard for this policy."
    )
