"""Learning from recorded episodes: some environment steps, into the replay, some updates on windows of it.

Both loops of simulators whose episodes go on from step to step are here: `Stream` collects for methods that learn from what was just done,
`OffPolicy` for those that learn from all that is kept. Where somebody watches and takes over (`fovea.envs.watched`), what they did is kept
a second time, and every batch has its share of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from fovea.batch import Windows
from fovea.recipe import Recipe
from fovea.rollout.sampling import address
from fovea.rollout.vector import VectorEngine
from fovea.trainer.replay import ReplayBuffer
from fovea.types import Context, Episode, Group, Segment, Task


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
      shown: where demonstrations and what was done in the policy's place go; None keeps demonstrations with the rest.
      demonstrate: plays so many successful episodes.
      recorded: what another run left behind, only read; each batch has as many windows of it (`Windows.recorded`).
    """

    unscored: Sequence[Group] = ()

    def __init__(
        self,
        recipe: Recipe,
        stream: Stream,
        replay: ReplayBuffer,
        random: Any,
        state: Any,
        shown: ReplayBuffer | None = None,
        demonstrate: Callable[[int], list[Group]] | None = None,
        recorded: ReplayBuffer | None = None,
    ):
        self.recipe, self.stream, self.replay, self.random, self.state = recipe, stream, replay, random, state
        self.shown, self.demonstrate, self.recorded = shown, demonstrate, recorded
        self.policy: Any = stream.engine.policy
        self.steps = 0

    def collect(self, context: Context, progress: Callable[..., None] | None) -> tuple[list[Group], dict[str, float]]:
        method = self.recipe.method
        if hasattr(method, "explore"):
            self.policy.exploration = method.explore(context)
        self.stream.engine.policy = self.policy if self.steps >= self.recipe.replay.start else self.random
        if self.steps == 0 and self.recipe.replay.demonstrations and self.demonstrate is not None:
            (self.replay if self.shown is None else self.shown).add(self.demonstrate(self.recipe.replay.demonstrations))
        groups, metrics = self.stream.collect(context, progress)
        self.replay.add(groups)
        if self.shown is not None:
            self.shown.add(taken_over(groups))
            metrics |= {"replay/shown": float(len(self.shown))}
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
            self.state, found = recipe.method.update(self.state, self.sample(context.step, i))
            for name, x in found.items():
                sums.setdefault(name, []).append(x)
        means = {name: float(sum(xs)) / len(xs) for name, xs in sums.items()}
        return means | {"optim/learning_rate": learning_rate, "optim/updates": float(recipe.updates_per_rollout)}

    def sample(self, step: int, i: int) -> Windows:
        """The batch of an update; its share of what was shown, with replacement, as soon as there is anything."""
        asked, recipe = self.recipe.replay, self.recipe
        shown = self.shown is not None and len(self.shown) > 0
        counts = {"shown": round(asked.batch * asked.share) if shown else 0}
        counts["replay"] = asked.batch - counts["shown"]
        buffers = {"replay": self.replay, "shown": self.shown}
        own = Windows.join(
            [b.sample(counts[n], address(recipe.seed, n, step, i), asked.length) for n, b in buffers.items() if b is not None and counts[n]]
        )
        if self.recorded is None:
            return own
        return replace(own, recorded=self.recorded.sample(asked.batch, address(recipe.seed, "recorded", step, i), asked.length))

    def sync(self) -> None:
        self.replay.sync()
        if self.shown is not None:
            self.shown.sync()

    def state_dict(self) -> dict[str, Any]:
        beside = {"shown": self.shown, "recorded": self.recorded}
        told = {name: buffer.state_dict() for name, buffer in beside.items() if buffer is not None}
        return {"steps": self.steps, "stream": self.stream.state_dict(), "replay": self.replay.state_dict(), **told}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        Raises:
          ReplayError: the replay is not that of the state.
        """
        self.replay.load_state_dict(state["replay"])
        if self.shown is not None:
            self.shown.load_state_dict(state["shown"])
        if self.recorded is not None:
            self.recorded.load_state_dict(state["recorded"])
        self.stream.load_state_dict(state["stream"])
        self.steps = int(state["steps"])


def spare(recipe: Recipe) -> int:
    """Frames that a lane must have beyond those that are drawn from: all that can be written from one checkpoint to the next.

    An episode of one step takes two frames; a checkpoint may come one step late, after the evaluation.
    """
    return (recipe.checkpoint_every + 1) * (2 * recipe.horizon + 1)


def demonstrations(engine: VectorEngine, source: Any, count: int) -> list[Group]:
    """So many successful episodes in which the person acts from first to last; failed ones are dropped.

    Raises:
      ValueError: nobody can act there, or hardly anything succeeds.
    """
    kept: list[Group] = []
    for first in range(0, TRIES * count, count):
        groups = engine.rollout([source[i] for i in range(first, first + count)], 1)
        if any("intervened" not in s.extras for g in groups for e in g.episodes for s in e.segments):
            raise ValueError(
                f"{count} demonstrations of {source.name}: nobody is there to show anything; expected a Gym whose `around` has somebody "
                "who watches (fovea.envs.watched)"
            )
        kept += [g for g in groups if succeeded(g.episodes[0])]
        if len(kept) >= count:
            return kept[:count]
    raise ValueError(f"{source.name}: {len(kept)} of {TRIES * count} demonstrations succeeded, expected {count}")


TRIES = 10
"""Demonstrations played for each that is wanted, at most."""


def succeeded(episode: Episode) -> bool:
    """It came to its end, and to success where that was measured or somebody said so."""
    measures = episode.turns[-1].measures
    return episode.stop == "terminated" and measures.get("marked", measures.get("success", 1.0)) > 0


def taken_over(groups: Sequence[Group]) -> list[Group]:
    """Every run of units that somebody else chose, as an episode of its own."""
    return [
        Group(g.task, [Episode(f"{e.id}/{first}", e.task, segments=[part(s, first, end)], stop="cut")])
        for g in groups
        for e in g.episodes
        for s in e.segments
        if "intervened" in s.extras
        for first, end in runs(s.extras["intervened"].tolist())
    ]


def runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """(first, one after the last) of every run of true flags."""
    ends = [i for i, (before, now) in enumerate(pairwise([False, *flags, False])) if bool(before) != bool(now)]
    return list(zip(ends[::2], ends[1::2], strict=True))


def part(segment: Segment, first: int, end: int) -> Segment:
    """Units `first` to `end` − 1 of a segment whose units are steps of a simulator; cut unless it ends where the segment does."""
    extras = {k: x[first:end] for k, x in segment.extras.items() if not k.startswith("next_")}
    inside = end < len(segment)
    after = segment.extras["obs"][end : end + 1] if inside else segment.extras["next_obs"]
    return replace(
        segment,
        actions=segment.actions[first:end],
        mask=segment.mask[first:end],
        logp_old=segment.logp_old[first:end],
        turn=segment.turn[first:end],
        version=segment.version[first:end],
        reward=segment.reward[first:end],
        bootstrap=inside or segment.bootstrap,
        extras={**extras, "next_obs": after},
    )


def stream_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Returns, lengths and measures of the episodes that came to their end; how many units were collected, and the share taken over."""
    ended = [e.score.parts for g in groups for e in g.episodes if e.score is not None and e.score.parts]
    segments = [s for g in groups for e in g.episodes for s in e.segments]
    out = {"length/tokens": float(sum(map(len, segments))), "length/episodes": float(len(ended))}
    if any("intervened" in s.extras for s in segments):
        out["policy/intervened"] = 1 - sum(int(s.mask.sum()) for s in segments) / out["length/tokens"]
    for name in sorted({n for p in ended for n in p} - {"return", "steps"}):
        out[f"reward/{name}"] = statistics.fmean(p[name] for p in ended if name in p)
    if ended:
        returns, steps = [p["return"] for p in ended], [p["steps"] for p in ended]
        out |= {"reward/mean": statistics.fmean(returns), "reward/std": statistics.pstdev(returns)}
        out |= {"length/mean_tokens": statistics.fmean(steps), "length/max_tokens": max(steps)}
    return out
