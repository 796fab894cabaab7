"""Keeps secrets out of what a run leaves behind: its folder is shown, copied and published."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence

MASK = "***"
_ENDS = r"(?:token|secret|password|passwd|passphrase|credentials?|(?:api|access|private|secret)[-_]?key)"
OPTION = re.compile(rf"--?(?:[\w.-]*[-_.])?{_ENDS}", re.IGNORECASE)
VARIABLE = re.compile(rf"(?:\w*_)?{_ENDS}(?:_\w+)?", re.IGNORECASE)
PLACE = re.compile(r"_(PATH|FILE|DIR|SOCK|SOCKET|PARALLELISM|ENV|NAME|ID)$", re.IGNORECASE)
SHAPES = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bxox[a-z]-[\w-]{10,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bglpat-[\w-]{20,}"
)
USER = re.compile(r"(?<=://)[^/@\s\"'\\]+(?=@)")
SHORTEST = 8  # a shorter value is no secret, and would blot out ordinary words


def masked(text: str, environment: Mapping[str, str] | None = None) -> str:
    """`text` without the values of secret environment variables, users in addresses, and tokens of well-known shapes."""
    for value in secret_values(os.environ if environment is None else environment):
        text = text.replace(value, MASK)
    return USER.sub(MASK, SHAPES.sub(MASK, text))


def masked_command(arguments: Sequence[str]) -> str:
    """A command line for a shell; what follows an option named like ``--token`` is masked too."""
    shown, hide = [], False
    for argument in arguments:
        name, eq, _ = argument.partition("=")
        secret = OPTION.fullmatch(name) is not None
        shown.append(MASK if hide else f"{name}={MASK}" if secret and eq else argument)
        hide = secret and not eq
    return masked(shlex.join(shown).replace(f"'{MASK}'", MASK))


def secret_values(environment: Mapping[str, str]) -> list[str]:
    """Values of the variables that are named like secrets, the longest first."""
    found = {v for k, v in environment.items() if VARIABLE.fullmatch(k) and not PLACE.search(k) and len(v) >= SHORTEST}
    return sorted(found, key=len, reverse=True)
