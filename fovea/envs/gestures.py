"""What a hand does at a screen, in words: click(12,34), drag(1,2,30,40), scroll(12,34,down), type(37), hotkey(ctrl,c), wait()."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

CALL = re.compile(r"\b(\w++)\s*+\(\s*+(\"(?:[^\"\\]|\\.)*+\"|'(?:[^'\\]|\\.)*+'|[^()\"']*+)\s*+\)")


@dataclass(frozen=True)
class Gesture:
    """One call, such as ``Gesture("scroll", ((12, 34),), "down")``: points in pixels, x right, y down, and what follows them."""

    name: str
    points: tuple[tuple[float, float], ...] = ()
    rest: str = ""


def last_call(text: str, names: Collection[str]) -> tuple[str, str] | None:
    """(name, what stands in its brackets, without quotes) of the last call of one of `names`; None where there is none."""
    called = [c for c in CALL.findall(text) if c[0] in names]
    if not called:
        return None
    name, given = called[-1]
    return name, given[1:-1].replace("\\" + given[0], given[0]) if given[:1] in ('"', "'") else given.strip()


def gesture(text: str, known: Mapping[str, int]) -> Gesture | None:
    """The last call in a text of a name that is `known` (name -> number of points); None where it is not well formed."""
    called = last_call(text, known)
    if called is None:
        return None
    name, n = called[0], 2 * known[called[0]]
    parts = [p.strip() for p in called[1].split(",", n)] if n else [called[1]]
    try:
        xy = [float(x) for x in parts[:n]]
    except ValueError:
        return None
    return Gesture(name, tuple(zip(xy[::2], xy[1::2])), ",".join(parts[n:])) if len(xy) == n else None
