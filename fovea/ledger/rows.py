"""The rows of the ledger: one JSON file per claim, and what they say about a system. Loads nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fovea.systems import STATES, System

ROOT = Path(__file__).resolve().parents[2]
PLACES = (Path(__file__).with_name("measured"), ROOT / "benchmarks" / "ledger")


def home() -> Path:
    """Where counted rows are written: the checkout's ledger, or the same folder below the current one."""
    return PLACES[1] if PLACES[1].is_dir() else Path("benchmarks") / "ledger"


def read_all(places: Iterable[Path] = PLACES) -> dict[str, dict[str, Any]]:
    """Every row by slug.

    Raises:
      ValueError: a file that is no row, named.
    """
    found = {}
    for file in (f for place in places for f in sorted(place.glob("*.json"))):
        try:
            row = json.loads(file.read_text(encoding="utf-8"))
            missing = {"slug", "verdict", "effect", "interval", "arms_hash"} - set(row)
        except (ValueError, TypeError) as e:
            raise ValueError(f"{file}: {e}; expected the JSON that fovea reproduce writes") from e
        if missing or row["verdict"] not in STATES[2:]:
            raise ValueError(
                f"{file}: found verdict {row.get('verdict')!r} and no {', '.join(missing) or 'gap'}; expected a row of the ledger"
            )
        found[row["slug"]] = row
    return found


def state(place: str, row: dict[str, Any] | None) -> str:
    """What is done about a system, from its file and its row: a verdict, else whether there is something that works."""
    if row is not None:
        return row["verdict"]
    return "works" if (ROOT / place).is_file() else "planned"


def system_state(system: System, rows: dict[str, dict[str, Any]]) -> str:
    return state(system.place, rows.get(system.slug))


def outcome(row: Mapping[str, Any] | None) -> str:
    """ "+0.120 [+0.080, +0.160]", the effect with its interval; "" without a row."""
    if row is None:
        return ""
    low, high = row["interval"]
    return f"{row['effect']:+.3f} [{low:+.3f}, {high:+.3f}]"
