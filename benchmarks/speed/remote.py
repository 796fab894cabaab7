"""Tokens per second of the remote engine over the local one: same model, same tasks, `fovea serve` on the same machine.

    python benchmarks/speed/remote.py                    measures and writes benchmarks/speed/remote.json

The two take turns on fresh tasks, so that a busy machine slows both. Sending the weights is timed apart: it happens once per step.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from fovea.api import load_policy
from fovea.bench import measure
from fovea.rollout.engine import Engine
from fovea.rollout.remote import Remote, RemoteEngine
from fovea.rollout.sampling import Sampling
from fovea.tasks.worlds import World

TOKEN = "benchmark"


def timed(engine, tasks, group_size, sampling):
    """(tokens per second, tokens) of one rollout."""
    began = time.perf_counter()
    groups = engine.rollout(tasks, group_size, sampling)
    tokens = sum(e.length for g in groups for e in g.episodes)
    return tokens / (time.perf_counter() - began), tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", default=str(Path(__file__).with_suffix(".json")))
    options = parser.parse_args()
    os.environ["FOVEA_TOKEN"] = TOKEN
    command = [sys.executable, "-m", "fovea.cli", "serve", "tiny", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        url = server.stdout.readline().split()[-1]
        # no end of sequence, so that every rollout is the same amount of work
        sampling = Sampling(max_new_tokens=options.new_tokens, min_new_tokens=options.new_tokens)
        world = World()
        engines = {
            "local": Engine(load_policy("tiny"), max_rows=512),
            "remote": RemoteEngine(load_policy("tiny"), Remote(url), max_rows=512),
        }
        for engine in engines.values():
            timed(engine, [world[i] for i in range(2)], 2, sampling)
        rows = []
        for r in range(options.rounds):
            tasks = [world[100 + r * options.tasks + i] for i in range(options.tasks)]
            names = list(engines) if r % 2 else list(engines)[::-1]
            row = {name: timed(engines[name], tasks, options.group_size, sampling) for name in names}
            assert row["local"][1] == row["remote"][1]
            rows.append({name: speed for name, (speed, _) in row.items()})
            print(f"round {r + 1}: local {rows[-1]['local']:.0f}, remote {rows[-1]['remote']:.0f} tokens/s", flush=True)
        engines["remote"].policy.version += 1
        began = time.perf_counter()
        timed(engines["remote"], [world[0]], 1, Sampling(max_new_tokens=1))
        weights_s = time.perf_counter() - began
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)
    ratios = sorted(row["remote"] / row["local"] for row in rows)
    result = {
        "what": "tokens/s of the remote engine over the local one, one machine, fovea serve over HTTP",
        "model": "tiny",
        "tasks": options.tasks,
        "group_size": options.group_size,
        "new_tokens": options.new_tokens,
        "rounds": options.rounds,
        "ratio": statistics.median(ratios),
        "ratio_low": ratios[0],
        "ratio_high": ratios[-1],
        "local_tokens_per_s": statistics.median(row["local"] for row in rows),
        "remote_tokens_per_s": statistics.median(row["remote"] for row in rows),
        "send_weights_s": weights_s,
        **measure.provenance(["python", "benchmarks/speed/remote.py", *sys.argv[1:]]),
    }
    Path(options.out).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
