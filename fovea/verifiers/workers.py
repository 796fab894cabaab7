"""Processes that verifiers ask: one JSON request a line, one JSON reply a line, a hard deadline. Nothing is pickled.

A worker that does not answer in time is killed and replaced, and the episode is unscored; a thread could not be killed.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from typing import Any

from fovea.verifiers.core import Unscorable

STARTUP_S = 120.0


class Died(Unscorable):
    """A worker process ended by itself (killed, out of memory) instead of answering."""


class Worker:
    """One process that runs `module`; `ask` sends a request and waits for the reply until the deadline, then kills the process.

    Attributes:
      ready: what it said when it had started.
    """

    def __init__(self, module: str, called: str = "verifier") -> None:
        # The path is passed because the package may be used from a checkout that is not installed.
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.called = called
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        self.ready = self._read(STARTUP_S, "start")

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except OSError:
            raise Died(f"the {self.called} worker died before it was asked") from None
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
                raise Unscorable(f"the {self.called} worker gave no {what} within {timeout_s:g} s")
            raise Died(f"the {self.called} worker died (exit status {self.process.wait()})")
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
    """At most `size` workers of one module, started when first needed; safe to call from several threads.

    A question whose worker dies is asked once more, of a new one: the score is that of a run in which nothing died.
    """

    def __init__(self, size: int, module: str, called: str = "verifier"):
        self.module, self.called = module, called
        self.free: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        for _ in range(size):
            self.free.put(None)

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """The reply.

        Raises:
          Unscorable: no reply in time, two workers that died, or a request that the worker could not answer, with its reason.
        """
        try:
            reply = self._ask(request, timeout_s)
        except Died:
            reply = self._ask(request, timeout_s)
        if "error" in reply:
            raise Unscorable(reply["error"])
        return reply

    def start(self) -> Worker:
        return Worker(self.module, self.called)

    def _ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        worker = self.free.get()
        try:
            if worker is None or not worker.alive:
                worker = None
                worker = self.start()
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
