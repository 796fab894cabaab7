"""Verifiers of form rather than content: tag grammar, length, repetition, and a random control."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from contextvars import ContextVar

from fovea.types import Context, Episode, Group, Verifier
from fovea.verifiers.core import PerEpisode, Unscorable
from fovea.verifiers.detection import parse_detections
from fovea.verifiers.parse import READ, boxed, extract_answer, tagged


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


def counted_tags(text: str, tags: Sequence[str]) -> float:
    """The share of the opening and closing tags that occur exactly once."""
    marks = [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")]
    return sum(text.count(mark) == 1 for mark in marks) / len(marks)


def ends_boxed(text: str) -> str | None:
    """The text before a last ``\\boxed{…}`` that ends it; None where it does not end so."""
    start, inner = text.rfind("\\boxed{"), boxed(text)
    if start < 0 or inner is None or not inner.strip() or text[start + len(f"\\boxed{{{inner}}}") :].strip():
        return None
    return text[:start]


def format(
    *, tags: Sequence[str] = ("think", "answer"), strict: bool = False, holds: str = "", counted: bool = False, box: bool = False
) -> Verifier:
    """1 when the whole text follows the tag grammar (each tag exactly once, in order), else 0.

    `strict` forbids text outside the tags. `holds` is a regular expression that must occur in the content of the last tag. `counted` pays
    the share of the opening and closing tags that occur exactly once, in any order, instead (V-Triune, arXiv 2505.18129). With `box`
    nothing stands before the first tag and a ``\\boxed{…}`` ends the text.
    """
    names = (tags,) if isinstance(tags, str) else tuple(tags)
    try:
        pattern = re.compile(holds, re.DOTALL)
    except re.error as error:
        raise ValueError(f"format: holds is {holds!r}, which is no regular expression: {error}") from None

    def judge(episode: Episode, context: Context) -> bool | float:
        if counted:
            return counted_tags(episode.text, names)
        text = ends_boxed(episode.text) if box else episode.text
        if text is None or (box and not text.lstrip().startswith(f"<{names[0]}>")):
            return False
        good = follows_tags(text, names, strict)
        return good and pattern.search((tagged(text, names[-1]) or "")[-READ:]) is not None if holds else good

    return PerEpisode("format", judge)


def length(*, min: int = 0, max: int | None = None, unit: str = "tokens", soft: int = 0) -> Verifier:
    """1 when the length is in [min, max], else 0; with `soft` it falls linearly to 0 over that many units beyond `max`.

    `unit` is "tokens" (units the policy chose in the whole episode), "chars" or "words" (of the last turn).
    """
    count = _counter("length", unit)

    def judge(episode: Episode, context: Context) -> float:
        n = count(episode)
        over = 0 if max is None else n - max
        if n < min:
            return 0.0
        return 1.0 if over <= 0 else (1.0 - over / soft if over < soft else 0.0)

    return PerEpisode("length", judge)


def _counter(name: str, unit: str) -> Callable[[Episode], int]:
    units = {"tokens": _tokens, "chars": lambda e: len(e.text), "words": lambda e: len(e.text.split())}
    if unit not in units:
        raise ValueError(f"{name}: unit is {unit!r}; expected 'tokens', 'chars' or 'words'")
    return units[unit]


def _tokens(episode: Episode) -> int:
    if not episode.segments and episode.text:
        raise Unscorable("the episode carries no token record; give the verifier unit='chars' or 'words'")
    return episode.length


def cosine_length(
    *,
    longest: int = 1024,
    right: tuple[float, float] = (1.0, 0.5),
    wrong: tuple[float, float] = (-0.5, 0.0),
    threshold: float = 0.5,
    blind: bool = False,
    unit: str = "tokens",
) -> Verifier:
    """Short right answers and long wrong ones earn more (VLM-R1): a − (a − b)(1 − cos(π L / longest)) / 2 at a length of L tokens (or
    `unit`).

    right, wrong: (a, b), what an answer without a token earns and one of `longest` tokens or more; which of the two an answer is says the
    task's own verifier (its value must reach `threshold` where it does not know right from wrong), or `exact` where this is the task's
    own. `blind` takes every answer for right, as VLM-R1's released code does, which overwrites the accuracy.
    """
    if longest < 1:
        raise ValueError(f"cosine_length: longest is {longest}; expected at least 1 token")
    count = _counter("cosine_length", unit)

    def judge(episode: Episode, context: Context) -> float:
        at_0, at_longest = right if blind or _is_right(episode, context, threshold) else wrong
        return at_0 - (at_0 - at_longest) * (1 - math.cos(math.pi * min(1.0, count(episode) / longest))) / 2

    return PerEpisode("cosine_length", judge)


_asking: ContextVar[bool] = ContextVar("asking", default=False)


def _is_right(episode: Episode, context: Context, threshold: float) -> bool:
    from fovea.verifiers import build, resolve

    if _asking.get():
        raise Unscorable("cosine_length asks the task's own verifier, which asks it again; expected one that knows right from wrong")
    own = build("exact") if episode.task.verifier == "cosine_length" else resolve(episode.task)
    if own.scope == "group":
        raise Unscorable(f"the verifier of task {episode.task.id!r} compares the answers of a group; expected one that judges each alone")
    token = _asking.set(True)
    try:
        score = own.score(Group(episode.task, [episode]), context)[0]
    finally:
        _asking.reset(token)
    if not score.ok:
        raise Unscorable(score.reason)
    return score.value >= threshold if score.correct is None else score.correct


def repetition(*, words: int = 6) -> Verifier:
    """−(share of items that repeat an earlier one), in (−1, 0]: labelled boxes, or runs of `words` words where there are none (VLM-R1)."""
    if words < 1:
        raise ValueError(f"repetition: words is {words}; expected at least 1")

    def judge(episode: Episode, context: Context) -> float:
        found = parse_detections(extract_answer(episode.text))
        said = episode.text.lower().split()
        boxes = list(zip(map(tuple, found.box_N4.tolist()), found.labels, strict=True))
        items = boxes or [tuple(said[i : i + words]) for i in range(len(said) - words + 1)]
        return len(set(items)) / len(items) - 1 if items else 0.0

    return PerEpisode("repetition", judge)


def random(*, p: float = 0.5, seed: int = 0) -> Verifier:
    """1 with probability `p`, blind to the answer: a control arm. Addressed by (seed, step, task, episode), so a resumed run repeats it."""

    def judge(episode: Episode, context: Context) -> float:
        address = f"{seed}/{context.step}/{episode.task.source}/{episode.task.id}/{episode.id}"
        draw = int.from_bytes(hashlib.blake2b(address.encode(), digest_size=8).digest()) / 2**64
        return float(draw < p)

    return PerEpisode("random", judge)
