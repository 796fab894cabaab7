"""Statistics of a claim: arms paired by seed and by held-out task, intervals by bootstrap, the verdict by rule. Pure functions.

An arm's values are a matrix (S, I): S seeds by I held-out tasks, NaN where a task has no value; I = 1 where a run has one number.
"""

from __future__ import annotations

import math
import statistics
from typing import Literal

import numpy as np

MANY = 10
"""From this many seeds on the interquartile mean stands in for the mean: one run that collapsed no longer decides."""


def iqm(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """Interquartile mean: the mean of what is left when a quarter of the values, rounded down, is cut from either end."""
    n = x.shape[axis]
    kept = np.take(np.sort(x, axis=axis), range(n // 4, n - n // 4), axis=axis)
    return kept.mean(axis=axis)


def centre(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """What stands for several seeds: their mean, from `MANY` seeds on their interquartile mean."""
    return iqm(x, axis) if x.shape[axis] >= MANY else x.mean(axis=axis)


def per_seed(x_SI: np.ndarray) -> np.ndarray:
    """(S,) mean over the held-out tasks that have a value; NaN for a seed without any."""
    return _seed_means(x_SI, np.ones((x_SI.shape[1], 1)))[:, 0]


def effect(a_SI: np.ndarray, b_SI: np.ndarray) -> float:
    """Difference of two arms: per seed, then over seeds."""
    return float(centre(per_seed(a_SI) - per_seed(b_SI)))


def interval(a_SI: np.ndarray, b_SI: np.ndarray, level: float = 0.95, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Bootstrap interval of `effect` over seeds × held-out tasks.

    Every draw takes S seeds and, independently, I tasks, both with replacement; the same for both arms, which keeps their pairing, and the
    same tasks for every seed, because all seeds were measured on one held-out set (a crossed bootstrap, Owen 2007). Percentiles of a
    bootstrap over few units are too narrow, so they are taken further out, by the ratio of Student's t to the normal distribution
    (Hesterberg 2015, "expanded percentile"). Both are on the safe side: where the noise of single answers outweighs that of seeds, the
    interval is wider than it need be. With one seed only the tasks are drawn: such an interval says nothing about other seeds.

    Args:
      a_SI, b_SI: the arms, rows of the same seeds, columns of the same tasks.
      seed: of the generator; the same values always give the same interval.
    Returns:
      (low, high); NaN where an arm has no value at all.
    """
    if a_SI.shape != b_SI.shape:
        raise ValueError(f"arms are paired: found shapes {a_SI.shape} and {b_SI.shape}, expected the same seeds and held-out tasks")
    seeds, tasks = a_SI.shape
    rng = np.random.Generator(np.random.Philox(seed))
    found = []
    for some in np.diff(np.linspace(0, draws, max(1, math.ceil(draws / 1000)) + 1).astype(int)):
        counts_IR = rng.multinomial(tasks, np.full(tasks, 1 / tasks), size=some).T if tasks > 1 else np.ones((1, some))
        gap_SR = _seed_means(a_SI, counts_IR) - _seed_means(b_SI, counts_IR)
        drawn_SR = rng.integers(seeds, size=(seeds, some))
        found.append(centre(np.take_along_axis(gap_SR, drawn_SR, axis=0), axis=0))
    values = np.concatenate(found)
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan
    tail = expanded_tail(seeds, level)
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _seed_means(x_SI: np.ndarray, weight_IR: np.ndarray) -> np.ndarray:
    """(S, R) weighted means over the tasks that have a value; NaN where none has."""
    there_SI = np.isfinite(x_SI)
    total, weight = np.where(there_SI, x_SI, 0.0) @ weight_IR, there_SI.astype(float) @ weight_IR
    return np.divide(total, weight, out=np.full(total.shape, np.nan), where=weight > 0)


def expanded_tail(n: int, level: float = 0.95) -> float:
    """Probability beyond either end of a percentile interval over n units: Φ(−√(n/(n−1)) · t), t the quantile of Student's t with n − 1.

    For 5 units at 95 %: 0.00096 in place of 0.025. For one unit it cannot be corrected: (1 − level)/2.
    """
    tail = (1 - level) / 2
    if n < 2:
        return tail
    return statistics.NormalDist().cdf(-math.sqrt(n / (n - 1)) * student_quantile(1 - tail, n - 1))


def student_quantile(p: float, df: int) -> float:
    """Quantile of Student's t for p ≥ 0.5, by bisection of its distribution function."""
    low, high = 0.0, 1e4
    while high - low > 1e-9 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, df) < p else (low, middle)
    return (low + high) / 2


def student_cdf(t: float, df: int) -> float:
    """P(T ≤ t) of Student's t with whole degrees of freedom (Abramowitz & Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(df))
    cos2, odd = math.cos(angle) ** 2, df % 2
    term, total = 1.0, 1.0 if df > 1 else 0.0
    for j in range(1, (df - 1) // 2 if odd else df // 2):
        term *= cos2 * (2 * j / (2 * j + 1) if odd else (2 * j - 1) / (2 * j))
        total += term
    if odd:
        return 0.5 + (angle + math.sin(angle) * math.cos(angle) * total) / math.pi
    return 0.5 + math.sin(angle) * total / 2


# -- verdicts -------------------------------------------------------------------------------------------------------------------

Verdict = Literal["reproduced", "weaker", "not reproduced"]


def control_behaves(high: float, margin: float) -> bool:
    """Whether a negative control is shown not to bring the effect: its interval ends below the margin."""
    return high < margin


def verdict(value: float, low: float, high: float, margin: float, test: str = "better", behaves: bool = True) -> Verdict:
    """What a comparison says about its claim. Numbers are turned so that more is better.

    test "better":      reproduced      value ≥ margin and low > 0
                        weaker          low > 0 and value < margin
                        not reproduced  everything else: no difference shown, or one the wrong way
    test "as good as":  reproduced      low > −margin
                        weaker          value > −margin, though low ≤ −margin: as good as far as can be seen, not shown
                        not reproduced  everything else
    A negative control that fails makes any claim "not reproduced": what was seen need not be the method's doing. So do NaNs.

    Args:
      value, low, high: the effect and its interval.
      margin: above 0, in the same unit.
    """
    if not behaves or not all(map(math.isfinite, (value, low, high))):
        return "not reproduced"
    if test == "as good as":
        return "reproduced" if low > -margin else "weaker" if value > -margin else "not reproduced"
    if low > 0:
        return "reproduced" if value >= margin else "weaker"
    return "not reproduced"
