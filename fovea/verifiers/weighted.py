"""A weighted sum of verifiers, every part logged under its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fovea.types import Context, Group, Score, Task


@dataclass(frozen=True)
class Weighted:
    """value = Σ weight · part, divided by Σ weight where it is a `mean`.

    `correct` is that of the first part that has one, or of the part named by `correct_from`.

    A part is (weight, verifier) or (weight, verifier, params); the verifier "task" stands for the task's own. One part that cannot be
    scored makes the whole unscored, with that part named.
    """

    parts: Mapping[str, Sequence[Any]]
    correct_from: str | None = None
    mean: bool = False
    name: str = "weighted"

    def __post_init__(self) -> None:
        for name, part in self.parts.items():
            weight = part[0] if isinstance(part, Sequence) and not isinstance(part, str) and len(part) in (2, 3) else None
            if isinstance(weight, bool) or not isinstance(weight, int | float):
                raise ValueError(f"weighted: part {name!r} is {part!r}; expected (weight, verifier) or (weight, verifier, params)")
        if not self.parts:
            raise ValueError("weighted: no parts; expected for example {'correct': (1.0, 'task'), 'format': (0.1, 'format')}")
        if self.correct_from is not None and self.correct_from not in self.parts:
            raise ValueError(f"weighted: correct_from is {self.correct_from!r}; the parts are {', '.join(self.parts)}")
        if self.mean and not sum(w for w, *_ in self.parts.values()) > 0:
            raise ValueError("weighted: the weights of a mean sum to 0 or less; expected more")

    @property
    def scope(self) -> str:
        return "group" if any(getattr(spec, "scope", "episode") == "group" for _, spec, *_ in self.parts.values()) else "episode"

    def of(self, task: Task) -> Weighted:
        """The same sum with the part "task" replaced by the verifier of this task."""
        own = (task.verifier, task.params)
        return replace(self, parts={n: (w, *(own if spec == "task" else (spec, *rest))) for n, (w, spec, *rest) in self.parts.items()})

    def score(self, group: Group, context: Context) -> list[Score]:
        from fovea.verifiers import build

        columns: dict[str, list[Score]] = {}
        for name, (_, spec, *params) in self.of(group.task).parts.items():
            columns[name] = list(build(spec, params[0] if params else {}).score(group, context))
        return [self._total({name: column[i] for name, column in columns.items()}) for i in range(len(group.episodes))]

    def _total(self, scores: Mapping[str, Score]) -> Score:
        failed = [f"part {name!r}: {s.reason}" for name, s in scores.items() if not s.ok]
        if failed:
            return Score.failed("; ".join(failed))
        parts = {name: s.value for name, s in scores.items()}
        parts |= {f"{name}/{inner}": v for name, s in scores.items() for inner, v in s.parts.items()}
        stated = [scores[self.correct_from].correct] if self.correct_from else [s.correct for s in scores.values() if s.correct is not None]
        value = sum(float(self.parts[name][0]) * s.value for name, s in scores.items())
        value /= sum(float(w) for w, *_ in self.parts.values()) if self.mean else 1.0
        looked = next((s for s in scores.values() if s.expected or s.places), Score(value))
        correct = stated[0] if stated else None
        return Score(value, parts=parts, correct=correct, places=looked.places, expected=looked.expected)


def weighted(parts: Mapping[str, Sequence[Any]], *, correct_from: str | None = None, mean: bool = False) -> Weighted:
    """A weighted sum of named verifiers, or with `mean` their weighted mean:
    ``weighted({"correct": (1.0, "task"), "format": (0.1, "format", {"tags": ["answer"]})})``.
    """
    return Weighted(dict(parts), correct_from, mean)
