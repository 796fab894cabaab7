"""Learning from recorded episodes: some environment steps, into the replay, some updates on windows of it.

Both loops of simulators whose episodes go on from step to step are here: `Stream` collects for methods that learn from what was just done,
`OffPolicy` for those that learn from all that is kept.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fovea.recipe import Recipe
from fovea.rollout.sampling import address
from fovea.rollout.vector import VectorEngine
from fovea.trainer.replay import ReplayBuffer
from fovea.types import Context, Group, Task


class Stream:
    """Collects `horizon` steps of every environment; episodes go on in the next training step."""

    unscored: Sequence[Group] = ()

    def __init__(self, recipe: Recipe, engine: VectorEngine, task: Task):
        self.recipe, self.engine, self.task = recipe, engine, task

    def collect(self, context: Context, progress: Callable[..., None] | None) -> tuple[list[Group], dict[str, float]]:
        if progress is not None:
            progress(0, self.recipe.horizon)
        groups = self.engine.stream(self.task, self.recipe.horizon, context)
        return groups, stream_metrics(groups) | ({"length/lost": float(self.engine.lost)} if self.engine.lost else {})

    def state_dict(self) -> dict[str, Any]:
        return self.engine.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.engine.load_state_dict(state)


class OffPolicy:
    """Collects into a replay and learns from it; see `fovea.trainer.session.Learning`.

    Args:
      stream: collects with the policy; before `replay.start` steps with `random` in its place.
      state: what `method.init` made.
    """

    unscored: Sequence[Group] = ()

    def __init__(self, recipe: Recipe, stream: Stream, replay: ReplayBuffer, random: Any, state: Any):
        self.recipe, self.stream, self.replay, self.random, self.state = recipe, stream, replay, random, state
        self.policy: Any = stream.engine.policy
        self.steps = 0

    def collect(self, context: Context, progress: Callable[..., None] | None) -> tuple[list[Group], dict[str, float]]:
        method = self.recipe.method
        if hasattr(method, "explore"):
            self.policy.exploration = method.explore(context)
        self.stream.engine.policy = self.policy if self.steps >= self.recipe.replay.start else self.random
        groups, metrics = self.stream.collect(context, progress)
        self.replay.add(groups)
        self.steps += int(metrics["length/tokens"])
        explored = {"policy/exploration": float(self.policy.exploration)} if hasattr(method, "explore") else {}
        return groups, metrics | explored | {"replay/frames": float(len(self.replay)), "replay/steps": float(self.steps)}

    def learn(self, context: Context, learning_rate: float, progress: Callable[[int, int], None]) -> dict[str, float]:
        """`updates_per_rollout` updates; the mean of their metrics. None while the replay is being filled."""
        recipe, sums = self.recipe, {}
        if self.steps < recipe.replay.start:
            return {}
        self.state.set_rate(learning_rate)
        for i in range(recipe.updates_per_rollout):
            progress(i, recipe.updates_per_rollout)
            batch = self.replay.sample(recipe.replay.batch, address(recipe.seed, "replay", context.step, i), recipe.replay.length)
            self.state, found = recipe.method.update(self.state, batch)
            for name, x in found.items():
                sums.setdefault(name, []).append(x)
        means = {name: float(sum(xs)) / len(xs) for name, xs in sums.items()}
        return means | {"optim/learning_rate": learning_rate, "optim/updates": float(recipe.updates_per_rollout)}

    def sync(self) -> None:
        self.replay.sync()

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "stream": self.stream.state_dict(), "replay": self.replay.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        Raises:
          ReplayError: the replay is not that of the state.
        """
        self.replay.load_state_dict(state["replay"])
        self.stream.load_state_dict(state["stream"])
        self.steps = int(state["steps"])


def spare(recipe: Recipe) -> int:
    """Frames that a lane must have beyond those that are drawn from: all that can be written from one checkpoint to the next.

    An episode of one step takes two frames; a checkpoint may come one step late, after the evaluation.
    """
    return (recipe.checkpoint_every + 1) * (2 * recipe.horizon + 1)


def stream_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Returns and lengths of the episodes that came to their end; how many units were collected in all."""
    ended = [e.score.parts for g in groups for e in g.episodes if e.score is not None and e.score.parts]
    out = {"length/tokens": float(sum(e.length for g in groups for e in g.episodes)), "length/episodes": float(len(ended))}
    if ended:
        returns, steps = [p["return"] for p in ended], [p["steps"] for p in ended]
        out |= {"reward/mean": statistics.fmean(returns), "reward/std": statistics.pstdev(returns)}
        out |= {"length/mean_tokens": statistics.fmean(steps), "length/max_tokens": max(steps)}
    return out
