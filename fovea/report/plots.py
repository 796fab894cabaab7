"""Learning-curve figures from run folders: several seeds become a mean and a band. Needs matplotlib (the `plots` extra)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fovea.report.run import RunFolder

INK, SOFT, LINE, PAPER = "#1c1d1a", "#70736b", "#e4e4dd", "#ffffff"
COLOURS = ("#12805c", "#2f6db5", "#d0762b", "#8a5bb5", "#c04f86", "#6b6f76")

Runs = str | Path | Sequence[str | Path]


def curve_png(
    runs: Runs | Mapping[str, Runs],
    out: str | Path,
    metric: str = "eval/accuracy",
    x: str = "step",
    title: str = "",
    label: str = "",
    size: tuple[float, float] = (7.2, 3.8),
) -> Path:
    """Draw one metric of one or more runs to a PNG (or SVG, PDF: by the ending of `out`).

    Args:
      runs: a run folder, several seeds of one arm, or arms by name, each a folder or several seeds.
      metric: name in metrics.jsonl.
      x: "step", or "time/wall_s" for seconds (each seed's own clock, averaged point by point).
      label: of the y axis; the metric's name when empty.
    Returns:
      the file. The line of an arm is the mean over its seeds, its band reaches from the lowest to the highest seed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import PercentFormatter
    except ImportError as e:
        raise ImportError('curve_png needs matplotlib: pip install "fovea-rl[plots]"') from e

    arms = {name: _listed(v) for name, v in runs.items()} if isinstance(runs, Mapping) else {"": _listed(runs)}
    figure = Figure(figsize=size, dpi=200, facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    for (name, folders), colour in zip(arms.items(), COLOURS * len(arms), strict=False):
        xs, ys = aligned([_column(f, metric, x) for f in folders])
        if not xs:
            raise ValueError(f"{', '.join(map(str, folders))}: no step has {metric!r} in every run; expected a metric of metrics.jsonl")
        mean = [sum(column) / len(column) for column in ys]
        axes.plot(xs, mean, color=colour, linewidth=2.2, marker="o" if len(xs) < 40 else None, markersize=4.5, label=_legend(name, folders))
        if len(folders) > 1:
            axes.fill_between(xs, [min(c) for c in ys], [max(c) for c in ys], color=colour, alpha=0.16, linewidth=0)
        first, last = (xs[0], mean[0]), (xs[-1], mean[-1])
        axes.annotate(_number(mean[0], metric), first, (2, 8), textcoords="offset points", color=SOFT, fontsize=9)
        end: dict[str, Any] = {"color": colour, "fontsize": 11, "fontweight": "bold", "annotation_clip": False}
        axes.annotate(_number(mean[-1], metric), last, (6, -3), textcoords="offset points", **end)
    if _is_share(metric):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_ylim(0, 1)
    axes.set_xlabel("seconds" if x == "time/wall_s" else x, color=SOFT)
    axes.set_ylabel(label or metric, color=SOFT)
    if title:
        axes.set_title(title, loc="left", color=INK, fontsize=12, fontweight="bold")
    if any(arms) or any(len(f) > 1 for f in arms.values()):
        axes.legend(frameon=False, loc="lower right", labelcolor=INK)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(colors=SOFT, length=0)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, facecolor=PAPER)
    return out


def aligned(columns: Sequence[Mapping[int, tuple[float, float]]]) -> tuple[list[float], list[list[float]]]:
    """Points that every seed has: their mean x, and the seeds' values.

    Args:
      columns: for each seed, step -> (x, y).
    """
    steps = sorted(set.intersection(*(set(c) for c in columns))) if columns else []
    return [sum(c[s][0] for c in columns) / len(columns) for s in steps], [[c[s][1] for c in columns] for s in steps]


def _column(folder: str | Path, metric: str, x: str) -> dict[int, tuple[float, float]]:
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: expected a run folder with metrics.jsonl, found nothing there")
    rows = RunFolder(path).read_metrics()
    return {int(r["step"]): (r[x], r[metric]) for r in rows if x in r and math.isfinite(r.get(metric, math.nan))}


def _listed(runs: Runs) -> list[str | Path]:
    return [runs] if isinstance(runs, str | Path) else list(runs)


def _legend(name: str, folders: Sequence[Any]) -> str:
    seeds = f"mean of {len(folders)} seeds, band lowest to highest" if len(folders) > 1 else ""
    return f"{name} ({seeds})" if name and seeds else name or seeds


def _is_share(metric: str) -> bool:
    return "accuracy" in metric or metric.endswith("_frac")


def _number(y: float, metric: str) -> str:
    return f"{y * 100:.0f}%" if _is_share(metric) else f"{y:.3g}"
