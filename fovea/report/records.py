"""A run folder as the run page reads it: numbers in columns, an index of every logged answer, single records, what could not be read.

A `Reader` reads the same folder again and again while the run goes on. Only what changed is parsed again, and a damaged file never raises:
what is whole is shown, what is not is named in `problems`.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fovea.report.metrics import NOISE

ROLLOUTS = re.compile(r"([a-z]+)-(\d+)\.jsonl")
PICTURE, FILM = re.compile(r"[0-9a-f]+\.png"), re.compile(r"[0-9a-f]+\.mp4")
REACH, PLACES, LABEL = 1e6, 200, 60
"""Farthest pixel of a place, how many places of one answer are drawn, characters of a label."""
LARGEST = sys.float_info.max
POINTS = 4000

Row = Mapping[str, Any]


@dataclass
class Logged:
    """One file of rollouts: `entries` for the index, `offsets` of their lines in bytes, `problems` in words."""

    stamp: tuple[int, int]
    revision: int
    entries: list[list[Any]] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Reader:
    """One run folder.

    Args:
      path: the folder. What is missing in it is empty.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.files: dict[str, Logged] = {}
        self.revision = 0
        self._lines: list[bytes] = []
        self._parsed: list[dict[str, Any] | str] = []
        self._rows: list[dict[str, Any]] = []
        self._stamp: tuple[int, int] | None = None
        self._faults: dict[str, list[str]] = {}

    @property
    def name(self) -> str:
        return str(self.config.get("name") or self.path.resolve().name)

    @property
    def config(self) -> dict[str, Any]:
        return self._json("config.json")

    @property
    def env(self) -> dict[str, Any]:
        return self._json("env.json")

    @property
    def commands(self) -> list[str]:
        return self._text("command.txt").strip().splitlines()

    @property
    def problems(self) -> list[str]:
        """What could not be read so far, a line each, with file and line."""
        own = [p for _, faults in sorted(self._faults.items()) for p in faults]
        return own + [p for _, logged in sorted(self.files.items()) for p in logged.problems]

    # -- numbers --------------------------------------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """The steps of metrics.jsonl in order; a last line without its end is still being written and is left out."""
        file = self.path / "metrics.jsonl"
        stamp = _stamp(file)
        if stamp == self._stamp:
            return self._rows
        lines = _bytes(file).split(b"\n")[:-1]
        same = next((i for i, (a, b) in enumerate(zip(lines, self._lines)) if a != b), min(len(lines), len(self._lines)))
        self._parsed = self._parsed[:same] + [_metrics_row(line) for line in lines[same:]]
        self._rows = [row for row in self._parsed if isinstance(row, dict)]
        self._faults[file.name] = [f"metrics.jsonl, line {n}: {row}" for n, row in enumerate(self._parsed, 1) if isinstance(row, str)]
        self._lines, self._stamp = lines, stamp
        return self._rows

    def news(self, total: int, last: float) -> dict[str, Any]:
        """Rows that came after the first `total`, of which the last was step `last`; that one again, because it may have grown.

        Where those rows are no longer the same (the run was resumed from an earlier step), everything in columns.
        """
        rows = self.rows()
        at = {"total": len(rows), "last": rows[-1]["step"] if rows else -1}
        if total and (len(rows) < total or rows[total - 1]["step"] != last):
            return {**at, "columns": columns(rows)}
        return {**at, "rows": rows[max(0, total - 1) :]}

    # -- what the policy saw and said -------------------------------------------------------------------------------------------

    def refresh(self) -> int:
        """Index what is new in rollouts/; returns the revision, which grows with every change."""
        found = {f.name: f for f in _listed(self.path / "rollouts") if ROLLOUTS.fullmatch(f.name)}
        for name in self.files.keys() - found.keys():
            self.revision += 1
            self.files[name] = Logged((-1, -1), self.revision)
        for name, file in sorted(found.items()):
            stamp, known = _stamp(file), self.files.get(name)
            if known is None or known.stamp != stamp:
                self.revision += 1
                self.files[name] = _index(file, stamp, self.revision)
        return self.revision

    def index(self, since: int = 0) -> dict[str, list[list[Any]]]:
        """Entries of the files that changed after revision `since`; a file that is gone has none.

        An entry is [line, task, source, step, [[score, correct, stop, length, role], ...]]; `correct` is 1, 0 or None.
        """
        return {name: logged.entries for name, logged in sorted(self.files.items()) if logged.revision > since}

    def record(self, file: str, line: int) -> dict[str, Any]:
        """One group as it was logged, with `split` and the places to draw on its pictures.

        Raises:
          ValueError: no such line, or it holds no group.
        """
        logged = self.files.get(file)
        if logged is None or not 0 <= line < len(logged.offsets):
            raise ValueError(f"rollouts/{file} has no line {line}; the run may have gone back to an earlier step")
        try:
            with (self.path / "rollouts" / file).open("rb") as f:
                f.seek(logged.offsets[line])
                record = _parse(f.readline())
            _entry(line, 0, record)
        except (OSError, ValueError, RecursionError) as e:
            raise ValueError(f"rollouts/{file}, line {line + 1}: {e}") from None
        split = file.partition("-")[0]
        return {**record, "split": "train" if split == "step" else split, "places": places(record)}

    def picture(self, name: str) -> bytes | None:
        """The bytes of a logged picture."""
        return _bytes(self.path / "rollouts" / "images" / name) or None if PICTURE.fullmatch(name) else None

    def film(self, name: str) -> bytes | None:
        """The bytes of a filmed episode."""
        return _bytes(self.path / "rollouts" / "films" / name) or None if FILM.fullmatch(name) else None

    def _text(self, name: str) -> str:
        return _bytes(self.path / name).decode("utf-8", errors="replace")

    def _json(self, name: str) -> dict[str, Any]:
        try:
            value = _parse(self._text(name) or "{}")
        except (ValueError, RecursionError) as e:
            self._faults[name] = [f"{name}: expected a JSON object, found something else ({e})"]
            return {}
        return value if isinstance(value, dict) else {}


def columns(rows: Sequence[Row], points: int = POINTS) -> dict[str, Any]:
    """Metrics by name, for the page: ``{"axes": [[step, ...], ...], "series": {name: [axis, [value, ...]]}}``.

    Args:
      points: longer columns become that many means of consecutive values, each at the last step of its stretch.
    """
    raw: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        step = row["step"]
        for name, value in row.items():
            if value is not None:
                if name not in raw:
                    raw[name] = [], []
                raw[name][0].append(step)
                raw[name][1].append(value)
    raw.pop("step", None)
    axes: dict[tuple[float, ...], int] = {}
    series = {}
    for name, (xs, ys) in raw.items():
        xs, ys = thin(xs, ys, points)
        series[name] = [axes.setdefault(tuple(xs), len(axes)), [short(y) for y in ys]]
    return {"axes": [list(axis) for axis in axes], "series": series}


def thin(xs: Sequence[float], ys: Sequence[float], limit: int) -> tuple[Sequence[float], Sequence[float]]:
    """At most `limit` points: each the mean of its stretch, placed at the stretch's last x."""
    n = len(xs)
    if n <= limit:
        return xs, ys
    cuts = [i * n // limit for i in range(limit + 1)]
    spans = list(itertools.pairwise(cuts))
    return [xs[b - 1] for _, b in spans], [sum(ys[a:b]) / (b - a) for a, b in spans]


def short(y: float) -> float:
    """Five significant digits; rounding noise is zero."""
    return 0.0 if abs(y) < NOISE else float(f"{y:.5g}")


def places(record: Row) -> dict[str, Any] | None:
    """Expected and named boxes and points, as the verifier left them; None where it looks at no places.

    Returns:
      ``{"true": [place, ...], "said": [[place, ...], ...]}``, a list for each episode; a place is ``{"image": index, "at": numbers in
      pixels, "label": text, "hit": bool or None}``. What cannot be drawn is left out.
    """
    images = record["images"]
    true, said = _drawable(record.get("expected"), images), [_drawable(e.get("places"), images) for e in record["episodes"]]
    return {"true": true, "said": said} if true or any(said) else None


def _drawable(found: Any, images: Sequence[Row]) -> list[dict[str, Any]]:
    found = found if isinstance(found, dict) else {}
    image, (at, labels, hits) = found.get("image"), (_list(found.get(name)) for name in ("at", "labels", "hits"))
    if not isinstance(image, int) or not 0 <= image < len(images):
        return []
    return [
        {
            "image": image,
            "at": [min(REACH, max(-REACH, x)) for x in numbers],
            "label": str(label or "")[:LABEL],
            "hit": hit if isinstance(hit, bool) else None,
        }
        for numbers, label, hit in itertools.islice(itertools.zip_longest(at, labels, hits), min(len(at), PLACES))
        if isinstance(numbers, list) and len(numbers) in (2, 4) and all(map(_number, numbers))
    ]


def _list(x: Any) -> list[Any]:
    return x if isinstance(x, list) else []


# -- files ----------------------------------------------------------------------------------------------------------------------


def _index(file: Path, stamp: tuple[int, int], revision: int) -> Logged:
    logged = Logged(stamp, revision)
    match = ROLLOUTS.fullmatch(file.name)
    step = int(match[2]) if match else 0
    for number, (offset, line, whole) in enumerate(_lines(file)):
        logged.offsets.append(offset)
        try:
            if not whole:
                raise ValueError(f"the last line is cut off after {len(line)} bytes")
            logged.entries.append(_entry(number, step, _parse(line)))
        except (ValueError, RecursionError) as e:
            logged.problems.append(f"rollouts/{file.name}, line {number + 1}: {e}")
    return logged


def _lines(file: Path) -> Iterator[tuple[int, bytes, bool]]:
    """(offset, line, whether it is whole) of each line."""
    offset = 0
    *whole, rest = _bytes(file).split(b"\n")
    for line in whole:
        yield offset, line, True
        offset += len(line) + 1
    if rest:
        yield offset, rest, False


def _entry(line: int, step: int, record: Any) -> list[Any]:
    """The index entry of a group.

    Raises:
      ValueError: the record lacks what the page needs.
    """
    if not isinstance(record, dict):
        raise ValueError(f"expected one JSON object, found {type(record).__name__}")
    for name in ("episodes", "images", "prompt"):
        if not isinstance(record.get(name), list) or not all(isinstance(x, dict) for x in record[name]):
            raise ValueError(f"field {name!r}: expected a list of objects, found {str(record.get(name))[:60]!r}")
    for image in record["images"]:
        if not all(isinstance(image.get(side), int) and image[side] > 0 for side in ("width", "height")):
            raise ValueError(f"field 'images': expected width and height in pixels, found {str(image)[:80]}")
    correct = {True: 1, False: 0}
    episodes = [
        [
            e.get("score") if _number(e.get("score")) else None,
            correct.get(e.get("correct")) if isinstance(e.get("correct"), bool) else None,
            str(e.get("stop", "")),
            e.get("length") if _number(e.get("length")) else None,
            str(e.get("role", "sample")),
        ]
        for e in record["episodes"]
    ]
    return [line, str(record.get("task", "")), str(record.get("source", "")), step, episodes]


def _metrics_row(line: bytes) -> dict[str, Any] | str:
    """The row, or what is wrong with it."""
    try:
        row = _parse(line)
    except (ValueError, RecursionError) as e:
        return str(e)
    if not isinstance(row, dict) or not _number(row.get("step")):
        return f"expected one JSON object with a step, found {line[:60].decode(errors='replace')!r}"
    # NaN and infinity fail the comparison, and a bool is no int here
    return {k: v if v.__class__ in (float, int) and -LARGEST <= v <= LARGEST else None for k, v in row.items()}


def _number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


def _parse(text: bytes | str) -> Any:
    """JSON; NaN and infinity, which browsers refuse, read as null."""
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except UnicodeDecodeError as e:
        raise ValueError(f"not UTF-8 text ({e.reason} at byte {e.start})") from None
    except json.JSONDecodeError as e:
        raise ValueError(f"not JSON ({e.msg} at character {e.pos})") from None


def _stamp(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError:
        return -1, -1
    return found.st_mtime_ns, found.st_size


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
