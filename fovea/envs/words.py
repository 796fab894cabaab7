"""Which action does a text name? Replies are short (``<answer>left</answer>``) or in JSON (``{"thoughts": ..., "action": "left"}``)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from fovea.verifiers.parse import extract_answer

REPLIES = ("short", "json")
FIELD = '"action":'


def answered(text: str, reply: str) -> str:
    """The part of a reply that says what is done."""
    return after_field(text) if reply == "json" else extract_answer(text) or ""


def last_named(text: str, actions: Sequence[str]) -> int | None:
    """Index of the action that `text` names last (upper and lower case alike), of two that end together the longer; None for none."""
    ends = [(at + len(name) if (at := text.lower().rfind(name.lower())) >= 0 else -1, len(name), i) for i, name in enumerate(actions)]
    end, _, index = max(ends)
    return index if end >= 0 else None


def only_named(text: str, actions: Sequence[str]) -> int | None:
    """Index of the one action that `text` names, however often; None when it names none or several. "10" does not name "1"."""
    found = set(_pattern(tuple(actions)).findall(text.lower()))
    return [a.lower() for a in actions].index(found.pop()) if len(found) == 1 else None


def after_field(text: str) -> str:
    """What stands behind the last ``"action":`` of a reply in JSON, its quotes not escaped; "" where there is none.

    The reply need not be whole.
    """
    at = text.lower().rfind(FIELD)
    return re.sub(r'\\(["\\])', r"\1", text[at + len(FIELD) :]) if at >= 0 else ""


@lru_cache(maxsize=64)
def _pattern(actions: tuple[str, ...]) -> re.Pattern[str]:
    names = sorted((a.lower() for a in actions), key=len, reverse=True)
    whole = (rf"(?<!\w){re.escape(n)}(?!\w)" if n[0].isalnum() else re.escape(n) for n in names)
    return re.compile("|".join(whole))
