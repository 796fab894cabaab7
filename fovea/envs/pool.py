"""Environments that are slow to make, lent to one episode after another."""

from __future__ import annotations

import atexit
import inspect
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any


class Pool:
    """Called like the class of an environment, it lends one that is free, or a new one. `close` of what it lends gives it back.

    One that raised is closed for good, and a new one takes its place when it is needed.

    Attributes:
      counts: made, lent, broken.
    """

    def __init__(self, make: Callable[[], Any]):
        self.make, self.free = make, []
        self.counts: Counter[str] = Counter()
        atexit.register(self.close)

    def __call__(self) -> Lent:
        self.counts["lent"] += 1
        if not self.free:
            self.counts["made"] += 1
            return Lent(self.make(), self)
        return Lent(self.free.pop(), self)

    def back(self, env: Any, broken: bool) -> None:
        """Take an environment back."""
        self.counts["broken"] += broken
        if not broken:
            self.free.append(env)
        elif hasattr(env, "close"):
            env.close()

    def close(self) -> None:
        """Close what is not lent."""
        while self.free:
            env = self.free.pop()
            if hasattr(env, "close"):
                env.close()


class Lent:
    """An environment of a pool; what is not said here is the environment's own."""

    def __init__(self, env: Any, pool: Pool):
        self._env, self._pool, self._broken, self._lent = env, pool, False, True

    def reset(self, *args: Any) -> Any:
        return self._watched(self._env.reset, *args)

    def step(self, *args: Any) -> Any:
        return self._watched(self._env.step, *args)

    def close(self) -> None:
        if self._lent:
            self._lent = False
            self._pool.back(self._env, self._broken)

    def _watched(self, call: Callable[..., Any], *args: Any) -> Any:
        try:
            result = call(*args)
        except BaseException:
            self._broken = True
            raise
        return self._later(result) if inspect.isawaitable(result) else result

    async def _later(self, result: Awaitable[Any]) -> Any:
        try:
            return await result
        except BaseException:
            self._broken = True
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)
