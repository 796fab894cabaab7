"""Accuracy on held-out tasks, per source, greedily or sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fovea.report.metrics import bootstrap, interval
from fovea.rollout.sampling import Sampling
from fovea.trainer.distributed import ALONE, Team
from fovea.trainer.exchange import rollout
from fovea.types import Context, Episode, Group, Task


@dataclass(frozen=True)
class Evaluation:
    """Result of one evaluation.

    Attributes:
      correct: per source, how many answers were right (a graded score counts fractionally).
      count: per source, how many were scored.
      unscored: answers that could not be scored; they are in no denominator.
      groups: what was answered, for logs.
      unit: what is averaged: "accuracy", or the "return" of a simulator's episodes or a denoiser's samples.
    """

    correct: dict[str, float]
    count: dict[str, int]
    unscored: int
    groups: list[Group]
    unit: str = "accuracy"

    @property
    def accuracy(self) -> dict[str, float]:
        return {s: self.correct[s] / n for s, n in self.count.items() if n}

    @property
    def mean(self) -> float:
        """Mean over sources of their accuracies: every family weighs the same."""
        values = list(self.accuracy.values())
        return sum(values) / len(values) if values else float("nan")

    @property
    def outcomes(self) -> list[float]:
        return [outcome(e) for g in self.groups for e in g.episodes if e.score is not None and e.score.ok]

    def metrics(self, prefix: str = "eval") -> dict[str, float]:
        """Mean over sources, that of each source, and the 95 % interval of all answers pooled.

        That of an accuracy is Wilson's (none for scores outside 0 to 1), that of a return by bootstrap.
        """
        total, right, name = sum(self.count.values()), sum(self.correct.values()), f"{prefix}/{self.unit}"
        low, high = interval(right, total) if self.unit == "accuracy" else bootstrap(self.outcomes)
        return {
            name: self.mean,
            f"{name}_low": low,
            f"{name}_high": high,
            f"{prefix}/n": float(total),
            **{f"{name}/{s}": a for s, a in self.accuracy.items()},
            **{f"{prefix}/n/{s}": float(self.count[s]) for s in self.accuracy},
        }


def outcome(episode: Episode) -> float:
    """1 or 0 where the verifier knows right from wrong, else its graded value."""
    score = episode.score
    assert score is not None
    return float(score.correct) if score.correct is not None else float(score.value)


def evaluate(
    engine: Any,
    tasks: Sequence[Task],
    score: Any,
    *,
    sampling: Sampling,
    temperature: float = 0.0,
    samples: int = 1,
    on_progress: Callable[..., None] | None = None,
    team: Team = ALONE,
    unit: str = "accuracy",
) -> Evaluation:
    """Answer every task `samples` times at `temperature` (0 is greedy, without top-p or top-k) and score them; a team shares the work."""
    sampling = replace(sampling, temperature=temperature, top_p=1.0, top_k=0)
    groups = rollout(team, engine, tasks, samples, sampling, Context(), score=score, on_progress=on_progress)
    correct: dict[str, float] = {}
    count: dict[str, int] = {}
    unscored = 0
    for g in groups:
        for e in g.episodes:
            if e.score is None or not e.score.ok:
                unscored += 1
                continue
            correct[g.task.source] = correct.get(g.task.source, 0.0) + outcome(e)
            count[g.task.source] = count.get(g.task.source, 0) + 1
    return Evaluation(correct, count, unscored, groups, unit)
