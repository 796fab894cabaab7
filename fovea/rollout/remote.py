"""The remote engine: episodes run here, tokens are drawn on servers; fovea.rollout.wire says in which words.

Before a rollout the trainer's weights are written as safetensors to a folder that both sides see, and each server is told to load them
under a version name of this run. Servers that echo the version (`fovea serve`, SGLang) are held to it with every answer: an answer of
other weights is thrown away, the weights are sent again and the question is asked again. A server that does not answer is left alone for
a while; its questions go to another one, or to the same one when it is back, with the weights sent first. So an outage costs time and no
episode, up to `patience_s`.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import os
import secrets
import shutil
import tempfile
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from fovea.images import rgb
from fovea.rollout.engine import Call, Engine, Rollout
from fovea.rollout.http import Unreachable, exchange
from fovea.rollout.wire import PROTOCOLS, Aborted, Answer, Peer, Question
from fovea.waits import Waits

log = logging.getLogger(__name__)

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
TRIES = 3  # of a question that makes a server fail or comes back with other weights
BUSY = (429, 502, 503, 504)
KEPT = 2  # folders of weights: a server may still be reading the one before


class RemoteError(RuntimeError):
    """A server refuses what it is asked, or none has answered for too long."""


@dataclass(frozen=True)
class Remote:
    """Where answers are generated, when not in this process.

    Attributes:
      url: address of a server, or several separated by commas; they share the work, and the questions of one that dies.
      protocol: "openai" for vLLM and `fovea serve`, "sglang" for SGLang (and `fovea serve`).
      weights: folder for weights that this process and every server see under the same path; "" is a temporary one on this machine.
      token_env: environment variable that holds the servers' token, if they want one.
      timeout_s: of one request, answer included.
      patience_s: how long a question may go without any server before the run stops.
      correct: importance weights against the mismatch of server and trainer for a method whose `behaviour` is "none".
      sleep: servers give their accelerator memory back between rollouts (for trainer and server on one device).
    """

    url: str
    protocol: Literal["openai", "sglang"] = "openai"
    weights: str = ""
    token_env: str = "FOVEA_TOKEN"
    timeout_s: float = 600.0
    patience_s: float = 600.0
    correct: Literal["none", "token", "sequence", "sequence-mask"] = "token"
    sleep: bool = False

    def __post_init__(self) -> None:
        wrong = [u for u in self.urls if not u.startswith(("http://", "https://"))]
        if wrong or not self.urls:
            raise ValueError(f"engine.url = {self.url!r}; expected addresses like http://127.0.0.1:8000, separated by commas")
        if any("@" in u.split("/")[2] for u in self.urls):
            raise ValueError(
                "engine.url holds a user or password; expected neither: the run folder keeps it, and a token comes by token_env"
            )
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"engine.protocol = {self.protocol!r}; expected one of {', '.join(PROTOCOLS)}")
        if self.timeout_s <= 0 or self.patience_s < 0:
            raise ValueError(f"engine.timeout_s = {self.timeout_s}, engine.patience_s = {self.patience_s}; expected more than 0, 0 or more")

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(u.strip().rstrip("/") for u in self.url.split(",") if u.strip())


@dataclass
class Server:
    """What is known of one server.

    Attributes:
      peer: who it says it is; None until it has answered.
      served: the version of its weights as far as we know; None after it was lost.
      retry_at: not to be asked before this (monotonic seconds); `why` it was lost.
    """

    url: str
    peer: Peer | None = None
    served: str | None = None
    asleep: bool = False
    busy: int = 0
    failures: int = 0
    retry_at: float = 0.0
    why: str = ""

    def lost(self, why: Exception) -> None:
        """Forget what was known and wait longer than the last time, once per outage."""
        self.peer, self.served, self.why = None, None, str(why)
        if (now := time.monotonic()) >= self.retry_at:
            self.retry_at = now + min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**self.failures)
            if not self.failures:
                log.warning("server lost: %s; its questions wait or go elsewhere", why)
            self.failures += 1

    def found(self) -> None:
        if self.failures:
            log.warning("server is back: %s", self.url)
        self.failures, self.retry_at, self.why = 0, 0.0, ""


class RemoteEngine(Engine):
    """`Engine` with the tokens drawn elsewhere; same programs, environments, addresses and books.

    The segments are marked `remote`: their `logp_old` holds the server's own log-probs until the trainer fills in its own.

    Args:
      policy: the trainer's; it encodes prompts and its weights are what the servers get.
      options: of `Engine`.
    Attributes:
      counts: as of `Engine`, and requests, updates (weights sent), resent (answers asked for again), stale (of other weights).
      waits: for servers that are away, and while weights are on their way to one.
    """

    def __init__(self, policy: Any, remote: Remote, **options: Any):
        super().__init__(policy, **options)
        self.remote = remote
        self.servers = [Server(url) for url in remote.urls]
        self.token = os.environ.get(remote.token_env, "")
        self.run = secrets.token_hex(4)  # so that no server takes another run's version 3 for ours
        self.published: int | None = None
        self.waits = Waits()
        if not remote.weights:
            self._folder = Path(tempfile.mkdtemp(prefix="fovea-weights-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        else:
            self._folder = Path(remote.weights).absolute()

    def begin(self, *args: Any) -> Rollout:
        return RemoteRollout(self, *args)

    @property
    def version(self) -> str:
        """The name of the present weights on the wire."""
        return f"{self.run}-{self.policy.version}"

    def weights(self) -> Path:
        """The folder with the present weights, written once per version: complete or absent."""
        final = self._folder / self.version
        if self.published != self.policy.version:
            partial = final.with_name(f".{final.name}.partial")
            self.policy.save(partial, merged=True)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            self.published = self.policy.version
            old = sorted(self._folder.glob(f"{self.run}-*"), key=lambda p: int(p.name.rpartition("-")[2]))
            for folder in old[:-KEPT]:
                shutil.rmtree(folder, ignore_errors=True)
        return final


class RemoteRollout(Rollout):
    """One rollout whose calls become questions: calls with the same prefix and the same start are asked for at once."""

    engine: RemoteEngine

    def __init__(self, engine: RemoteEngine, *args: Any):
        super().__init__(engine, *args)
        self.urls: dict[int, tuple[Image.Image, str]] = {}
        self.asks: set[asyncio.Task[None]] = set()
        self.failure: BaseException | None = None
        self.met: set[str] = set()  # urls of servers that were asked, in this rollout, which weights they hold
        self.locks = {server.url: asyncio.Lock() for server in engine.servers}

    # -- the driver -----------------------------------------------------------------------------------------------------------

    async def drive(self) -> None:
        self.engine.weights()
        try:
            await super().drive()
            if self.engine.remote.sleep:
                await asyncio.gather(*(self.put_to_sleep(s) for s in self.engine.servers if s.served))
        finally:
            for task in self.asks:
                task.cancel()
            await asyncio.gather(*self.asks, return_exceptions=True)

    def check(self) -> None:
        super().check()
        if self.failure is not None:
            raise self.failure

    async def submit(self, call: Call) -> str:
        """Servers are not asked for what is given; how likely it was is for the trainer to say, as of all answers from elsewhere."""
        if not (call.given and self.draws):
            return await super().submit(call)
        call.units.remote = True
        return self.give(call)

    def admit(self) -> None:
        """Ask for all queued calls."""
        together: dict[Any, list[Call]] = {}
        for call in self.pending:
            together.setdefault((call.units.prefix.key, tuple(call.units.ids), call.sampling, call.room), []).append(call)
        self.pending = []
        for calls in together.values():
            task = asyncio.ensure_future(self.ask(calls))
            self.asks.add(task)
            task.add_done_callback(self.asked)

    def asked(self, task: asyncio.Task[None]) -> None:
        self.asks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self.failure = failure
            self.wake.set()

    async def ask(self, calls: list[Call]) -> None:
        """Get the answers and write them into the books."""
        answers = await self.obtain(self.question(calls))
        version = self.policy.version
        for call, answer in zip(calls, answers, strict=True):
            call.units.remote = True
            for token, logp in zip(answer.ids, answer.logps, strict=True):
                call.units.add(token, logp, logp, call.turn, version)
            self.tokens += len(answer.ids)
            self.engine.counts["tokens"] += len(answer.ids)
            if not call.done.done():
                call.done.set_result(answer.stop)
        self.report()

    def question(self, calls: list[Call]) -> Question:
        first, prefix = calls[0], calls[0].units.prefix
        messages, images = first.units.shown
        if clips := [x for x in images if not isinstance(x, Image.Image)]:
            found = type(clips[0]).__name__
            raise RemoteError(
                f"task {first.task.id!r} shows a {found}; a remote engine sends pictures only: use the local engine for clips"
            )
        prompt = self.policy.prompt_ids(prefix)
        return Question(
            task=first.task.id,
            prompt=prompt,
            compact=self.policy.compact_ids(messages) if images else prompt,
            messages=messages,
            images=[self.data_url(image) for image in images],
            said=list(first.units.ids),
            sampling=first.sampling,
            keys=[call.key for call in calls],
            room=first.room,
            eos_ids=self.policy.eos_ids,
            banned_ids=self.policy.banned_ids,
        )

    def data_url(self, image: Image.Image) -> str:
        """The picture as a data URL, without loss, made once per rollout; kept with it, so that its id stays its own."""
        if id(image) not in self.urls:
            raw = io.BytesIO()
            rgb(image).save(raw, "PNG", compress_level=1)
            self.urls[id(image)] = image, "data:image/png;base64," + base64.b64encode(raw.getvalue()).decode()
        return self.urls[id(image)][1]

    # -- servers --------------------------------------------------------------------------------------------------------------

    async def obtain(self, question: Question) -> list[Answer]:
        """The answers, from whichever server gives them with the right weights.

        Raises:
          RemoteError: a server refuses, or none answered for `patience_s`.
          BadAnswer: an answer that cannot be trained on.
        """
        counts, lost_at, failed = self.engine.counts, None, 0
        while True:
            server = await self.free()
            server.busy += 1  # from here on, so that questions spread while the first weights are on their way
            try:
                peer = await self.ready(server)
                answers = await self.generate(server, peer, question)
                server.found()
            except (Unreachable, Aborted) as e:
                server.lost(e)
                counts["resent"] += len(question.keys)
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > self.engine.remote.patience_s:
                    raise RemoteError(self.explain(question)) from None
                continue
            except Failed as e:
                failed += 1
                if failed == TRIES:
                    raise RemoteError(f"{e} ({TRIES} times, task {question.task!r})") from None
                continue
            finally:
                server.busy -= 1
            silent = set() if peer.ours else {None}  # a server of ours always says
            found = {a.version for a in answers} - {self.engine.version} - silent
            if not found:
                return answers
            counts["stale"] += len(answers)
            server.served, failed = None, failed + 1
            if failed == TRIES:
                raise RemoteError(
                    f"{server.url}: answers with weights {found}, expected {self.engine.version!r} after they were sent {TRIES} times; "
                    "another trainer may be using the same server"
                )

    def explain(self, question: Question) -> str:
        reasons = "; ".join(s.why for s in self.engine.servers if s.why)
        return (
            f"no server has answered task {question.task!r} for {self.engine.remote.patience_s:g} s: {reasons}. Start it again, and "
            "the same command goes on from the last checkpoint"
        )

    async def free(self) -> Server:
        """The least busy server that is not being left alone; waits for the first to become so."""
        while True:
            now = time.monotonic()
            open_now = [s for s in self.engine.servers if s.retry_at <= now]
            if open_now:
                return min(open_now, key=lambda s: s.busy)
            with self.engine.waits:
                await asyncio.sleep(min(s.retry_at for s in self.engine.servers) - now)

    async def ready(self, server: Server) -> Peer:
        """Make sure that the server is awake and holds the present weights."""
        async with self.locks[server.url]:
            if server.retry_at > time.monotonic():
                raise Unreachable(server.why)
            if server.peer is None:
                server.peer = peer_of(await self.call(server, "GET", "/v1/models"))
            if server.asleep:
                await self.wake_up(server)
            if server.served is not None and server.url not in self.met:
                server.served = await self.held(server)
            self.met.add(server.url)
            if server.served != self.engine.version:
                with self.engine.waits:
                    await self.send_weights(server, server.peer)
            return server.peer

    async def held(self, server: Server) -> str | None:
        """The version that the server says it holds: it may have been started again, unnoticed, since the last rollout."""
        path = "/get_model_info" if self.engine.remote.protocol == "sglang" else "/weight_info"
        return (await self.call(server, "GET", path, missing_ok=True)).get("weight_version")

    async def send_weights(self, server: Server, peer: Peer) -> None:
        folder, version = str(self.engine.weights()), self.engine.version
        if peer.owner == "vllm":
            await self.call(server, "POST", "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": folder}})
            await self.call(server, "POST", "/reset_prefix_cache")
            await self.call(server, "POST", "/update_weight_version", {"new_version": version}, missing_ok=True)
        else:
            reply = await self.call(server, "POST", "/update_weights_from_disk", {"model_path": folder, "weight_version": version})
            if not reply.get("success"):
                raise RemoteError(f"{server.url}: weights were not loaded: {reply.get('message')}")
        server.served = version
        self.engine.counts["updates"] += 1

    async def put_to_sleep(self, server: Server) -> None:
        """vLLM's level 1 keeps the weights in main memory; SGLang forgets them, so they are sent again."""
        try:
            if self.engine.remote.protocol == "sglang":
                await self.call(server, "POST", "/release_memory_occupation", {})
                server.served = None
            else:
                await self.call(server, "POST", "/sleep?level=1")
            server.asleep = True
        except Unreachable as e:  # the answers are all there
            server.lost(e)

    async def wake_up(self, server: Server) -> None:
        if self.engine.remote.protocol == "sglang":
            await self.call(server, "POST", "/resume_memory_occupation", {})
        else:
            await self.call(server, "POST", "/wake_up")
        server.asleep = False

    async def generate(self, server: Server, peer: Peer, question: Question) -> list[Answer]:
        write, read = PROTOCOLS[self.engine.remote.protocol]
        asked = write(question, peer)
        self.engine.counts["requests"] += 1
        body = await self.exchange(server, "POST", asked.path, asked.payload)
        return read(asked, body, server.url)

    async def call(self, server: Server, method: str, path: str, payload: Any = None, missing_ok: bool = False) -> dict[str, Any]:
        """A control request; an empty answer, or another than JSON (vLLM's plain "OK"), is an empty dict."""
        body = await self.exchange(server, method, path, payload, missing_ok)
        try:
            reply = json.loads(body or b"{}")
        except ValueError:
            return {}
        return reply if isinstance(reply, dict) else {}

    async def exchange(self, server: Server, method: str, path: str, payload: Any, missing_ok: bool = False) -> bytes:
        """The body of a good answer.

        Raises:
          Unreachable: nobody there, or too busy. Failed: an error inside the server. RemoteError: refused.
        """
        remote = self.engine.remote
        status, body = await exchange(server.url, method, path, payload, self.engine.token, remote.timeout_s)
        if status < 300:
            return body
        if status == 404 and missing_ok:
            return b""
        said = f"{server.url}{path}: status {status}: {message_of(body)}"
        if status in BUSY:
            raise Unreachable(said)
        if status >= 500:
            raise Failed(said)
        raise RemoteError(said + HINTS.get(status, "").format(env=remote.token_env))


class Failed(RuntimeError):
    """A server failed on one question, and may do so again."""


HINTS = {
    401: "; expected the server's token in the environment variable {env}",
    403: "; expected the server's token in the environment variable {env}",
    404: "; is this a generation server of this protocol? vLLM has its control routes only with VLLM_SERVER_DEV_MODE=1",
}


def peer_of(reply: dict[str, Any]) -> Peer:
    rows = reply.get("data")
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
        raise RemoteError(f"/v1/models answered {str(reply)[:120]}; expected a list of models: is this a generation server?")
    return Peer(str(rows[0].get("id", "")), str(rows[0].get("owned_by", "")))


def message_of(body: bytes) -> str:
    """The server's own words, from the JSON shapes in use, else the beginning of what it sent."""
    try:
        reply = json.loads(body)
        error = reply.get("error", reply)
        return str(error.get("message") or error.get("detail") or error)[:400] if isinstance(error, dict) else str(error)[:400]
    except (ValueError, AttributeError):
        return body[:200].decode(errors="replace")
