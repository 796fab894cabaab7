"""``fovea bench step``: one GRPO step, ours and the peer's alternating in one process on one pinned thread.

Order: exactness (a difference ends the run, its numbers would be void), the peer's better micro-batch on the first cell, then cell by cell
warm-up and alternations, then peak memory of each side in a process of its own. The result file is rewritten after every cell, so an
interrupted run loses at most one; ``--resume`` keeps the cells it holds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from fovea.bench import flops, measure, workload
from fovea.bench.measure import Time
from fovea.bench.workload import SMALL, TASKS_PER_STEP, Cell
from fovea.files import write_text

ANCHOR = Cell(256, 32, 8)
MEMORY = (Cell(256, 32, 8), Cell(1024, 32, 8))
SCALING = (Cell(1024, 32, 4), Cell(1024, 32, 16))
OUT = Path("benchmarks/speed/step_vs_trl.json")
LONG_S = 60.0  # a peer step beyond this is timed once, without a warm-up of its own
PEAK_GAIN = 3.0  # of the exactness check: peaked distributions show errors; at 4 the float32 reference alone is about 6e-6 from float64


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="fovea bench step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--vs", choices=["trl"], help="also run TRL's GRPOTrainer (extra: bench)")
    p.add_argument("--cells", default="headline", help="headline, grid, all, or IMAGE+NEWxGROUP,... (default: headline)")
    p.add_argument("--repeats", type=int, default=3, help="timed alternations per cell after one warm-up (default: 3)")
    p.add_argument("--json", action="store_true", help="print the result as JSON instead of a table")
    p.add_argument("--out", type=Path, default=OUT, help=f"result file (default: {OUT})")
    p.add_argument("--resume", action="store_true", help="keep the cells, memory and ratios that the result file already holds")
    p.add_argument("--core", type=int, help="core to pin to (default: the last one)")
    p.add_argument("--no-memory", action="store_true", help="skip the peak-memory runs")
    p.add_argument("--memory-of", choices=["ours", "peer"], help=argparse.SUPPRESS)
    p.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    p.add_argument("--micro-batch", type=int, help=argparse.SUPPRESS)
    return p


def main(argv: Sequence[str]) -> int:
    p = parser()
    args = p.parse_args(list(argv))
    try:
        cells = workload.cells(args.cells)
        if args.vs:
            from fovea.bench import peer_trl

            peer_trl.require()
    except (ValueError, RuntimeError) as error:
        p.error(str(error))
    with measure.single_thread(args.core), measure.quiet(), tempfile.TemporaryDirectory() as folder:
        if args.memory_of:
            print(json.dumps(memory_here(args.memory_of, args.checkpoint, cells[0], args.micro_batch)))
            return 0
        bench = Bench(args, cells, Path(folder))
        status = bench.run()
    print(json.dumps(bench.result, indent=1) if args.json else table(bench.result))
    return status


class Bench:
    """One benchmark run; `result` is what the file holds at any moment."""

    def __init__(self, args: argparse.Namespace, cells: Sequence[Cell], folder: Path):
        self.args, self.todo, self.began = args, list(cells), time.perf_counter()
        self.checkpoint = workload.build_checkpoint(folder / "model")
        self.peaked = workload.build_checkpoint(folder / "peaked", gain=PEAK_GAIN)
        self.result: dict[str, Any] = {"exact": None, "cells": [], "physics_ratio": None, "g16_over_g4": None}
        if args.resume and args.out.exists():
            self.result |= json.loads(args.out.read_text())
        before = [self.result["command"]] if "command" in self.result else []
        self.result |= measure.provenance(["fovea", "bench", "step", *self._command()])
        self.result["command"] = " && ".join([*before, self.result["command"]])

    def _command(self) -> list[str]:
        vs = ["--vs", self.args.vs] if self.args.vs else []
        resume = ["--resume"] if self.args.resume else []
        return [*vs, "--cells", self.args.cells, "--repeats", str(self.args.repeats), *resume, "--json"]

    def run(self) -> int:
        if not self.check():
            return 1
        self.choose_micro_batch()
        for i, cell in enumerate(self.todo):
            if self.cell(cell) is None:
                self.measure_cell(cell, f"[{i + 1}/{len(self.todo)}]")
        self.measure_scaling()
        if not self.args.no_memory:
            for cell in MEMORY:
                self.measure_memory(cell)
        return 0

    # -- parts ----------------------------------------------------------------------------------------------------------------

    def check(self) -> bool:
        from fovea.bench import exact

        found = exact.check(self.peaked, ANCHOR)
        self.result |= {"exact": found.exact, "exactness": found.to_json()}
        self.note(f"exactness: log-probs {found.logp:.1e}, sampler {found.sampler_logp:.1e}, gradients {found.gradient:.1e}")
        self.write()
        if not found.exact:
            self.note("our step does not compute what the repeated computation computes: a comparison of times would be void")
        return found.exact

    def choose_micro_batch(self) -> None:
        """The peer's better of one group and the whole batch per forward pass, gradient checkpointing off, on the anchor cell."""
        if self.args.vs is None or self.result.get("peer", {}).get("name") == self.args.vs:
            return
        options = {name: self.peer_micro_batch(ANCHOR, name) for name in ("group", "batch")}
        seconds = {name: round(self.peer(ANCHOR, 2, micro)[-1].cpu_s, 3) for name, micro in options.items()}
        best = min(seconds, key=lambda name: seconds[name])
        self.result["peer"] = {"name": "trl", "micro_batch": best, "cpu_s_by_micro_batch": seconds, "gradient_checkpointing": False}
        self.note(f"peer: best with one {best} per forward pass ({seconds})")
        self.write()

    @staticmethod
    def peer_micro_batch(cell: Cell, choice: str) -> int:
        return cell.group_size * (1 if choice == "group" else TASKS_PER_STEP)

    def peer(self, cell: Cell, steps: int, micro_batch: int, after: Any = lambda step: None) -> list[Time]:
        from fovea.bench import peer_trl

        model, processor = peer_trl.load_model(self.checkpoint), peer_trl.load_processor(self.checkpoint)
        return peer_trl.run(model, processor, cell, steps=steps, micro_batch=micro_batch, after=after)

    def measure_cell(self, cell: Cell, place: str) -> None:
        from fovea.bench import ours

        trainer = ours.Trainer(ours.recipe(self.checkpoint, cell))
        rate = self.rate(trainer, cell)
        trainer(ours.tasks(self.args.repeats + 1, cell.image_tokens))
        mine: list[Time] = []

        def our_turn(step: int) -> None:
            tasks = ours.tasks(step, cell.image_tokens)
            mine.append(measure.timed(trainer, tasks))

        theirs: list[Time] = []
        if self.args.vs:
            expected_s = 2 * self.work(trainer, cell, shared=False) / rate
            long = expected_s > LONG_S and cell not in workload.HEADLINE
            warm_up, repeats = (0, 1) if long else (1, self.args.repeats)
            micro = self.peer_micro_batch(cell, self.result["peer"]["micro_batch"])
            theirs = self.peer(cell, warm_up + repeats, micro, lambda step: our_turn(step) if step >= warm_up else None)[warm_up:]
        else:
            for step in range(self.args.repeats):
                our_turn(step)
        self.record(cell, mine, theirs)
        if cell == ANCHOR:
            self.record_physics(trainer, cell, (rate + self.rate(trainer, cell)) / 2)
        self.write()
        entry = self.cell(cell) or {}
        ratio = f"peer {entry['cpu_s_peer']:8.2f} s   {entry['ratio']:5.2f}x" if theirs else ""
        self.note(f"{place:>8} {cell!s:>12}   ours {entry['cpu_s_ours']:7.2f} s   {ratio}")
        measure.release()

    def record(self, cell: Cell, mine: list[Time], theirs: list[Time]) -> None:
        our, peer = measure.median(mine), measure.median(theirs) if theirs else None
        entry = {
            "image_tokens": cell.image_tokens,
            "new_tokens": cell.new_tokens,
            "group_size": cell.group_size,
            "cpu_s_ours": round(our.cpu_s, 4),
            "cpu_s_peer": round(peer.cpu_s, 4) if peer else None,
            "ratio": round(peer.cpu_s / our.cpu_s, 3) if peer else None,
            "mem_ours_mb": None,
            "mem_peer_mb": None,
            "wall_s_ours": round(our.wall_s, 4),
            "wall_s_peer": round(peer.wall_s, 4) if peer else None,
            "all_cpu_s_ours": [round(t.cpu_s, 4) for t in mine],
            "all_cpu_s_peer": [round(t.cpu_s, 4) for t in theirs],
            "commit": self.result["commit"],
        }
        self.result["cells"] = [*self.result["cells"], entry]

    def record_physics(self, trainer: Any, cell: Cell, rate: float) -> None:
        """Our step's CPU time over the time that its shared arithmetic takes at the machine's own matrix-product rate."""
        entry = self.cell(cell) or {}
        work = self.work(trainer, cell, shared=True)
        self.result["physics_ratio"] = round(entry["cpu_s_ours"] * rate / work, 3)
        square = measure.matmul_rate([(1024, 1024, 1024)])
        self.result["physics"] = {
            "shared_gflop": round(work / 1e9, 2),
            "repeated_gflop": round(self.work(trainer, cell, shared=False) / 1e9, 2),
            "gflop_per_s": round(rate / 1e9, 1),
            "gflop_per_s_square_1024": round(square / 1e9, 1),
        }

    def rate(self, trainer: Any, cell: Cell) -> float:
        return measure.matmul_rate(
            measure.matmul_shapes(SMALL, prefix=prompt_tokens(trainer, cell), patches=SMALL.merge * cell.image_tokens)
        )

    def work(self, trainer: Any, cell: Cell, shared: bool) -> float:
        return flops.step(
            SMALL,
            tasks=TASKS_PER_STEP,
            group_size=cell.group_size,
            image_tokens=cell.image_tokens,
            text_tokens=prompt_tokens(trainer, cell) - cell.image_tokens,
            new_tokens=cell.new_tokens,
            shared=shared,
        )

    def measure_scaling(self) -> None:
        """Our step at G=16 over our step at G=4, alternating."""
        if self.result["g16_over_g4"] is not None:
            return
        from fovea.bench import ours

        trainers = [ours.Trainer(ours.recipe(self.checkpoint, cell)) for cell in SCALING]
        times: list[list[Time]] = [[], []]
        for step in range(self.args.repeats + 1):
            for trainer, cell, seen in zip(trainers, SCALING, times):
                tasks = ours.tasks(step, cell.image_tokens)
                seen.append(measure.timed(trainer, tasks))
        small, large = (measure.median(seen[1:]).cpu_s for seen in times)
        self.result |= {"g16_over_g4": round(large / small, 3), "scaling": {"cpu_s_g4": round(small, 4), "cpu_s_g16": round(large, 4)}}
        self.note(f"scaling: G=16 {large:.2f} s over G=4 {small:.2f} s = {large / small:.2f}")
        self.write()

    def measure_memory(self, cell: Cell) -> None:
        entry = self.cell(cell)
        if entry is None:
            return
        for side in ("ours", "peer") if self.args.vs else ("ours",):
            if entry[f"mem_{side}_mb"] is None:
                entry[f"mem_{side}_mb"] = round(self.memory_of(side, cell), 1)
                self.write()
        self.note(f"memory over base at {cell}: ours {entry['mem_ours_mb']} MB, peer {entry['mem_peer_mb']} MB")

    def memory_of(self, side: str, cell: Cell) -> float:
        """Peak memory of one side, measured in a process of its own."""
        micro = self.peer_micro_batch(cell, self.result["peer"]["micro_batch"]) if side == "peer" else cell.group_size
        command = [sys.executable, "-W", "ignore", "-m", "fovea.bench", "step", "--memory-of", side, "--cells", str(cell)]
        command += ["--checkpoint", str(self.checkpoint), "--micro-batch", str(micro), *(["--vs", self.args.vs] if self.args.vs else [])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise RuntimeError(f"the memory run of {side} at {cell} ended with status {done.returncode}; its messages are above")
        return float(json.loads(done.stdout.splitlines()[-1])["peak_over_base_mb"])

    # -- the file -------------------------------------------------------------------------------------------------------------

    def cell(self, cell: Cell) -> dict[str, Any] | None:
        axes = ("image_tokens", "new_tokens", "group_size")
        return next((c for c in self.result["cells"] if all(c[a] == getattr(cell, a) for a in axes)), None)

    def write(self) -> None:
        """Replace the result file in one piece."""
        out: Path = self.args.out
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, json.dumps(self.result, indent=1) + "\n")

    def note(self, text: str) -> None:
        print(f"{time.perf_counter() - self.began:7.0f} s  {text}", file=sys.stderr, flush=True)


def prompt_tokens(trainer: Any, cell: Cell) -> int:
    from fovea.bench import ours

    task = ours.tasks(0, cell.image_tokens)[0]
    return trainer.policy.encode(task.prompt, task.images).length


def memory_here(side: str, checkpoint: Path, cell: Cell, micro_batch: int) -> dict[str, float]:
    """Peak resident memory of the second step over what was resident with the model loaded and nothing else built."""
    from fovea.api import build_policy
    from fovea.bench import ours, peer_trl

    if side == "peer":
        model, processor = peer_trl.load_model(checkpoint), peer_trl.load_processor(checkpoint)
        base = measure.resident_mb()
        peer_trl.run(
            model, processor, cell, steps=2, micro_batch=micro_batch, after=lambda step: measure.reset_peak() if step == 0 else None
        )
        return {"peak_over_base_mb": measure.peak_mb() - base}
    recipe = ours.recipe(checkpoint, cell)
    policy = build_policy(recipe)
    base = measure.resident_mb()
    trainer = ours.Trainer(recipe, policy)
    trainer(ours.tasks(0, cell.image_tokens))
    measure.reset_peak()
    trainer(ours.tasks(1, cell.image_tokens))
    return {"peak_over_base_mb": measure.peak_mb() - base}


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""

    def number(x: float | None, form: str = ".2f") -> str:
        return "" if x is None else format(x, form)

    lines = ["| image + new, G | ours CPU s | peer CPU s | ratio | ours MB | peer MB |", "|---|---|---|---|---|---|"]
    for c in result["cells"]:
        name = f"{c['image_tokens']} + {c['new_tokens']}, {c['group_size']}"
        times = f"{number(c['cpu_s_ours'])} | {number(c['cpu_s_peer'])} | {number(c['ratio'])}"
        lines.append(f"| {name} | {times} | {number(c['mem_ours_mb'], '.0f')} | {number(c['mem_peer_mb'], '.0f')} |")
    tail = f"exact: {result['exact']}   physics ratio: {result['physics_ratio']}   G=16 over G=4: {result['g16_over_g4']}"
    return "\n".join([*lines, "", tail])
