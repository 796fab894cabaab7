"""bfloat16: how far log-probabilities are from the plain repeated computation, and the sampler's from the trainer's.

    python benchmarks/quality/bf16.py          writes benchmarks/quality/bf16.json; a minute or two

Both sides compute in bfloat16 and differ in the order of their sums. The distance of the plain computation from itself in float32 stands
beside them: it is what the format costs by itself. Means must not exceed LIMIT.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from common import HERE, provenance, write

from fovea.bench import measure, workload
from fovea.bench.exact import check_bfloat16
from fovea.bench.step import PEAK_GAIN
from fovea.policies.tiny_vlm import BASE_DIR

LIMIT = 0.02
CELLS = (workload.Cell(64, 32, 8), workload.Cell(256, 32, 8))


def main() -> int:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, measure.quiet():
        random = workload.build_checkpoint(Path(folder), gain=PEAK_GAIN)
        models = {"random weights, peaked": (random, CELLS), "the tiny base": (BASE_DIR, CELLS[:1])}
        cases = [{"model": name, "cell": str(c), **check_bfloat16(place, c)} for name, (place, cells) in models.items() for c in cells]
    within = all(case[f"{name}_mean"] <= LIMIT for case in cases for name in ("logp", "sampler"))
    found = {"what": "|difference of log-probs| in nats", "limit": LIMIT, "within": within, "cases": cases}
    write(HERE / "bf16.json", found | provenance())
    return int(not within)


if __name__ == "__main__":
    raise SystemExit(main())
