"""Rows of a table on disk: JSON lines, JSON, CSV, Parquet, a saved `datasets` folder, or a data set of the hub.

Binary cells (embedded images) stay on disk until they are asked for. Reading never raises for one row: what cannot be read becomes a
`Bad` entry, so that all problems of a table can be told together.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
MAX_ROW = 1 << 26
"""Bytes of one row as it is read: a line, a CSV cell, an embedded image. Larger ones are more often a mistake than a picture."""
MAX_DEPTH = 32
"""Levels of lists and mappings within a row."""
MAX_DIGITS = 300

SPLIT_NAMES = {
    "train": ("train", "training"),
    "heldout": ("heldout", "held-out", "held_out", "test", "validation", "valid", "val", "dev", "eval"),
}


@dataclass(frozen=True)
class Bad:
    """One problem of one row."""

    file: str
    row: int
    field: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}, field {self.field!r}: found {self.found}; expected {self.expected}"


@dataclass(frozen=True)
class Row:
    """One row: `number` counts from 1 (the line of a JSON-lines file), `values` by column; a lazy cell is a function without arguments."""

    file: str
    number: int
    values: dict[str, Any]


@dataclass
class Records:
    """What was read: rows and problems, the folder that relative image paths start from, and where the split came from."""

    rows: list[Row] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    root: Path | None = None
    files: list[str] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    split_by_file: bool = False


def read(path: str | Path, split: str | None) -> Records:
    """Rows of a file, a folder or a hub id. `split` ("train" or "heldout") picks the files or parts that are named so, where some are."""
    place = Path(path).expanduser()
    if place.is_file():
        return _read_files([place], place.parent)
    if place.is_dir():
        if (place / "dataset_dict.json").exists() or (place / "state.json").exists():
            return _read_datasets(place, split)
        files, by_name = tables_of(place, split)
        records = _read_files(files, place)
        records.split_by_file = by_name
        return records
    if isinstance(path, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", path) and not place.parent.exists():
        return _read_datasets(path, split)
    raise FileNotFoundError(f"no such file or folder: {path}; expected a folder, a table ({', '.join(SUFFIXES)}) or a hub id owner/name")


def tables_of(folder: Path, split: str | None) -> tuple[list[Path], bool]:
    """The tables of a folder (or of its `data/`), and whether file names decided the split.

    Files named after a split (train*, heldout*, test*, ...) are that split when both kinds are there.
    """
    for place in (folder, folder / "data"):
        files = sorted(f for f in place.glob("*") if f.suffix.lower() in SUFFIXES and f.is_file()) if place.is_dir() else []
        if files:
            break
    else:
        inside = ", ".join(sorted(f.name for f in folder.iterdir())[:5]) or "nothing"
        raise FileNotFoundError(f"{folder} holds no table; found {inside}; expected one of {', '.join('*' + s for s in SUFFIXES)}")
    named = {name: [f for f in files if _is_named(f.stem, words)] for name, words in SPLIT_NAMES.items()}
    if split is not None and all(named.values()):
        return named[split], True
    return files, False


def _is_named(stem: str, words: tuple[str, ...]) -> bool:
    return bool(re.match(rf"({'|'.join(words)})(?![a-z])", stem.lower()))


def _read_files(files: list[Path], root: Path) -> Records:
    records = Records(root=root)
    for file in files:
        name = file.name if file.parent == root else str(file.relative_to(root))
        records.files.append(name)
        records.paths.append(file)
        reader: Callable[[Path, str, Records], None] = {".parquet": _parquet, ".csv": _csv, ".tsv": _csv, ".json": _json}.get(
            file.suffix.lower(), _jsonl
        )
        reader(file, name, records)
    return records


# -- text -----------------------------------------------------------------------------------------------------------------------


def _text(file: Path, name: str, records: Records) -> str:
    raw = file.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        records.bad.append(Bad(name, line, "(text)", f"byte 0x{raw[error.start]:02x} at offset {error.start}", "UTF-8 text"))
        return raw.decode("utf-8-sig", errors="replace")


def _jsonl(file: Path, name: str, records: Records) -> None:
    for number, line in enumerate(_text(file, name, records).split("\n"), 1):
        if not line.strip():
            continue
        if len(line) > MAX_ROW:
            records.bad.append(Bad(name, number, "(line)", f"{len(line)} characters", f"at most {MAX_ROW} in a row"))
            continue
        try:
            _add(json.loads(line), name, number, records)
        except (ValueError, RecursionError) as error:
            records.bad.append(Bad(name, number, "(line)", f"{line.strip()[:60]!r} ({error})"[:160], "one JSON object per line"))


def _json(file: Path, name: str, records: Records) -> None:
    try:
        rows = json.loads(_text(file, name, records))
    except (ValueError, RecursionError) as error:
        records.bad.append(Bad(name, getattr(error, "lineno", 1), "(file)", str(error), "a JSON list of objects"))
        return
    if not isinstance(rows, list):
        records.bad.append(Bad(name, 1, "(file)", f"a JSON {type(rows).__name__}", "a JSON list of objects"))
        return
    for number, row in enumerate(rows, 1):
        _add(row, name, number, records)


def _add(row: Any, name: str, number: int, records: Records) -> None:
    if not isinstance(row, dict):
        records.bad.append(Bad(name, number, "(line)", f"a JSON {type(row).__name__}", "a JSON object"))
        return
    for column, value in row.items():
        if said := unusable([column, value]):
            records.bad.append(Bad(name, number, column.encode(errors="replace").decode(), *said))
            return
    records.rows.append(Row(name, number, row))


def unusable(value: Any) -> tuple[str, str] | None:
    """(found, expected) of a value that text files, tokenizers or arithmetic could not take later."""
    level, depth = [value], 0
    while level:
        if depth > MAX_DEPTH:
            return f"lists and mappings {depth} deep", f"at most {MAX_DEPTH}"
        below: list[Any] = []
        for x in level:
            if isinstance(x, str):
                if not x.isascii() and re.search("[\ud800-\udfff]", x):
                    return f"{x[:60]!r}, half of a surrogate pair", "Unicode text"
            elif isinstance(x, int) and abs(x) >= 10**MAX_DIGITS:
                return "a number too large for arithmetic", f"at most {MAX_DIGITS} digits"
            elif isinstance(x, bytes) and len(x) > MAX_ROW:
                return f"{len(x)} bytes", f"at most {MAX_ROW} in a row"
            elif isinstance(x, dict):
                below += [*x, *x.values()]
            elif isinstance(x, list | tuple):
                below += x
        level, depth = below, depth + 1
    return None


def _csv(file: Path, name: str, records: Records) -> None:
    csv.field_size_limit(MAX_ROW)
    text = io.StringIO(_text(file, name, records), newline="")
    reader = csv.reader(text, delimiter="\t" if file.suffix.lower() == ".tsv" else ",", strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            if not cells:
                continue
            if header is None:
                header = [c.strip() for c in cells]
                for c in {c for c in header if header.count(c) > 1}:
                    records.bad.append(Bad(name, reader.line_num, c, "two columns of this name", "one"))
            elif len(cells) != len(header):
                records.bad.append(Bad(name, reader.line_num, "(line)", f"{len(cells)} cells", f"{len(header)} cells as in the header"))
            else:
                _add(dict(zip(header, cells, strict=True)), name, reader.line_num, records)
    except csv.Error as error:
        records.bad.append(Bad(name, reader.line_num, "(line)", str(error), "comma-separated text with balanced quotes"))


# -- Parquet and datasets -------------------------------------------------------------------------------------------------------


def _need(module: str, extra: str, what: str) -> Any:
    try:
        return __import__(module, fromlist=["_"])
    except ImportError as error:
        package = module.split(".")[0]
        advice = f'install the extra: pip install "fovea-rl[{extra}]"'
        raise ModuleNotFoundError(f"{what} needs {package}, which is missing; {advice} ({error})") from None


class _Groups:
    """The binary columns of a Parquet file, one row group at a time; the last two stay in memory."""

    def __init__(self, parquet: Any):
        self.parquet, self.kept = parquet, OrderedDict()

    def cell(self, group: int, column: str, index: int) -> Any:
        key = (group, column)
        if key not in self.kept:
            self.kept[key] = self.parquet.read_row_group(group, columns=[column]).column(column)
            while len(self.kept) > 2:
                self.kept.popitem(last=False)
        return self.kept[key][index].as_py()


def _parquet(file: Path, name: str, records: Records) -> None:
    pq = _need("pyarrow.parquet", "data", f"reading {name}")
    try:
        parquet = pq.ParquetFile(file)
        lazy = [f.name for f in parquet.schema_arrow if "binary" in str(f.type)]
    except Exception as error:
        records.bad.append(Bad(name, 1, "(file)", _said(error), "a Parquet file"))
        return
    eager = [f.name for f in parquet.schema_arrow if f.name not in lazy]
    groups, number = _Groups(parquet), 0
    for g in range(parquet.num_row_groups):
        count = parquet.metadata.row_group(g).num_rows
        try:
            values = parquet.read_row_group(g, columns=eager).to_pylist() if eager else [{} for _ in range(count)]
        except Exception as error:
            records.bad.append(
                Bad(name, number + 1, "(rows)", f"rows {number + 1} to {number + count}: {_said(error)}", "rows that decode")
            )
            values = []
        for i, row in enumerate(values):
            cells = {c: (lambda g=g, c=c, i=i: groups.cell(g, c, i)) for c in lazy}
            _add({**row, **cells}, name, number + i + 1, records)
        number += count


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:160]


def _read_datasets(where: Path | str, split: str | None) -> Records:
    """A folder written by `save_to_disk`, or a hub id; images are taken undecoded from the Arrow tables."""
    datasets = _need("datasets", "hub", f"reading {where}")
    name = where.name if isinstance(where, Path) else where
    try:
        loaded = datasets.load_from_disk(str(where)) if isinstance(where, Path) else datasets.load_dataset(where)
    except Exception as error:
        kind = "a folder written by save_to_disk" if isinstance(where, Path) else "a local path, or a data set of the hub within reach"
        raise FileNotFoundError(f"cannot read {where}: {type(error).__name__}: {error}; expected {kind}") from error
    records = Records(root=where if isinstance(where, Path) else None)
    parts = dict(loaded) if isinstance(loaded, dict) else {"": loaded}
    named = {key: [p for p in parts if _is_named(p, words)] for key, words in SPLIT_NAMES.items()}
    records.split_by_file = split is not None and all(named.values())
    for part in named[split] if split is not None and records.split_by_file else parts:
        label = f"{name}[{part}]" if part else name
        records.files.append(label)
        records.rows.extend(_arrow_rows(parts[part].with_format("arrow"), label))
    return records


def _arrow_rows(table: Any, name: str) -> Iterator[Row]:
    schema = table.features.arrow_schema
    lazy = [f.name for f in schema if "binary" in str(f.type)]
    eager = [f.name for f in schema if f.name not in lazy]
    values = table.select_columns(eager)[:].to_pylist() if eager else [{} for _ in range(len(table))]
    views = {c: table.select_columns([c]) for c in lazy}
    for i, row in enumerate(values):
        cells = {c: (lambda c=c, i=i: views[c][i].column(c)[0].as_py()) for c in lazy}
        yield Row(name, i + 1, {**row, **cells})
