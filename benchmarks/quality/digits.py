"""Your own images: reinforcement learning on handwritten digits through the JSONL source.

    python benchmarks/quality/digits.py [--seeds 0 1 2 3 4]

Writes the data with examples/digits.py (digit pictures of the held-out rows appear in no training row), trains the tiny model on it with
the recipe below, and measures greedy accuracy on the held-out rows before and after.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import HERE, PARTS, curve, provenance, read, run_parts, write

CHANGES: dict[str, Any] = {"sampling__max_new_tokens": 24, "learning_rate": 2e-4, "steps": 80, "eval_tasks": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        return write(PARTS / f"digits-{options.one}.json", one(options.one, options.threads))
    missing = [s for s in options.seeds if not (PARTS / f"digits-{s}.json").exists()]
    run_parts(([sys.executable, __file__, "--threads", str(options.threads), "--one", str(s)] for s in missing), options.jobs)
    runs = [read(f"digits-{s}") for s in options.seeds]
    columns = ("before", "after", "after_sampled", "train_seconds")
    table = {"seeds": options.seeds, **{c: [r[c] for r in runs] for c in columns}, "heldout_rows": runs[0]["heldout_rows"]}
    write(HERE / "digits.json", {**table, "curve": [r["curve"] for r in runs], **provenance(options.threads)})


def one(seed: int, threads: int) -> dict[str, Any]:
    import torch

    import fovea
    from fovea import api

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "digits"
        subprocess.run([sys.executable, str(HERE.parents[1] / "examples" / "digits.py"), str(data), "--count", "5000"], check=True)
        heldout = str(data / "heldout.jsonl")
        recipe = api.resolve("grpo", seed=seed, threads=threads, data=str(data / "train.jsonl"), heldout=heldout, **CHANGES)
        before = api.evaluate("tiny", recipe, tasks=1000)
        run = fovea.train(recipe, out=Path(folder) / "run", quiet=True)
        after = api.evaluate(run.policy, recipe, tasks=1000)
        sampled = api.evaluate(run.policy, recipe, tasks=1000, temperature=1.0)
        return {
            "seed": seed,
            "before": before.mean,
            "after": after.mean,
            "after_sampled": sampled.mean,
            "heldout_rows": sum(after.count.values()),
            "train_seconds": run.train_seconds,
            "curve": curve(run.metrics, "reward/mean", "length/mean_tokens"),
        }


if __name__ == "__main__":
    main()
