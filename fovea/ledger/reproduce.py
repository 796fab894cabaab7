"""`fovea reproduce`: run the arms of a claim, compare them, judge, write the row. What is not counted stays in the run folder."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from fovea.files import write_json
from fovea.ledger import rows as ledger
from fovea.ledger import stats
from fovea.ledger.claim import Claim, arms_hash, digest, read
from fovea.ledger.measures import Finished, Found
from fovea.ledger.runs import QUICK_SEEDS, finished, plan, run_all
from fovea.report.plots import aligned
from fovea.report.run import called


class Progress:
    """Lines that stay, and on a terminal one that is written over."""

    def __init__(self, stream: TextIO | None = None):
        self.stream = stream or sys.stdout
        self.live = self.stream.isatty() and os.environ.get("TERM") != "dumb"

    def note(self, line: str) -> None:
        self.tick("")
        print(line, file=self.stream, flush=True)

    def tick(self, line: str) -> None:
        if self.live:
            self.stream.write("\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1])
            self.stream.flush()


Results = Mapping[str, Mapping[int, Finished]]
"""arm -> seed -> finished run."""


@dataclass(frozen=True)
class Outcome:
    """What `reproduce` found.

    Attributes:
      row: the row as it stands in the ledger, or would; without verdict where an arm of the claim was left out.
      counted: the file of the ledger, or None. why_not: why it was not counted.
      plot: the picture, or None without matplotlib.
    """

    row: dict[str, Any]
    counted: Path | None
    why_not: str
    plot: Path | None


def reproduce(
    slug: str,
    *,
    seeds: int | None = None,
    arms: Sequence[str] = (),
    quick: bool = False,
    jobs: int | None = None,
    runs: str | Path = "runs/reproduce",
    home: Path | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Run a claim and judge it.

    Args:
      slug: a recipe with a claim, or a Python file with `tiny` and `CLAIM`.
      seeds: 0 to seeds − 1; default as the claim says.
      arms: only these; default all.
      quick: two tiny steps of everything, to see that it runs; never counted.
      jobs: processes at a time; default one per core.
      runs: folder of the runs. home: folder of the ledger.
    Raises:
      ValueError: no such claim or arm. RunsFailed: runs that ended with an error, named.
    """
    progress = progress or Progress()
    tiny, claim, file = read(slug)
    unknown = [a for a in arms if a not in claim.arms]
    if unknown:
        raise ValueError(f"{slug}: no arm {', '.join(unknown)}; the arms are {', '.join(claim.arms)}")
    chosen = [a for a in claim.arms if not arms or a in arms]
    chosen += [o for a in chosen if (o := claim.arms[a].get("seconds_of")) and o not in chosen]
    count = seeds or (min(QUICK_SEEDS, claim.seeds) if quick else claim.seeds)
    todo = plan(slug, tiny, claim, chosen, range(count), quick, Path(runs))
    run_all(todo, jobs or os.cpu_count() or 1, progress.note, progress.tick)
    complete = {(j.arm, j.seed): found for j in todo if (found := finished(j))}
    slow = [f"{a}, seed {s}: {r['seconds'] / 60:.1f} minutes" for (a, s), (_, r) in complete.items() if r["seconds"] > 60 * claim.minutes]
    if slow:
        progress.note(f"over the claim's budget of {claim.minutes:g} minutes: {'; '.join(slow)}")
    results = {a: {s: complete[a, s][0] for s in range(count)} for a in chosen}
    name = file.stem if slug.endswith(".py") else slug
    row = build_row(name, claim, arms_hash(tiny, claim), results) | provenance([complete[k][1] for k in complete])
    why_not = uncounted(claim, row, count, quick, file)
    place, out = (home or ledger.home()), Path(runs) / name
    target = out / ("quick.json" if quick else "summary.json") if why_not else place / f"{name}.json"
    row["trials"] = trials(target, row) if not why_not else []
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, row)
    picture = target.with_suffix(".svg") if why_not else place.parents[1] / "docs" / "images" / "ledger" / f"{name}.svg"
    return Outcome(row, None if why_not else target, why_not, draw(row, picture, progress.note))


def draw(row: dict[str, Any], out: Path, note: Callable[[str], None]) -> Path | None:
    from fovea.ledger.plot import plot

    try:
        return plot(row, out)
    except ImportError as e:
        note(f"no plot: {e}")
        return None


# -- the row --------------------------------------------------------------------------------------------------------------------


def build_row(slug: str, claim: Claim, hashed: str, results: Results) -> dict[str, Any]:
    """Everything about a comparison that follows from its claim and its finished runs."""
    values = matrices(claim, results)
    arms = {a: arm_row(claim, results[a], x, values.get(claim.baseline)) for a, x in values.items()}
    row: dict[str, Any] = {
        "slug": slug,
        "claim": claim.says,
        "metric": metric_name(claim),
        "method": claim.method,
        "baseline": claim.baseline,
        "arms": arms,
        "effect": None,
        "interval": None,
        "expected": {"direction": claim.direction, "test": claim.test, "margin": claim.margin},
        "control": None,
        "controlled": None,
        "condition": condition(claim, results),
        "unscored": unscored(claim, results),
        "verdict": None,
        "arms_hash": hashed,
        "curve": claim.curve,
        "notes": list(claim.notes),
    }
    if {claim.method, claim.baseline} <= set(values):
        row |= {"effect": arms[claim.method]["effect"], "interval": arms[claim.method]["interval"]}
    if {claim.control, claim.against} <= set(values):
        found = compared(values[claim.control], values[claim.against])
        row["controlled"] = {"arm": claim.control, "against": claim.against, "margin": claim.control_margin or claim.margin, **found}
    return row | judge(row)


def judge(row: Mapping[str, Any]) -> dict[str, Any]:
    """`control` and `verdict` of a row, from its effects, intervals and margins; None where an arm is absent or too little was scored."""
    expected, controlled = row["expected"], row["controlled"]
    if row["effect"] is None or controlled is None or too_many_unscored(row):
        return {"control": None, "verdict": None}
    _, _, control_high = turned(controlled["effect"], controlled["interval"], expected["direction"])
    behaves = stats.control_behaves(control_high, controlled["margin"])
    value, low, high = turned(row["effect"], row["interval"], expected["direction"])
    said = stats.verdict(value, low, high, expected["margin"], expected["test"], behaves)
    return {"control": "behaves" if behaves else "fails", "verdict": said}


def turned(value: float, interval: Sequence[float], direction: str) -> tuple[float, float, float]:
    """Effect and interval with more being better."""
    low, high = interval
    return (value, low, high) if direction == "more" else (-value, -high, -low)


def matrices(claim: Claim, results: Results) -> dict[str, np.ndarray]:
    """arm -> (S, I) values of the claim's metric; the same held-out tasks in every column of every arm.

    Raises:
      ValueError: a run for which the metric has no value at all.
    """
    measured = {a: {s: claim.metric(run) for s, run in by_seed.items()} for a, by_seed in results.items()}
    named = {a: {s: v if isinstance(v, Mapping) else {"": float(v)} for s, v in by_seed.items()} for a, by_seed in measured.items()}
    empty = [f"{a}, seed {s}" for a, by_seed in named.items() for s, v in by_seed.items() if not v]
    if empty:
        raise ValueError(f"{metric_name(claim)} has no value in {'; '.join(empty)}: no held-out answer is of that kind")
    tasks = sorted({t for by_seed in named.values() for v in by_seed.values() for t in v})
    return {a: np.array([[v.get(t, np.nan) for t in tasks] for _, v in sorted(by_seed.items())]) for a, by_seed in named.items()}


def arm_row(claim: Claim, by_seed: Mapping[int, Finished], x_SI: np.ndarray, base_SI: np.ndarray | None) -> dict[str, Any]:
    column = [{int(r["step"]): (r["step"], r[claim.curve]) for r in run.rows if r.get(claim.curve) is not None} for run in by_seed.values()]
    steps, seeds = aligned(column) if all(column) else ([], [])
    curve = [{"step": int(s), "mean": _round(sum(y) / len(y)), "low": _round(min(y)), "high": _round(max(y))} for s, y in zip(steps, seeds)]
    against = {} if base_SI is None else compared(x_SI, base_SI)
    numbers = {"values": [_round(v) for v in stats.per_seed(x_SI)], "unscored": [by_seed[s].unscored for s in sorted(by_seed)]}
    found = {n: [_round(by_seed[s].found[n]) for s in sorted(by_seed)] for n in next(iter(by_seed.values())).found}
    return {"seeds": sorted(by_seed), **numbers, **against, **({"found": found} if found else {}), "curve": curve}


def compared(a_SI: np.ndarray, b_SI: np.ndarray) -> dict[str, Any]:
    return {"effect": _round(stats.effect(a_SI, b_SI)), "interval": [_round(x) for x in stats.interval(a_SI, b_SI)]}


def condition(claim: Claim, results: Results) -> dict[str, Any] | None:
    """What must hold for the claim to have been tested, and what was found (mean over seeds)."""
    if claim.condition is None or claim.condition[1] not in results:
        return None
    metric, arm, lowest = claim.condition
    measured = [metric(run) for run in results[arm].values()]
    found = float(np.mean([statistics.fmean(v.values()) if isinstance(v, Mapping) else v for v in measured]))
    return {"metric": name_of(metric), "arm": arm, "lowest": lowest, "found": _round(found), "holds": found >= lowest}


def unscored(claim: Claim, results: Results) -> dict[str, Any] | None:
    """The run whose held-out answers were scored the least, where any failed; such answers are in no mean."""
    failed = {(a, s): run for a, by_seed in results.items() for s, run in by_seed.items() if run.unscored}
    shares = {at: run.unscored / (len(run.answers) + run.unscored) for at, run in failed.items()}
    if not shares:
        return None
    arm, seed = max(shares, key=shares.__getitem__)
    return {"arm": arm, "seed": seed, "share": _round(shares[arm, seed]), "allowed": claim.max_unscored}


def too_many_unscored(row: Mapping[str, Any]) -> bool:
    found = row.get("unscored")
    return bool(found) and found["share"] > found["allowed"]


def unscored_words(row: Mapping[str, Any]) -> str:
    u = row["unscored"]
    return f"{u['share']:.1%} of the held-out answers of {u['arm']}, seed {u['seed']}, were not scored; the claim allows {u['allowed']:.1%}"


def metric_name(claim: Claim) -> str:
    """The metric in words; one of held-out answers with how they were drawn."""
    drawn = "greedy" if claim.temperature == 0 else f"temperature {claim.temperature:g}"
    return name_of(claim.metric) + ("" if hasattr(claim.metric, "column") or isinstance(claim.metric, Found) else f", {drawn}")


def name_of(metric: Any) -> str:
    """What a metric is called in tables: its `name`, else that of the function."""
    return getattr(metric, "name", None) or getattr(metric, "__name__", type(metric).__name__).replace("_", " ")


def _round(x: float) -> float:
    return round(float(x), 6)


# -- where it came from, and whether it counts ----------------------------------------------------------------------------------


def provenance(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = results[0]
    commits = sorted({str(r["commit"])[:12] + "+" * bool(r["modified"]) for r in results if r["commit"]})
    return {
        "command": shlex.join(called()),
        "commit": ", ".join(commits),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "seconds": round(sum(r["seconds"] for r in results), 1),
        "hardware": f"{first['processor']}, {first['cores']} cores, one thread per run",
        "versions": {"python": first["python"], **first["versions"], "start": first["weights"]},
    }


def uncounted(claim: Claim, row: Mapping[str, Any], seeds: int, quick: bool, file: Path) -> str:
    """Why a comparison is not a row of the ledger; "" if it is one."""
    if quick:
        return "--quick only shows that it runs"
    if set(row["arms"]) != set(claim.arms):
        return f"only {len(row['arms'])} of {len(claim.arms)} arms ran"
    if seeds < claim.seeds:
        return f"{seeds} seeds ran, the claim asks for {claim.seeds}"
    if row["condition"] and not row["condition"]["holds"]:
        c = row["condition"]
        return f"the claim was not tested: {c['metric']} of {c['arm']} is {c['found']:.3f}, it asks for {c['lowest']:g} or more"
    if too_many_unscored(row):
        return unscored_words(row)
    if uncommitted(file):
        return f"{file.name} has changes that are not committed; a claim is committed before it is counted"
    return ""


def uncommitted(file: Path) -> bool:
    """Whether a file differs from its last commit; False where there is no repository to tell."""
    try:
        said = subprocess.run(
            ["git", "-C", str(file.parent), "status", "--porcelain", "--", file.name], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return False
    return bool(said.stdout.strip())


def trials(file: Path, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every counted comparison of this slug so far, this one last; the same runs looked at again are not another trial."""
    before = json.loads(file.read_text(encoding="utf-8"))["trials"] if file.is_file() else []
    this = {k: row[k] for k in ("date", "commit", "arms_hash", "effect", "interval", "control", "verdict")}
    this["runs"] = digest({a: r["values"] for a, r in row["arms"].items()})
    return [t for t in before if (t["runs"], t["arms_hash"]) != (this["runs"], this["arms_hash"])] + [this]


# -- shown ----------------------------------------------------------------------------------------------------------------------


def table(row: Mapping[str, Any]) -> str:
    """The row for the eye."""
    rows = [("arm", "seeds", "mean", "lowest to highest", f"less {row['baseline']}, 95 %")]
    for name, arm in row["arms"].items():
        v = arm["values"]
        gap = ledger.outcome(arm) if "effect" in arm and name != row["baseline"] else ""
        rows.append((name, str(len(v)), f"{np.mean(v):.3f}", f"{min(v):.3f} to {max(v):.3f}", gap))
    widths = [max(len(r[i]) for r in rows) for i in range(5)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    expected, controlled = row["expected"], row["controlled"]
    asked = (
        f"{expected['direction']} by at least" if expected["test"] == "better" else f"as good, {expected['direction']} is better, within"
    )
    lines = [row["claim"], f"metric: {row['metric']}; expected: {row['method']} {asked} {expected['margin']:g}", "", *lines, ""]
    if row["condition"]:
        c = row["condition"]
        lines.append(f"condition: {c['metric']} of {c['arm']} {c['found']:.3f}, at least {c['lowest']:g} asked")
    if row.get("unscored"):
        lines.append(unscored_words(row))
    if controlled:
        word = f"{controlled['arm']} less {controlled['against']}: {ledger.outcome(controlled)}, must stay below {controlled['margin']:g}"
        lines.append(f"control {row['control'] or ''}: {word}")
    if row["verdict"]:
        lines.append(f"effect {ledger.outcome(row)}: {row['verdict']}")
    return "\n".join(lines)
