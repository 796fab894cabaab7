"""How good was it? Verifiers by name, a user's own functions, and the scorer that runs them while other episodes generate.

VERIFIERS["number"](tolerance=0.5)             a verifier from its name and parameters
weighted({"correct": (1.0, "task"), "format": (0.1, "format")})
function(my_reward)                            def my_reward(answer, task) -> float | bool | dict | Score, sync or async
Scorer(override=None).score(groups, context)   sets `episode.score` on every episode
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from fovea.types import Task, Verifier
from fovea.verifiers import answers, detection, drawn, grounded, permutation
from fovea.verifiers.core import FunctionVerifier, PerEpisode, Unscorable, With, as_score, function
from fovea.verifiers.form import cosine_length, format, length, random, repetition
from fovea.verifiers.mathematics import math
from fovea.verifiers.parse import extract_answer
from fovea.verifiers.programs import program
from fovea.verifiers.readers import readers
from fovea.verifiers.scorer import Scorer, TooManyUnscored
from fovea.verifiers.weighted import Weighted, weighted

VERIFIERS: dict[str, Callable[..., Verifier]] = {
    **answers.FACTORIES,
    **detection.FACTORIES,
    **permutation.FACTORIES,
    **drawn.FACTORIES,
    **grounded.FACTORIES,
    "math": math,
    "program": program,
    "format": format,
    "length": length,
    "cosine_length": cosine_length,
    "repetition": repetition,
    "random": random,
    "readers": readers,
    "weighted": weighted,
}
"""Every verifier that a task may name, by the factory that makes it from `Task.params`."""


def build(spec: Any, params: Mapping[str, Any] | None = None) -> Verifier:
    """A verifier from a name and its parameters, from an object that is one, or from a plain function.

    Raises:
      ValueError: an unknown name, with the nearest known one.
      TypeError: parameters the verifier does not take, or an object that is no verifier.
    """
    params = dict(params or {})
    if isinstance(spec, str):
        if spec not in VERIFIERS:
            near = difflib.get_close_matches(spec, VERIFIERS, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"no verifier is called {spec!r}{hint or ';'} known: {', '.join(VERIFIERS)}")
        return _with(spec, params)
    if isinstance(spec, FunctionVerifier):
        return spec.bind(params)
    if hasattr(spec, "score") and hasattr(spec, "scope"):
        return spec
    if callable(spec) and not isinstance(spec, type):
        return function(spec).bind(params)
    raise TypeError(f"{spec!r} is not a verifier; expected a name, a function f(answer, task), or an object with `scope` and `score`")


def _with(name: str, params: dict[str, Any]) -> Verifier:
    known = inspect.signature(VERIFIERS[name]).parameters
    unknown = [p for p in params if p not in known]
    if unknown:
        raise TypeError(f"verifier {name!r} takes no parameter {', '.join(map(repr, unknown))}; it takes: {', '.join(known) or 'none'}")
    return VERIFIERS[name](**params)


def resolve(task: Task, override: Any = None) -> Verifier:
    """The verifier of a task, or the one that overrides it.

    A task's parameters belong to its own verifier; an overriding function receives those it names, an overriding name receives none.
    """
    if override is None:
        return build(task.verifier, task.params)
    verifier = build(override, task.params if callable(override) or isinstance(override, FunctionVerifier) else {})
    return verifier.of(task) if isinstance(verifier, Weighted) else verifier


__all__ = [
    "VERIFIERS",
    "FunctionVerifier",
    "PerEpisode",
    "Scorer",
    "TooManyUnscored",
    "Unscorable",
    "Weighted",
    "With",
    "as_score",
    "build",
    "extract_answer",
    "format",
    "function",
    "length",
    "math",
    "program",
    "random",
    "resolve",
    "weighted",
]
