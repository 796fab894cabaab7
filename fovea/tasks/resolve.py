"""From a recipe's `data` and `heldout` fields to a training source and a held-out source."""

from __future__ import annotations

from typing import Any

from fovea.tasks.worlds import FAMILIES, World


def pair(data: Any, heldout: Any = None, *, seed: int = 0, on_bad_row: str = "stop") -> tuple[Any, Any]:
    """(training source, held-out source or None).

    "worlds" or "worlds:count,read" are the procedural tasks; any other string is a path or hub id for `fovea.tasks.load`; an object is
    taken as a source. Without `heldout`, worlds use their held-out split and files keep a tenth of their rows (by content) out of training.

    Raises:
      ValueError: an unknown family, named with the known ones.
    """
    train = source(data, "train", seed, on_bad_row, whole=heldout is not None)
    if heldout is not None:
        return train, source(heldout, "heldout", seed, on_bad_row, whole=True)
    if isinstance(data, str):
        return train, source(data, "heldout", seed, on_bad_row)
    if isinstance(data, World):
        return train, World(data.families, "heldout", data.seed, data.levels)
    return train, None


def source(data: Any, split: str, seed: int = 0, on_bad_row: str = "stop", whole: bool = False) -> Any:
    """One source; `whole` takes every row of a file instead of the split's share."""
    if not isinstance(data, str):
        return data
    if data == "worlds" or data.startswith("worlds:"):
        names = tuple(n for n in data.partition(":")[2].split(",") if n) or tuple(FAMILIES)
        unknown = [n for n in names if n not in FAMILIES]
        if unknown:
            raise ValueError(f"data {data!r}: no family {', '.join(unknown)}; there are: {', '.join(FAMILIES)}")
        # held-out items do not depend on the run's seed, so that every run is measured on the same ones
        return World(names, split, seed if split == "train" else 0)
    from fovea.tasks.load import load

    return load(data, split=None if whole else split, on_bad_row=on_bad_row)
