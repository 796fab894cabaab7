"""What goes over the wire to a generation server, as plain functions from a question to JSON and from JSON to answers.

Three dialects of two protocols are spoken, with the field names of the servers' own request classes:

    "openai"   vLLM and `fovea serve`: /v1/completions (token ids in), /v1/chat/completions (pictures in), /inference/v1/generate (both)
    "sglang"   SGLang and `fovea serve`: /generate

Tokens go in and tokens come out. Where pictures are shown, a prompt has one placeholder for each and the server expands it; the expanded
prompt that it reports must be the trainer's own. Log-probabilities are those of the distribution that was sampled from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fovea.rollout.sampling import Sampling
from fovea.types import Message, begun

BANNED = -100.0  # the bias that both servers treat as "never"
ROUNDING = 1e-3  # a log-probability may exceed 0 by this much


class BadAnswer(RuntimeError):
    """A server answered something that cannot be trained on; asking again would not help."""


@dataclass(frozen=True)
class Question:
    """One prompt, and how many answers are wanted of it.

    Attributes:
      task: id of the first task behind it, for messages.
      prompt: token ids as the trainer sees them, image placeholders expanded.
      compact: the same with one placeholder per picture.
      messages, images: the chat messages behind `prompt` and their pictures as data URLs.
      said: token ids after the prompt (earlier turns and what the environment appended).
      keys: one 64-bit random key per answer; see fovea.rollout.sampling.address.
      room: limit of new tokens.
      eos_ids, banned_ids: of the policy.
    """

    task: str
    prompt: Sequence[int]
    compact: Sequence[int]
    messages: Sequence[Message]
    images: Sequence[str]
    said: Sequence[int]
    sampling: Sampling
    keys: Sequence[int]
    room: int
    eos_ids: Sequence[int]
    banned_ids: Sequence[int]


@dataclass(frozen=True)
class Answer:
    """What one sample came back as: ids and log-probs (nats) of the new tokens, why it ended, and which weights it came from."""

    ids: Sequence[int]
    logps: Sequence[float]
    stop: str
    version: str | None = None


@dataclass(frozen=True)
class Peer:
    """What a server says about itself under /v1/models."""

    model: str = ""
    owner: str = ""

    @property
    def ours(self) -> bool:
        """Whether it takes one random key per answer, gives log-probs as a plain list (an object for each token takes a tenth of the time
        of a small model), and is told where the prompt ends (a family may read its prompt both ways).
        """
        return self.owner == "fovea"


@dataclass(frozen=True)
class Exchange:
    """One request and what is needed to read its answer."""

    path: str
    payload: Mapping[str, Any]
    question: Question = field(repr=False)


# -- OpenAI-compatible --------------------------------------------------------------------------------------------------------


def openai(question: Question, peer: Peer) -> Exchange:
    """A completion where nothing is shown, a chat where pictures open it, tokens with pictures in later turns."""
    q, s = question, question.sampling
    options = {
        "n": len(q.keys),
        "max_tokens": q.room,
        "temperature": s.temperature,
        "top_p": s.top_p,
        "top_k": s.top_k,
        "min_tokens": s.min_new_tokens,
        "stop": list(s.stop),
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "stop_token_ids": list(q.eos_ids),
        "logit_bias": {str(i): BANNED for i in q.banned_ids},
        "seed": q.keys[0] >> 2,  # vLLM: signed, and sample i takes seed + i
        **({"seeds": list(q.keys), "flat_logprobs": True} if peer.ours else {}),
    }
    shared = {"model": peer.model, "return_token_ids": True}
    if not q.images:
        return Exchange("/v1/completions", {**shared, **options, **ended(q, peer), "prompt": [*q.prompt, *q.said], "logprobs": 1}, q)
    if not q.said:
        chat = {"messages": shown(q.messages, q.images), "logprobs": True, "top_logprobs": 0}
        goes_on = {"add_generation_prompt": False, "continue_final_message": True} if begun(q.messages) else {}
        return Exchange("/v1/chat/completions", {**shared, **options, **chat, **goes_on}, q)
    parts = [picture_part(url) for url in q.images]
    tokens = {"token_ids": [*q.compact, *q.said], "content_parts": parts, "sampling_params": {**options, "logprobs": 0}}
    return Exchange("/inference/v1/generate", {**shared, **tokens, **ended(q, peer)}, q)


def ended(question: Question, peer: Peer) -> dict[str, int]:
    """Where the prompt ends, for a server of ours."""
    return {"prompt_length": len(question.compact)} if peer.ours else {}


def read_openai(exchange: Exchange, body: bytes, url: str) -> list[Answer]:
    """The answers of any of the three routes."""
    read, q = Reader(url + exchange.path, exchange.question.task), exchange.question
    reply = read.json(body)
    choices = read.rows(read.field(reply, "choices", list), "choices", len(q.keys))
    order = [read.field(row, "index", int) if "index" in row else 0 for row in choices]
    answers = []
    for row in (choices[i] for i in sorted(range(len(choices)), key=order.__getitem__)):
        asked = row if row.get("prompt_token_ids") else reply
        if asked.get("prompt_token_ids") is not None:
            read.same_prompt(read.field(asked, "prompt_token_ids", list), q)
        elif q.images:
            read.fail("prompt_token_ids", "nothing", "the prompt's token ids", "the server is too old for return_token_ids")
        logprobs = read.field(row, "logprobs", dict)
        if "content" in logprobs:
            logps = [read.field(x, "logprob", (int, float)) for x in read.field(logprobs, "content", list)]
        else:
            logps = read.field(logprobs, "token_logprobs", list)
        spans = read.rows(read.field(row, "weight_versions", list), "weight_versions") if row.get("weight_versions") else []
        version = reply.get("weight_version") or (spans[-1].get("version") if spans else None)
        answers.append(read.answer(read.field(row, "token_ids", list), logps, row.get("finish_reason"), version, q))
    return answers


def shown(messages: Sequence[Message], images: Sequence[str]) -> list[dict[str, Any]]:
    """Messages whose n-th image part carries the n-th data URL."""
    urls = iter(images)

    def part(p: Mapping[str, Any]) -> Mapping[str, Any]:
        return picture_part(next(urls)) if p["type"] == "image" else p

    return [m if isinstance(m["content"], str) else {**m, "content": [part(p) for p in m["content"]]} for m in map(dict, messages)]


def picture_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


# -- SGLang -------------------------------------------------------------------------------------------------------------------


def sglang(question: Question, peer: Peer) -> Exchange:
    """SGLang draws from its own generator unless it runs deterministically, where one seed would make all n answers the same."""
    q, s = question, question.sampling
    seed = {"sampling_seed": list(q.keys)} if peer.ours else {"sampling_seed": q.keys[0] >> 2} if len(q.keys) == 1 else {}
    options = {
        "n": len(q.keys),
        "max_new_tokens": q.room,
        "min_new_tokens": s.min_new_tokens,
        "temperature": s.temperature,
        "top_p": s.top_p,
        "top_k": s.top_k or -1,
        "stop": list(s.stop),
        "stop_token_ids": list(q.eos_ids),
        "no_stop_trim": True,
        "skip_special_tokens": False,
        "logit_bias": {str(i): BANNED for i in q.banned_ids},
        **seed,
    }
    payload = {"input_ids": [*q.compact, *q.said], "sampling_params": options, "return_logprob": True, "logprob_start_len": -1}
    return Exchange("/generate", {**payload, **ended(q, peer), **({"image_data": list(q.images)} if q.images else {})}, q)


def read_sglang(exchange: Exchange, body: bytes, url: str) -> list[Answer]:
    read, q = Reader(url + exchange.path, exchange.question.task), exchange.question
    reply = read.json(body)
    answers = []
    for row in read.rows([reply] if isinstance(reply, dict) else reply, "the answer", len(q.keys)):
        meta = read.field(row, "meta_info", dict)
        expected = len(q.prompt) + len(q.said)
        if meta.get("prompt_tokens", expected) != expected:
            read.fail("meta_info.prompt_tokens", meta["prompt_tokens"], expected, OTHER_PROMPT)
        triples = read.field(meta, "output_token_logprobs", list)
        if odd := [t for t in triples if not isinstance(t, list) or len(t) < 2]:
            read.fail("output_token_logprobs", f"{odd[0]!r} among them", "[log-prob, token id, ...] for each token", OTHER_SHAPE)
        finish = read.field(meta, "finish_reason", dict).get("type") if meta.get("finish_reason") else None
        answers.append(read.answer([t[1] for t in triples], [t[0] for t in triples], finish, meta.get("weight_version"), q))
    return answers


# -- reading ------------------------------------------------------------------------------------------------------------------

OTHER_SHAPE = "the server speaks another version of this protocol"
OTHER_PROMPT = "the server runs another checkpoint, chat template or image size than the trainer"


class Aborted(ConnectionError):
    """The server gave a request up (it was paused or is going down); asking again may help."""


@dataclass(frozen=True)
class Reader:
    """Checks on the way in, with messages that name server, route, task and field."""

    where: str
    task: str

    def fail(self, name: str, found: Any, expected: Any, cause: str) -> Any:
        raise BadAnswer(f"{self.where}, task {self.task!r}: {name} is {found}; expected {expected} ({cause})")

    def json(self, body: bytes) -> Any:
        try:
            return json.loads(body)
        except ValueError:
            self.fail("the answer", repr(body[:80]), "JSON", "a proxy or another program answers at this address")

    def field(self, row: Any, name: str, kind: Any) -> Any:
        value = row.get(name) if isinstance(row, dict) else None
        if not isinstance(value, kind):
            cause = "the server does not return token ids and log-probs; see docs/remote.md for the versions that do"
            self.fail(name, type(value).__name__, getattr(kind, "__name__", "a number"), cause)
        return value

    def rows(self, rows: Any, name: str, count: int | None = None) -> list[dict[str, Any]]:
        """`rows` as a list of objects, `count` of them where that is known."""
        if not isinstance(rows, list):
            self.fail(name, type(rows).__name__, "a list", OTHER_SHAPE)
        if count is not None and len(rows) != count:
            self.fail(name, f"{len(rows)} rows", count, "the server ignored n")
        if odd := [i for i, row in enumerate(rows) if not isinstance(row, dict)]:
            self.fail(f"{name}[{odd[0]}]", type(rows[odd[0]]).__name__, "an object", OTHER_SHAPE)
        return rows

    def same_prompt(self, found: Sequence[int], q: Question) -> None:
        expected = [*q.prompt, *q.said]
        if list(found) != expected:
            at = next((i for i, (a, b) in enumerate(zip(found, expected)) if a != b), min(len(found), len(expected)))
            self.fail("prompt_token_ids", f"{len(found)} tokens", f"{len(expected)}, first difference at {at}", OTHER_PROMPT)

    def answer(self, ids: Sequence[Any], logps: Sequence[Any], finish: Any, version: Any, q: Question) -> Answer:
        """One sample, checked against what was asked."""
        if finish == "abort":
            raise Aborted(f"{self.where}: the server aborted the request")
        if not 1 <= len(ids) <= q.room or not all(isinstance(i, int) for i in ids):
            self.fail("token_ids", f"{len(ids)} values", f"1 to {q.room} integers", "the server ignored the limit, or returned text only")
        if len(logps) != len(ids) or not all(isinstance(x, (int, float)) and math.isfinite(x) and x <= ROUNDING for x in logps):
            self.fail("logprobs", list(logps)[:8], f"{len(ids)} finite numbers of at most 0", "log-probs were not asked for, or diverged")
        if banned := set(ids) & set(q.banned_ids):
            self.fail("token_ids", f"{sorted(banned)} among them", "no image placeholder", "the server ignored logit_bias")
        if set(ids[:-1]) & set(q.eos_ids):
            self.fail("token_ids", "an end of sequence inside", "one at the end at most", "the server ignored stop_token_ids")
        if ids[-1] in q.eos_ids:
            return Answer(ids, logps, "eos", version)
        if finish == "length":
            return Answer(ids, logps, "length", version)
        if not q.sampling.stop:
            self.fail("finish_reason", repr(finish), "'length', as no end of sequence came", "the server dropped the closing token")
        return Answer(ids, logps, "stop", version)


PROTOCOLS = {"openai": (openai, read_openai), "sglang": (sglang, read_sglang)}
