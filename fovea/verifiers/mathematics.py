"""Mathematical equality with math-verify, in worker processes with a hard deadline.

A worker that does not answer in time is killed and replaced, and the episode is unscored. Workers talk JSON over pipes; nothing is pickled.
Needs the extra ``fovea-rl[math]``.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import subprocess
import sys
import threading
from typing import Any

from fovea.types import Verifier
from fovea.verifiers.core import Unscorable, on_answer
from fovea.verifiers.parse import READ

STARTUP_S = 120.0
MISSING = 'verifier "math" needs math-verify, which is not installed; install the extra: pip install "fovea-rl[math]"'


class Died(Unscorable):
    """A worker process ended by itself (killed, out of memory) instead of answering."""


class Worker:
    """One process; `ask` sends a request and waits for the reply until the deadline, then kills the process."""

    def __init__(self) -> None:
        # The path is passed because the package may be used from a checkout that is not installed.
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fovea.verifiers.math_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        ready = self._read(STARTUP_S, "start")
        if "missing" in ready:
            self.close()
            raise ModuleNotFoundError(f"{MISSING} ({ready['missing']})")

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except OSError:
            raise Died("the math worker died before it was asked") from None
        return self._read(timeout_s, "answer")

    def _read(self, timeout_s: float, what: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            self.process.kill()

        timer = threading.Timer(timeout_s, stop)
        timer.daemon = True
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if not line.endswith("\n"):
            self.process.kill()
            self.process.wait()
            if late.is_set():
                raise Unscorable(f"the math worker gave no {what} within {timeout_s:g} s")
            raise Died(f"the math worker died (exit status {self.process.wait()})")
        return json.loads(line)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class Pool:
    """At most `size` workers, started when first needed; safe to call from several threads.

    A question whose worker dies is asked once more, of a new one: the score is that of a run in which nothing died.
    """

    def __init__(self, size: int):
        self.free: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        for _ in range(size):
            self.free.put(None)

    def compare(self, gold: str, answer: str, digits: int, timeout_s: float) -> bool:
        request = {"gold": gold, "answer": answer, "digits": digits}
        try:
            reply = self._ask(request, timeout_s)
        except Died:
            reply = self._ask(request, timeout_s)
        if "error" in reply:
            raise Unscorable(reply["error"])
        return bool(reply["correct"])

    def _ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        worker = self.free.get()
        try:
            if worker is None or not worker.alive:
                worker = None
                worker = Worker()
            return worker.ask(request, timeout_s)
        finally:
            if worker is not None and not worker.alive:
                worker.close()
                worker = None
            self.free.put(worker)

    def close(self) -> None:
        while not self.free.empty():
            worker = self.free.get()
            if worker is not None:
                worker.close()


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
