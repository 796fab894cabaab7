"""``fovea bench``: measure speed, memory and exactness, side by side with a peer where one is installed."""

from __future__ import annotations

import sys
from collections.abc import Sequence

USAGE = """usage: fovea bench step [--vs trl] [--cells headline|grid|all|I+NxG,...] [--repeats N] [--json] [--out FILE]

One GRPO step (4 tasks, group size G, I image tokens, N new tokens) on a small random Qwen2.5-VL: CPU seconds, peak memory,
distance from the arithmetic floor. `fovea bench step --help` lists every option."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark; returns the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] == ["step"]:
        from fovea.bench.step import main as step

        return step(args[1:])
    print(USAGE, file=sys.stdout if args in ([], ["-h"], ["--help"]) else sys.stderr)
    return 0 if args in ([], ["-h"], ["--help"]) else 2
