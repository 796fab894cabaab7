"""Numbers of a finished run: from its held-out answers, one per task; from its columns, one in all.

A claim takes any function of `Finished` that returns a number or a mapping from held-out task to number. A task may be left out (a wrong
answer's length where the answer is right).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
      rows: one mapping per training step, as in metrics.jsonl.
      answers: one mapping per held-out task: task, source, correct (0 to 1), length (action units), cut (at the length limit), parts (the
        verifier's named parts; a weighted sum's are "accuracy", "accuracy/precision", ...).
      unscored: how many held-out answers are not among these, because they could not be scored.
      found: what the claim's examination of the policy gave, by name.
    """

    rows: Sequence[Mapping[str, float]]
    answers: Sequence[Mapping[str, Any]]
    unscored: int = 0
    found: Mapping[str, float] = field(default_factory=dict)

    def column(self, name: str) -> list[float]:
        """The finite values of one metric, oldest first.

        Raises:
          ValueError: no step has it.
        """
        found = [r[name] for r in self.rows if math.isfinite(r.get(name, math.nan))]
        if not found:
            raise ValueError(
                f"no step of the run has {name!r}; its metrics are {', '.join(sorted(self.rows[-1])) if self.rows else 'none'}"
            )
        return found


@dataclass(frozen=True)
class Accuracy:
    """Correctness of every held-out answer. `sources` keeps only those data sources."""

    sources: tuple[str, ...] = ()
    name = "held-out accuracy"

    def __call__(self, run: Finished) -> dict[str, float]:
        return {a["task"]: float(a["correct"]) for a in run.answers if not self.sources or a["source"] in self.sources}


@dataclass(frozen=True)
class Return:
    """What every held-out episode of a simulator was paid."""

    name = "held-out return"

    def __call__(self, run: Finished) -> dict[str, float]:
        return {a["task"]: float(a["correct"]) for a in run.answers}


@dataclass(frozen=True)
class Lowest:
    """Accuracy of the data source with the lowest one: what is learned there counts, and so does what is forgotten elsewhere."""

    name = "accuracy of the worst source"

    def __call__(self, run: Finished) -> float:
        by_source: dict[str, list[float]] = {}
        for a in run.answers:
            by_source.setdefault(a["source"], []).append(float(a["correct"]))
        return min(statistics.fmean(values) for values in by_source.values())


@dataclass(frozen=True)
class Length:
    """Action units of every held-out answer, or of the wrong or right ones only (an answer below half correct is wrong)."""

    of: str = "all"

    @property
    def name(self) -> str:
        return f"length of {self.of} held-out answers in tokens"

    def __post_init__(self) -> None:
        if self.of not in ("all", "wrong", "right"):
            raise ValueError(f"Length.of is {self.of!r}, expected all, wrong or right")

    def __call__(self, run: Finished) -> dict[str, float]:
        kept = (a for a in run.answers if self.of == "all" or (a["correct"] >= 0.5) == (self.of == "right"))
        return {a["task"]: float(a["length"]) for a in kept}


@dataclass(frozen=True)
class Part:
    """A named part of the verdict on every held-out answer that has it. `sources` keeps only those data sources."""

    part: str
    sources: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"held-out {self.part}"

    def __call__(self, run: Finished) -> dict[str, float]:
        """
        Raises:
          ValueError: no held-out answer has this part; the message names those there are.
        """
        asked = [a for a in run.answers if not self.sources or a["source"] in self.sources]
        found = {a["task"]: float(a["parts"][self.part]) for a in asked if self.part in a["parts"]}
        if not found:
            known = sorted({p for a in asked for p in a["parts"]})
            raise ValueError(f"no held-out answer has the part {self.part!r}; their parts are {', '.join(known) or 'none'}")
        return found


@dataclass(frozen=True)
class Last:
    """Mean of a metric's column over the last `steps` training steps."""

    column: str
    steps: int = 5

    @property
    def name(self) -> str:
        return f"{self.column}, mean of the last {self.steps} steps"

    def __call__(self, run: Finished) -> float:
        return statistics.fmean(run.column(self.column)[-self.steps :])


@dataclass(frozen=True)
class Area:
    """Mean of a metric's column over all of training: the area under its curve, per step."""

    column: str

    @property
    def name(self) -> str:
        return f"{self.column}, mean over training"

    def __call__(self, run: Finished) -> float:
        return statistics.fmean(run.column(self.column))


@dataclass(frozen=True)
class Found:
    """A number of the claim's examination (`Claim.examine`), less another one where that is named."""

    what: str
    less: str = ""

    @property
    def name(self) -> str:
        return f"{self.what} found" if not self.less else f"{self.what} less {self.less} found"

    def __call__(self, run: Finished) -> float:
        """
        Raises:
          ValueError: the examination gave no such number.
        """
        if absent := [n for n in (self.what, self.less) if n and n not in run.found]:
            raise ValueError(f"nothing named {absent[0]!r} was found; the examination gave {', '.join(sorted(run.found)) or 'nothing'}")
        return run.found[self.what] - (run.found[self.less] if self.less else 0.0)
