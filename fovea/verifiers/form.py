"""Verifiers of form rather than content: tag grammar, length, and a random control."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from fovea.types import Context, Episode, Verifier
from fovea.verifiers.core import PerEpisode, Unscorable


def follows_tags(text: str, tags: Sequence[str], strict: bool = False) -> bool:
    """Each ``<tag>`` and ``</tag>`` occurs exactly once, closed before the next opens, in the given order, none empty.

    `strict` also forbids anything but whitespace outside the tags.
    """
    at, outside = 0, []
    for tag in tags:
        opening, closing = f"<{tag}>", f"</{tag}>"
        if text.count(opening) != 1 or text.count(closing) != 1:
            return False
        start, end = text.find(opening), text.find(closing)
        if start < at or end < start or not text[start + len(opening) : end].strip():
            return False
        outside.append(text[at:start])
        at = end + len(closing)
    return not (strict and "".join([*outside, text[at:]]).strip())


def format(*, tags: Sequence[str] = ("think", "answer"), strict: bool = False) -> Verifier:
    """1 when the whole text follows the tag grammar (each tag exactly once, in order), else 0."""
    names = (tags,) if isinstance(tags, str) else tuple(tags)
    return PerEpisode("format", lambda episode, context: follows_tags(episode.text, names, strict))


def length(*, min: int = 0, max: int | None = None, unit: str = "tokens", soft: int = 0) -> Verifier:
    """1 when the length is in [min, max], else 0; with `soft` it falls linearly to 0 over that many units beyond `max`.

    `unit` is "tokens" (units the policy chose in the whole episode), "chars" or "words" (of the last turn).
    """
    if unit not in ("tokens", "chars", "words"):
        raise ValueError(f"length: unit is {unit!r}; expected 'tokens', 'chars' or 'words'")

    def judge(episode: Episode, context: Context) -> float:
        if unit == "tokens" and not episode.segments and episode.text:
            raise Unscorable("the episode carries no token record; use unit='chars' or 'words'")
        n = {"tokens": lambda: episode.length, "chars": lambda: len(episode.text), "words": lambda: len(episode.text.split())}[unit]()
        over = 0 if max is None else n - max
        if n < min:
            return 0.0
        return 1.0 if over <= 0 else (1.0 - over / soft if over < soft else 0.0)

    return PerEpisode("length", judge)


def random(*, p: float = 0.5, seed: int = 0) -> Verifier:
    """1 with probability `p`, blind to the answer: a control arm. Addressed by (seed, step, task, episode), so a resumed run repeats it."""

    def judge(episode: Episode, context: Context) -> float:
        address = f"{seed}/{context.step}/{episode.task.source}/{episode.task.id}/{episode.id}"
        draw = int.from_bytes(hashlib.blake2b(address.encode(), digest_size=8).digest()) / 2**64
        return float(draw < p)

    return PerEpisode("random", judge)
