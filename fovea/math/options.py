"""Look up a named choice; an unknown name is an error that lists what exists and the nearest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


def check(what: str, name: str, known: Iterable[str]) -> None:
    """Raise ValueError unless `name` is one of `known`."""
    names = list(known)
    if name not in names:
        near = get_close_matches(str(name), names, n=1, cutoff=0.0)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{what} {name!r} is not known; expected one of: {', '.join(names)}{hint}")


def choose(what: str, name: str, table: Mapping[str, T]) -> T:
    """``table[name]``, with the error of `check`."""
    check(what, name, table)
    return table[name]
