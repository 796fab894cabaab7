"""Which groups train? Only the samples with a valid score count; baselines and given answers do not."""

from __future__ import annotations

from dataclasses import dataclass

from fovea.types import Group


def corrects(group: Group) -> list[bool] | None:
    """Whether each scored sample was correct, or None where some sample has no such notion."""
    verdicts = [e.score.correct for e in group.samples if e.score is not None]
    return None if any(v is None for v in verdicts) else [bool(v) for v in verdicts]


def values(group: Group) -> list[float]:
    """Scores of the scored samples."""
    return [e.score.value for e in group.samples if e.score is not None]


@dataclass(frozen=True)
class All:
    """Every group."""

    def admit(self, group: Group) -> bool:
        return True


@dataclass(frozen=True)
class DynamicSampling:
    """Groups that disagree: 0 < number correct < G (DAPO, Yu et al., 2025, section 3.2).

    Where the verifier has no notion of correct, groups whose scores differ by more than `spread`.
    """

    spread: float = 1e-6

    def admit(self, group: Group) -> bool:
        right = corrects(group)
        if right is not None:
            return 0 < sum(right) < len(right)
        scores = values(group)
        return len(scores) > 1 and max(scores) - min(scores) > self.spread


@dataclass(frozen=True)
class AccuracyRange:
    """Groups whose fraction of correct samples (or mean score, where there is no notion of correct) lies in [lo, hi]."""

    lo: float = 0.0
    hi: float = 1.0

    def __post_init__(self) -> None:
        if not self.lo <= self.hi:
            raise ValueError(f"accuracy range [{self.lo}, {self.hi}] is empty; expected lo <= hi")

    def admit(self, group: Group) -> bool:
        right = corrects(group)
        scores = values(group) if right is None else right
        return bool(scores) and self.lo <= sum(scores) / len(scores) <= self.hi
