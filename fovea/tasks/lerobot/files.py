"""What the files of a set say, and where they lie."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fovea.files import replacing
from fovea.images import rgb

VERSION = "v3.0"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
CHUNK = 1000
"""Files in a folder."""
INDEX: dict[str, dict[str, Any]] = {
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    "frame_index": {"dtype": "int64", "shape": [1], "names": None},
    "episode_index": {"dtype": "int64", "shape": [1], "names": None},
    "index": {"dtype": "int64", "shape": [1], "names": None},
    "task_index": {"dtype": "int64", "shape": [1], "names": None},
}
"""Columns of every set: seconds since the episode began, and numbers from 0."""
CAMERAS = ("video", "image")
DTYPES = (*CAMERAS, "float32", "float64", "int64", "int32", "int16", "int8", "uint8", "bool", "string")
MOST = 1 << 28
"""Numbers in one frame of a feature, at most."""


def read_info(folder: Path) -> dict[str, Any]:
    path = folder / "meta/info.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: found no file; expected the folder of a LeRobotDataset v3, with meta/info.json in it")
    info = read_json(path)
    version = str(info.get("codebase_version", ""))
    if not version.startswith("v3."):
        raise ValueError(
            f"{path}, field 'codebase_version': found {version!r}, expected {VERSION!r} (lerobot's own converter turns v2.1 into v3.0)"
        )
    kinds = {"fps": (int, float), "total_episodes": int, "features": dict, "data_path": str}
    for key, kind in kinds.items():
        if not isinstance(info.get(key), kind) or isinstance(info.get(key), bool):
            raise ValueError(f"{path}, field {key!r}: found {str(info.get(key))[:60]!r}, expected {_called(kind)}")
    if not 0 < info["fps"] < 1e6 or info["total_episodes"] < 0:
        raise ValueError(
            f"{path}: found fps {info['fps']}, total_episodes {info['total_episodes']}; expected a positive and a whole number"
        )
    for name, feature in info["features"].items():
        check_feature(str(path), name, feature)
    if any(f["dtype"] == "video" for f in info["features"].values()) and not isinstance(info.get("video_path"), str):
        raise ValueError(f"{path}, field 'video_path': found {info.get('video_path')!r}, expected a path, because there are videos")
    return info


def _called(kind: Any) -> str:
    return " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))


def check_feature(where: str, name: str, feature: Any) -> None:
    dtype, shape = (feature.get(k) for k in ("dtype", "shape")) if isinstance(feature, Mapping) else (None, None)
    whole = isinstance(shape, list | tuple) and all(isinstance(n, int) and n > 0 for n in shape)
    if dtype not in DTYPES or not whole or np.prod([float(n) for n in shape or ()]) > MOST:
        raise ValueError(
            f"{where}, feature {name!r}: found dtype {dtype!r}, shape {str(shape)[:60]}; expected one of {', '.join(DTYPES)} and positive "
            f"whole numbers with a product up to {MOST}"
        )
    if dtype in CAMERAS and len(shape or ()) != 3:
        raise ValueError(f"{where}, feature {name!r}: found a camera of shape {shape}, expected three numbers (height, width, channels)")
    if re.search(r"[/\\]|\.\.", name):
        raise ValueError(f"{where}: found a feature called {name!r}; expected no slashes and no '..', because it names a folder")


def read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path}: found no JSON ({e}); expected an object") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: found {type(found).__name__}, expected an object")
    return found


def filled(template: str, at: int, camera: str = "") -> str:
    return path_of(template, at // CHUNK, at % CHUNK, camera)


def path_of(template: str, chunk: int, file: int, camera: str = "") -> str:
    """A path template with its numbers; other placeholders stay as they are."""
    known = {"chunk_index": chunk, "file_index": file, "video_key": camera}
    return re.sub(r"\{(chunk_index|file_index|video_key)(?::(\d{0,2}d))?\}", lambda m: format(known[m[1]], m[2] or ""), template)


def inside(folder: Path, template: str, row: Mapping[str, Any], prefix: str, camera: str = "") -> Path:
    """
    Raises:
      ValueError: a path that leads out of the folder.
    """
    named = Path(path_of(template, int(row[f"{prefix}/chunk_index"]), int(row[f"{prefix}/file_index"]), camera))
    path = folder / named
    # not resolved: a file may be a link to somewhere else, as those in the cache of the Hugging Face Hub are
    if named.is_absolute() or ".." in named.parts:
        raise ValueError(f"{folder / 'meta/info.json'}: found the path {template!r}, expected one inside the folder")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: found no file; expected one, because meta/episodes names it")
    return path


def number_of(row: Mapping[str, Any], prefix: str) -> int:
    return int(row[f"{prefix}/chunk_index"]) * CHUNK + int(row[f"{prefix}/file_index"])


def read_tasks(path: Path) -> list[str]:
    table = _whole(path)
    words = [n for n in table.column_names if n != "task_index"]
    if "task_index" not in table.column_names or len(words) != 1:
        raise ValueError(f"{path}: found the columns {', '.join(table.column_names)}; expected 'task_index' and 'task'")
    by_number = dict(zip(table.column("task_index").to_pylist(), map(str, table.column(words[0]).to_pylist())))
    if sorted(by_number) != list(range(len(by_number))):
        raise ValueError(f"{path}, field 'task_index': found {str(sorted(by_number))[:60]}, expected 0 to {len(by_number) - 1}")
    return [by_number[i] for i in range(len(by_number))]


def read_episodes(folder: Path, info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of `meta/episodes` that info.json counts; later ones are of an episode that was not finished."""
    cameras = [n for n, f in info["features"].items() if f["dtype"] == "video"]
    needed = ["episode_index", "length", "dataset_from_index", "dataset_to_index", "data/chunk_index", "data/file_index"]
    needed += [f"videos/{c}/{k}" for c in cameras for k in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")]
    rows: list[dict[str, Any]] = []
    for path in sorted((folder / "meta/episodes").glob("chunk-*/file-*.parquet")):
        if len(rows) >= info["total_episodes"]:
            break
        table = _whole(path)
        if missing := [n for n in needed if n not in table.column_names]:
            raise ValueError(f"{path}: found no column {missing[0]!r}; expected {', '.join(needed)}")
        for at, row in enumerate(table.slice(0, info["total_episodes"] - len(rows)).to_pylist()):
            for name in needed:
                if not isinstance(row[name], int | float) or not 0 <= row[name] < math.inf:
                    raise ValueError(f"{path}, row {at}, field {name!r}: found {str(row[name])[:60]!r}, expected a number of 0 or more")
            first, last = row["dataset_from_index"], row["dataset_to_index"]
            expected = (len(rows), rows[-1]["dataset_to_index"] if rows else first, first + row["length"])
            if (row["episode_index"], first, last) != expected or not row["length"]:
                raise ValueError(
                    f"{path}, row {at}: found episode {row['episode_index']} of {row['length']} frames from {first} to {last}; expected "
                    f"episode {expected[0]} from {expected[1]} on, of at least one frame"
                )
            rows.append(row)
    if len(rows) < info["total_episodes"]:
        raise ValueError(
            f"{folder / 'meta/info.json'}, field 'total_episodes': found {info['total_episodes']}, expected {len(rows)}, as many as there "
            "are rows in meta/episodes (a copy that is not complete?)"
        )
    return rows


def _whole(path: Path) -> Any:
    _, pq = arrow()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: found no file; expected it in a LeRobotDataset v3")
    try:
        return pq.read_table(path, partitioning=None)
    except Exception as e:  # what a damaged file leads the reader to
        raise ValueError(f"{path}: found a file that cannot be read ({str(e)[:200]}); expected Parquet") from e


def read_rows(path: Path, start: int, stop: int, columns: Sequence[str]) -> Any:
    """Rows of a Parquet file; only the groups that hold them are read."""
    _, pq = arrow()
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            sizes = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
            edges = np.cumsum([0, *sizes])
            groups = [g for g in range(len(sizes)) if edges[g] < stop and edges[g + 1] > start]
            known = [c for c in columns if c in names]
            table = file.read_row_groups(groups, columns=known).slice(start - edges[groups[0]], stop - start) if groups else None
    except Exception as e:  # what a damaged file leads the reader to
        raise ValueError(f"{path}: rows {start} to {stop} cannot be read ({str(e)[:200]}); the file is damaged") from e
    if missing := [c for c in columns if c not in names]:
        raise ValueError(f"{path}: found no column {missing[0]!r}; expected {', '.join(columns)}")
    if stop > edges[-1]:
        raise ValueError(f"{path}: found {edges[-1]} rows, expected at least {stop}, because meta/episodes counts them")
    return table


def cut(path: Path, rows: int) -> None:
    """Take away what stands behind the first `rows` rows: an episode that was not finished."""
    _, pq = arrow()
    with pq.ParquetFile(path) as file:
        if file.metadata.num_rows <= rows:
            return
        with replacing(path, durable=True) as aside, pq.ParquetWriter(aside, file.schema_arrow) as out:
            for group in range(file.metadata.num_row_groups):
                if rows > 0:
                    table = file.read_row_group(group).slice(0, rows)
                    out.write_table(table)
                    rows -= table.num_rows


def as_array(column: Any, feature: Mapping[str, Any], where: str) -> np.ndarray:
    shape = tuple(feature["shape"])
    try:
        values = column.combine_chunks()
        while hasattr(values, "flatten") and not hasattr(values, "field") and _is_list(values.type):
            values = values.flatten()
        flat = values.to_numpy(zero_copy_only=False)
        return flat.reshape(len(column), *shape).astype(feature["dtype"])
    except (ValueError, TypeError) as e:
        raise ValueError(f"{where}: found {column.type}, expected frames of shape {shape} ({str(e)[:100]})") from None


def _is_list(kind: Any) -> bool:
    pa, _ = arrow()
    return pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)


def decoded(value: Any, where: str) -> np.ndarray:
    data = value.get("bytes") if isinstance(value, Mapping) else None
    if not data:
        raise ValueError(f"{where}: found {str(value)[:60]!r}, expected a picture's bytes")
    try:
        return np.asarray(rgb(Image.open(io.BytesIO(data))))
    except Exception as e:  # what a damaged picture leads a decoder to
        raise ValueError(f"{where}: found a picture that cannot be decoded ({e})") from e


def arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise ImportError(f"robot sets are stored as Parquet, which needs pyarrow ({e}): pip install 'fovea-rl[data,video]'") from e
    return pyarrow, pyarrow.parquet
