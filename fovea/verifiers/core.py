"""What a verdict may be, and how a plain function becomes a verifier.

A verdict is a bool, a finite number, a mapping of named parts, or a `Score`. Anything else, NaN included, is a failure with a reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from fovea.types import Context, Episode, Group, Places, Score, Verifier
from fovea.verifiers.parse import extract_answer

PACKAGE = Path(__file__).resolve().parent.parent

Judge = Callable[[Episode, Context], Any]


class Unscorable(ValueError):
    """A verifier's way to say that this episode cannot be scored; the message becomes the reason."""


def as_score(verdict: Any, threshold: float | None = None) -> Score:
    """A verdict -> `Score`.

    A bool is also `correct`. A number is correct at or above `threshold`; without one there is no notion of correct. The value of a
    mapping is its entry "score" (or "overall"), otherwise the sum of its entries; every other entry is a logged part, and an entry
    "correct" also states whether the episode counts as correct.
    """
    if isinstance(verdict, Score):
        bad = verdict.ok and not _finite(verdict.value)
        return Score.failed(f"score is {verdict.value!r}; expected a finite number") if bad else verdict
    if isinstance(verdict, Mapping):
        return _from_parts(verdict, threshold)
    verdict = _plain(verdict)
    if isinstance(verdict, bool):
        return Score(float(verdict), correct=verdict)
    if not isinstance(verdict, int | float):
        return Score.failed(f"verifier returned {_show(verdict)}; expected a finite number, a bool, a dict of named parts or a Score")
    if not _finite(verdict):
        return Score.failed(f"verifier returned {verdict!r}; expected a finite number")
    return Score(float(verdict), correct=None if threshold is None else verdict >= threshold)


def placed(verdict: Any, places: Places | None, expected: Places | None) -> Score:
    """A verdict -> `Score` with where the answer points and where it should."""
    return replace(as_score(verdict), places=places, expected=expected)


def _from_parts(verdict: Mapping[Any, Any], threshold: float | None) -> Score:
    parts = {str(k): _plain(v) for k, v in verdict.items()}
    for name, part in parts.items():
        if not isinstance(part, bool | int | float) or not _finite(part):
            return Score.failed(f"part {name!r} is {_show(part)}; expected a finite number or a bool")
    if not parts:
        return Score.failed("verifier returned an empty dict; expected at least one named part")
    said = parts.pop("correct", None) if isinstance(parts.get("correct"), bool) else None
    total = next((parts.pop(k) for k in ("score", "overall") if k in parts), None)
    if said is not None:
        parts["correct"] = float(said)
    value = float(sum(parts.values()) if total is None else total)
    correct = said if said is not None else (None if threshold is None else value >= threshold)
    return Score(value, parts={k: float(v) for k, v in parts.items()}, correct=correct)


def _plain(x: Any) -> Any:
    """Numpy and torch scalars -> Python's."""
    if type(x) in (float, int, bool):
        return x
    with contextlib.suppress(Exception):
        return x.item() if hasattr(x, "item") and not isinstance(x, Mapping) else x
    return x


def _finite(x: Any) -> bool:
    return isinstance(x, int | float) and math.isfinite(x)


def _show(x: Any) -> str:
    return f"{x!r:.80} ({type(x).__name__})"


def reason_of(error: BaseException) -> str:
    """One line that names the error and, for a user's own code, the line that raised it."""
    if isinstance(error, Unscorable):
        return str(error)
    frame = error.__traceback__
    while frame and frame.tb_next:
        frame = frame.tb_next
    file = Path(frame.tb_frame.f_code.co_filename) if frame else None
    where = f" at {file.name}:{frame.tb_lineno}" if frame and file and PACKAGE not in file.parents else ""
    return f"{type(error).__name__}: {str(error) or 'no message'}{where}"


@dataclass(frozen=True)
class PerEpisode:
    """A verifier that looks at each episode alone: `judge(episode, context)` gives a verdict, or raises.

    What raises fails only its own episode. `threshold` turns numbers into right or wrong where the verifier has such a notion.
    """

    name: str
    judge: Judge
    threshold: float | None = None
    scope: str = field(default="episode", init=False)

    def score(self, group: Group, context: Context) -> list[Score]:
        return [self._one(episode, context) for episode in group.episodes]

    def _one(self, episode: Episode, context: Context) -> Score:
        try:
            return as_score(self.judge(episode, context), self.threshold)
        except Exception as error:
            return Score.failed(f"{self.name}: {reason_of(error)}")


def on_answer(name: str, judge: Callable[[str, Any], Any], threshold: float | None = 0.5) -> Verifier:
    """A verifier from `judge(answer_text, gold)`; an episode without an answer earns 0, a task without gold is a failure."""

    def whole(episode: Episode, context: Context) -> Any:
        if episode.task.answer is None:
            raise Unscorable("the task has no answer (Task.answer is None)")
        answer = extract_answer(episode.text)
        return False if answer is None else judge(answer, episode.task.answer)

    return PerEpisode(name, whole, threshold)


Stages = float | Sequence[Sequence[float]]
"""A number, or pairs (share of the run, number): each number holds until that share of the run is done, the last one to its end."""


def staged(value: Stages, progress: float) -> float:
    """The number of `value` that holds when `progress` of the run is done.

    >>> [staged([(0.10, 0.85), (0.25, 0.95), (1.0, 0.99)], p) for p in (0.10, 0.11, 0.25, 0.26)]
    [0.85, 0.95, 0.95, 0.99]
    """
    if isinstance(value, int | float):
        return float(value)
    return float(next((v for until, v in value if progress <= until), value[-1][1]))


def check_stages(name: str, value: Any) -> None:
    """
    Raises:
      ValueError: neither a number nor pairs (share of the run, number) whose shares rise.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return
    pairs = list(value) if isinstance(value, list | tuple) else []
    good = all(isinstance(p, list | tuple) and len(p) == 2 and all(isinstance(x, int | float) for x in p) for p in pairs)
    if not pairs or not good or any(a[0] >= b[0] for a, b in pairwise(pairs)):
        raise ValueError(f"{name} is {value!r}; expected a number, or pairs (share of the run, number) with rising shares")


# -- the task's own verifier ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class With:
    """The task's own verifier with some of its parameters replaced: what an arm of a claim may change.

    Attributes:
      params: name -> value.
      part: the part of a weighted sum that they belong to; "" is the verifier itself.
    """

    params: Mapping[str, Any]
    part: str = ""
    scope: str = field(default="episode", init=False)

    def score(self, group: Group, context: Context) -> list[Score]:
        from fovea.verifiers import build

        task, params = group.task, {**group.task.params, **self.params}
        if self.part:
            weight, spec, *own = task.params["parts"][self.part]
            part = (weight, spec, {**(own[0] if own else {}), **self.params})
            params = {**task.params, "parts": {**task.params["parts"], self.part: part}}
        return build(task.verifier, params).score(group, context)


# -- a user's own function ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FunctionVerifier:
    """`f(answer, task)`, sync or async, as a verifier. It also gets `episode`, `context` and `Task.params` where it names them.

    `answer` is `extract_answer(episode.text)` ("" when there is none); the whole text is `episode.text`.
    """

    function: Callable[..., Any]
    params: Mapping[str, Any] = field(default_factory=dict)
    scope: str = field(default="episode", init=False)

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    @property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(getattr(self.function, "__call__", None))  # noqa: B004

    def bind(self, params: Mapping[str, Any]) -> FunctionVerifier:
        return replace(self, params={**self.params, **params})

    def call(self, episode: Episode, context: Context) -> Any:
        named = inspect.signature(self.function).parameters
        takes_all = any(p.kind is p.VAR_KEYWORD for p in named.values())
        offered = {**self.params, "episode": episode, "context": context}
        extra = {k: v for k, v in offered.items() if k in list(named)[2:] or (takes_all and k in self.params)}
        return self.function(extract_answer(episode.text) or "", episode.task, **extra)

    def score(self, group: Group, context: Context) -> list[Score]:
        return _in_own_loop(self.score_async(group, context)) if self.is_async else [self._one(e, context) for e in group.episodes]

    async def score_async(self, group: Group, context: Context) -> list[Score]:
        return list(await asyncio.gather(*(self._one_async(e, context) for e in group.episodes)))

    def _one(self, episode: Episode, context: Context) -> Score:
        try:
            return as_score(self.call(episode, context))
        except Exception as error:
            return Score.failed(f"{self.name}: {reason_of(error)}")

    async def _one_async(self, episode: Episode, context: Context) -> Score:
        try:
            verdict = self.call(episode, context)
            return as_score(await verdict if isinstance(verdict, Awaitable) else verdict)
        except Exception as error:
            return Score.failed(f"{self.name}: {reason_of(error)}")


def _in_own_loop(coroutine: Any) -> Any:
    """Run a coroutine to its end from synchronous code, inside a running event loop (a notebook) or outside one."""
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(asyncio.run(coroutine)), daemon=True)
    thread.start()
    thread.join()
    return result[0]


def function(f: Callable[..., Any]) -> FunctionVerifier:
    """Wrap `f(answer: str, task: Task) -> float | bool | dict | Score`, sync or async; an error names the signature it found.

    A reward that takes whole batches (``completions=[...]``) is not called as it is: write one line that passes a list of one.
    """
    try:
        inspect.signature(f).bind("answer", None, **{k: None for k in _required_keywords(f)})
    except TypeError as error:
        raise TypeError(
            f"verifier function {getattr(f, '__name__', f)!s}{inspect.signature(f)} cannot be called as f(answer, task): {error}. "
            "Expected: def f(answer: str, task: Task) -> float | bool | dict; a function over batches needs a one-line wrapper"
        ) from None
    return FunctionVerifier(f)


def _required_keywords(f: Callable[..., Any]) -> list[str]:
    """Parameters beyond the first two without a default: filled from `episode`, `context` and `Task.params` when called."""
    named = list(inspect.signature(f).parameters.values())
    fixed = [p.name for p in named if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty]
    return [n for n in fixed if n not in [p.name for p in named[:2]]]
