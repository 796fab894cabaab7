"""The little of HTTP/1.1 that the remote engine, servers and pages of this package need: JSON both ways, one exchange per connection.

Left out: keep-alive, streaming, redirects, compression. A connection per exchange costs a fraction of a millisecond beside an answer, and
a dead server cannot leave half-used connections behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import secrets
import signal
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlsplit

TOKEN_ENV = "FOVEA_TOKEN"
HEAD_BYTES = 1 << 16
BODY_BYTES = 1 << 30
CONNECT_S, READ_S = 5.0, 300.0


class Unreachable(ConnectionError):
    """No whole answer came back: refused, reset, cut short or too late. Asking again may help."""


@dataclass(frozen=True)
class Request:
    """What a client sent; `headers` have lower-case names."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """The body as a JSON object; an empty body is an empty one."""
        try:
            value = json.loads(self.body or b"{}")
        except (ValueError, RecursionError) as e:
            raise Refused(400, f"the body is not JSON: {e}") from None
        if not isinstance(value, dict):
            raise Refused(400, f"the body is {type(value).__name__}; expected a JSON object")
        return value


class Refused(Exception):
    """A request that is answered with an error status."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Reply:
    """An answer other than JSON."""

    body: bytes
    kind: str
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Request], Awaitable[Any]]


# -- the asking side ----------------------------------------------------------------------------------------------------------


async def exchange(url: str, method: str, path: str, payload: Any = None, token: str = "", timeout_s: float = 60.0) -> tuple[int, bytes]:
    """Send one request; returns (status, body).

    Raises:
      Unreachable: with the url and why.
    """
    parts = urlsplit(url)
    where = f"{url}{path}"
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await _connect(parts.hostname or "", parts.port, parts.scheme == "https")
            try:
                writer.write(_request(parts.netloc, method, parts.path.rstrip("/") + path, payload, token))
                await writer.drain()
                return await _answer(reader)
            finally:
                writer.close()
    except TimeoutError:
        raise Unreachable(f"{where}: no answer within {timeout_s:g} s") from None
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as e:
        raise Unreachable(f"{where}: {type(e).__name__}: {e}") from None


async def _connect(host: str, port: int | None, tls: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        async with asyncio.timeout(CONNECT_S):
            context = ssl.create_default_context() if tls else None
            return await asyncio.open_connection(host, port or (443 if tls else 80), ssl=context, limit=HEAD_BYTES)
    except TimeoutError:
        raise ConnectionError(f"no connection within {CONNECT_S:g} s") from None


def _request(host: str, method: str, path: str, payload: Any, token: str) -> bytes:
    body = b"" if payload is None else json.dumps(payload).encode()
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", f"Content-Length: {len(body)}"]
    lines += ["Content-Type: application/json"] if body else []
    lines += [f"Authorization: Bearer {token}"] if token else []
    return "\r\n".join([*lines, "", ""]).encode() + body


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    first, headers = _head(await reader.readuntil(b"\r\n\r\n"))
    status = int(first.split(" ", 2)[1])
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return status, await _chunks(reader)
    if "content-length" in headers:
        return status, await reader.readexactly(_bounded(int(headers["content-length"])))
    out = bytearray()
    while part := await reader.read(HEAD_BYTES):
        out += part
        _bounded(len(out))
    return status, bytes(out)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    out = bytearray()
    while size := int((await reader.readline()).split(b";")[0], 16):
        _bounded(len(out) + size)
        out += (await reader.readexactly(size + 2))[:-2]
    return bytes(out)


def _bounded(size: int) -> int:
    if size > BODY_BYTES:
        raise ValueError(f"an answer of {size} bytes or more; expected at most {BODY_BYTES}")
    return size


def _head(raw: bytes) -> tuple[str, dict[str, str]]:
    """First line and headers of a message."""
    first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return first, {name.strip().lower(): value.strip() for name, _, value in pairs}


# -- the answering side -------------------------------------------------------------------------------------------------------


async def listen(handler: Handler, host: str, port: int, admit: Callable[[Request], None] | None = None) -> asyncio.Server:
    """Answer requests with what `handler` returns, as JSON unless it is a `Reply`; `Refused` becomes an error status.

    A handler is cancelled when its client goes away.

    Args:
      admit: raises `Refused` for a request whose body, not read yet, shall not be.
    """

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            try:
                status, payload = await _handle(handler, reader, admit)
                reply = payload if isinstance(payload, Reply) else Reply(json.dumps(payload).encode(), "application/json", status)
                writer.write(_response(reply))
                await writer.drain()
            finally:
                writer.close()

    return await asyncio.start_server(connection, host, port, limit=HEAD_BYTES)


async def _handle(handler: Handler, reader: asyncio.StreamReader, admit: Callable[[Request], None] | None) -> tuple[int, Any]:
    try:
        async with asyncio.timeout(READ_S):
            request = await _read(reader, admit)
        work = asyncio.ensure_future(handler(request))
        gone = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ConnectionResetError("the client went away")
            return 200, work.result()
        finally:
            work.cancel()
            gone.cancel()
    except Refused as e:
        return e.status, {"error": {"message": str(e), "type": HTTPStatus(e.status).phrase, "code": e.status}}
    except (OSError, asyncio.IncompleteReadError):
        raise
    except Exception as e:
        status = 400 if isinstance(e, (ValueError, TypeError, KeyError, OverflowError, asyncio.LimitOverrunError)) else 500
        return status, {"error": {"message": f"{type(e).__name__}: {e}", "type": HTTPStatus(status).phrase, "code": status}}


async def _read(reader: asyncio.StreamReader, admit: Callable[[Request], None] | None) -> Request:
    first, headers = _head(await reader.readuntil(b"\r\n\r\n"))
    method, target, _ = first.split(" ", 2)
    parts = urlsplit(target)
    request = Request(method, parts.path, dict(parse_qsl(parts.query)), headers, b"")
    if admit is not None:
        admit(request)
    if "transfer-encoding" in headers:
        raise Refused(411, f"Transfer-Encoding {headers['transfer-encoding']!r} is not spoken here; expected a Content-Length")
    size = int(headers.get("content-length", 0))
    if size > BODY_BYTES:
        raise Refused(413, f"found a body of {size} bytes; expected at most {BODY_BYTES}")
    return replace(request, body=await reader.readexactly(size))


def _response(reply: Reply) -> bytes:
    lines = [f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}", f"Content-Type: {reply.kind}"]
    lines += [f"Content-Length: {len(reply.body)}", "Connection: close", *(f"{name}: {value}" for name, value in reply.headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + reply.body


# -- a server of this package ---------------------------------------------------------------------------------------------------


def secret(token: str, host: str, harm: str) -> str:
    """The token to ask for: the given one, that of the environment, or a new one; "none" asks for none, on this machine only.

    Args:
      harm: what other machines could do without one, for the error.
    Raises:
      ValueError: no token for an address that other machines reach.
    """
    if token == "none":
        if host not in ("127.0.0.1", "localhost", "::1"):
            raise ValueError(f"--token none with --host {host}: other machines could {harm}; expected a token")
        return ""
    return token or os.environ.get(TOKEN_ENV, "") or secrets.token_urlsafe(16)


def same(given: str, token: str) -> bool:
    """Whether a client holds the token; takes the same time whatever it sent."""
    return not token or hmac.compare_digest(given.encode(), token.encode())


GUARD = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}
"""Headers of everything that a page's server answers."""


class Door:
    """Lets a browser in whose address holds the token, which becomes a cookie on the first visit.

    So it stays out of the browser's history and of every later request. What another page asks for is refused: a browser sends a cookie
    to every port of a host, and from every port of it.

    Args:
      name: of the cookie, to which the port is added: cookies of one host are shared by its ports.
      token: "" asks for none.
    """

    def __init__(self, name: str, token: str):
        self.name, self.cookie, self.token = name, name, token

    def at(self, address: str) -> None:
        """The server listens there."""
        self.cookie = f"{self.name}-{address.rpartition(':')[2]}"

    def check(self, request: Request, printed_by: str) -> None:
        """
        Raises:
          Refused: not the token, or another page asks.
        """
        origin, host = request.headers.get("origin"), request.headers.get("host", "")
        if origin is not None and urlsplit(origin).netloc != host:
            raise Refused(403, f"a page of {origin[:80]} asks; expected this server's own, of {host[:80]}")
        given = (request.query.get("token", ""), request.headers.get("authorization", "").removeprefix("Bearer "), self._kept(request))
        if not any(same(g, self.token) for g in given):
            raise Refused(401, f"the token is missing or wrong; open the whole address that {printed_by} printed")

    def first(self, request: Request) -> Reply | None:
        """The answer to a first visit, which leads to the address without the token."""
        if not self.token or not request.query.get("token"):
            return None
        kept = f"{self.cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/"
        return Reply(b"", "text/plain", 303, {**GUARD, "Location": "/", "Set-Cookie": kept})

    def whole(self, address: str) -> str:
        """The address with the token in it."""
        return f"{address}/?token={self.token}" if self.token else address

    def told(self, address: str, given: str = "") -> str:
        """The same to be printed: a token that whoever started the server knows already is not said."""
        return f"{address}/?token=TOKEN" if self.token and self.token in (given, os.environ.get(TOKEN_ENV)) else self.whole(address)

    def _kept(self, request: Request) -> str:
        try:
            found: Mapping[str, Any] = SimpleCookie(request.headers.get("cookie", ""))
        except CookieError:
            return ""
        return found[self.cookie].value if self.cookie in found else ""


def address_of(host: str, server: asyncio.Server) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{server.sockets[0].getsockname()[1]}"


async def until_stopped(handler: Handler, host: str, port: int, admit: Callable[[Request], None], started: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; `started` gets the address once the server listens."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = await listen(handler, host, port, admit)
    try:
        started(address_of(host, server))
        await stop.wait()
    finally:
        server.close()
