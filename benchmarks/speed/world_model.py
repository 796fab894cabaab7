"""One update of RePo on 16 windows of 16 units: its time over its floating-point operations at the machine's rate of matrix products.

    python benchmarks/speed/world_model.py               measures and writes benchmarks/speed/world_model.json

Two sizes: the published one on pictures of 64 pixels (goal: 3), and that of the claim on 32, whose products are so small that functions of
single numbers take most of the time. The update is whole (world model, multiplier, actor, critic), without the decoder that only shows what
is kept. Operations are counted by `fovea.bench.flops.world_model`, the rate is that of products of the same shapes; both take turns, one
thread on one core, in CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from fovea.batch import Windows
from fovea.bench import flops, measure
from fovea.files import write_json
from fovea.methods.repo_mbrl import RePo
from fovea.policies.control import Latents, Spaces, build
from fovea.trainer.update import Adam

WINDOWS = UNITS = 16
GOAL = 3.0
SIZES = {
    "published": (Spaces((64, 64, 3), 6, False), Latents(width=200, stochastic=30, channels=32)),
    "claim": (Spaces((32, 32, 3), 2, False), Latents(width=64, stochastic=8, channels=16)),
}


def windows(spaces: Spaces) -> Windows:
    g = torch.Generator().manual_seed(0)
    obs = torch.randint(0, 256, (WINDOWS, UNITS + 1, *spaces.obs_shape), generator=g, dtype=torch.uint8)
    actions, reward = torch.rand(WINDOWS, UNITS, spaces.actions, generator=g) * 2 - 1, torch.rand(WINDOWS, UNITS, generator=g)
    return Windows(obs, actions, reward, torch.zeros(WINDOWS, UNITS, dtype=torch.bool), 1)


def measured(name: str, rounds: int) -> dict[str, Any]:
    spaces, network = SIZES[name]
    torch.manual_seed(0)
    method, policy = RePo(draw=False), build("world-model", spaces, network)
    state, batch = method.init(policy, Adam(3e-4, max_grad_norm=100.0)), windows(spaces)
    products = flops.world_model(policy, WINDOWS, UNITS, method.imagine)
    # as they are called: what follows one another is not one product
    H = method.imagine - 1
    shapes = sorted({(rows // H if rows % H == 0 else rows, i, o) for (rows, i, o), _ in products})
    method.update(state, batch)
    seconds, rates = [], []
    for _ in range(rounds):
        rates.append(measure.matmul_rate(shapes, seconds=0.5))
        seconds.append(measure.timed(method.update, state, batch).cpu_s)
    work, rate, took = flops.operations(products), statistics.median(rates), statistics.median(seconds)
    return {
        "update_cpu_ms": round(1e3 * took, 1),
        "operations": work,
        "rate_gflops": round(rate / 1e9, 2),
        "ratio": round(took * rate / work, 3),
        "rounds": rounds,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--core", type=int)
    options = parser.parse_args(argv)
    with measure.single_thread(options.core):
        found = {name: measured(name, options.rounds) for name in options.sizes}
        out = {"goal": GOAL, "sizes": found, **measure.provenance(sys.argv)}
    print(json.dumps(out, indent=1))
    write_json(options.json, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
