"""What the quality benchmarks share: files that are complete or absent, and where a number came from."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fovea.bench import measure
from fovea.files import write_text

HERE = Path(__file__).resolve().parent
PARTS = HERE / "parts"


def read(name: str) -> dict[str, Any]:
    return json.loads((PARTS / f"{name}.json").read_text())


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    write_text(path, json.dumps(value, indent=1) + "\n")


def run_parts(commands: Iterable[list[str]], jobs: int) -> None:
    """Run every command in a process of its own, `jobs` at a time; the first that fails stops the benchmark."""
    with ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(subprocess.run, command, check=True) for command in commands]:
            done.result()


def provenance(threads: int | None = None) -> dict[str, Any]:
    """`fovea.bench.measure.provenance` of the script that was called; `threads` are those of each run."""
    return measure.provenance(["python", "benchmarks/quality/" + Path(sys.argv[0]).name, *sys.argv[1:]], threads)


def curve(rows: list[dict[str, float]], *names: str) -> list[dict[str, float]]:
    """Some columns of a run's metrics, the step always."""
    return [{"step": int(r["step"]), **{n: round(r[n], 4) for n in names if n in r}} for r in rows]
