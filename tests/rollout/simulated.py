"""An event loop whose clock jumps: what sleeps takes no time, and the order of events is that of their times."""

import asyncio
import selectors


class _Jumps(selectors.SelectSelector):
    now = 0.0

    def select(self, timeout=None):
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("nobody will ever wake up: every coroutine waits for another")
        if not ready:
            self.now += timeout or 0.0
        return ready


class SimulatedLoop(asyncio.SelectorEventLoop):
    def __init__(self):
        self.jumps = _Jumps()
        super().__init__(self.jumps)

    def time(self):
        return self.jumps.now


def simulated(work):
    """Run a coroutine to its end; (what it returns, seconds on the simulated clock)."""
    loop = SimulatedLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(work), loop.time()
