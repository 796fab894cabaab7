"""Clocks, peak memory, the machine's matrix-product rate, and the words that identify a measurement."""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import os
import platform
import shlex
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fovea.bench.flops import Shape

LIBRARIES = ("torch", "transformers", "trl", "datasets", "accelerate", "tokenizers", "pillow", "numpy")


@dataclass(frozen=True)
class Time:
    """Seconds on two clocks: CPU time of all threads of this process, and the wall."""

    cpu_s: float
    wall_s: float


class Stopwatch:
    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def stop(self) -> Time:
        return Time(time.process_time() - self.cpu, time.perf_counter() - self.wall)


def timed(f: Callable[..., Any], *args: Any) -> Time:
    watch = Stopwatch()
    f(*args)
    return watch.stop()


def median(times: Iterable[Time]) -> Time:
    """The median of each clock by itself."""
    both = list(times)
    return Time(statistics.median(t.cpu_s for t in both), statistics.median(t.wall_s for t in both))


@contextmanager
def single_thread(core: int | None = None):
    """One thread, pinned to one core (the last one this process may use, unless named); as before on leaving."""
    threads, pins = torch.get_num_threads(), hasattr(os, "sched_setaffinity")
    allowed = os.sched_getaffinity(0) if pins else set()
    torch.set_num_threads(1)
    if pins:
        os.sched_setaffinity(0, {max(allowed) if core is None else core})
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if pins:
            os.sched_setaffinity(0, allowed)


@contextmanager
def quiet():
    """Silence the progress bars and notices of transformers; they would be printed hundreds of times."""
    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.utils.logging.enable_progress_bar()


# -- memory (Linux) -----------------------------------------------------------------------------------------------------------


def _status_mb(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"/proc/self/status has no field {field}; expected a Linux kernel with per-process memory accounting")


def resident_mb() -> float:
    """Resident memory now, 10^6 bytes, after returning freed memory to the system."""
    release()
    return _status_mb("VmRSS")


def peak_mb() -> float:
    """Largest resident memory since `reset_peak`, 10^6 bytes."""
    return _status_mb("VmHWM")


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def release() -> None:
    """Collect garbage and hand free heap pages back to the system, so that one cell does not inflate the next."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


# -- arithmetic ---------------------------------------------------------------------------------------------------------------


def matmul_shapes(s: Shape, *, prefix: int, patches: int) -> list[tuple[int, int, int]]:
    """(rows, in, out) of the weight products of one decoder layer over a prefix and of one vision layer over an image."""
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    text = [(s.hidden, q), (s.hidden, kv), (s.hidden, kv), (q, s.hidden), (s.hidden, s.inner), (s.hidden, s.inner), (s.inner, s.hidden)]
    v, w = s.v_hidden, s.v_inner
    sight = [(v, 3 * v), (v, v), (v, w), (v, w), (w, v)]
    return [(prefix, i, o) for i, o in text] + [(patches, i, o) for i, o in sight]


def matmul_rate(shapes: Sequence[tuple[int, int, int]], seconds: float = 1.5) -> float:
    """Floating-point operations per CPU second of float32 products of these shapes on the threads in use; median of five."""
    pairs = [(torch.randn(m, k), torch.randn(k, n)) for m, k, n in shapes]
    outs = [a @ b for a, b in pairs]
    work = sum(2 * m * k * n for m, k, n in shapes)

    def once() -> None:
        for (a, b), out in zip(pairs, outs):
            torch.mm(a, b, out=out)

    loops = max(1, int(seconds / 5 / max(1e-6, timed(once).wall_s)))
    return statistics.median(work * loops / timed(lambda: [once() for _ in range(loops)]).cpu_s for _ in range(5))


# -- who measured -------------------------------------------------------------------------------------------------------------


def provenance(command: Sequence[str], threads: int | None = None) -> dict[str, Any]:
    """What every measured file ends with: `command`, `commit`, `hardware`, `versions`.

    Args:
      command: the words that were called.
      threads: CPU threads of what was measured, where that was not this process.
    """
    return {"command": shlex.join(command), "commit": commit(), "hardware": hardware(threads), "versions": versions()}


def versions() -> dict[str, str]:
    """Python and the libraries that matter, those that are installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware(threads: int | None = None) -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    cpuinfo, meminfo = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    memory = round(int(meminfo.read_text().split()[1]) / 2**20) if meminfo.exists() else None
    return {"cpu": model, "cores": os.cpu_count(), "memory_gib": memory, "threads_used": threads or torch.get_num_threads()}


def commit() -> str:
    """The commit that the package was run from, "-dirty" when its sources differ; "unknown" outside a checkout."""
    root = Path(__file__).resolve().parents[2]

    def git(*args: str) -> str:
        return subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no", "--", "fovea") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
