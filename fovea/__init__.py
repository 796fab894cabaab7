"""Fovea: reinforcement learning of models that see.

    import fovea
    run = fovea.train("grpo", steps=60)
    print(run.policy.predict(image, "How many red shapes are there?"))

Heavy parts (torch, transformers) load on first use, so that importing this package costs milliseconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fovea.api import evaluate, load_policy, train
    from fovea.hub import push
    from fovea.recipe import Recipe
    from fovea.types import Action, Context, Episode, Group, Observation, Score, Task, user

__version__ = "0.1.0"

_HOME = {
    "train": "fovea.api",
    "evaluate": "fovea.api",
    "load_policy": "fovea.api",
    "Recipe": "fovea.recipe",
    "push": "fovea.hub",
    **dict.fromkeys(("Action", "Context", "Episode", "Group", "Observation", "Score", "Task", "user"), "fovea.types"),
}

__all__ = [
    "Action",
    "Context",
    "Episode",
    "Group",
    "Observation",
    "Recipe",
    "Score",
    "Task",
    "evaluate",
    "load_policy",
    "push",
    "train",
    "user",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fovea' has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
