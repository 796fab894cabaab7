"""How long a process stood still for others."""

from __future__ import annotations

import time


class Waits:
    """Seconds inside ``with waits:``. What waits at the same time counts once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._open, self._began = 0, 0.0

    def __enter__(self) -> None:
        if not self._open:
            self._began = time.perf_counter()
        self._open += 1

    def __exit__(self, *_: object) -> None:
        self._open -= 1
        if not self._open:
            self.seconds += time.perf_counter() - self._began
