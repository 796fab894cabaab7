"""The picture of a ledger row: how the arms trained, and where they ended, seed by seed. Needs matplotlib (the `plots` extra)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fovea.ledger.rows import outcome
from fovea.report.plots import COLOURS, INK, LINE, PAPER, SOFT


def plot(row: Mapping[str, Any], out: Path) -> Path:
    """Draw a row to an SVG that is the same for the same row.

    Raises:
      ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ImportError('it needs matplotlib: pip install "fovea-rl[plots]"') from e

    arms = row["arms"]
    colour = dict(zip(arms, COLOURS * len(arms), strict=False))
    again = {name for i, name in enumerate(arms) if i >= len(COLOURS)}  # whose colours others have: broken lines and diamonds
    curves = any(a["curve"] for a in arms.values())
    figure = Figure(figsize=(9.6, 0.5 * len(arms) + 2.2) if curves else (6.4, 0.5 * len(arms) + 1.6), facecolor=PAPER, layout="constrained")
    FigureCanvasSVG(figure)
    both: Any = figure.subplots(1, 1 + curves, squeeze=False, width_ratios=[1.1, 1] if curves else None)[0]
    for axes in both:
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(LINE)
        axes.tick_params(colors=SOFT, length=0)
        axes.grid(axis="both", color=LINE, linewidth=0.8)
        axes.set_axisbelow(True)
    if curves:
        for name, arm in arms.items():
            x = [p["step"] for p in arm["curve"]]
            both[0].plot(x, [p["mean"] for p in arm["curve"]], color=colour[name], linestyle="--" if name in again else "-", linewidth=1.8)
            band = [p["low"] for p in arm["curve"]], [p["high"] for p in arm["curve"]]
            both[0].fill_between(x, *band, color=colour[name], alpha=0.15, linewidth=0)
        both[0].set_xlabel("step", color=SOFT)
        both[0].set_title(f"{row['curve']} (mean, lowest to highest seed)", loc="left", color=SOFT, fontsize=9)
    ends = both[-1]
    for y, (name, arm) in enumerate(reversed(arms.items())):
        shape = "D" if name in again else "o"
        ends.scatter(arm["values"], [y] * len(arm["values"]), color=colour[name], marker=shape, s=26, alpha=0.55, linewidth=0)
        ends.scatter([np.mean(arm["values"])], [y], color=colour[name], s=240, marker="|", linewidth=2.4)
    ends.set_yticks(range(len(arms)), [f"{n} (method)" if n == row["method"] else n for n in reversed(arms)], color=INK)
    ends.set_ylim(-0.6, len(arms) - 0.4)
    ends.set_title(f"{row['metric']}, every seed", loc="left", color=SOFT, fontsize=9)
    said = f": {outcome(row)}, {row['verdict']}" if row["verdict"] else ""
    figure.suptitle(f"{row['slug']} against {row['baseline']}{said}", x=0.01, ha="left", color=INK, fontsize=11, fontweight="bold")
    out.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": row["slug"], "svg.fonttype": "path"}):
        figure.savefig(out, facecolor=PAPER, metadata={"Date": None})
    return out
