"""Verifiers that run what the policy wrote, in the sandbox (fovea.sandbox)."""

from __future__ import annotations

import re
from typing import Any

from fovea import sandbox
from fovea.types import Context, Episode, Verifier
from fovea.verifiers.core import PerEpisode, Unscorable
from fovea.verifiers.parse import parse_number

NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?")
MAX_CODE = 100_000
"""Characters; a longer program is not run."""


def code_block(text: str) -> str | None:
    """The content of the last closed block ```` ```python ````; None without one."""
    opened = found = None
    for line in re.finditer(r"^[ \t]{0,3}```[ \t]*(\w*)[ \t]*\r?$", text, re.MULTILINE):
        if opened is None:
            opened = (line.group(1).lower(), line.end() + 1)
        elif not line.group(1):
            if opened[0] in ("python", "py"):
                found = text[opened[1] : line.start()]
            opened = None
    return found


def program(*, stdin: str = "", timeout_s: float = 5.0, memory_mb: int = 1024) -> Verifier:
    """What the last ```` ```python ```` block of the answer prints, run in the sandbox, equals gold: as text, or as a number.

    No block, an error and a passed limit are wrong answers; `timeout_s` is processor time, by the clock it is twice that. Where the
    system does not isolate programs the verifier is refused.
    """
    if problem := sandbox.problem():
        raise sandbox.Unavailable(f"verifier 'program': {problem}")

    def judge(episode: Episode, context: Context) -> dict[str, Any]:
        gold = str(episode.task.answer).strip()
        if not gold:
            raise Unscorable(f"gold answer is {episode.task.answer!r}; expected what the program should print")
        code = code_block(episode.text)
        if code is None or len(code) > MAX_CODE:
            return {"score": 0.0, "ran": False, "correct": False}
        # the clock has slack over processor time, so that a busy machine changes no verdict
        result = sandbox.run(code, stdin=stdin, timeout_s=2 * timeout_s, cpu_s=max(1, round(timeout_s)), memory_mb=memory_mb)
        right = result.ok and same(result.stdout, gold)
        return {"score": float(right), "ran": result.ok, "correct": right}

    return PerEpisode("program", judge)


def same(said: str, gold: str) -> bool:
    """Equal but for white space, or two equal numbers."""
    said, gold = " ".join(said.split()), " ".join(gold.split())
    if said == gold:
        return True
    if any(NUMBER.fullmatch(x) is None for x in (said, gold)):
        return False
    a, b = parse_number(said), parse_number(gold)
    return a is not None and a == b
