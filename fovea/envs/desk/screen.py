"""The state of a small desktop, what gestures do to it, and how it looks: 96 x 64 pixels, x right, y down.

Four icons stand in the top row, a menu and a bin in the bottom row, windows between. A window belongs to a colour and has one of `KINDS`:
notes (a text field), form (two fields and a button), checks (four boxes and a button), list (digits that scroll) and pair (two fields).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from PIL import Image

from fovea.envs.cards.draw import Sheet
from fovea.envs.gestures import Gesture
from fovea.tasks.worlds.draw import PALETTE

WIDTH, HEIGHT = 96, 64
COLOURS = ("red", "green", "blue", "yellow")
KINDS = ("notes", "form", "checks", "list", "pair")
Area = tuple[float, float, float, float]
"""(x1, y1, x2, y2) in pixels, x2 and y2 exclusive."""

SLOTS: tuple[Area, ...] = ((2, 1, 16, 13), (26, 1, 40, 13), (50, 1, 64, 13), (74, 1, 88, 13))
MENU: Area = (0, 56, 18, 64)
ENTRIES: tuple[Area, ...] = tuple((0, 56 - 9 * (i + 1), 24, 56 - 9 * i) for i in range(4))
BIN: Area = (82, 54, 96, 64)
WIDE, HIGH, TITLE = 56, 40, 9
ROWS = 4
GROUND, PAPER, EDGE, INK, SHADE = (58, 64, 78), (250, 250, 247), (120, 126, 140), (24, 28, 40), (176, 180, 188)
GESTURES = {"click": 1, "double": 1, "scroll": 1, "drag": 2, "type": 0, "hotkey": 0, "wait": 0, "finished": 0}
LOADS = 2  # moments that a slow window takes


@dataclass
class Window:
    """An open window.

    Attributes:
      x, y: of its top left corner.
      loading: moments until it can be used.
    """

    colour: str
    kind: str
    x: int
    y: int
    loading: int = 0

    @property
    def area(self) -> Area:
        return self.x, self.y, self.x + WIDE, self.y + HIGH

    @property
    def close(self) -> Area:
        return self.x + WIDE - TITLE, self.y, self.x + WIDE, self.y + TITLE

    @property
    def parts(self) -> dict[str, Area]:
        """What can be clicked inside, by name; no two overlap."""
        x, y = self.x, self.y + TITLE
        if self.kind == "notes":
            return {"text": (x + 4, y + 6, x + 52, y + 24)}
        if self.kind in ("form", "pair"):
            fields: dict[str, Area] = {"first": (x + 4, y + 2, x + 52, y + 12), "second": (x + 4, y + 14, x + 52, y + 24)}
            return fields | ({"send": (x + 32, y + 25, x + 54, y + 31)} if self.kind == "form" else {})
        if self.kind == "checks":
            boxes: dict[str, Area] = {
                f"{i + 1}": (x + 2 + 26 * (i % 2), y + 2 + 11 * (i // 2), x + 26 + 26 * (i % 2), y + 12 + 11 * (i // 2)) for i in range(4)
            }
            return boxes | {"save": (x + 32, y + 24, x + 54, y + 31)}
        return {f"row{i}": (x + 4, y + 1 + 7.5 * i, x + 52, y + 8.5 + 7.5 * i) for i in range(ROWS)}


@dataclass
class Screen:
    """Everything there is to know.

    Attributes:
      icons: colour in each of the `SLOTS`, "" where none is. kinds: what a colour's window is. slow: colours whose windows load.
      windows: the last one lies on top. values: text of the fields and "on" of boxes, by "colour/part". digits: what a list shows.
      chosen: icons and rows that are marked. focus: the field that is typed into. said: what was sent or saved.
    """

    icons: list[str]
    kinds: dict[str, str]
    slow: tuple[str, ...] = ()
    windows: list[Window] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)
    digits: str = "0123456789"
    top: int = 0
    chosen: str = ""
    focus: str = ""
    clip: str = ""
    menu: bool = False
    binned: tuple[str, ...] = ()
    sent: tuple[str, ...] = ()

    # -- gestures -------------------------------------------------------------------------------------------------------------

    def do(self, what: Gesture) -> None:
        """Carry out a gesture; then a moment passes (two of them while waiting)."""
        if what.name in ("click", "double"):
            self._click(what.points[0], what.name == "double")
        elif what.name == "drag":
            self._drag(*what.points)
        elif what.name == "scroll":
            self._scroll(what.points[0], what.rest)
        elif what.name == "type" and self.focus:
            self.values[self.focus] = what.rest
        elif what.name == "hotkey":
            self._hotkey(what.rest.replace(" ", "").replace("+", ","))
        for window in self.windows:
            window.loading = max(0, window.loading - (2 if what.name == "wait" else 1))

    def open(self, colour: str) -> None:
        """Bring the window of a colour up, or open it."""
        there = next((w for w in self.windows if w.colour == colour), None)
        if there is None:
            i = COLOURS.index(colour)
            loading = LOADS + 1 if colour in self.slow else 0
            there = Window(colour, self.kinds[colour], 4 + 10 * i, 14 + i % 2, loading)
        self.windows = [*(w for w in self.windows if w is not there), there]

    def window_at(self, point: tuple[float, float]) -> Window | None:
        return next((w for w in reversed(self.windows) if inside(point, w.area)), None)

    def _click(self, point: tuple[float, float], double: bool) -> None:
        entry = next((i for i, area in enumerate(ENTRIES) if self.menu and inside(point, area)), None)
        shown, self.menu = self.menu, False
        if entry is not None:
            self.open(COLOURS[entry])
        elif inside(point, MENU):
            self.menu = not shown
        elif (window := self.window_at(point)) is not None:
            self._click_in(window, point)
        else:
            slot = next((i for i, area in enumerate(SLOTS) if inside(point, area)), None)
            self.focus, self.chosen = "", self.icons[slot] if slot is not None else ""
            if double and self.chosen:
                self.open(self.chosen)

    def _click_in(self, window: Window, point: tuple[float, float]) -> None:
        self.windows = [*(w for w in self.windows if w is not window), window]
        self.focus = ""
        if inside(point, window.close):
            self.windows.pop()
            return
        part = next((name for name, area in window.parts.items() if inside(point, area)), None)
        if part is None or window.loading:
            return
        name = f"{window.colour}/{part}"
        if part in ("text", "first", "second"):
            self.focus = name
        elif part in ("send", "save"):
            fields = ("first", "second") if part == "send" else ("1", "2", "3", "4")
            self.sent = (*self.sent, " ".join(self.values.get(f"{window.colour}/{f}", "") for f in fields))
        elif part.startswith("row"):
            self.chosen = self.digits[self.top + int(part[3:])]
        else:
            self.values[name] = "" if self.values.get(name) else "on"

    def _drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        slot = next((i for i, area in enumerate(SLOTS) if inside(start, area)), None)
        if slot is not None and self.icons[slot] and self.window_at(start) is None:
            goal = next((i for i, area in enumerate(SLOTS) if inside(end, area) and not self.icons[i]), None)
            if inside(end, BIN) and self.window_at(end) is None:
                self.binned, self.icons[slot] = (*self.binned, self.icons[slot]), ""
            elif goal is not None:
                self.icons[goal], self.icons[slot] = self.icons[slot], ""

    def _scroll(self, point: tuple[float, float], way: str) -> None:
        window = self.window_at(point)
        if window is not None and window.kind == "list" and way in ("up", "down"):
            self.top = min(len(self.digits) - ROWS, max(0, self.top + (3 if way == "down" else -3)))

    def _hotkey(self, keys: str) -> None:
        if keys == "ctrl,c" and self.focus:
            self.clip = self.values.get(self.focus, "")
        elif keys == "ctrl,v" and self.focus:
            self.values[self.focus] = self.clip
        elif keys == "ctrl,w" and self.windows:
            self.windows.pop()
            self.focus = ""

    # -- looks ----------------------------------------------------------------------------------------------------------------

    def picture(self) -> Image.Image:
        """What is seen, the same object for the same state."""
        windows = tuple((w.colour, w.kind, w.x, w.y, bool(w.loading)) for w in self.windows)
        values = tuple(sorted((k, v) for k, v in self.values.items() if v))
        return _drawn(tuple(self.icons), windows, values, self.digits[self.top :][:ROWS], self.chosen, self.focus, self.menu)


def inside(point: tuple[float, float], area: Area) -> bool:
    return area[0] <= point[0] < area[2] and area[1] <= point[1] < area[3]


def middle(area: Area) -> str:
    """The middle of an area as a gesture names it."""
    return f"{int((area[0] + area[2]) / 2)},{int((area[1] + area[3]) / 2)}"


@lru_cache(maxsize=512)
def _drawn(
    icons: tuple[str, ...],
    windows: tuple[tuple[str, str, int, int, bool], ...],
    values: tuple[tuple[str, str], ...],
    digits: str,
    chosen: str,
    focus: str,
    menu: bool,
) -> Image.Image:
    sheet, known = Sheet(WIDTH, GROUND), dict(values)

    def panel(area: Area, fill: tuple[int, int, int], edge: tuple[int, int, int] | None = None) -> None:
        sheet.panel(_fraction(area), fill, edge)

    def text(said: str, area: Area) -> None:
        if said := "".join(c for c in said if c.isdigit())[:6]:
            sheet.text(said, _fraction((area[0], area[1], area[0] + 6 * len(said), area[3])), INK)

    for slot, colour in zip(SLOTS, icons):
        if colour:
            panel(slot, PALETTE[colour], PAPER if colour == chosen else None)
    panel(MENU, PAPER if menu else SHADE)
    panel(BIN, INK, SHADE)
    for colour, kind, x, y, loading in windows:
        window = Window(colour, kind, x, y)
        panel(window.area, PAPER, EDGE)
        panel((x, y, x + WIDE, y + TITLE), PALETTE[colour])
        panel(_shrunk(window.close, 2), INK)
        for name, area in window.parts.items() if not loading else ():
            key = f"{colour}/{name}"
            if name in ("send", "save"):
                panel(area, PALETTE["purple"])
            elif kind == "checks":
                box = (area[0] + 2, area[1] + 2, area[0] + 8, area[1] + 8)
                panel(box, INK if known.get(key) else PAPER, INK)
                text(name, (area[0] + 13, area[1] + 1, area[2], area[3] - 1))
            elif name.startswith("row"):
                digit = digits[int(name[3:])]
                panel(area, PALETTE["orange"] if digit == chosen else PAPER)
                text(digit, (area[0] + 4, area[1] + 0.5, area[2], area[3] - 0.5))
            else:
                panel(area, (255, 255, 255), PALETTE["orange"] if key == focus else SHADE)
                text(known.get(key, ""), (area[0] + 3, area[1] + 1.5, area[2], area[3] - 1.5))
    for colour, area in zip(COLOURS, ENTRIES if menu else ()):
        panel(area, PAPER, EDGE)
        panel(_shrunk(area, 2), PALETTE[colour])
    return sheet.done().crop((0, 0, WIDTH, HEIGHT))


def _fraction(area: Area) -> Area:
    """Pixels as parts of the picture's width, as `Sheet` wants them."""
    x1, y1, x2, y2 = (c / WIDTH for c in area)
    return x1, y1, x2, y2


def _shrunk(area: Area, by: float) -> Area:
    return area[0] + by, area[1] + by, area[2] - by, area[3] - by
