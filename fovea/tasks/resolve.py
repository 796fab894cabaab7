"""From a recipe's `data` and `heldout` fields to a training source and a held-out source."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

SOURCES: dict[str, str] = {
    "worlds": "fovea.tasks.worlds:World",
    "gym": "fovea.tasks.gym:Gym",
    "hints": "fovea.tasks.hints:Hints",
    "sums": "fovea.tasks.sums:Sums",
    "detect": "fovea.tasks.detect:Detect",
    "jigsaw": "fovea.tasks.jigsaw:Jigsaw",
    "photos": "fovea.tasks.photos:Photos",
    "triune": "fovea.tasks.triune:Triune",
    "absent": "fovea.tasks.absent:Absent",
    "bars": "fovea.tasks.bars:Bars",
    "cards": "fovea.tasks.cards:Deals",
    "desk": "fovea.tasks.desk:Jobs",
    "house": "fovea.tasks.house:Walks",
    "marks": "fovea.tasks.marks:Marks",
    "robot": "fovea.tasks.robots:Robots",
    "demos": "fovea.tasks.demos:Demonstrations",
    "seeds": "fovea.tasks.seeds:Seeds",
    "spots": "fovea.tasks.spots:Spots",
}
"""Procedural sources by name. ``data="NAME:what"`` calls the class method ``named(what, split, seed)``; split is "train" or "heldout"."""


def pair(data: Any, heldout: Any = None, *, seed: int = 0, on_bad_row: str = "stop") -> tuple[Any, Any]:
    """(training source, held-out source or None).

    "worlds" or "worlds:count,read" are procedural tasks, and so is every name of `SOURCES`; any other string is a path or hub id for
    `fovea.tasks.load`; an object is taken as a source. Without `heldout`, procedural tasks use their held-out split and files keep a tenth
    of their rows (by content) out of training; an object has one if it has `heldout()`.

    Raises:
      ValueError: a procedural source that knows nothing of what is asked; the message says what it knows.
    """
    train = source(data, "train", seed, on_bad_row, whole=heldout is not None)
    if heldout is not None:
        return train, source(heldout, "heldout", seed, on_bad_row, whole=True)
    if isinstance(data, str):
        return train, source(data, "heldout", seed, on_bad_row)
    return train, data.heldout() if hasattr(data, "heldout") else None


def source(data: Any, split: str, seed: int = 0, on_bad_row: str = "stop", whole: bool = False) -> Any:
    """One source; `whole` takes every row of a file instead of the split's share."""
    if not isinstance(data, str):
        return data
    name, _, what = data.partition(":")
    if name in SOURCES:
        # held-out items do not depend on the run's seed, so that every run is measured on the same ones
        return resolve_name(SOURCES[name]).named(what, split, seed if split == "train" else 0)
    from fovea.tasks.load import load

    return load(data, split=None if whole else split, on_bad_row=on_bad_row)
