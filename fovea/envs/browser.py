"""Chromium programs that environments share: started when they are needed, lent to one episode at a time, replaced when they die.

Playwright drives them (extra `browser`). All of its calls run in one thread with an event loop of its own: a browser outlives the loop of
the rollout that started it, and goes on while the rollout computes. Each has a driver process of its own, so nothing that dies costs more
than one episode.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import shutil
import threading
from collections import Counter
from collections.abc import Coroutine
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--in-process-gpu",
    "--disable-site-isolation-trials",
    "--renderer-process-limit=1",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # pages are files; nothing is looked up
)
WINDOW: Any = {"width": 500, "height": 320}  # pixels, as MiniWoB++'s own driver has it; dialogs are placed by it
PAGES = 8  # that stay open in one browser
PATIENCE_S = 60.0  # until a browser that does not answer counts as dead
CLOSING_S = 10.0


def program() -> str:
    """The program of an installed Chromium or Chrome, or ""."""
    return next(filter(None, map(shutil.which, PROGRAMS)), "")


async def apart(work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives in the thread of the browsers, whatever loop asks."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, _loop()))


def later(work: Coroutine[Any, Any, Any]) -> None:
    """Start `work` in the thread of the browsers; nobody waits for it."""
    asyncio.run_coroutine_threadsafe(work, _loop())


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="browsers", daemon=True).start()
    return loop


@cache
def browsers(limit: int) -> Browsers:
    """Those that all environments with this limit share."""
    return Browsers(limit)


class Browser:
    """One Chromium with the pages that are open in it, the last used last."""

    def __init__(self, driver: Any, chromium: Any, context: Any):
        self.driver, self.chromium, self.context = driver, chromium, context
        self.pages: dict[str, tuple[Any, Any]] = {}

    async def page(self, address: str, prepare: str, again: bool = False) -> tuple[Any, Any]:
        """(page, its DevTools session) at `address`, where the script `prepare` ran once; loaded `again` where asked."""
        held = self.pages.pop(address, None)
        if held is None:
            page = await self.context.new_page()
            held = page, await self.context.new_cdp_session(page)
            again = True
            if len(self.pages) >= PAGES:
                oldest, _ = self.pages.pop(next(iter(self.pages)))
                await oldest.close()
        if again:
            await held[0].goto(address)
            await held[0].evaluate(prepare)
        self.pages[address] = held
        return held

    async def close(self) -> None:
        for close in (self.chromium.close, self.driver.stop):
            with contextlib.suppress(Exception):  # it may be dead
                await asyncio.wait_for(close(), CLOSING_S)


class Browsers:
    """At most `limit` browsers. Its coroutines belong in the thread of the browsers (`apart`).

    Attributes:
      counts: made, lent, broken (during an episode), dead (found so between episodes).
    """

    def __init__(self, limit: int):
        if limit < 1:
            raise ValueError(f"browsers = {limit}; expected at least 1")
        self.free, self.counts = list[Browser](), Counter[str]()
        self.places = asyncio.Semaphore(limit)
        atexit.register(self.shut)

    async def lend(self) -> Browser:
        """One that is free, once there is one."""
        await self.places.acquire()
        try:
            while self.free:
                browser = self.free.pop()
                if browser.chromium.is_connected():
                    break
                self.counts["dead"] += 1
                await browser.close()
            else:
                browser = await self._start()
        except BaseException:
            self.places.release()
            raise
        self.counts["lent"] += 1
        return browser

    async def back(self, browser: Browser, broken: bool = False) -> None:
        """Take a browser back; a broken one is closed for good."""
        self.counts["broken"] += broken
        if broken:
            await browser.close()
        else:
            self.free.append(browser)
        self.places.release()

    async def _start(self) -> Browser:
        from playwright.async_api import async_playwright

        options = [*OPTIONS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        driver = await async_playwright().start()
        try:
            quiet: dict[str, Any] = {"handle_sigint": False, "handle_sigterm": False, "handle_sighup": False}
            chromium = await driver.chromium.launch(executable_path=program(), args=options, timeout=PATIENCE_S * 1000, **quiet)
            context = await chromium.new_context(viewport=WINDOW)
        except BaseException:
            await driver.stop()
            raise
        context.set_default_timeout(PATIENCE_S * 1000)
        self.counts["made"] += 1
        return Browser(driver, chromium, context)

    def shut(self) -> None:
        """Close those that are free."""

        async def close() -> None:
            while self.free:
                await self.free.pop().close()

        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(close(), _loop()).result(CLOSING_S)
