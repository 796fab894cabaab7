"""The memory estimate of ``--dry-run`` against real steps: peak resident memory over base, on the CPU.

    python benchmarks/memory/estimate.py [CASE ...]        all cases by default; writes benchmarks/memory/estimate.json

Each case takes three GRPO steps (2 tasks x 4 answers, 256 image tokens + 32 new) of a random Qwen2.5-VL in a process of its own, forked
once the libraries are loaded and have allocated their scratch memory; the median of three such processes counts. Base is what is resident
then, before the checkpoint is read; the peak is that of reading it and of all steps. The estimate is made in another process, which reads
no weights.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from fovea.bench import measure, ours, workload
from fovea.bench.flops import Shape
from fovea.bench.workload import Cell
from fovea.methods.grpo import GRPO
from fovea.policies.lora import LoRA

OUT = Path(__file__).with_name("estimate.json")
STEPS, LIMIT = 3, 0.15
REPEATS = 3  # where holes form in the heap differs from process to process
CELL = Cell(256, 32, 4)
SHAPE = Shape(
    hidden=384, layers=6, heads=6, kv_heads=2, head_dim=64, inner=1536, vocab=384, v_hidden=192, v_layers=4, v_full_layers=1, v_inner=768
)
WHAT = "A random Qwen2.5-VL of 17 M parameters, AdamW, GRPO steps on 2 tasks x 4 answers, 256 image tokens + 32 new, on a CPU."
CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "full, frozen tower": {"freeze": ("tower",)},
    "full, gradient checkpointing": {"gradient_checkpointing": True},
    "full, micro_batch 4": {"micro_batch": 4},
    "full, reference": {"method": GRPO(beta=0.05)},
    "full, bfloat16": {"dtype": "bfloat16"},
    "LoRA language": {"lora": LoRA(rank=8)},
    "LoRA both": {"lora": LoRA(rank=8, where="both")},
    "LoRA language, reference": {"lora": LoRA(rank=8), "method": GRPO(beta=0.05)},
    "LoRA language, gradient checkpointing": {"lora": LoRA(rank=8), "gradient_checkpointing": True},
}


def recipe(folder: Path, case: str) -> Any:
    settings: dict[str, Any] = {"tasks_per_step": 2, "micro_batch": 8, "steps": STEPS, "threads": 1}
    return ours.recipe(folder, CELL, **(settings | CASES[case]))


def measured(folder: Path, case: str) -> float:
    """Peak over base of real steps, 10^6 bytes."""
    tasks = [ours.tasks(step, CELL.image_tokens)[:2] for step in range(STEPS)]
    warm_up()
    base = measure.resident_mb()
    measure.reset_peak()
    trainer = ours.Trainer(recipe(folder, case))
    for part in tasks:
        trainer(part)
    return measure.peak_mb() - base


def estimated(folder: Path, case: str) -> dict[str, float]:
    """The estimate by purpose, 10^6 bytes."""
    from fovea import trace

    what = recipe(folder, case)
    policy = trace.without_data(what)
    task = ours.tasks(0, CELL.image_tokens)[0]
    prefix = policy.encode(task.prompt, task.images)
    found = trace.trace(what, policy, prefix, CELL.new_tokens, STEPS * what.tasks_per_step)
    return {k: round(v / 1e6, 1) for k, v in {**vars(found), "total": found.total}.items()}


def warm_up() -> None:
    """One step of a smaller model: what it leaves behind is code and scratch memory of the program."""
    with tempfile.TemporaryDirectory() as folder:
        small = ours.recipe(workload.build_checkpoint(Path(folder)), Cell(64, 4, 2), tasks_per_step=1)
        ours.Trainer(small)(ours.tasks(0, 64)[:1])


def apart(function: Any, *args: Any) -> Any:
    """The result of a call in a forked process."""
    fork = multiprocessing.get_context("fork")
    theirs, mine = fork.Pipe()

    def child() -> None:
        with measure.quiet():
            theirs.send_bytes(json.dumps(function(*args)).encode())

    process = fork.Process(target=child)
    process.start()
    theirs.close()
    try:
        return json.loads(mine.recv_bytes())
    except EOFError:
        raise SystemExit(f"{function.__name__}{args}: the process ended without a result; its error is above") from None
    finally:
        process.join()


def main(names: list[str]) -> int:
    import peft  # noqa: F401
    import transformers

    from fovea.policies import hf_vlm  # noqa: F401

    if unknown := set(names) - set(CASES):
        print(f"no case {', '.join(sorted(unknown))}; there are: {'; '.join(CASES)}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    _ = transformers.Qwen2_5_VLForConditionalGeneration, transformers.AutoTokenizer
    result = json.loads(OUT.read_text()) if OUT.exists() else {"cases": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        apart(lambda: str(workload.build_checkpoint(folder, SHAPE)))
        for name in names or CASES:
            estimate = apart(estimated, folder, name)
            peaks = sorted(apart(measured, folder, name) for _ in range(REPEATS))
            found = statistics.median(peaks)
            error = estimate["total"] / found - 1
            numbers = {"estimate_mb": estimate["total"], "measured_mb": round(found, 1), "error": round(error, 3)}
            numbers["repeats_mb"] = [round(p, 1) for p in peaks]
            result["cases"][name] = numbers | {"parts": estimate}
            print(f"{name:40} estimate {estimate['total']:8.1f} MB   measured {found:8.1f} MB   {error:+.1%}", flush=True)
            result |= {
                "what": WHAT,
                "worst_error": max(abs(c["error"]) for c in result["cases"].values()),
                "limit": LIMIT,
                **measure.provenance(["python", "benchmarks/memory/estimate.py"]),
            }
            OUT.write_text(json.dumps(result, indent=1) + "\n")
    return int(result["worst_error"] > LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
