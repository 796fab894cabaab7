"""`fovea serve CHECKPOINT`: a small generation server over the local engine, with the fields that vLLM and SGLang speak.

It is the reference for the remote engine (fovea.rollout.remote) and runs wherever the library does. Tokens and pictures go in, token ids
and log-probs come out, the version of the weights is on every answer, and a seed means the tokens of the local engine. Requests of all
connections are decoded together. One thread speaks HTTP, one thread owns the policy.

Left out: streaming, penalties, tools, structured output, fetching pictures from the network. A field that would change the answer and is
not spoken here is refused, never ignored.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import tempfile
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fovea.rollout.engine import Call, Engine, Rollout, Units
from fovea.rollout.http import TOKEN_ENV, Refused, Request, same, secret, until_stopped
from fovea.rollout.sampling import Sampling, address
from fovea.rollout.wire import BANNED
from fovea.tasks.pictures import pictures_of
from fovea.types import Context, Message, Prefix, Task

QUIET_S, SETTLE_S = 0.02, 0.2  # an idle server waits until nothing more has arrived for so long, and at most so long
MASK64 = 2**64 - 1

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "stream": (False, None),
    "echo": (False, None),
    "suffix": (None, ""),
    "best_of": (None, 1),
    "frequency_penalty": (None, 0, 0.0),
    "presence_penalty": (None, 0, 0.0),
    "repetition_penalty": (None, 1, 1.0),
    "min_p": (None, 0, 0.0),
    "ignore_eos": (None, False),
    "tools": (None, []),
    "response_format": (None, {"type": "text"}),
}
"""Fields of the OpenAI protocol that are understood only where they change nothing."""
SAMPLED = {"n", "temperature", "top_p", "top_k", "stop", "stop_token_ids", "logit_bias", "skip_special_tokens", "seed", "seeds"}
OPENAI_SAMPLED = SAMPLED | {"max_tokens", "max_completion_tokens", "min_tokens", "include_stop_str_in_output", "logprobs", "top_logprobs"}
OPENAI_SAMPLED |= {"flat_logprobs"}
SGLANG_SAMPLED = SAMPLED | {"max_new_tokens", "min_new_tokens", "no_stop_trim", "sampling_seed"}
COMMON = {"model", "return_token_ids", "prompt_length", "user", "metadata"}


# -- the thread that owns the policy ------------------------------------------------------------------------------------------


class Ticket:
    """One wanted sample: settled by the generator's thread, awaited in the event loop. It knows the weights it came from."""

    def __init__(self, generator: Generator):
        self.generator, self.version = generator, ""
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[str] = self.loop.create_future()

    def done(self) -> bool:
        return self.future.done()

    def set_result(self, stop: str) -> None:
        self.version = self.generator.version
        self._settle(stop, self.future.set_result)

    def set_exception(self, error: Exception) -> None:
        self._settle(error, self.future.set_exception)

    def _settle(self, value: Any, setter: Callable[[Any], None]) -> None:
        def settle() -> None:
            if not self.future.done():
                setter(value)

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(settle)


class Generator(Rollout):
    """A rollout without episodes: its calls are handed in from outside, in sets that are admitted as a whole.

    Attributes:
      version: name of the present weights; every ticket carries the one it was drawn from.
    """

    def __init__(self, policy: Any, version: str, max_rows: int):
        # temperature 0 here lets every call's own temperature stand
        super().__init__(Engine(policy, max_rows=max_rows), [], Sampling(temperature=0.0), Context(), None, None, 0)
        self.version, self.paused, self.closing = version, False, False
        self.waiting: deque[list[Call]] = deque()
        self.jobs: deque[tuple[Callable[[], None], Ticket]] = deque()
        self.changed, self.arrived = threading.Condition(), 0.0
        self.thread = threading.Thread(target=self.work, name="generator", daemon=True)

    def ask(self, prefix: Prefix, said: Sequence[int], sampling: Sampling, keys: Sequence[int]) -> list[Call]:
        """Queue one call per key, each with the tokens `said` after the prompt; await their tickets."""
        room = sampling.max_new_tokens
        calls = [Call(Units(prefix), sampling, room, key & MASK64, 0, len(said), ANY, Ticket(self)) for key in keys]  # type: ignore[arg-type]
        for call in calls:
            call.units.insert(said, 0, 0)
        with self.changed:
            self.waiting.append(calls)
            self.arrived = time.monotonic()
            self.changed.notify()
        return calls

    async def alone(self, job: Callable[[], None]) -> None:
        """Run `job` in the generator's thread when no row is being decoded; calls that are queued wait for it."""
        ticket = Ticket(self)
        with self.changed:
            self.jobs.append((job, ticket))
            self.changed.notify()
        await ticket.future

    def pause(self, paused: bool) -> None:
        """While paused nothing new is admitted; what runs goes on to its end."""
        with self.changed:
            self.paused = paused
            self.changed.notify()

    def close(self) -> None:
        with self.changed:
            self.closing = True
            self.changed.notify()
        if self.thread.is_alive():
            self.thread.join()

    # -- in the thread --------------------------------------------------------------------------------------------------------

    @property
    def live(self) -> int:
        return sum(len(rows) for _, rows in self.rows)

    def work(self) -> None:
        while not self.closing:
            job = self.next()
            try:
                if job is not None:
                    job[0]()
                    job[1].set_result("")
                    continue
                if self.pending:
                    self.admit()
                if self.rows:
                    self.step()
            except Exception as e:
                if job is not None:
                    job[1].set_exception(e)
                else:
                    self.give_up(e)

    def next(self) -> Any:
        """Wait for work and move what fits from the queue to the pending calls; a job comes when the rows before it are done."""
        with self.changed:
            self.changed.wait_for(lambda: self.closing or self.rows or self.jobs or (self.waiting and not self.paused))
            if self.jobs:
                return None if self.rows else self.jobs.popleft()
            if not self.rows:
                self.settle()
            held = self.live
            while self.waiting and not self.paused and (not held or held + len(self.waiting[0]) <= self.engine.max_rows):
                calls = [c for c in self.waiting.popleft() if not c.done.done()]
                self.pending += calls
                held += len(calls)
        return None

    def settle(self) -> None:
        """Let requests that come together start together: what is prefilled together is decoded faster."""
        until = time.monotonic() + SETTLE_S
        while not self.closing and (left := min(self.arrived + QUIET_S, until) - time.monotonic()) > 0:
            self.changed.wait(left)

    def prefill(self, part: list[list[Call]]) -> None:
        """As ever; where it fails, call by call, so that only those fail that cannot be had by themselves."""
        try:
            super().prefill(part)
        except Exception as e:
            calls = [c for together in part for c in together]
            if len(calls) == 1:
                calls[0].done.set_exception(e)
                return
            for call in calls:
                self.prefill([[call]])

    def finished(self, call: Call) -> bool:
        return call.done.done() or super().finished(call)  # its client may be gone

    def give_up(self, error: Exception) -> None:
        for call in [*self.pending, *(c for _, rows in self.rows for c in rows)]:
            call.done.set_exception(error)
        self.pending, self.rows, self.logits = [], [], []


ANY = Task(id="request", source="http", prompt=())


# -- the thread that speaks HTTP ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """One request in the engine's words; `said` are the tokens after the prompt."""

    prefix: Prefix
    said: list[int]
    sampling: Sampling
    keys: list[int]
    keep_stop: bool
    keep_special: bool


class App:
    """The routes."""

    def __init__(self, policy: Any, name: str, token: str = "", max_rows: int = 256, max_context: int | None = None):
        self.policy, self.name, self.token, self.max_rows, self.max_context = policy, name, token, max_rows, max_context
        self.generator = Generator(policy, "initial", max_rows)
        self.asleep = False
        self.routes: dict[tuple[str, str], Callable[[Request], Awaitable[Any]]] = {
            ("GET", "/health"): self.health,
            ("GET", "/v1/models"): self.models,
            ("GET", "/weight_info"): self.weight_info,
            ("GET", "/get_model_info"): self.weight_info,
            ("GET", "/is_paused"): self.is_paused,
            ("GET", "/is_sleeping"): self.is_sleeping,
            ("POST", "/v1/completions"): self.completions,
            ("POST", "/v1/chat/completions"): self.chat,
            ("POST", "/inference/v1/generate"): self.tokens,
            ("POST", "/generate"): self.sglang,
            ("POST", "/update_weights_from_disk"): self.update_weights,
            ("POST", "/pause"): self.pause,
            ("POST", "/pause_generation"): self.pause,
            ("POST", "/resume"): self.resume,
            ("POST", "/continue_generation"): self.resume,
            ("POST", "/sleep"): self.sleep,
            ("POST", "/release_memory_occupation"): self.sleep,
            ("POST", "/wake_up"): self.wake_up,
            ("POST", "/resume_memory_occupation"): self.wake_up,
        }

    def admit(self, request: Request) -> None:
        """
        Raises:
          Refused: no such route, or not the token. The body need not be there yet.
        """
        if (request.method, request.path) not in self.routes:
            known = ", ".join(f"{m} {p}" for m, p in self.routes if p == request.path)
            raise Refused(405 if known else 404, f"no route {request.method} {request.path}" + (f"; there is {known}" if known else ""))
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if request.path != "/health" and not same(given, self.token):
            raise Refused(401, "the token is missing or wrong; expected the header 'Authorization: Bearer TOKEN'")

    async def handle(self, request: Request) -> Any:
        self.admit(request)
        return await self.routes[request.method, request.path](request)

    # -- state ----------------------------------------------------------------------------------------------------------------

    async def health(self, _: Request) -> Any:
        if not self.generator.thread.is_alive():
            raise Refused(503, "the generator has stopped")
        return {"status": "ok"}

    async def models(self, _: Request) -> Any:
        model = {"id": self.name, "object": "model", "created": 0, "owned_by": "fovea", "weight_version": self.generator.version}
        return {"object": "list", "data": [model]}

    async def weight_info(self, _: Request) -> Any:
        return {"weight_version": self.generator.version, "model_path": self.name}

    async def is_paused(self, _: Request) -> Any:
        return {"is_paused": self.generator.paused}

    async def is_sleeping(self, _: Request) -> Any:
        return {"is_sleeping": self.asleep}

    async def pause(self, _: Request) -> Any:
        self.generator.pause(True)
        return {"status": "paused"}

    async def resume(self, _: Request) -> Any:
        self.generator.pause(False)
        return {"status": "resumed"}

    async def sleep(self, _: Request) -> Any:
        """Forget what was cached and answer nothing until woken; the weights stay."""
        self.asleep = True
        await self.generator.alone(self.policy.forget)
        return {"status": "asleep"}

    async def wake_up(self, _: Request) -> Any:
        self.asleep = False
        return {"status": "awake"}

    async def update_weights(self, request: Request) -> Any:
        """Load safetensors of the same architecture; running requests end on the old weights, later ones start on the new."""
        body = request.json()
        folder, version = body.get("model_path"), body.get("weight_version")
        if not isinstance(folder, str) or not folder:
            raise Refused(400, f"model_path is {folder!r}; expected the folder of a checkpoint")

        def load() -> None:
            self.policy.load_weights(Path(folder))
            self.generator.version = self.generator.version if version is None else str(version)

        try:
            await self.generator.alone(load)
        except (ValueError, OSError) as e:
            return {"success": False, "message": f"{type(e).__name__}: {e}"}
        return {"success": True, "message": f"weights of version {self.generator.version}"}

    # -- generation -----------------------------------------------------------------------------------------------------------

    async def completions(self, request: Request) -> Any:
        body = self.checked(request.json(), OPENAI_SAMPLED | COMMON | {"prompt"})
        prompt = body.get("prompt")
        ids = self.policy.encode_text(prompt) if isinstance(prompt, str) else token_ids(prompt, "prompt")
        wanted = self.wanted(body, *self.prefix(body, ids, ()), 16)
        rows = [
            {
                **row,
                "prompt_token_ids": [*self.policy.prompt_ids(wanted.prefix), *wanted.said],
                "logprobs": logprobs and {**logprobs, "top_logprobs": None},
            }
            for row, logprobs in [
                (row, None if body.get("logprobs") is None else {"tokens": words, "token_logprobs": logps})
                for row, words, logps in await self.generate(wanted)
            ]
        ]
        return self.reply(wanted, rows, "text_completion")

    async def chat(self, request: Request) -> Any:
        body = self.checked(request.json(), OPENAI_SAMPLED | COMMON | {"messages", "add_generation_prompt", "continue_final_message"})
        messages, images = conversation(body.get("messages"))
        wanted = self.wanted(body, self.policy.encode(messages, images), [], Sampling.max_new_tokens)
        rows = []
        for row, words, logps in await self.generate(wanted):
            row["message"] = {"role": "assistant", "content": row.pop("text")}
            row["logprobs"] = contents(words, logps, body) if body.get("logprobs") else None
            rows.append(row)
        return {**self.reply(wanted, rows, "chat.completion"), "prompt_token_ids": [*self.policy.prompt_ids(wanted.prefix), *wanted.said]}

    async def tokens(self, request: Request) -> Any:
        body = request.json()
        options = self.checked(dict(body.pop("sampling_params", {})), OPENAI_SAMPLED)
        self.checked(body, COMMON | {"token_ids", "content_parts"})
        images = [picture(p["image_url"]["url"]) for p in body.get("content_parts") or ()]
        wanted = self.wanted(options, *self.prefix(body, token_ids(body.get("token_ids"), "token_ids"), images), 16)
        rows = []
        for row, words, logps in await self.generate(wanted):
            row["logprobs"] = contents(words, logps, options) if options.get("logprobs") is not None else None
            row["weight_versions"] = [{"version": row.pop("weight_version"), "start": 0, "end": len(logps)}]
            rows.append(row)
        return {**self.reply(wanted, rows, "generate"), "prompt_token_ids": [*self.policy.prompt_ids(wanted.prefix), *wanted.said]}

    async def sglang(self, request: Request) -> Any:
        body = request.json()
        options = self.checked(dict(body.pop("sampling_params", {})), SGLANG_SAMPLED)
        self.checked(body, {"text", "input_ids", "image_data", "return_logprob", "logprob_start_len", "prompt_length"})
        given = body.get("image_data") or []
        images = [picture(x) for x in ([given] if isinstance(given, str) else given)]
        text = body.get("text")
        ids = self.policy.encode_text(text) if isinstance(text, str) else token_ids(body.get("input_ids"), "input_ids")
        seed = options.pop("sampling_seed", None)
        options |= {"seeds": seed} if isinstance(seed, list) else {} if seed is None else {"seed": seed}
        options |= {"max_tokens": options.pop("max_new_tokens", 128), "min_tokens": options.pop("min_new_tokens", 0)}
        options |= {"top_k": max(0, options.get("top_k", 0)), "include_stop_str_in_output": options.pop("no_stop_trim", False)}
        wanted = self.wanted(options, *self.prefix(body, ids, images), 128)
        rows = []
        for row, _, logps in await self.generate(wanted):
            finish = {"type": row["finish_reason"]}
            finish |= {"length": len(logps)} if finish["type"] == "length" else {"matched": row["stop_reason"] or row["token_ids"][-1]}
            meta = {
                "id": secrets.token_hex(8),
                "finish_reason": finish,
                "prompt_tokens": wanted.prefix.length + len(wanted.said),
                "completion_tokens": len(logps),
                "weight_version": row["weight_version"],
            }
            if body.get("return_logprob"):
                meta["output_token_logprobs"] = [[x, i, None] for x, i in zip(logps, row["token_ids"], strict=True)]
            rows.append({"text": row["text"], "output_ids": row["token_ids"], "meta_info": meta})
        return rows[0] if len(rows) == 1 else rows

    def checked(self, body: dict[str, Any], spoken: set[str]) -> dict[str, Any]:
        """The body without neutral fields.

        Raises:
          Refused: a field that is not spoken, another model, or the server sleeps.
        """
        if self.asleep:
            raise Refused(503, "the server sleeps; POST /wake_up first")
        if body.get("model") not in (None, self.name):
            raise Refused(404, f"model {body['model']!r} is not here; this server has {self.name!r}")
        for name, value in body.items():
            if name in NEUTRAL and value not in NEUTRAL[name]:
                raise Refused(400, f"{name} = {value!r} is not spoken here; leave it out")
            if name not in NEUTRAL and name not in spoken:
                raise Refused(400, f"field {name!r} is not spoken here; known: {', '.join(sorted(spoken))}")
        return {k: v for k, v in body.items() if k not in NEUTRAL}

    def prefix(self, body: Mapping[str, Any], ids: list[int], images: Sequence[Image.Image]) -> tuple[Prefix, list[int]]:
        """The prompt, and the tokens after it where the body says that it ends earlier ("prompt_length", placeholders counted once)."""
        vocabulary = self.policy.vocab_size
        if wrong := [i for i in ids if not 0 <= i < vocabulary]:
            raise Refused(400, f"token id {wrong[0]} is outside the vocabulary of {vocabulary}")
        end = int(default(body.get("prompt_length"), len(ids)))
        if not 1 <= end <= len(ids):
            raise Refused(400, f"prompt_length = {end} of {len(ids)} tokens; expected 1 to that many, and a prompt that is not empty")
        return self.policy.encode_ids(ids[:end], images), ids[end:]

    def wanted(self, body: Mapping[str, Any], prefix: Prefix, said: list[int], room: int) -> Wanted:
        """Sampling and random keys of a body in OpenAI's words."""
        stop = body.get("stop") or ()
        stop = (stop,) if isinstance(stop, str) else stop
        if not isinstance(stop, list | tuple) or not all(isinstance(s, str) and s for s in stop):
            raise Refused(400, f"stop: found {str(stop)[:60]}; expected a string, or a list of strings that are not empty")
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        sampling = Sampling(
            temperature=float(default(body.get("temperature"), 1.0)),
            top_p=float(default(body.get("top_p"), 1.0)),
            top_k=max(0, int(default(body.get("top_k"), 0))),
            max_new_tokens=int(default(limit, room)),
            stop=tuple(stop),
            min_new_tokens=int(default(body.get("min_tokens"), 0)),
        )
        used = prefix.length + len(said)
        if self.max_context is not None and used + sampling.max_new_tokens > self.max_context:
            asked = f"{used} tokens of prompt and {sampling.max_new_tokens} to come"
            raise Refused(400, f"{asked}; the context holds {self.max_context}: ask for fewer (max_tokens), or a shorter prompt")
        if extra := set(body.get("stop_token_ids") or ()) - set(self.policy.eos_ids):
            raise Refused(400, f"stop_token_ids {sorted(extra)}: only the model's own {self.policy.eos_ids} are spoken here")
        banned = self.policy.banned_ids
        for name, bias in dict(body.get("logit_bias") or {}).items():
            if int(name) not in banned or bias > BANNED:
                raise Refused(400, f"logit_bias of token {name}: only {BANNED:g} for the placeholders {banned} is spoken here")
        count = int(default(body.get("n"), 1))
        if not 1 <= count <= self.max_rows:
            raise Refused(400, f"n = {count}; expected 1 to {self.max_rows}")
        keys: list[int] = list(body.get("seeds") or [])
        if keys and len(keys) != count:
            raise Refused(400, f"{len(keys)} seeds for n = {count}; expected one per sample")
        if not keys:
            seed = body.get("seed")
            keys = [address(int(seed), i) for i in range(count)] if seed is not None else [secrets.randbits(64) for _ in range(count)]
        keep_special = not default(body.get("skip_special_tokens"), True)
        return Wanted(prefix, said, sampling, keys, bool(body.get("include_stop_str_in_output")), keep_special)

    async def generate(self, wanted: Wanted) -> list[tuple[dict[str, Any], list[str], list[float]]]:
        """(row in OpenAI's words, its tokens as text, its log-probs) of each sample."""
        calls = self.generator.ask(wanted.prefix, wanted.said, wanted.sampling, wanted.keys)
        tickets: list[Ticket] = [c.done for c in calls]  # type: ignore[misc]
        stops = await asyncio.gather(*(t.future for t in tickets))
        return [self.row(i, call, stop, t.version, wanted) for i, (call, stop, t) in enumerate(zip(calls, stops, tickets, strict=True))]

    def row(self, index: int, call: Call, stop: str, version: str, wanted: Wanted) -> tuple[dict[str, Any], list[str], list[float]]:
        ids = call.units.ids[call.start :]
        text = self.policy.decode_text(ids, not wanted.keep_special)
        matched = next((s for s in wanted.sampling.stop if s in text), None) if stop == "stop" else None
        if matched and not wanted.keep_stop:
            text = text[: text.index(matched)]
        row = {
            "index": index,
            "text": text,
            "token_ids": ids,
            "finish_reason": "length" if stop == "length" else "stop",
            "stop_reason": matched,
            "weight_version": version,
        }
        return row, [f"token_id:{i}" for i in ids], call.units.logp_behaviour[call.start :]

    def reply(self, wanted: Wanted, rows: list[dict[str, Any]], kind: str) -> dict[str, Any]:
        given, used = wanted.prefix.length + len(wanted.said), sum(len(r["token_ids"]) for r in rows)
        versions = {r.pop("weight_version") for r in rows if "weight_version" in r}
        return {
            "id": f"{kind}-{secrets.token_hex(8)}",
            "object": kind,
            "created": int(time.time()),
            "model": self.name,
            "weight_version": versions.pop() if len(versions) == 1 else None,
            "choices": rows,
            "usage": {"prompt_tokens": given, "completion_tokens": used, "total_tokens": given + used},
        }


def default(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


def token_ids(value: Any, name: str) -> list[int]:
    if not isinstance(value, list) or not value or not all(isinstance(i, int) for i in value):
        raise Refused(400, f"{name}: found {str(value)[:60]}; expected a list of token ids (one prompt per request)")
    return value


def contents(words: Sequence[str], logps: Sequence[float], options: Mapping[str, Any]) -> dict[str, Any]:
    """The log-probs of an answer: an object for each token, or with "flat_logprobs" a plain list."""
    if options.get("flat_logprobs"):
        return {"token_logprobs": logps}
    return {"content": [{"token": w, "logprob": x, "bytes": None, "top_logprobs": []} for w, x in zip(words, logps, strict=True)]}


def conversation(messages: Any) -> tuple[tuple[Message, ...], tuple[Image.Image, ...]]:
    """OpenAI's messages with pictures inside -> ours with pictures beside."""
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and "content" in m for m in messages
    ):
        raise Refused(400, 'messages: expected a list of {"role": ..., "content": ...}')
    images: list[Image.Image] = []

    def part(p: Any) -> Any:
        if not isinstance(p, dict) or p.get("type") not in ("text", "image_url"):
            raise Refused(400, f"messages: found part {str(p)[:60]}; expected type text or image_url")
        if p["type"] == "text":
            if not isinstance(p.get("text"), str):
                raise Refused(400, f"messages: found text {str(p.get('text'))[:60]}; expected a string")
            return p
        images.append(picture(p["image_url"]["url"]))
        return {"type": "image"}

    said = tuple(m if isinstance(m["content"], str) else {**m, "content": [part(p) for p in m["content"]]} for m in messages)
    return said, tuple(images)


def picture(url: str) -> Image.Image:
    """The picture of a data URL, or of bare base64; addresses are not fetched."""
    return pictures_of(url if ":" in url else f"data:image;base64,{url}", [])[0].decode()


# -- the process --------------------------------------------------------------------------------------------------------------


async def run(app: App, host: str, port: int, said: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM, then end what runs and close."""
    app.generator.thread.start()
    try:
        await until_stopped(app.handle, host, port, app.admit, lambda address: said(f"serving {app.name} at {address}"))
    finally:
        app.generator.close()


def serve(
    model: str, host: str = "127.0.0.1", port: int = 8000, token: str = "", device: str = "cpu", dtype: str = "float32", max_rows: int = 256
) -> None:
    """Serve a checkpoint until Ctrl-C.

    Args:
      model: as in `fovea.api.load_policy`.
      port: 0 takes a free one; the first line of output says which.
      token: what clients must send; "" takes it from FOVEA_TOKEN or makes one and prints it; "none" asks for none.
      max_rows: samples decoded at a time.
    """
    from fovea.api import load_policy

    expected = secret(token, host, "use and change this model")
    policy = load_policy(model, device=device, dtype=dtype)
    if policy.model.adapters:  # trainers send whole weights
        with tempfile.TemporaryDirectory() as folder:
            policy.save(folder, merged=True)
            policy = load_policy(folder, device=device, dtype=dtype)
    longest = getattr(policy.model.vlm.config.text_config, "max_position_embeddings", None)
    app = App(policy, Path(model).name, expected, max_rows, longest)

    def said(line: str) -> None:
        print(line, flush=True)
        if expected and expected not in (token, os.environ.get(TOKEN_ENV)):
            print(f"clients need {TOKEN_ENV}={expected}", flush=True)

    asyncio.run(run(app, host, port, said))
    print("stopped", flush=True)
