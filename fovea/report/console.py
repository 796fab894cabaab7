"""What a run shows while it trains: a live panel on a terminal, one line now and then everywhere else.

The panel is redrawn from `step` and `phase` calls, a few times a second at most. There is no refresh thread: it would take time from
training, and forking a verifier's process while it holds a lock could hang.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import itertools
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console as Screen
from rich.console import Group as Stack
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fovea.report.metrics import NOISE, family, judged

UNICODE = {"spark": "▁▂▃▄▅▆▇█", "bar": "█", "half": "▌", "empty": "░", "dot": " · ", "times": "×", "gap": "·"}
ASCII = {"spark": "_.-=+*%#", "bar": "#", "half": "-", "empty": ".", "dot": " | ", "times": "x", "gap": " "}
HISTORY = 400
REDRAW_S = 0.2

HEADLINE = (
    # metric, label in the panel, label in a line, digits, colour
    ("reward/mean", "reward", "reward", 3, "cyan"),
    ("accuracy/mean", "accuracy", "acc", 3, "green"),
    ("eval/accuracy", "held-out", "held-out", 3, "bright_green"),
    ("eval/return", "held-out", "held-out", 2, "bright_green"),
    ("length/mean_tokens", "length", "len", 1, "white"),
    ("policy/entropy", "entropy", "ent", 3, "yellow"),
    ("policy/kl", "KL", "kl", 4, "magenta"),
    ("policy/clip_frac", "clipped", "clip", 3, "magenta"),
    ("optim/grad_norm", "grad norm", "grad", 3, "blue"),
    ("speed/tokens_per_s", "tokens/s", "tok/s", 0, "white"),
)


class _Screen(Screen):
    def on_broken_pipe(self) -> None:
        """Rich ends the program here; whether a run goes on without a reader is for `Console` to say."""
        raise BrokenPipeError


class Console:
    """Progress, numbers and notes of one run.

    Args:
      recipe: printed once at the start: a Recipe (its batch arithmetic is worked out), a mapping, or a line of text.
      total_steps: steps of the whole run.
      quiet: print nothing at all.
      every: steps between lines where there is no terminal; None means about 40 lines per run.
      live: force the panel on or off; None means on a terminal only.
      stream: where to write; None means standard output.
      width: columns; None means as wide as the terminal.
    """

    def __init__(
        self,
        recipe: Any,
        total_steps: int,
        *,
        quiet: bool = False,
        every: int | None = None,
        live: bool | None = None,
        stream: TextIO | None = None,
        width: int | None = None,
    ):
        self.recipe, self.total, self.quiet = recipe, max(0, total_steps), quiet
        self.every = every or max(1, round(self.total / 40))
        self._stream = stream if stream is not None else sys.stdout
        # a run on a dumb terminal or a pipe has nobody to watch a panel
        terminal = hasattr(self._stream, "isatty") and self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._is_live = (terminal if live is None else live) and not quiet
        self._encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._marks = UNICODE if self._can_print("▁█░·×") else ASCII
        self._screen = _Screen(
            file=self._stream,
            width=width,
            force_terminal=True if self._is_live else None,
            legacy_windows=False,
            highlight=False,
            markup=False,
            emoji=False,
        )
        self._live: Live | None = None
        self._history: dict[str, list[float]] = {}
        self._last: dict[str, float] = {}
        self._step = 0
        self._first: tuple[int, float] | None = None
        self._phase: tuple[str, int, int] | None = None
        self._began = self._drawn = self._lined = time.monotonic()

    # -- life -----------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Print what will be run and open the panel."""
        self._began = time.monotonic()
        for line in summary(self.recipe, self._marks["times"]):
            self._print(line)
        if self._is_live and self._live is None:
            live = Live(self._panel(), console=self._screen, auto_refresh=False, vertical_overflow="ellipsis", redirect_stderr=False)
            live.start()
            self._live = live
            atexit.register(self._restore)

    def finish(self, text: str = "") -> None:
        """Close the panel, leaving its last state on the screen, and print `text`. Calling it twice is harmless."""
        self._phase = None
        self._restore()
        if text:
            self._print(text)

    def __enter__(self) -> Console:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def _restore(self) -> None:
        """Give the terminal back with its cursor. A stream that is already closed must not hide the error that led here."""
        live, self._live = self._live, None
        if live is None:
            return
        atexit.unregister(self._restore)
        with contextlib.suppress(OSError, ValueError):
            live.update(self._panel())
        with contextlib.suppress(OSError, ValueError):
            live.stop()

    # -- news -----------------------------------------------------------------------------------------------------------------

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """A step is complete."""
        self._step, self._phase = step, None
        self._last |= {k: float(v) for k, v in metrics.items()}
        if self._first is None:
            self._first = (step, time.monotonic())
        for name, value in metrics.items():
            if math.isfinite(value):
                self._history.setdefault(name, []).append(float(value))
                del self._history[name][:-HISTORY]
        if self._live is not None:
            self._draw(force=step >= self.total)
        elif not self.quiet and (step % self.every == 0 or step in (1, self.total) or judged(metrics) or self._overdue()):
            self._lined = time.monotonic()
            self._print(self._line(metrics))

    def phase(self, name: str, done: int, total: int) -> None:
        """Where inside a step the run is: `done` of `total` episodes generated, rows updated, ..."""
        self._phase = (name, done, total)
        if self._live is not None:
            self._draw(force=False)
        elif not self.quiet and self._overdue():
            self._lined = time.monotonic()
            self._print(f"step {self._step + 1}/{self.total}  {name} {done}/{total}")

    def note(self, text: str) -> None:
        """A line for the reader, above the panel."""
        self._print(text)

    def _overdue(self) -> bool:
        return time.monotonic() - self._lined > 60

    # -- drawing --------------------------------------------------------------------------------------------------------------

    def _draw(self, force: bool) -> None:
        now = time.monotonic()
        if self._live is not None and (force or now - self._drawn >= REDRAW_S):
            self._drawn = now
            with self._alive():
                self._live.update(self._panel(), refresh=True)

    def _print(self, text: str) -> None:
        if self.quiet:
            return
        text = self._printable(text)
        with self._alive():
            if self._is_live:
                self._screen.print(Text(text), soft_wrap=self._live is None)
            else:
                print(text, file=self._stream, flush=True)

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        """A terminal or pipe that has gone away ends the talking, not the run."""
        try:
            yield
        except (OSError, ValueError) as e:
            if isinstance(e, ValueError) and not getattr(self._stream, "closed", False):
                raise
            self._restore()
            self.quiet = True

    def _can_print(self, text: str) -> bool:
        try:
            text.encode(self._encoding)
        except (UnicodeError, LookupError):
            return False
        return True

    def _printable(self, text: str) -> str:
        return text if self._can_print(text) else text.encode("ascii", "replace").decode()

    def left_s(self) -> float | None:
        """Seconds left, from the pace of this process; None before two steps are known."""
        if self._first is None or self._step <= self._first[0]:
            return None
        pace = (time.monotonic() - self._first[1]) / (self._step - self._first[0])
        return pace * (self.total - self._step)

    def _line(self, metrics: Mapping[str, float]) -> str:
        digits = len(str(self.total))
        shown = [f"{short} {number(metrics[name], places)}" for name, _, short, places, _ in HEADLINE if name in metrics]
        left = self.left_s()
        if left is not None and self._step < self.total:
            shown.append(f"{clock(left)} left")
        return "  ".join([f"step {self._step:>{digits}}/{self.total}", *shown])

    def _panel(self) -> Stack:
        width = max(10, self._screen.width)
        parts: list[Any] = [self._progress(width)]
        if self._last:
            parts += [self._headline(width), *self._sources(width), *self._parts(width)]
        return Stack(*parts)

    def _progress(self, width: int) -> Text:
        m, dot = self._marks, self._marks["dot"]
        fraction = self._step / self.total if self.total else 1.0
        head = f"step {self._step}/{self.total}"
        left, elapsed = self.left_s(), clock(time.monotonic() - self._began)
        tail = f"{elapsed}{dot}{clock(left)} left" if left is not None and self._step < self.total else elapsed
        out = Text(no_wrap=True, overflow="crop")
        out.append(head, "bold")
        room = min(40, width - cell_len(head) - cell_len(tail) - 4)
        if room >= 6:
            full = round(room * min(1.0, fraction))
            out.append("  ").append(m["bar"] * full, "cyan").append(m["empty"] * (room - full), "bright_black")
        out.append("  " + tail, "bright_black")
        if self._phase is not None:
            name, done, total = self._phase
            out.append(f"\n{self._printable(name)} {done}/{total}", "bright_black")
        return out

    def _headline(self, width: int) -> Table:
        known = [h for h in HEADLINE if h[0] in self._last]
        columns = 1 if width < 60 else 2 if width < 100 else 3
        spark = max(4, min(20, width // columns - 22))
        table = Table.grid(padding=(0, 2, 0, 0))
        for _ in range(columns):
            table.add_column(no_wrap=True, overflow="crop")
        cells = []
        for name, label, _, places, colour in known:
            cell = Text(f"{label:<10}", "bright_black", no_wrap=True)
            cell.append(f"{number(self._last[name], places):>8} ", f"bold {colour}")
            cell.append(sparkline(self._history.get(name, []), spark, self._marks["spark"]), colour)
            cells.append(cell)
        for i in range(0, len(cells), columns):
            table.add_row(*cells[i : i + columns])
        return table

    def _sources(self, width: int) -> list[Text]:
        held = {k: v for k, v in family(self._last, "eval/accuracy").items()}
        return self._bars("accuracy", family(self._last, "accuracy"), "accuracy/", "green", width, held)

    def _parts(self, width: int) -> list[Text]:
        return self._bars("reward parts", family(self._last, "reward"), "reward/", "cyan", width, {})

    def _bars(self, title: str, values: Mapping[str, float], prefix: str, colour: str, width: int, held: Mapping[str, float]) -> list[Text]:
        """One row for each name: value, bar, history, and the held-out value beside it."""
        if not values:
            return []
        label = min(18, max(8, width // 4))
        bar = max(4, min(24, (width - label - 8) // 2))
        spark = max(0, min(24, width - label - bar - 10 - (16 if held else 0)))
        rows = [Text(title, "bright_black")]
        for name, value in sorted(values.items()):
            filled = round(bar * min(1.0, max(0.0, value))) if math.isfinite(value) else 0
            row = Text(f"  {fit(self._printable(name), label - 2)} ", no_wrap=True, overflow="crop")
            row.append(f"{number(value, 2):>5} ", f"bold {colour}")
            row.append(self._marks["bar"] * filled, colour).append(self._marks["empty"] * (bar - filled), "bright_black")
            if spark >= 4:
                row.append(" " + sparkline(self._history.get(prefix + name, []), spark, self._marks["spark"]), colour)
            if name in held and width >= 60:
                row.append(f" held-out {number(held[name], 2)}", "bright_green")
            rows.append(row)
        return rows


# -- text ---------------------------------------------------------------------------------------------------------------------


def summary(recipe: Any, times: str = "×") -> list[str]:
    """The lines printed once at the start."""
    if isinstance(recipe, str):
        return [recipe]
    if isinstance(recipe, Mapping):
        return ["  ".join(f"{k} {v}" for k, v in recipe.items())]
    if not dataclasses.is_dataclass(recipe):
        return [str(recipe)]
    method = type(getattr(recipe, "method", None)).__name__
    head = f"{getattr(recipe, 'name', 'run')}: {method} on {getattr(recipe, 'model', '?')}, seed {getattr(recipe, 'seed', 0)}"
    if not hasattr(recipe, "tasks_per_step"):
        return [head]
    r: Any = recipe
    updates = r.updates_per_rollout * r.epochs_per_rollout
    return [head, *arithmetic(r.tasks_per_step, r.group_size, r.micro_batch, updates, r.steps, r.sampling.max_new_tokens, times)]


def arithmetic(
    tasks: int, group_size: int, micro_batch: int, updates: int = 1, steps: int = 1, max_new_tokens: int = 0, times: str = "×"
) -> list[str]:
    """Batch arithmetic in words: what one step generates and trains on, and what the run adds up to.

    Args:
      tasks: tasks of one step.
      micro_batch: rows in one forward and backward pass.
      updates: optimizer steps on one rollout, epochs included.
    """
    episodes = tasks * group_size
    lines = [
        f"each step: {tasks:,} tasks {times} {group_size:,} answers = {episodes:,} episodes"
        + (f", at most {episodes * max_new_tokens:,} new tokens" if max_new_tokens else ""),
        f"           {updates:,} optimizer step{'s' * (updates != 1)}, at most {min(micro_batch, episodes):,} rows in one pass",
        f"the run:   {steps:,} steps, {steps * episodes:,} episodes, {steps * updates:,} optimizer steps",
    ]
    return lines


def sparkline(values: Sequence[float], width: int, marks: str = UNICODE["spark"]) -> str:
    """The history of a number in `width` characters at most, each the mean of its stretch, scaled from lowest to highest."""
    if not values or width <= 0:
        return ""
    n = min(width, len(values))
    cuts = [i * len(values) // n for i in range(n + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(cuts)]
    low, high = min(means), max(means)
    if high - low <= 1e-12 * max(1.0, abs(high)):
        return marks[len(marks) // 2 - 1] * n
    return "".join(marks[min(len(marks) - 1, int((v - low) / (high - low) * len(marks)))] for v in means)


def number(x: float, places: int = 3) -> str:
    """A number in at most about eight characters; tiny and huge ones in powers of ten, rounding noise as zero."""
    if not math.isfinite(x):
        return "n/a" if math.isnan(x) else "inf" if x > 0 else "-inf"
    x = 0.0 if abs(x) < NOISE else x
    if x and (abs(x) < 0.5 * 10**-places or abs(x) >= 1e6) and places:
        return f"{x:.1e}"
    return f"{x:,.{places}f}"


def clock(seconds: float) -> str:
    """48s, 3m12s, 2h05m, 3d04h."""
    s = max(0, round(seconds))
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m{s % 60:02d}s"
    if s < 86400:
        return f"{s // 3600}h{s % 3600 // 60:02d}m"
    return f"{s // 86400}d{s % 86400 // 3600:02d}h"


def fit(text: str, width: int) -> str:
    """Text cut or padded to exactly `width` characters."""
    text = " ".join(text.split())
    return f"{text:<{width}}" if len(text) <= width else text[: max(1, width - 2)] + ".."[: width - max(1, width - 2)]
