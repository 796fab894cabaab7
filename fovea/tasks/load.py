"""Your own images and clips as tasks: a folder, JSON lines, CSV, Parquet, a saved `datasets` folder or a hub id.

    source = load("my_data")                       # my_data/train.jsonl, my_data/images/...
    source = load("my_data/table.csv", columns={"prompt": "q", "answer": "gt"}, verifier="number")
    print(source.describe())

The layouts of TRL (`prompt, images, solution`), EasyR1 (`problem, answer, images`, with `<image>` marks) and verl (`data_source, prompt,
images, reward_model`) are read as they are. Every row is checked at once, and all problems are told together.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fovea.tasks import tables
from fovea.tasks.pictures import MAX_PIXELS, BadImage, Decoded, Footage, Picture, clips_of, pictures_of, unchanged
from fovea.tasks.tables import Bad, Records, Row
from fovea.types import Context, Episode, Group, Task, Turn
from fovea.verifiers import VERIFIERS, build, extract_answer
from fovea.verifiers.parse import parse_numbers

GUESSES: dict[str, tuple[str, ...]] = {
    "prompt": ("question", "problem", "prompt", "query", "instruction", "messages", "text", "input"),
    "image": ("images", "image", "image_path", "image_paths", "img", "picture", "file_name", "filename"),
    "video": ("videos", "video", "video_path", "video_paths", "clip", "clips"),
    "answer": ("answer", "solution", "label", "ground_truth", "gold", "gt", "target", "reward_model.ground_truth", "answers"),
    "id": ("id", "uid", "question_id", "sample_id"),
    "source": ("data_source", "source"),
    "options": ("options", "choices"),
    "verifier": ("verifier",),
    "params": ("params", "verifier_params"),
}
"""Field of a task -> column names that are taken for it, the first that the table has."""

MARKS = {"image": "<image>", "video": "<video>"}
SHOWN = {"image": "a picture", "video": "a clip"}
ENDINGS = {"image": "png|jpe?g|gif|webp|bmp|tiff?", "video": "mp4|mkv|webm|mov|avi|m4v"}
MANY = ("images", "image_paths", "videos", "video_paths", "clips")
"""Columns that may be empty in a row."""
CHECKS = ("header", "full", "none")


class BadRows(ValueError):
    """Rows that cannot be used, all of them: `bad` holds file, row, field, found and expected of each."""

    def __init__(self, bad: Sequence[Bad], total: int, where: str):
        self.bad = list(bad)
        rows = len({(b.file, b.row) for b in bad})
        super().__init__(f'{rows} of {total} rows of {where} cannot be used (on_bad_row="skip" leaves them out):\n{tell(bad)}')


def tell(bad: Sequence[Bad], limit: int = 20) -> str:
    """Problems one per line, the first `limit` of them."""
    lines = [f"  {b}" for b in bad[:limit]]
    return "\n".join(lines + ([f"  ... and {len(bad) - limit} more"] if len(bad) > limit else []))


@dataclass(frozen=True)
class Item:
    """A checked row whose pictures and clips are still encoded."""

    row: Row
    task: Task
    pictures: tuple[Picture | Footage, ...]


@dataclass
class Table:
    """A source of tasks read from a table: ``len(source)``, ``source[i]``. Pictures are decoded when a task is asked for.

    Attributes:
      skipped: problems of the rows that were left out.
      columns: which column each field was read from.
      unused: the other columns; what is plain in them is in each task's `meta`.
      files: the tables that were read.
      seen: digest of each picture, once `digest` has been asked for; a picture with another one is refused from then on.
    """

    name: str
    items: list[Item]
    columns: Mapping[str, str]
    unused: Sequence[str] = ()
    notes: Sequence[str] = ()
    skipped: list[Bad] = field(default_factory=list)
    skip: bool = False
    max_pixels: int = MAX_PIXELS
    files: Sequence[Path] = ()
    decoded: Decoded = field(default_factory=Decoded)
    seen: dict[Any, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Task]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> Task:
        """Task i. A picture that turns out damaged only now raises `BadRows`, or gives way to the next row when bad rows are skipped."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"row {i} of a source with {len(self)} rows")
        for offset in range(len(self)):
            item = self.items[(i + offset) % len(self)]
            try:
                shown = zip(_keys_of(item), item.pictures, strict=True)
                return replace(item.task, images=tuple(self._decode(key, p) for key, p in shown))
            except BadImage as error:
                bad = Bad(item.row.file, item.row.number, self.columns.get(error.field, error.field), error.found, error.expected)
            if not self.skip:
                raise BadRows([bad], len(self), self.name)
            if bad not in self.skipped:
                self.skipped.append(bad)
                warnings.warn(f"skipped: {bad}", stacklevel=2)
        raise BadRows(self.skipped, len(self), self.name)

    def _decode(self, key: Any, shown: Picture | Footage) -> Any:
        if not isinstance(shown, Footage):
            return self.decoded.get(key, shown, self.max_pixels, self.seen.get(key))
        clip = shown.decode()
        unchanged(shown, self.seen.get(key))
        return clip

    def digest(self) -> str:
        """SHA-256 of everything the tasks are made of, in order, whatever files they come from; reads every picture once."""
        total = hashlib.sha256()
        for item in self.items:
            t = item.task
            row = [t.id, t.source, t.prompt, t.answer, t.verifier if isinstance(t.verifier, str) else "", t.params, t.meta]
            total.update(json.dumps(row, sort_keys=True, default=str).encode())
            for key, picture in zip(_keys_of(item), item.pictures, strict=True):
                if key not in self.seen:
                    self.seen[key] = picture.digest()
                total.update(self.seen[key].encode())
        return total.hexdigest()

    def describe(self) -> str:
        """What was understood: rows, columns and those that no field uses, verifiers and whatever was guessed."""
        verifiers = Counter(t.verifier if isinstance(t.verifier, str) else "your own" for t in (item.task for item in self.items))
        shown = {k: Counter(sum(p.kind == k for p in item.pictures) for item in self.items) for k in MARKS}
        lines = [
            f"{self.name}: {len(self)} rows" + (f", {len(self.skipped)} problems skipped" if self.skipped else ""),
            "  columns    " + ", ".join(f"{f} <- {c!r}" for f, c in self.columns.items()),
            *(["  unused     " + ", ".join(map(repr, self.unused))] if self.unused else []),
            "  images     " + _counts(shown["image"]),
            *(["  clips      " + _counts(shown["video"])] if set(shown["video"]) - {0} else []),
            "  verifiers  " + ", ".join(f"{v} for {rows} rows" for v, rows in verifiers.most_common()),
        ]
        return "\n".join(lines + [f"  note       {n}" for n in self.notes])


def _counts(rows: Counter[int]) -> str:
    return ", ".join(f"{n} in {count} rows" for n, count in sorted(rows.items()))


def _keys_of(item: Item) -> list[Any]:
    """What names each picture of an item: its file, or its place in a table."""
    return [(item.row.file, item.row.number, n) if callable(p.place) else p.place for n, p in enumerate(item.pictures)]


def load(
    path: str | Path,
    *,
    columns: Mapping[str, str | None] | None = None,
    images: str | Path = "auto",
    verifier: Any = None,
    params: Mapping[str, Any] | None = None,
    source: str | None = None,
    split: str | None = None,
    heldout: float = 0.1,
    limit: int | None = None,
    instruction: str = "",
    on_bad_row: str = "stop",
    check_images: str = "header",
    max_pixels: int = MAX_PIXELS,
) -> Table:
    """Read a table of questions about images as a source of tasks.

    Args:
      path: a folder with a table, a table (.jsonl, .json, .csv, .tsv, .parquet), a folder of `datasets.save_to_disk`, or a hub id.
      columns: field (prompt, image, video, answer, id, source, options, verifier, params) -> column, where `GUESSES` are not wanted;
        "a.b" is the entry b of a mapping in column a; None says that the table has no column for the field.
      images: folder that relative image paths start from; "auto" is the table's folder, then its `images/`. No path may leave it.
      verifier: verifier of every row (a name, a function or an object); otherwise guessed from each answer: number, box of four numbers
        in increasing order -> box_iou, options -> choice, else exact.
      params: parameters of that verifier.
      source: name of the source in metrics; otherwise the column `data_source` or the file's name.
      split: "train", "heldout" or None for all rows. Files (or parts) named after splits decide; otherwise the content of a row's images
        (of its prompt, without images) does, so that rows that show the same images stay together.
      heldout: fraction of rows that content assigns to "heldout".
      limit: number of rows to keep.
      instruction: text appended to every question.
      on_bad_row: "stop" tells every problem in one `BadRows`; "skip" leaves those rows out, counted, listed in `skipped` and warned about.
      check_images: "header" (and the end mark of PNG, JPEG and GIF), "full" (decode each), or "none".
      max_pixels: largest picture allowed, in pixels.
    """
    _one_of("split", split, ("train", "heldout", None))
    _one_of("on_bad_row", on_bad_row, ("stop", "skip"))
    _one_of("check_images", check_images, CHECKS)
    if verifier is not None:
        build(verifier, params)
    records = tables.read(path, split)
    name = source or _name_of(path)
    mapping, unused = match_columns(records, columns or {}, str(path))
    reader = _Reader(records, mapping, name, source is not None, _roots(records, images), verifier, dict(params or {}), instruction)
    wanted = split if split is not None and not records.split_by_file else None

    items: list[Item] = []
    bad, ids, left_out = list(records.bad), set[str](), 0
    for row in records.rows:
        if limit is not None and len(items) >= limit:
            break
        item, problems = reader.read(row, check_images, max_pixels)
        if item is not None and wanted is not None and split_of(item, heldout) != wanted:
            left_out += 1
            continue
        if item is not None and item.task.id in ids:
            problems = [Bad(row.file, row.number, mapping.get("id", "id"), f"{item.task.id!r}, used before", "an id of its own")]
        bad.extend(problems)
        if item is not None and not problems:
            ids.add(item.task.id)
            items.append(item)
    total, files = len(records.rows) + len(records.bad), records.files
    bad.sort(key=lambda b: (files.index(b.file) if b.file in files else 0, b.row))
    if bad and on_bad_row == "stop":
        raise BadRows(bad, total, str(path))
    if not items:
        why = f"\n{tell(bad)}" if bad else ""
        share = f" for split {split!r} ({left_out} rows belong to the other one; --heldout names a table of its own)" if left_out else ""
        raise ValueError(f"{path} holds no usable row{share}; found {total} rows, {len(bad)} problems; expected at least one{why}")
    if bad:
        rows = len({(b.file, b.row) for b in bad})
        warnings.warn(f"{rows} of {total} rows of {path} were skipped:\n{tell(bad, 5)}", stacklevel=2)
    notes = [*reader.notes]
    if split is not None:
        by = f"files {', '.join(records.files)}" if records.split_by_file else f"content ({heldout:.0%} held out)"
        notes.append(f"split {split!r} by {by}")
    return Table(name, items, mapping, unused, notes, bad, on_bad_row == "skip", max_pixels, records.paths)


def split_of(item: Item, heldout: float) -> str:
    """The split of a row by what it shows: its images, or its prompt when it has none."""
    content = "".join(p.digest() for p in item.pictures) or json.dumps(item.task.prompt, sort_keys=True, default=str)
    draw = int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest()) / 2**64
    return "heldout" if draw < heldout else "train"


def match_columns(records: Records, wanted: Mapping[str, str | None], where: str) -> tuple[dict[str, str], list[str]]:
    """(field -> column, from what the caller says and then from `GUESSES`; the columns that no field uses).

    Raises:
      ValueError: an unknown field or column, a column that seems to be a field under a wrong name, or no column for the prompt or the
        answer; named with the columns there are.
    """
    there: list[str] = []
    for row in records.rows[:1000]:
        there += [c for c in row.values if c not in there]
    nested = [f"{c}.{k}" for c in there for k in _keys(next((r.values[c] for r in records.rows if c in r.values), None))]
    for name, column in wanted.items():
        if name not in GUESSES:
            raise ValueError(f"columns: no field is called {name!r}; fields: {', '.join(GUESSES)}")
        if column is not None and column not in there and column not in nested:
            near = difflib.get_close_matches(column, there, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"columns: {where} has no column {column!r} for field {name!r}{hint}; columns: {', '.join(there) or 'none'}")
    mapping = {name: column for name, column in wanted.items() if column is not None}
    known = {c.lower(): c for c in reversed(there + nested)} | {c: c for c in there + nested}
    for name, guesses in GUESSES.items():
        guess = next((known[g] for g in guesses if g in known and known[g] not in mapping.values()), None)
        if name not in wanted and guess is not None:
            mapping[name] = guess
    if not records.rows:
        return mapping, []
    used = {c.partition(".")[0] for c in mapping.values()}
    unused = [c for c in there if c not in used]
    lost = _misnamed(records, unused, [f for f in GUESSES if f not in mapping and f not in wanted])
    if lost:
        raise ValueError(f"{where} has columns that may be fields under a wrong name:\n{tell(lost)}")
    for name in ("prompt", "answer"):
        if name not in mapping:
            raise ValueError(
                f"{where} has no column that could be the {name}; columns: {', '.join(there)}. "
                f"Tried {', '.join(GUESSES[name])}; say which one: columns={{{name!r}: ...}}"
            )
    return mapping, unused


def _misnamed(records: Records, unused: Sequence[str], missing: Sequence[str]) -> list[Bad]:
    """Unused columns that would be `missing` fields but for their spelling, or that hold pictures where no column is known to.

    A lost name or source only changes labels, so those two are not looked for.
    """
    names = {guess: f for f in missing if f not in ("id", "source") for guess in GUESSES[f]}
    out = []
    for column in unused:
        row = next(r for r in records.rows if column in r.values)
        meant = near(column, names)
        holds = next((kind for kind in MARKS if kind in missing and _shows(row.values[column], kind)), None)
        if meant or holds:
            name = holds or names[str(meant)]
            found = f"{SHOWN[holds] if holds else 'a value'} under a name that is not known"
            found += f"; did you mean {meant!r}?" if meant else ""
            known = f"one of {', '.join(GUESSES[name])}"
            expected = f"{known}; or columns={{{name!r}: {column!r}}}"
            expected += "" if name in ("prompt", "answer") else f", or {{{name!r}: None}} if it is something else"
            out.append(Bad(row.file, row.number, column, found, expected))
    return out


def near(column: str, names: Iterable[str]) -> str | None:
    """The name that `column` seems to be a misspelling of."""
    return next(iter(difflib.get_close_matches(re.sub(r"[\s-]+", "_", column.strip().lower()), list(names), 1, 0.8)), None)


def _shows(cell: Any, kind: str) -> bool:
    """Whether a cell looks like a picture or a clip: a path with a usual ending, or an embedded picture."""
    cell = cell[0] if isinstance(cell, list) and cell else cell
    if isinstance(cell, Mapping):
        return kind == "image" and "bytes" in cell and "path" in cell
    if callable(cell):
        return kind == "image"
    return isinstance(cell, str) and bool(re.fullmatch(rf"\S.*\.({ENDINGS[kind]})", cell.strip(), re.I))


def _keys(cell: Any) -> Sequence[str]:
    return [str(k) for k in cell] if isinstance(cell, dict) else ()


def _roots(records: Records, images: str | Path) -> list[Path]:
    if images != "auto":
        folder = Path(images).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"images={str(images)!r} is no folder; expected the folder that image paths start from, or 'auto'")
        return [folder]
    return [] if records.root is None else [records.root, *(p for p in [records.root / "images"] if p.is_dir())]


def _one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))}")


def _name_of(path: str | Path) -> str:
    place = Path(path)
    return place.resolve().name if place.is_dir() else place.stem


# -- one row --------------------------------------------------------------------------------------------------------------------


class _Problem(Exception):
    def __init__(self, name: str, found: str, expected: str):
        super().__init__(found)
        self.name, self.found, self.expected = name, found, expected


@dataclass
class _Reader:
    """Turns rows into items; what is wrong with a row becomes `Bad` entries."""

    records: Records
    columns: Mapping[str, str]
    name: str
    name_is_given: bool
    roots: list[Path]
    verifier: Any
    params: dict[str, Any]
    instruction: str
    notes: dict[str, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.used = {c.partition(".")[0] for c in self.columns.values()}
        answers = (self._cell(row, "answer") for row in self.records.rows)
        self.digits_are_text = any(isinstance(a, str) and re.fullmatch(r"\s*0\d+\s*", a) for a in answers)

    def read(self, row: Row, check: str, max_pixels: int) -> tuple[Item | None, list[Bad]]:
        problems: list[Bad] = []
        absent = [c for c in self.used if c not in row.values]
        for column in row.values if absent else ():
            if column not in self.used and (meant := near(column, absent)):
                problems.append(Bad(row.file, row.number, column, "an unknown column", f"{meant!r}, which this row lacks and others have"))
        if problems:
            return None, problems

        def attempt(step: Callable[..., Any], *args: Any) -> Any:
            try:
                return step(*args)
            except _Problem as p:
                problems.append(Bad(row.file, row.number, self.columns.get(p.name, p.name), p.found, p.expected))
            except BadImage as p:
                problems.append(Bad(row.file, row.number, self.columns.get(p.field, p.field), p.found, p.expected))

        shown = attempt(self._shown, row)
        for one in shown or () if check != "none" else ():
            attempt(one.check, max_pixels, check == "full")
        prompt = attempt(self._prompt, row, shown)
        answer = attempt(self._answer, row)
        scored = attempt(self._verifier, row, answer, bool(shown)) if answer is not None else None
        if problems or scored is None:
            return None, problems
        task = Task(
            id=str(self._cell(row, "id") if self._cell(row, "id") is not None else f"{Path(row.file).name}:{row.number}"),
            source=self.name if self.name_is_given else str(self._cell(row, "source") or self.name),
            prompt=prompt,
            answer=scored[2],
            verifier=scored[0],
            params=scored[1],
            meta={"file": row.file, "row": row.number, **{k: v for k, v in row.values.items() if self._is_extra(k, v)}},
        )
        problem = _gold_problem(task)
        if problem:
            return None, [Bad(row.file, row.number, self.columns["answer"], problem, f"an answer that verifier {task.verifier!r} can read")]
        return Item(row, task, in_order(prompt, shown or ())), []

    def _cell(self, row: Row, name: str) -> Any:
        column = self.columns.get(name)
        if column is None:
            return None
        if column in row.values:
            return row.values[column]
        outer, _, inner = column.partition(".")
        value = row.values.get(outer)
        return value.get(inner) if isinstance(value, Mapping) else None

    def _is_extra(self, key: str, value: Any) -> bool:
        said = isinstance(value, list) and all(isinstance(v, str) for v in value)
        return key not in self.used and (said or isinstance(value, str | int | float | bool))

    def _shown(self, row: Row) -> list[Picture | Footage]:
        there = [name for name in MARKS if name in self.columns]
        shown = [*pictures_of(self._cell(row, "image"), self.roots), *clips_of(self._cell(row, "video"), self.roots)]
        if there and not shown and not any(self.columns[name] in MANY for name in there):
            raise _Problem(there[0], "nothing", "a path" if there[0] == "video" else "a path or an image")
        return shown

    def _prompt(self, row: Row, shown: Sequence[Picture | Footage] | None) -> tuple[dict[str, Any], ...]:
        value = self._cell(row, "prompt")
        if isinstance(value, str) and value.lstrip().startswith('[{"'):
            value = _parsed(value, "prompt", "a question, or a JSON list of chat messages")
        if value is None or value == "" or value == [] or (isinstance(value, str) and not value.strip()):
            raise _Problem("prompt", "nothing" if value is None else f"{value!r}, empty", "a question")
        marks = {name: mark for name, mark in MARKS.items() if name == "image" or name in self.columns}
        messages = _messages(value, marks)
        asked = messages[-1]["content"]
        options = self._options(row)
        said = " ".join(p["text"] for p in asked if p["type"] == "text")
        if options and not all(o in said for o in options):
            asked.append({"type": "text", "text": "\n" + "\n".join(f"{chr(ord('A') + i)}. {o}" for i, o in enumerate(options))})
            self.notes["options are written under the question as A., B., ..."] = None
        if self.instruction:
            asked.append({"type": "text", "text": "\n" + self.instruction})
        placed = Counter(p["type"] for m in messages for p in m["content"] if p["type"] in MARKS)
        if shown is not None and not placed and shown:
            first = next((m for m in messages if m["role"] == "user"), messages[0])
            first["content"][:0] = [{"type": one.kind} for one in shown]
        elif shown is not None and (there := Counter(one.kind for one in shown)) != placed:
            kind = next(k for k in MARKS if placed[k] != there[k])
            found = f"{placed[kind]} {kind} placeholder(s) and {there[kind]} {kind}(s)"
            raise _Problem("prompt", found, f"one placeholder for each {kind}, or none at all")
        return tuple(messages)

    def _options(self, row: Row) -> list[str]:
        value = self._cell(row, "options")
        if isinstance(value, str) and value.startswith("["):
            value = _parsed(value, "options", "a list of texts")
        if isinstance(value, Mapping):
            value = list(value.values())
        if value is None or value == "":
            return []
        if not isinstance(value, list):
            raise _Problem("options", f"{value!r:.60} ({type(value).__name__})", "a list of texts")
        return [str(v) for v in value]

    def _answer(self, row: Row) -> Any:
        value = self._cell(row, "answer")
        if callable(value):
            raise _Problem("answer", "binary data", "a text, a number or a list of numbers")
        if value is None or value == [] or value == {} or (isinstance(value, str) and not value.strip()):
            raise _Problem("answer", "nothing" if value is None else f"{value!r}, empty", "an answer that is not empty")
        if isinstance(value, float) and value != value:
            raise _Problem("answer", "nan", "a finite number")
        if isinstance(value, str):
            tagged = "<answer>" in value or "\\boxed{" in value
            answer = extract_answer(value) if tagged else value.strip()
            if answer is None:
                raise _Problem("answer", f"{value!r:.60}, an empty answer tag", "an answer that is not empty")
            return answer
        return value

    def _verifier(self, row: Row, answer: Any, has_images: bool) -> tuple[Any, dict[str, Any], Any]:
        """(verifier, parameters, answer in the form the verifier reads)."""
        options = self._options(row)
        spec, params = self.verifier, dict(self.params)
        if spec is None and (named := self._cell(row, "verifier")):
            spec, params = named, dict(self._params(row))
        if spec is None:
            spec, answer = guess_verifier(answer, bool(options), has_images, self.digits_are_text)
            self.notes["verifiers are guessed from the answers; choose with verifier=..."] = None
        if spec == "choice" and options:
            params.setdefault("options", options)
        try:
            build(spec, params)
        except (TypeError, ValueError) as error:
            raise _Problem("verifier", str(error), "a known verifier with parameters it takes") from None
        return spec, params, answer

    def _params(self, row: Row) -> Mapping[str, Any]:
        value = self._cell(row, "params")
        if isinstance(value, str) and value:
            value = _parsed(value, "params", "a JSON object")
        if value is not None and value != "" and not isinstance(value, Mapping):
            raise _Problem("params", f"{value!r:.60} ({type(value).__name__})", "a mapping of verifier parameters")
        return {k: v for k, v in (value or {}).items() if v is not None}


def _parsed(text: str, name: str, expected: str) -> Any:
    """JSON within a cell."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise _Problem(name, repr(text[:60]), expected) from None
    if said := tables.unusable(value):
        raise _Problem(name, *said)
    return value


def in_order(prompt: Sequence[Mapping[str, Any]], shown: Sequence[Picture | Footage]) -> tuple[Picture | Footage, ...]:
    """Pictures and clips in the order of their places in the messages."""
    waiting = {kind: iter([one for one in shown if one.kind == kind]) for kind in MARKS}
    return tuple(next(waiting[p["type"]]) for m in prompt for p in m["content"] if p["type"] in MARKS)


def _messages(value: Any, marks: Mapping[str, str]) -> list[dict[str, Any]]:
    """A question or chat messages -> messages whose content is a list of parts; `marks` in the text become image and video parts."""
    if isinstance(value, str):
        return [{"role": "user", "content": _parts(value, marks)}]
    if not isinstance(value, list) or not all(isinstance(m, Mapping) and "role" in m and "content" in m for m in value):
        raise _Problem("prompt", f"{value!r:.60} ({type(value).__name__})", "a text, or a list of {'role', 'content'} messages")
    messages = []
    for m in value:
        content = m["content"]
        if isinstance(content, str):
            parts = _parts(content, marks)
        elif isinstance(content, list) and all(isinstance(p, Mapping) and p.get("type") in ("text", *marks) for p in content):
            parts = [q for p in content for q in ([{"type": p["type"]}] if p["type"] in marks else _parts(str(p.get("text") or ""), marks))]
        else:
            raise _Problem("prompt", f"content {content!r:.60}", f"a text, or a list of {', '.join(('text', *marks))} parts")
        messages.append({"role": str(m["role"]), "content": parts})
    return messages


def _parts(text: str, marks: Mapping[str, str]) -> list[dict[str, Any]]:
    kinds = {mark: kind for kind, mark in marks.items()}
    first, *rest = re.split("(" + "|".join(map(re.escape, kinds)) + ")", text)
    parts: list[dict[str, Any]] = [{"type": "text", "text": first}] * bool(first.strip() or not rest)
    for mark, piece in zip(rest[::2], rest[1::2], strict=True):
        piece = piece.removeprefix("\n")
        parts += [{"type": kinds[mark]}] + [{"type": "text", "text": piece}] * bool(piece.strip())
    return parts


_NUMBER = re.compile(r"[+-]?(?:0|[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d*)?(?:\.\d+)?\s?%?")


def guess_verifier(answer: Any, has_options: bool, has_images: bool, digits_are_text: bool = False) -> tuple[str, Any]:
    """(verifier, answer as it reads it) from an answer's type and form.

    `digits_are_text` is for tables in which some answer has leading zeros ("07"): there digits are read, not counted.
    """
    if has_options:
        return "choice", answer
    if isinstance(answer, bool):
        return "exact", answer
    if isinstance(answer, int | float):
        return "number", answer
    if isinstance(answer, str) and not digits_are_text and any(c.isdigit() for c in answer) and _NUMBER.fullmatch(answer):
        return "number", answer
    bracketed = not isinstance(answer, str) or re.fullmatch(r"\s*\[[^\[\]]{1,200}\]\s*", answer)
    box = parse_numbers(answer, 4) if bracketed and has_images else None
    if box is not None and box[0] < box[2] and box[1] < box[3]:
        return "box_iou", list(box)
    if isinstance(answer, Mapping):
        return "count", dict(answer)
    return "exact", answer


def _gold_problem(task: Task) -> str | None:
    """Why the verifier cannot read the gold answer, for the verifiers that are quick to ask."""
    if task.verifier not in VERIFIERS or task.verifier in ("math", "weighted", "return", "length", "format", "random"):
        return None
    probe = Episode("probe", task, turns=[Turn("0")])
    # a box in another scale needs the size of an image that is not decoded yet
    verifier = build(task.verifier, {k: v for k, v in task.params.items() if k != "scale"})
    score = verifier.score(Group(task, [probe]), Context())[0]
    return None if score.ok else score.reason.partition(": ")[2]
