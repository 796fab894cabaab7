"""The verifier of answers that are an order: `permutation` (Visual Jigsaw, arXiv 2509.25190, section 3.2 and its code)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Literal

from fovea.types import Context, Episode, Verifier
from fovea.verifiers.core import PerEpisode, Unscorable
from fovea.verifiers.form import follows_tags
from fovea.verifiers.parse import READ, boxed, extract_answer

LEAST_PIECES = 5
"""With fewer pieces the released code pays nothing for an order that is right in part."""


def parse_permutation(value: Any, size: int | None = None) -> tuple[int, ...] | None:
    """An order of 1 to K from a list, or from text whose labels stand between commas or spaces, in brackets or bare.

    None for anything else: a label twice, one that is not among 1 to K, a word, another number of labels than `size`.
    """
    if isinstance(value, str):
        bare = value.strip().strip("[](){}").strip() if len(value) <= READ else ""
        value = bare.split(",") if "," in bare else bare.split()
    try:
        order = tuple(int(v) for v in value)
    except (TypeError, ValueError, OverflowError):
        return None
    whole = len(order) > 0 and sorted(order) == list(range(1, len(order) + 1))
    return order if whole and size in (None, len(order)) else None


def permutation(
    *,
    graded: bool = True,
    gamma: float = 0.2,
    rule: Literal["code", "paper"] = "code",
    tags: Sequence[str] = ("think", "answer"),
    format: float = 0.2,
    repetition: float = 0.5,
) -> Verifier:
    """How well pieces are put in order: format + accuracy − repetition; gold is the order of 1 to K.

      accuracy: 1 for the right order; else, for an order of 1 to K, gamma · (places that are right) / K; else 0.
      format: this much for an answer of the right form. An answer of another form earns 0 in all.
      repetition: this much less where a line of seven words or more is said four times in a row.

    graded: False pays for the right order alone. rule: "code" pays nothing in part for fewer than 5 pieces, "paper" for any number.
    tags: what the answer must look like, each once and in this order; "boxed" stands for ``\\boxed{}``, which is what the released code
    reads, and () asks for nothing, takes the whole answer for the order and pays no `format`.

    Parts: format, accuracy, valid (an order of 1 to K), placed (share of the places that are right). Right is the right order in any form.

    Departure: an order must be one of 1 to K; the released code takes any K different whole numbers.
    """
    if rule not in ("code", "paper"):
        raise ValueError(f"permutation: rule is {rule!r}; expected 'code' or 'paper'")
    names = (tags,) if isinstance(tags, str) else tuple(tags)

    def judge(episode: Episode, context: Context) -> dict[str, Any]:
        gold = parse_permutation(episode.task.answer)
        if gold is None:
            raise Unscorable(f"gold answer {episode.task.answer!r:.80} is no order of 1 to K, such as [3, 1, 2]")
        said = parse_permutation(extract_answer(episode.text), len(gold))
        placed = sum(a == b for a, b in zip(said, gold)) / len(gold) if said else 0.0
        partial = graded and (rule == "paper" or len(gold) >= LEAST_PIECES)
        formed = _formed(episode.text, names)
        form = format if names and formed else 0.0
        accuracy = 0.0 if not formed else 1.0 if said == gold else gamma * placed if partial else 0.0
        score = form + accuracy - (repetition if formed and repeats(episode.text) else 0.0)
        parts = {"format": form, "accuracy": accuracy, "valid": float(said is not None), "placed": placed}
        return {"score": score, **parts, "correct": said == gold}

    return PerEpisode("permutation", judge)


def _formed(text: str, names: Sequence[str]) -> bool:
    """Whether `text` looks as `permutation` says of its `tags`; anything does where there are none."""
    tags = [n for n in names if n != "boxed"]
    rest = text[text.rfind(f"</{tags[-1]}>") :] if tags else text
    return follows_tags(text, tags) and ("boxed" not in names or boxed(rest) is not None)


def repeats(text: str, words: int = 7, times: int = 4) -> bool:
    """Whether a line of at least `words` words stands `times` times in a row; empty lines and case do not count."""
    lines = (line.strip().casefold() for line in text.splitlines() if line.strip())
    return any(sum(1 for _ in same) >= times and len(line.split()) >= words for line, same in groupby(lines))


FACTORIES: Mapping[str, Any] = {"permutation": permutation}
