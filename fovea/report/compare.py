"""Runs side by side: where they ended, with intervals, how long they took, and which settings differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fovea.report.metrics import interval
from fovea.report.records import Reader

FINAL = (
    # metric, heading, how it is shown
    ("eval/accuracy", "held-out accuracy", "share"),
    ("accuracy/mean", "training accuracy", "share"),
    ("reward/mean", "training reward", "number"),
    ("length/mean_tokens", "answer length, tokens", "number"),
    ("policy/entropy", "entropy, nats", "number"),
    ("policy/kl_ref", "KL to the reference, nats", "number"),
)
COSMETIC = ("name",)


def compare(readers: Sequence[Reader]) -> dict[str, Any]:
    """What differs between runs.

    Returns:
      ``{"runs": [...], "config": [...], "sources": [...]}``. A run has `name`, `folder`, `steps`, `seconds` (of all its processes),
      `tokens`, `tokens_per_s` (while generating, median), `peak_mb` and `final`: metric -> {value, step, low, high, first, best,
      best_step}, `low` and `high` only where the interval is known. `config` lists the fields that differ with their value in each run
      (None where it has none); `sources` lists the last held-out accuracy of each source in each run.
    """
    runs = [_run(r) for r in readers]
    flat = [dict(flatten(r.config)) for r in readers]
    names = list(dict.fromkeys(name for config in flat for name in config if name not in COSMETIC))
    differ = [n for n in names if len({repr(c.get(n)) for c in flat}) > 1]
    sources = sorted({s for run in runs for s in run["sources"]})
    return {
        "runs": runs,
        "config": [{"field": n, "values": [c.get(n) for c in flat]} for n in differ],
        "sources": [{"source": s, "values": [run["sources"].get(s) for run in runs]} for s in sources],
    }


def table(found: Mapping[str, Any]) -> str:
    """The comparison as text."""
    runs = found["runs"]
    rows: list[list[str]] = [["", *(r["name"] if r["name"] == r["folder"] else f"{r['name']} ({r['folder']})" for r in runs)]]
    for metric, heading, kind in FINAL:
        if any(metric in r["final"] for r in runs):
            rows.append([heading, *(_final(r["final"].get(metric), kind) for r in runs)])
    rows += [[f"  {s['source']}", *("–" if v is None else _estimate(v, "share") for v in s["values"])] for s in found["sources"]]
    rows.append(["steps", *(f"{r['steps']:,}" for r in runs)])
    rows.append(["seconds", *(f"{r['seconds']:,.0f}" if r["seconds"] is not None else "–" for r in runs)])
    rows.append(["tokens", *(f"{r['tokens']:,.0f}" for r in runs)])
    rows.append(["tokens/s while generating", *(f"{r['tokens_per_s']:,.0f}" if r["tokens_per_s"] is not None else "–" for r in runs)])
    rows.append(["peak memory, MB", *(f"{r['peak_mb']:,.0f}" if r["peak_mb"] is not None else "–" for r in runs)])
    parts = [_aligned(rows)]
    if found["config"]:
        parts += ["what differs", _aligned([[f"  {d['field']}", *(_setting(v) for v in d["values"])] for d in found["config"]])]
    else:
        parts.append("no setting differs")
    return "\n".join(parts)


def flatten(x: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every setting."""
    for k, v in x.items():
        if isinstance(v, Mapping) and v:
            yield from flatten(v, f"{prefix}{k}.")
        else:
            yield f"{prefix}{k}", v


def _run(reader: Reader) -> dict[str, Any]:
    rows = reader.rows()
    speeds = sorted(r["speed/tokens_per_s"] for r in rows if r.get("speed/tokens_per_s") is not None)
    seconds = [r["time/wall_s"] for r in rows if r.get("time/wall_s") is not None]
    last = next((r for r in reversed(rows) if r.get("eval/accuracy") is not None), {})
    sources = {k.removeprefix("eval/accuracy/"): v for k, v in last.items() if k.startswith("eval/accuracy/") and v is not None}
    return {
        "name": reader.name,
        "folder": reader.path.resolve().name,
        "steps": int(max((r["step"] for r in rows), default=0)),
        "seconds": seconds[-1] if seconds else None,
        "tokens": sum(r.get("length/tokens") or 0 for r in rows),
        "tokens_per_s": speeds[len(speeds) // 2] if speeds else None,
        "peak_mb": max((r["memory/peak_mb"] for r in rows if r.get("memory/peak_mb") is not None), default=None),
        "final": {metric: value for metric, *_ in FINAL if (value := _course(rows, metric)) is not None},
        "sources": {s: {"value": v, **_within(v, last.get(f"eval/n/{s}"))} for s, v in sources.items()},
    }


def _course(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any] | None:
    """First, last and best value of a metric, with the interval of the last where it can be known."""
    found = [r for r in rows if r.get(metric) is not None]
    if not found:
        return None
    best, last = max(found, key=lambda r: r[metric]), found[-1]
    known = {"low": last.get(f"{metric}_low"), "high": last.get(f"{metric}_high")}
    if known["low"] is None or known["high"] is None:
        known = _within(last[metric], last.get("eval/n")) if metric == "eval/accuracy" else {}
    out = {"value": last[metric], "step": last["step"], "first": found[0][metric], **known}
    return {**out, "best": best[metric], "best_step": best["step"]}


def _within(share: float, n: float | None) -> dict[str, float]:
    low, high = interval(share * n, int(n)) if n else (math.nan, math.nan)
    return {"low": low, "high": high} if math.isfinite(low) else {}


def _final(value: Mapping[str, Any] | None, kind: str) -> str:
    if value is None:
        return "–"
    best = f"  best {_shown(value['best'], kind)} at {value['best_step']:,}" if kind == "share" and value["best"] > value["value"] else ""
    return _estimate(value, kind) + best


def _estimate(value: Mapping[str, Any], kind: str) -> str:
    within = f" [{_shown(value['low'], kind)}, {_shown(value['high'], kind)}]" if "low" in value else ""
    return _shown(value["value"], kind) + within


def _shown(y: float, kind: str) -> str:
    return f"{y:.3f}" if kind == "share" else f"{y:.4g}"


def _setting(value: Any) -> str:
    text = "–" if value is None else str(value)
    return text if len(text) <= 48 else text[:47] + "…"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows)
