"""Curves for the run page: an SVG plot that stretches with its box, labels in HTML so that text never scales, data for the read-out.

Every plot is drawn in a 1000 × 1000 view box with non-scaling strokes; dots are strokes of length zero with round ends.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fovea.report.metrics import NOISE

POINTS = 300
SIZE = 1000.0


@dataclass(frozen=True)
class Series:
    """One curve: `style` is "line" (faint raw values under a smooth line), "plain", "dots" (joined, with an optional band) or "area"."""

    label: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "line"
    low: Sequence[float] = field(default_factory=tuple)
    high: Sequence[float] = field(default_factory=tuple)

    @property
    def points(self) -> list[tuple[float, float]]:
        return [(x, 0.0 if abs(y) < NOISE else y) for x, y in zip(self.x, self.y, strict=True) if math.isfinite(y)]


@dataclass(frozen=True)
class Chart:
    """HTML of a chart and what its read-out needs."""

    markup: str
    data: dict[str, Any]


def chart(
    key: str,
    title: str,
    series: Sequence[Series],
    note: str = "",
    y_range: tuple[float | None, float | None] = (None, None),
    percent: bool = False,
    size: str = "",
) -> Chart | None:
    """A titled chart, or None when no series has a point.

    Args:
      key: unique on the page.
      note: one line that explains the number, shown on request.
      y_range: fixed ends of the y axis; None takes them from the data.
      size: extra class: "big" or "small".
    """
    series = [thin(s) for s in series]
    series = [s for s in series if s.points]
    if not series:
        return None
    stacked = any(s.style == "area" for s in series)
    ticks = _ticks(*_extent(series, y_range, stacked))
    low, high = ticks[0], ticks[-1]
    x0, x1 = min(min(s.x) for s in series), max(max(s.x) for s in series)
    span = (x1 - x0) or 1.0

    def px(x: float) -> float:
        return (x - x0) / span * SIZE

    def py(y: float) -> float:
        return SIZE - (min(max(y, low), high) - low) / (high - low) * SIZE

    shapes = [f'<path class="grid" d="M0 {py(t):.1f}H1000"/>' for t in ticks]
    shapes += _stack(series, px, py) if stacked else [shape for s in series for shape in _shapes(s, px, py)]
    labels = "".join(f'<span style="bottom:{(t - low) / (high - low) * 100:.2f}%">{_tick_text(t, ticks, percent)}</span>' for t in ticks)
    legend = "".join(
        f'<span class="key {s.colour}">{html.escape(s.label)} <b>{value_text(s.points[-1][1], percent)}</b></span>' for s in series
    )
    hint = f' <button class="why" aria-label="what is this?" data-why="{html.escape(note)}">?</button>' if note else ""
    markup = (
        f'<figure class="chart {size}" data-chart="{html.escape(key)}"><figcaption><h3>{html.escape(title)}{hint}</h3>'
        f'<div class="legend">{legend}</div></figcaption><div class="frame"><div class="ylab">{labels}</div>'
        f'<div class="plot"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label="{html.escape(title)}">'
        f'{"".join(shapes)}</svg><div class="cursor"></div></div></div>'
        f'<div class="xlab"><span>{_step(x0)}</span><span class="at">step</span><span>{_step(x1)}</span></div></figure>'
    )
    data = {"percent": percent, "series": [{"x": [*s.x], "y": [compact(y) for y in s.y]} for s in series]}
    return Chart(markup, data)


def thin(s: Series, limit: int = POINTS) -> Series:
    """At most `limit` points: each the mean of its stretch, placed at the stretch's last step."""
    n = len(s.x)
    if n <= limit:
        return s
    cuts = [i * n // limit for i in range(limit + 1)]
    pairs = list(itertools.pairwise(cuts))

    def mean(values: Sequence[float]) -> list[float]:
        found = [[v for v in values[a:b] if math.isfinite(v)] for a, b in pairs]
        return [sum(f) / len(f) if f else math.nan for f in found]

    return Series(s.label, s.colour, [s.x[b - 1] for _, b in pairs], mean(s.y), s.style, mean(s.low), mean(s.high))


def smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Moving average over about a tenth of the points, centred where both sides exist."""
    half = len(points) // 20
    ys = [y for _, y in points]
    windows = [ys[max(0, i - half) : i + half + 1] for i in range(len(ys))]
    return [(x, sum(w) / len(w)) for (x, _), w in zip(points, windows, strict=True)]


def _shapes(s: Series, px: Any, py: Any) -> list[str]:
    line = _path([(px(x), py(y)) for x, y in s.points])
    if s.style == "dots":
        band = [(x, lo, hi) for x, lo, hi in zip(s.x, s.low, s.high, strict=False) if math.isfinite(lo) and math.isfinite(hi)]
        outline = [(px(x), py(hi)) for x, _, hi in band] + [(px(x), py(lo)) for x, lo, _ in reversed(band)]
        dots = "".join(f"M{px(x):.1f} {py(y):.1f}h0" for x, y in s.points)
        shapes = [f'<path class="band {s.colour}" d="{_path(outline)}Z"/>'] if len(band) > 1 else []
        whiskers = "".join(f"M{px(x):.1f} {py(lo):.1f}V{py(hi):.1f}" for x, lo, hi in band)
        shapes += [f'<path class="whisker {s.colour}" d="{whiskers}"/>'] if band else []
        return [*shapes, f'<path class="line {s.colour}" d="{line}"/>', f'<path class="dots {s.colour}" d="{dots}"/>']
    if s.style == "plain" or len(s.points) < 20:
        return [
            f'<path class="line {s.colour}" d="{line}"/>',
            *([f'<path class="dots {s.colour}" d="{line}h0"/>'] if len(s.points) == 1 else []),
        ]
    even = _path([(px(x), py(y)) for x, y in smooth(s.points)])
    return [f'<path class="raw {s.colour}" d="{line}"/>', f'<path class="line {s.colour}" d="{even}"/>']


def _stack(series: Sequence[Series], px: Any, py: Any) -> list[str]:
    """Areas on top of one another, the first at the bottom; a missing value counts as zero."""
    base: dict[float, float] = {}
    shapes = []
    for s in series:
        top = {x: base.get(x, 0.0) + (y if math.isfinite(y) else 0.0) for x, y in zip(s.x, s.y, strict=True)}
        outline = [(px(x), py(y)) for x, y in top.items()] + [(px(x), py(base.get(x, 0.0))) for x in reversed(top)]
        shapes.append(f'<path class="area {s.colour}" d="{_path(outline)}Z"/>')
        base |= top
    return shapes


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) if points else ""


def _extent(series: Sequence[Series], y_range: tuple[float | None, float | None], stacked: bool) -> tuple[float, float]:
    """Ends of the y axis. One wild value must not flatten a curve: the outer hundredth is left out of long series."""
    if stacked:
        tops = [sum(ys) for ys in zip(*([y if math.isfinite(y) else 0.0 for y in s.y] for s in series), strict=False)]
        return 0.0, sorted(tops)[min(len(tops) - 1, int(len(tops) * 0.98))] or 1.0
    values = sorted(v for s in series for v in (*(y for _, y in s.points), *(v for v in (*s.low, *s.high) if math.isfinite(v))))
    skip = len(values) // 100 if all(s.style == "line" for s in series) else 0
    low, high = values[skip], values[len(values) - 1 - skip]
    low, high = y_range[0] if y_range[0] is not None else low, y_range[1] if y_range[1] is not None else high
    if high - low < 1e-9 * max(1.0, abs(high)):
        pad = abs(high) * 0.1 or 0.1
        low, high = (low if y_range[0] is not None else low - pad), high + pad
    return low, high


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that enclose [low, high], about `count` of them."""
    raw = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    unit = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / unit + 1e-9), math.ceil(high / unit - 1e-9)
    return [i * unit for i in range(first, max(last, first + 1) + 1)]


def _tick_text(t: float, ticks: Sequence[float], percent: bool) -> str:
    unit = ticks[1] - ticks[0]
    if percent:
        return f"{t * 100:.{0 if unit >= 0.0099 else 1}f}%"
    if abs(ticks[-1]) >= 10_000:
        return f"{t / 1000:g}k"
    if unit < 1e-3:
        return "0" if t == 0 else f"{t:.1e}"
    places = max(0, -math.floor(math.log10(unit) + 1e-9))
    return f"{t:.{places + (1 if unit * 10**places % 1 else 0)}f}"


def value_text(y: float, percent: bool = False) -> str:
    """A value in the legend or the read-out."""
    if not math.isfinite(y):
        return "–"
    if percent:
        return f"{y * 100:.1f}%"
    if y == 0 or 1e-3 <= abs(y) < 1e4:
        return f"{y:.4g}"
    return f"{y:.1e}" if abs(y) < 1e-3 else f"{y:,.0f}"


def compact(y: float) -> float | None:
    """Four significant digits, null for what JSON cannot hold."""
    return float(f"{y:.4g}") if math.isfinite(y) else None


def _step(x: float) -> str:
    return f"{x:,.0f}"
