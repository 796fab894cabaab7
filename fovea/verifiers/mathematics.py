"""Mathematical equality with math-verify, in worker processes with a hard deadline (`fovea.verifiers.workers`).

Needs the extra ``fovea-rl[math]``.
"""

from __future__ import annotations

import atexit
import os
import threading
from typing import Any

from fovea.types import Verifier
from fovea.verifiers import workers
from fovea.verifiers.core import on_answer
from fovea.verifiers.parse import READ

MISSING = 'verifier "math" needs math-verify, which is not installed; install the extra: pip install "fovea-rl[math]"'


class Pool(workers.Pool):
    """Workers that compare answers."""

    def __init__(self, size: int):
        super().__init__(size, "fovea.verifiers.math_worker", "math")

    def start(self) -> workers.Worker:
        worker = super().start()
        if "missing" in worker.ready:
            worker.close()
            raise ModuleNotFoundError(f"{MISSING} ({worker.ready['missing']})")
        return worker

    def compare(self, gold: str, answer: str, digits: int, timeout_s: float) -> bool:
        return bool(self.ask({"gold": gold, "answer": answer, "digits": digits}, timeout_s)["correct"])


_lock = threading.Lock()
_pool: Pool | None = None


def pool() -> Pool:
    """The process-wide pool; its workers end with the program."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = Pool(max(1, min(4, os.cpu_count() or 1)))
            atexit.register(_pool.close)
        return _pool


def math(*, digits: int = 6, timeout_s: float = 5.0) -> Verifier:
    """The answer equals gold as mathematics (LaTeX, sets, intervals, equations), numbers rounded to `digits`; needs fovea-rl[math].

    A comparison that takes longer than `timeout_s` seconds leaves the episode unscored.
    """

    def judge(answer: str, gold: Any) -> bool:
        return pool().compare(str(gold), answer[-READ:], digits, timeout_s)

    return on_answer("math", judge)
