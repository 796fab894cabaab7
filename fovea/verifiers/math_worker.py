"""The process that compares mathematical answers: one JSON request per line on stdin, one JSON reply per line on stdout.

It runs apart because symbolic comparison can hang or eat memory; whoever started it kills it at the deadline. math-verify's own timeouts
need the main thread's alarm signal and are switched off.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
from typing import Any

MEMORY_BYTES = 4 << 30


def compare(gold: str, answer: str, digits: int) -> dict[str, Any]:
    """``{"correct": bool}`` or ``{"error": reason}``; an answer that holds no mathematics is wrong, a gold that holds none is an error."""
    from math_verify import parse, verify

    def read(text: str) -> list[Any]:
        """A text without words is one formula; in a sentence math-verify looks for the formula, and else all of it is tried as one."""
        bare = "$" not in text and "\\boxed" not in text and len(text) < 500
        formula = bare and not re.search(r"[A-Za-z]{3,}", re.sub(r"\\[A-Za-z]+", " ", text))
        whole = f"${text}$"
        for candidate in (whole, text) if formula else (text, whole) if bare else (text,):
            found = parse(candidate, parsing_timeout=None, raise_on_error=True)  # pyright: ignore[reportArgumentType]
            if any(not isinstance(x, str) for x in found):
                return found
        return []

    right = read(gold)
    if not right:
        return {"error": f"gold answer {gold!r:.80} holds no mathematics that can be parsed"}
    said = read(answer)
    return {"correct": bool(said) and bool(verify(right, said, float_rounding=digits, timeout_seconds=None, raise_on_error=True))}


def main() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable(logging.CRITICAL)
    out, sys.stdout = sys.stdout, sys.stderr
    try:
        import math_verify  # noqa: F401

        ready: dict[str, Any] = {"ready": True}
    except ImportError as error:
        ready = {"missing": str(error)}
    print(json.dumps(ready), file=out, flush=True)
    for line in sys.stdin:
        try:
            reply = compare(**json.loads(line))
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(reply), file=out, flush=True)


if __name__ == "__main__":
    main()
