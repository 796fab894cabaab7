"""What logging, stored rollouts, checkpoints and the report cost of a run's time.

    python benchmarks/reliability/overhead.py [--steps 20] [--threads 1]        writes benchmarks/reliability/overhead.json

A run of the default recipe (the model that ships with the package, its batch, its cadence of checkpoints and rollouts) with fewer steps,
so that what is done once per run weighs more than it does in a default run. Seconds inside each part are taken from the run itself, so
the ratio does not depend on how busy the machine is. Evaluation, which writes little and takes long, is left out of both.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

OUT = Path(__file__).with_name("overhead.json")
LIMIT = 0.05


class Meter:
    """Wall and CPU seconds spent inside functions that are watched; of nested ones only the outermost counts."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self.inside = False

    def watch(self, owner: Any, name: str, part: str) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self.inside:
                return inner(*args, **kwargs)
            self.inside, wall, cpu = True, time.perf_counter(), time.process_time()
            try:
                return inner(*args, **kwargs)
            finally:
                self.inside = False
                self.wall[part] = self.wall.get(part, 0.0) + time.perf_counter() - wall
                self.cpu[part] = self.cpu.get(part, 0.0) + time.process_time() - cpu
                self.calls[part] = self.calls.get(part, 0) + 1

        setattr(owner, name, timed)


def measure(steps: int, threads: int, folder: Path) -> dict[str, Any]:
    import fovea
    from fovea.bench.measure import provenance
    from fovea.report.console import Console
    from fovea.report.run import RunFolder
    from fovea.trainer.session import Session

    parts, whole = Meter(), Meter()
    for owner, name, part in (
        (RunFolder, "log", "metrics and events"),
        (RunFolder, "log_groups", "rollouts"),
        (RunFolder, "write_report", "report"),
        (RunFolder, "close", "metrics and events"),
        (Session, "save", "checkpoints"),
        (Session, "_mark", "checkpoints"),
        (Console, "step", "console"),
        (Console, "phase", "console"),
    ):
        parts.watch(owner, name, part)
    whole.watch(Session, "run", "run")
    run = fovea.train("grpo", out=folder / "run", steps=steps, eval_tasks=0, threads=threads)
    seconds = whole.wall["run"] + parts.wall["report"]
    cpu = whole.cpu["run"] + parts.cpu["report"]
    return {
        "fraction": round(sum(parts.wall.values()) / seconds, 4),
        "fraction_cpu": round(sum(parts.cpu.values()) / cpu, 4),
        "limit": LIMIT,
        "seconds": round(seconds, 2),
        "parts": {
            p: {"calls": parts.calls[p], "seconds": round(s, 3), "fraction": round(s / seconds, 4)} for p, s in sorted(parts.wall.items())
        },
        "steps": steps,
        "checkpoint_bytes": sum(f.stat().st_size for f in max((run.path / "checkpoints").glob("step-*")).rglob("*") if f.is_file()),
        "date": time.strftime("%Y-%m-%d"),
        **provenance(["python", "benchmarks/reliability/overhead.py", *sys.argv[1:]]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options.steps, options.threads, Path(folder))
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['fraction']:.2%} of {result['seconds']:.0f} s (limit {LIMIT:.0%}); written to {options.out}")
    return int(result["fraction"] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
