"""`fovea view RUN…`: the run page over a local server, live while the runs go on, whole where `report.html` holds a sample.

The address holds a token, which becomes a cookie on the first visit, so that it stays out of the browser's history and of every later
request. Nothing is written and nothing outside the run folders is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from fovea.files import write_text
from fovea.report.compare import compare
from fovea.report.page import dumped, policy, render, shell
from fovea.report.records import Reader
from fovea.rollout.http import GUARD, Door, Refused, Reply, Request, secret, until_stopped


def opened(folders: Sequence[str | Path]) -> list[Reader]:
    """Readers of run folders.

    Raises:
      FileNotFoundError: a folder is missing or holds no run.
    """
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: expected a run folder, found nothing there")
        if not any((folder / name).exists() for name in ("metrics.jsonl", "config.json", "rollouts")):
            inside = ", ".join(sorted(f.name for f in folder.iterdir())[:6]) or "nothing"
            raise FileNotFoundError(f"{folder}: expected a run folder with config.json, metrics.jsonl or rollouts/, found {inside}")
    return [Reader(folder) for folder in folders]


class App:
    """The routes. A request for a run names it by its place in `readers`."""

    def __init__(self, readers: Sequence[Reader], token: str = ""):
        self.readers, self.door = list(readers), Door("fovea-view", token)
        self.busy = [asyncio.Lock() for _ in self.readers]
        self.routes: dict[str, Callable[[Request], Awaitable[Any]]] = {
            "/": self.page,
            "/news": self.news,
            "/record": self.record,
            "/picture": self.picture,
            "/film": self.film,
        }

    def admit(self, request: Request) -> None:
        """
        Raises:
          Refused: no such route, or not the token.
        """
        if request.method != "GET" or request.path not in self.routes:
            raise Refused(404, f"no route {request.method} {request.path}; there is GET {', '.join(self.routes)}")
        self.door.check(request, "`fovea view`")

    async def handle(self, request: Request) -> Any:
        self.admit(request)
        return await self.routes[request.path](request)

    async def page(self, request: Request) -> Reply:
        if (first := self.door.first(request)) is not None:
            return first
        text = await asyncio.to_thread(shell, self.readers)
        return Reply(text.encode(), "text/html; charset=utf-8", headers={**GUARD, "Content-Security-Policy": policy("'self'")})

    async def news(self, request: Request) -> Reply:
        """What is new in a run: rows of metrics, entries of the index, problems."""
        run, query = self._run(request), request.query
        total, last, since = int(query.get("total", 0)), float(query.get("last", -1)), int(query.get("since", 0))

        def found() -> dict[str, Any]:
            reader = self.readers[run]
            revision = reader.refresh()
            fresh = {**reader.news(total, last), "revision": revision, "index": reader.index(since), "problems": reader.problems}
            changed = len(self.readers) > 1 and (fresh["total"], fresh["last"]) != (total, last)
            return {**fresh, "compare": compare(self.readers) if changed else None}

        async with self.busy[run]:
            return _json(await asyncio.to_thread(found))

    async def record(self, request: Request) -> Reply:
        reader = self.readers[self._run(request)]
        try:
            return _json(reader.record(request.query.get("file", ""), int(request.query.get("line", -1))))
        except ValueError as e:
            raise Refused(404, str(e)) from None

    async def picture(self, request: Request) -> Reply:
        name = request.query.get("name", "")
        return _kept(self.readers[self._run(request)].picture(name), "image/png", f"rollouts/images has no picture {name!r}")

    async def film(self, request: Request) -> Reply:
        name = request.query.get("name", "")
        return _kept(self.readers[self._run(request)].film(name), "video/mp4", f"rollouts/films has no film {name!r}")

    def _run(self, request: Request) -> int:
        text = request.query.get("run", "0")
        if not text.isdecimal() or int(text) >= len(self.readers):
            raise Refused(404, f"no run {text}; there are {len(self.readers)}, counted from 0")
        return int(text)


def _kept(data: bytes | None, kind: str, absent: str) -> Reply:
    """What is named by its content, so that a browser may keep it."""
    if data is None:
        raise Refused(404, absent)
    return Reply(data, kind, headers={**GUARD, "Cache-Control": "private, max-age=86400, immutable"})


def _json(value: Any) -> Reply:
    return Reply(dumped(value).encode(), "application/json", headers=GUARD)


def view(runs: Sequence[str | Path], host: str = "127.0.0.1", port: int = 0, token: str = "", open_browser: bool = False) -> None:
    """Serve the page of one or several runs until Ctrl-C.

    Args:
      port: 0 takes a free one; the address is printed.
      token: as in `fovea.rollout.http.secret`.
      open_browser: also open the address in this machine's browser.
    """
    readers = opened(runs)
    expected = secret(token, host, "read these runs")
    for reader in readers:
        reader.rows()  # so that the page does not wait for it
    app = App(readers, expected)

    def started(address: str) -> None:
        app.door.at(address)
        print(f"the page of {', '.join(r.name for r in readers)}: {app.door.told(address, token)}", flush=True)
        print("Ctrl-C ends the server; the runs are not touched", flush=True)
        if open_browser:
            import webbrowser

            webbrowser.open(app.door.whole(address))

    asyncio.run(until_stopped(app.handle, host, port, app.admit, started))


def save(runs: Sequence[str | Path], file: str | Path) -> Path:
    """Write the self-contained page of one or several runs."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, render(opened(runs)))
    return file
