"""Files that are whole or absent: text and JSON written aside and renamed, lines that a kill can tear only at their end."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fovea.secrets import masked


@contextlib.contextmanager
def replacing(file: Path, durable: bool = False) -> Iterator[Path]:
    """A path to write to that takes `file`'s name at the end: a reader sees the old file or the new one, never half of either.

    `durable`: after a power cut too.
    """
    aside = file.with_name(file.name + ".part")
    yield aside
    if durable:
        fsync(aside)
    aside.replace(file)


def write_text(file: Path, text: str, durable: bool = False) -> None:
    with replacing(file, durable) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(file: Path, value: Any) -> None:
    """Tokens and passwords are masked; what JSON cannot hold becomes a list or its text."""
    write_text(file, masked(json.dumps(value, indent=2, ensure_ascii=False, default=plain)) + "\n")


def read_jsonl(file: Path) -> list[dict[str, Any]]:
    """Whole lines of a JSON-lines file; a last line without its newline was torn by a kill and is left out."""
    if not file.exists():
        return []
    *lines, _torn = file.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as e:
            raise ValueError(f"{file}, line {number}: expected one JSON object, found {line[:60]!r}; was the file edited by hand?") from e
    return rows


def fsync(path: Path) -> None:
    """Return once a file, or the names in a folder, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def plain(x: Any) -> Any:
    """What JSON cannot hold: arrays become lists, anything else its text."""
    return x.tolist() if hasattr(x, "tolist") else sorted(x) if isinstance(x, set | frozenset) else str(x)
