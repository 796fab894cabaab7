"""Twelve jobs at the desk: what is asked, the state it begins in, when it is done, and what to do next. Easy ones first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fovea.envs.desk.screen import BIN, COLOURS, ENTRIES, MENU, SLOTS, Screen, Window, middle

Start = Mapping[str, Any]
"""What a job draws: plain JSON."""


@dataclass(frozen=True)
class Job:
    """A kind of job.

    Attributes:
      asks: the goal, with the names of what was drawn in braces.
      horizon: turns until the episode is cut.
      kind: of the window of `colour`; `opened`: it stands open. slow: it takes a moment to load.
      done: whether the screen is as it was asked for.
      advice: the next gesture of somebody who knows how; only asked while it is not done.
    """

    asks: str
    horizon: int
    done: Callable[[Screen, Start], bool]
    advice: Callable[[Screen, Start], str]
    kind: str = "notes"
    opened: bool = False
    slow: bool = False


def deal(rng: np.random.Generator) -> dict[str, Any]:
    """What any job may need: the order of the icons, two colours, numbers, rows, and which boxes."""
    order = [COLOURS[i] for i in rng.permutation(4)]
    first, second = (str(n) for n in rng.integers(10, 100, 2))
    boxes = sorted(int(i) + 1 for i in rng.choice(4, 3, replace=False))
    digits = "".join(str(d) for d in rng.permutation(10))
    return {
        "order": order,
        "colour": order[int(rng.integers(4))],
        "other": order[int(rng.integers(4))],
        "first": first,
        "second": second,
        "boxes": boxes,
        "box": str(boxes[0]),
        "digits": digits,
        "row": digits[int(rng.integers(5, 10))],
    }


def begin(job: Job, start: Start) -> Screen:
    """The screen that a job begins with."""
    colour = start["colour"]
    slow = (colour,) if job.slow else ()
    screen = Screen(list(start["order"]), dict.fromkeys(COLOURS, "notes") | {colour: job.kind}, slow, digits=start["digits"])
    if job.kind == "pair":
        screen.values[f"{colour}/first"] = start["first"]
    if job.opened:
        screen.open(colour)
    return screen


# -- what somebody does who knows how -------------------------------------------------------------------------------------------


def _window(screen: Screen, colour: str) -> Window | None:
    """The window of a colour, where it lies on top."""
    return screen.windows[-1] if screen.windows and screen.windows[-1].colour == colour else None


def _icon(screen: Screen, colour: str) -> str:
    return middle(SLOTS[screen.icons.index(colour)])


def _reach(screen: Screen, colour: str) -> str:
    """A gesture that brings a window up or waits for it; "" where it lies on top and is ready."""
    window = _window(screen, colour)
    if window is not None:
        return "wait()" if window.loading else ""
    return f"double({_icon(screen, colour)})"


def _put(screen: Screen, colour: str, part: str, text: str) -> str:
    """A gesture towards `text` in a field of the window on top; "" where it stands there."""
    key = f"{colour}/{part}"
    if screen.values.get(key) == text:
        return ""
    return f"type({text})" if screen.focus == key else f"click({middle(screen.windows[-1].parts[part])})"


def _push(screen: Screen, part: str) -> str:
    return f"click({middle(screen.windows[-1].parts[part])})"


def _menu(screen: Screen, colour: str) -> str:
    return f"click({middle(ENTRIES[COLOURS.index(colour)] if screen.menu else MENU)})"


def _scrolled(screen: Screen, start: Start) -> str:
    at = screen.digits.index(start["row"]) - screen.top
    window = screen.windows[-1]
    return _push(screen, f"row{at}") if 0 <= at < 4 else f"scroll({middle(window.area)},{'down' if at > 0 else 'up'})"


def _copied(screen: Screen, start: Start) -> str:
    colour, source = start["colour"], f"{start['colour']}/first"
    if screen.clip != start["first"]:
        return "hotkey(ctrl,c)" if screen.focus == source else _push(screen, "first")
    return "hotkey(ctrl,v)" if screen.focus == f"{colour}/second" else _push(screen, "second")


def _wrong_boxes(screen: Screen, start: Start) -> list[str]:
    on = {i for i in "1234" if screen.values.get(f"{start['colour']}/{i}")}
    return sorted(on ^ {str(i) for i in start["boxes"]})


def _sent(screen: Screen, start: Start) -> str:
    colour = start["colour"]
    return (
        _reach(screen, colour)
        or _put(screen, colour, "first", start["first"])
        or _put(screen, colour, "second", start["second"])
        or _push(screen, "send")
    )


def _set(screen: Screen, start: Start) -> str:
    window = _window(screen, start["colour"])
    if window is None:
        return _menu(screen, start["colour"])
    if window.loading:
        return "wait()"
    return _push(screen, (_wrong_boxes(screen, start) or ["save"])[0])


def _chain(screen: Screen, start: Start) -> str:
    colour, spare = start["colour"], _spare(start)
    if spare not in screen.binned:
        return f"drag({_icon(screen, spare)},{middle(BIN)})"
    if screen.values.get(f"{colour}/text") == start["first"]:
        return f"click({middle(screen.windows[-1].close)})"
    return _reach(screen, colour) or _put(screen, colour, "text", start["first"])


def _both(screen: Screen, start: Start) -> str:
    for colour, text in ((start["colour"], start["first"]), (_spare(start), start["second"])):
        if screen.values.get(f"{colour}/text") != text:
            return _reach(screen, colour) or _put(screen, colour, "text", text)
    return "wait()"


def _spare(start: Start) -> str:
    """A colour that is not the job's own."""
    return start["other"] if start["other"] != start["colour"] else next(c for c in COLOURS if c != start["colour"])


def _on_top(screen: Screen, start: Start) -> bool:
    return _window(screen, start["colour"]) is not None


JOBS: dict[str, Job] = {
    "mark": Job("Click {colour}.", 4, lambda s, d: s.chosen == d["colour"], lambda s, d: f"click({_icon(s, d['colour'])})"),
    "close": Job("Close the window.", 4, lambda s, d: not s.windows, lambda s, d: f"click({middle(s.windows[-1].close)})", opened=True),
    "open": Job("Open {colour}.", 4, _on_top, lambda s, d: f"double({_icon(s, d['colour'])})"),
    "bin": Job("Bin {colour}.", 6, lambda s, d: d["colour"] in s.binned, lambda s, d: f"drag({_icon(s, d['colour'])},{middle(BIN)})"),
    "menu": Job("Open {colour} from the menu.", 6, _on_top, lambda s, d: _menu(s, d["colour"])),
    "write": Job(
        "Write {first}.",
        6,
        lambda s, d: s.values.get(f"{d['colour']}/text") == d["first"],
        lambda s, d: _put(s, d["colour"], "text", d["first"]),
        opened=True,
    ),
    "row": Job("Choose {row}.", 8, lambda s, d: s.chosen == d["row"], _scrolled, kind="list", opened=True),
    "copy": Job(
        "Copy the number down.", 10, lambda s, d: s.values.get(f"{d['colour']}/second") == d["first"], _copied, kind="pair", opened=True
    ),
    "send": Job("In {colour} send {first} and {second}.", 12, lambda s, d: s.sent == (f"{d['first']} {d['second']}",), _sent, kind="form"),
    "set": Job(
        "From the menu open {colour}, turn on {boxes}, save.",
        14,
        lambda s, d: bool(s.sent) and s.sent[-1] == " ".join("on" if i in d["boxes"] else "" for i in range(1, 5)),
        _set,
        kind="checks",
        slow=True,
    ),
    "chain": Job(
        "Bin {spare}, write {first} in {colour}, close it.",
        16,
        lambda s, d: _spare(d) in s.binned and s.values.get(f"{d['colour']}/text") == d["first"] and not s.windows,
        _chain,
    ),
    "both": Job(
        "Write {first} in {colour} and {second} in {spare}.",
        20,
        lambda s, d: s.values.get(f"{d['colour']}/text") == d["first"] and s.values.get(f"{_spare(d)}/text") == d["second"],
        _both,
    ),
}


def goal(job: Job, start: Start) -> str:
    """What is asked, in words."""
    boxes = " ".join(str(i) for i in start["boxes"])
    return job.asks.format(**{**start, "boxes": boxes, "spare": _spare(start)})
