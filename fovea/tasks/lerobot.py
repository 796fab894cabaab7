"""Sets of robot episodes in the format LeRobotDataset v3: numbers in Parquet, cameras in MP4, several episodes in a file.

    meta/info.json                                   features, rates, totals: what it does not count is not there
    meta/tasks.parquet, meta/stats.json              instructions by number; minimum, maximum, mean, deviation of each feature
    meta/episodes/chunk-000/file-000.parquet         one row per episode: which files, from which row, from which time
    data/chunk-000/file-000.parquet                  one row per frame
    videos/CAMERA/chunk-000/file-000.mp4

Reading takes an episode, or a window of one, from the middle of its files. Writing replaces whole files, info.json last, so an episode is
there as a whole or not at all, whenever the writer is killed; what it left behind is cut off when a set goes on.
Needs pyarrow and PyAV (`pip install 'fovea-rl[data,video]'`).
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fovea.files import replacing, write_text
from fovea.images import rgb
from fovea.video import join_clips, read_span, write_clip

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
SEEN = 64
"""Pictures of an episode that its statistics look at."""


@dataclass(frozen=True)
class Recording:
    """An episode, or a window of it.

    Attributes:
      episode: its number. start: number of the first frame in the episode.
      task: the instruction. fps: frames per second.
      fields: feature -> (T, ...) array; cameras are uint8 (T, H, W, 3).
    """

    episode: int
    start: int
    task: str
    fps: float
    fields: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.fields.values()))) if self.fields else 0


class LeRobot:
    """A set that is read.

    Attributes:
      info: `meta/info.json`. features: name -> its dtype, shape and names. stats: feature -> statistics.
      tasks: the instructions by number.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.info = _info(self.folder)
        self.features: dict[str, dict[str, Any]] = self.info["features"]
        self.fps = float(self.info["fps"])
        self.tasks = _tasks(self.folder / "meta/tasks.parquet")
        self.rows = _episodes(self.folder, self.info)
        stats = self.folder / "meta/stats.json"
        self.stats: dict[str, Any] = _json(stats) if stats.is_file() else {}
        self._base: dict[tuple[int, int], int] = {}
        for row in self.rows:
            self._base.setdefault((row["data/chunk_index"], row["data/file_index"]), row["dataset_from_index"])
        self._starts = np.array([row["dataset_from_index"] for row in self.rows] or [0])

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Recording]:
        return (self.episode(i) for i in range(len(self)))

    @property
    def frames(self) -> int:
        return sum(row["length"] for row in self.rows)

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(name for name, f in self.features.items() if f["dtype"] in CAMERAS)

    def length(self, episode: int) -> int:
        return int(self._row(episode)["length"])

    def locate(self, index: int) -> tuple[int, int]:
        """(episode, frame in it) of frame `index` of the whole set."""
        if not 0 <= index < self.frames:
            raise IndexError(f"{self.folder}: found frame {index}, expected 0 to {self.frames - 1}")
        episode = int(np.searchsorted(self._starts, index, "right")) - 1
        return episode, index - int(self._starts[episode])

    def episode(self, episode: int, start: int = 0, stop: int | None = None, names: Sequence[str] | None = None) -> Recording:
        """Frames `start` to `stop` (exclusive; None: to the end) of an episode, all features or those in `names`.

        Raises:
          IndexError: no such episode or frames.
          ValueError: damaged or inconsistent files; file, row and field are named.
        """
        row = self._row(episode)
        length = int(row["length"])
        stop = length if stop is None else stop
        if not 0 <= start < stop <= length:
            raise IndexError(f"{self.folder}: found frames {start} to {stop} of episode {episode}, expected within 0 to {length}")
        wanted = [n for n in self.features if n not in INDEX] if names is None else list(names)
        if unknown := [n for n in wanted if n not in self.features]:
            raise ValueError(f"{self.folder}: found no feature {unknown[0]!r}, expected one of {', '.join(self.features)}")
        stored = [n for n in wanted if self.features[n]["dtype"] != "video"]
        numbers = self._numbers(episode, row, start, stop, stored)
        fields = {}
        for name in wanted:
            if self.features[name]["dtype"] == "video":
                path = _inside(self.folder, self.info["video_path"], row, f"videos/{name}", name)
                fields[name] = read_span(path, float(row[f"videos/{name}/from_timestamp"]) + start / self.fps, stop - start, self.fps)
            else:
                fields[name] = numbers[name]
        task = int(numbers["task_index"][0])
        if not 0 <= task < len(self.tasks):
            raise ValueError(
                f"{self.folder / 'meta/tasks.parquet'}: found {len(self.tasks)} tasks, expected one with number {task}, which episode "
                f"{episode} asks for"
            )
        return Recording(episode, start, self.tasks[task], self.fps, fields)

    def _row(self, episode: int) -> dict[str, Any]:
        if not 0 <= episode < len(self.rows):
            raise IndexError(f"{self.folder}: found episode {episode}, expected 0 to {len(self.rows) - 1}")
        return self.rows[episode]

    def _numbers(self, episode: int, row: Mapping[str, Any], start: int, stop: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        path = _inside(self.folder, self.info["data_path"], row, "data")
        first = int(row["dataset_from_index"]) - self._base[row["data/chunk_index"], row["data/file_index"]]
        columns = [*dict.fromkeys([*names, "episode_index", "frame_index", "task_index"])]
        table = _rows(path, first + start, first + stop, columns)
        for column, expected in (("episode_index", np.full(stop - start, episode)), ("frame_index", np.arange(start, stop))):
            found = table.column(column).to_numpy()
            if (wrong := (found != expected).nonzero()[0]).size:
                at = int(wrong[0])
                raise ValueError(
                    f"{path}, row {first + start + at}: {column} is {found[at]}, expected {expected[at]}; do meta/episodes and data belong "
                    "together?"
                )
        out = {"task_index": table.column("task_index").to_numpy()}
        for name in names:
            feature = self.features[name]
            values = table.column(name).to_pylist() if feature["dtype"] in ("image", "string") else None
            where = f"{path}, rows {first + start} to {first + stop}, field {name!r}"
            if feature["dtype"] == "image":
                out[name] = np.stack([_picture(v, f"{path}, row {first + start + i}, field {name!r}") for i, v in enumerate(values or ())])
            elif feature["dtype"] == "string":
                out[name] = np.array(values, dtype=object)
            else:
                out[name] = _array(table.column(name), feature, where)
        return out


class Writer:
    """Adds episodes to a set; one that `add` returned from survives a kill and a power cut.

    Args:
      folder: of a new set, or of one with the same features.
      features: name -> {"dtype", "shape", "names"}; cameras have dtype "video" (MP4) or "image" (PNG, lossless) and shape (H, W, 3).
      fps: frames per second. robot: what the robot is called.
      data_mb, video_mb: a file that has grown beyond this is closed, and the next one begun.
    """

    def __init__(
        self,
        folder: str | Path,
        features: Mapping[str, Mapping[str, Any]],
        fps: float,
        robot: str = "",
        data_mb: float = 100.0,
        video_mb: float = 200.0,
    ):
        self.folder, self.fps, self.data_mb, self.video_mb = Path(folder), fps, data_mb, video_mb
        self.features = {n: {"dtype": f["dtype"], "shape": list(f["shape"]), "names": f.get("names")} for n, f in features.items()}
        for name, f in self.features.items():
            _check_feature(f"features of {folder}", name, f)
            if f["dtype"] == "video":
                f["info"] = {"video.height": f["shape"][0], "video.width": f["shape"][1], "video.codec": "h264"}
                f["info"] |= {
                    "video.pix_fmt": "yuv420p",
                    "video.is_depth_map": False,
                    "video.fps": fps,
                    "video.channels": 3,
                    "has_audio": False,
                }
        self.robot = robot
        self._begin()

    def _begin(self) -> None:
        self._torn = True
        self.tasks, self.rows = list[str](), list[dict[str, Any]]()
        self._at: dict[str, int] = {}
        self._open: dict[str, list[Any]] = {"data": [], "episodes": []}
        self._clips: dict[str, int] = {}
        if (self.folder / "meta/info.json").is_file():
            self._go_on()
        self._torn = False  # it is while files hold an episode that does not count

    def _go_on(self) -> None:
        """After the episodes that are there: in files of their own, so that nothing that counts is touched."""
        there = LeRobot(self.folder)

        def known(features: Mapping[str, Any]) -> dict[str, Any]:
            return {n: (f["dtype"], tuple(f["shape"])) for n, f in features.items() if n not in INDEX}

        if known(there.features) != known(self.features) or there.fps != self.fps:
            raise ValueError(
                f"{self.folder}: found {known(there.features)} at {there.fps:g} frames per second; expected {known(self.features)} at "
                f"{self.fps:g}: a set has the same features in all its episodes"
            )
        self.tasks, self.rows, self.robot = there.tasks, there.rows, str(there.info.get("robot_type") or self.robot)
        if self.rows:
            last = self.rows[-1]
            self._at = {"data": _number(last, "data") + 1, "episodes": _number(last, "meta/episodes") + 1}
            self._at |= {n: _number(last, f"videos/{n}") + 1 for n in self._videos()}
            base = there._base[last["data/chunk_index"], last["data/file_index"]]
            in_file = sum(_number(row, "meta/episodes") == _number(last, "meta/episodes") for row in self.rows)
            _cut(self.folder / _filled(EPISODES, self._at["episodes"] - 1), in_file)
            _cut(_inside(self.folder, there.info["data_path"], last, "data"), last["dataset_to_index"] - base)

    def _videos(self) -> list[str]:
        return [n for n, f in self.features.items() if f["dtype"] == "video"]

    def add(self, task: str, fields: Mapping[str, Any]) -> int:
        """Write an episode; returns its number.

        Args:
          task: the instruction. fields: every feature -> (T, ...).
        Raises:
          ValueError: a feature that is missing, unknown, or of another shape; nothing is written then.
        """
        if self._torn:
            self._begin()
        given = self._checked(fields)
        self._torn = True
        T = len(next(iter(given.values())))
        if task not in self.tasks:
            self.tasks.append(task)
        number, first = len(self.rows), int(self.rows[-1]["dataset_to_index"]) if self.rows else 0
        row: dict[str, Any] = {
            "episode_index": number,
            "tasks": [task],
            "length": T,
            "dataset_from_index": first,
            "dataset_to_index": first + T,
        }
        for name in self._videos():
            row |= self._film(name, given[name])
        index = {
            "timestamp": (np.arange(T) / self.fps).astype(np.float32),
            "frame_index": np.arange(T),
            "episode_index": np.full(T, number),
            "index": np.arange(first, first + T),
            "task_index": np.full(T, self.tasks.index(task)),
        }
        stored = {n: x for n, x in given.items() if self.features[n]["dtype"] != "video"} | index
        features = self.features | INDEX
        row |= self._grow("data", "data", DATA, _table({n: (features[n], x) for n, x in stored.items()}), self.data_mb)
        for name, x in (given | index).items():
            if features[name]["dtype"] != "string":
                row |= {f"stats/{name}/{k}": v for k, v in _statistics(x, features[name]["dtype"] in CAMERAS).items()}
        row |= self._grow("episodes", "meta/episodes", EPISODES, None, self.data_mb, row)
        self.rows.append(row)
        self._commit()
        self._torn = False
        return number

    def _commit(self) -> None:
        _write_tasks(self.folder / "meta/tasks.parquet", self.tasks)
        write_text(self.folder / "meta/stats.json", json.dumps(_pooled(self.rows), indent=1))
        info = {
            "codebase_version": VERSION,
            "robot_type": self.robot or None,
            "total_episodes": len(self.rows),
            "total_frames": int(self.rows[-1]["dataset_to_index"]),
            "total_tasks": len(self.tasks),
            "chunks_size": CHUNK,
            "data_files_size_in_mb": self.data_mb,
            "video_files_size_in_mb": self.video_mb,
            "fps": int(self.fps) if self.fps == int(self.fps) else self.fps,
            "splits": {"train": f"0:{len(self.rows)}"},
            "data_path": DATA,
            "video_path": VIDEO if self._videos() else None,
            "features": self.features | INDEX,
        }
        write_text(self.folder / "meta/info.json", json.dumps(info, indent=1), durable=True)

    def _checked(self, fields: Mapping[str, Any]) -> dict[str, np.ndarray]:
        where = f"{self.folder}, episode {len(self.rows)}"
        if wrong := sorted(set(fields) ^ set(self.features)):
            raise ValueError(f"{where}: found the fields {', '.join(fields)}; expected {', '.join(self.features)} ({wrong[0]!r} differs)")
        out, lengths = {}, {}
        for name, f in self.features.items():
            x = np.asarray(fields[name], dtype=object if f["dtype"] == "string" else None)
            shape = tuple(f["shape"])
            x = x[:, None] if shape == (1,) and x.ndim == 1 else x
            if x.shape[1:] != shape:
                raise ValueError(f"{where}, field {name!r}: found an array {x.shape}, expected (T, {', '.join(map(str, shape))})")
            if f["dtype"] in CAMERAS and x.dtype != np.uint8:
                raise ValueError(f"{where}, field {name!r}: found pictures of {x.dtype}, expected uint8")
            if x.dtype.kind == "f" and not np.isfinite(x).all():
                raise ValueError(
                    f"{where}, field {name!r}, frame {int(np.argwhere(~np.isfinite(x))[0][0])}: found a number that is not finite"
                )
            out[name] = x if f["dtype"] in (*CAMERAS, "string") else x.astype(f["dtype"])
            lengths[name] = len(x)
        if len(set(lengths.values())) != 1 or not next(iter(lengths.values())):
            raise ValueError(f"{where}: found lengths {lengths}; expected the same number of frames in every field, and at least one")
        return out

    def _film(self, name: str, frames: np.ndarray) -> dict[str, Any]:
        """Append an episode's frames to the open file of a camera, or to the next."""
        at, before = self._at.get(name, 0), self._clips.get(name, 0)
        file = self.folder / _filled(VIDEO, at, name)
        if before and file.stat().st_size > self.video_mb * 2**20:
            at, before = at + 1, 0
            file = self.folder / _filled(VIDEO, at, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(file.name + ".new")
        write_clip(new, frames, self.fps)
        with replacing(file, durable=True) as aside:
            join_clips([*([file] if before else []), new], aside, self.fps)
        new.unlink()
        self._at[name], self._clips[name] = at, before + len(frames)
        span = {"from_timestamp": before / self.fps, "to_timestamp": (before + len(frames)) / self.fps}
        place = {"chunk_index": at // CHUNK, "file_index": at % CHUNK}
        return {f"videos/{name}/{k}": v for k, v in (place | span).items()}

    def _grow(
        self, kind: str, prefix: str, template: str, table: Any, limit_mb: float, row: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Append a table to the open file of its kind, each episode a group of rows that can be read alone."""
        pa, pq = _arrow()
        at, parts = self._at.get(kind, 0), self._open[kind]
        if parts and sum(p.nbytes for p in parts) > limit_mb * 2**20:
            at, parts = at + 1, []
        place = {f"{prefix}/chunk_index": at // CHUNK, f"{prefix}/file_index": at % CHUNK}
        table = pa.Table.from_pylist([{**row, **place}]) if row is not None else table
        parts = [*parts, table]
        file = self.folder / _filled(template, at)
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file, durable=True) as aside, pq.ParquetWriter(aside, table.schema) as out:
            for part in parts:
                out.write_table(part)
        self._at[kind], self._open[kind] = at, parts
        return place


# -- what the files say -------------------------------------------------------------------------------------------------------


def _info(folder: Path) -> dict[str, Any]:
    path = folder / "meta/info.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: found no file; expected the folder of a LeRobotDataset v3, with meta/info.json in it")
    info = _json(path)
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
        _check_feature(str(path), name, feature)
    if any(f["dtype"] == "video" for f in info["features"].values()) and not isinstance(info.get("video_path"), str):
        raise ValueError(f"{path}, field 'video_path': found {info.get('video_path')!r}, expected a path, because there are videos")
    return info


def _called(kind: Any) -> str:
    return " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))


def _check_feature(where: str, name: str, feature: Any) -> None:
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


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path}: found no JSON ({e}); expected an object") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: found {type(found).__name__}, expected an object")
    return found


def _filled(template: str, at: int, camera: str = "") -> str:
    return _path(template, at // CHUNK, at % CHUNK, camera)


def _path(template: str, chunk: int, file: int, camera: str = "") -> str:
    """A path template with its numbers; other placeholders stay as they are."""
    known = {"chunk_index": chunk, "file_index": file, "video_key": camera}
    return re.sub(r"\{(chunk_index|file_index|video_key)(?::(\d{0,2}d))?\}", lambda m: format(known[m[1]], m[2] or ""), template)


def _inside(folder: Path, template: str, row: Mapping[str, Any], prefix: str, camera: str = "") -> Path:
    """
    Raises:
      ValueError: a path that leads out of the folder.
    """
    named = Path(_path(template, int(row[f"{prefix}/chunk_index"]), int(row[f"{prefix}/file_index"]), camera))
    path = folder / named
    # not resolved: a file may be a link to somewhere else, as those in the cache of the Hugging Face Hub are
    if named.is_absolute() or ".." in named.parts:
        raise ValueError(f"{folder / 'meta/info.json'}: found the path {template!r}, expected one inside the folder")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: found no file; expected one, because meta/episodes names it")
    return path


def _number(row: Mapping[str, Any], prefix: str) -> int:
    return int(row[f"{prefix}/chunk_index"]) * CHUNK + int(row[f"{prefix}/file_index"])


def _tasks(path: Path) -> list[str]:
    table = _whole(path)
    words = [n for n in table.column_names if n != "task_index"]
    if "task_index" not in table.column_names or len(words) != 1:
        raise ValueError(f"{path}: found the columns {', '.join(table.column_names)}; expected 'task_index' and 'task'")
    by_number = dict(zip(table.column("task_index").to_pylist(), map(str, table.column(words[0]).to_pylist())))
    if sorted(by_number) != list(range(len(by_number))):
        raise ValueError(f"{path}, field 'task_index': found {str(sorted(by_number))[:60]}, expected 0 to {len(by_number) - 1}")
    return [by_number[i] for i in range(len(by_number))]


def _episodes(folder: Path, info: Mapping[str, Any]) -> list[dict[str, Any]]:
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
    _, pq = _arrow()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: found no file; expected it in a LeRobotDataset v3")
    try:
        return pq.read_table(path, partitioning=None)
    except Exception as e:  # what a damaged file leads the reader to
        raise ValueError(f"{path}: found a file that cannot be read ({str(e)[:200]}); expected Parquet") from e


def _rows(path: Path, start: int, stop: int, columns: Sequence[str]) -> Any:
    """Rows of a Parquet file; only the groups that hold them are read."""
    _, pq = _arrow()
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


def _cut(path: Path, rows: int) -> None:
    """Take away what stands behind the first `rows` rows: an episode that was not finished."""
    _, pq = _arrow()
    with pq.ParquetFile(path) as file:
        if file.metadata.num_rows <= rows:
            return
        with replacing(path, durable=True) as aside, pq.ParquetWriter(aside, file.schema_arrow) as out:
            for group in range(file.metadata.num_row_groups):
                if rows > 0:
                    table = file.read_row_group(group).slice(0, rows)
                    out.write_table(table)
                    rows -= table.num_rows


def _array(column: Any, feature: Mapping[str, Any], where: str) -> np.ndarray:
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
    pa, _ = _arrow()
    return pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)


def _picture(value: Any, where: str) -> np.ndarray:
    data = value.get("bytes") if isinstance(value, Mapping) else None
    if not data:
        raise ValueError(f"{where}: found {str(value)[:60]!r}, expected a picture's bytes")
    try:
        return np.asarray(rgb(Image.open(io.BytesIO(data))))
    except Exception as e:  # what a damaged picture leads a decoder to
        raise ValueError(f"{where}: found a picture that cannot be decoded ({e})") from e


# -- what the files are made of -----------------------------------------------------------------------------------------------


def _table(columns: Mapping[str, tuple[Mapping[str, Any], np.ndarray]]) -> Any:
    pa, _ = _arrow()

    def nested(x: np.ndarray, kind: Any) -> Any:
        """(T, a, b, ...) as lists of lists of fixed size."""
        if x.ndim == 1:
            return pa.array(x, type=kind)
        inner = nested(x.reshape(-1, *x.shape[2:]), kind)
        return pa.FixedSizeListArray.from_arrays(inner, x.shape[1])

    arrays = {}
    for name, (feature, x) in columns.items():
        if feature["dtype"] == "image":
            arrays[name] = pa.array([{"bytes": _png(p), "path": None} for p in x], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
        elif feature["dtype"] == "string":
            arrays[name] = pa.array([str(v) for v in x.reshape(len(x))], pa.string())
        else:
            arrays[name] = nested(x.reshape(len(x)) if tuple(feature["shape"]) == (1,) else x, pa.from_numpy_dtype(x.dtype))
    return pa.table(arrays)


def _png(picture: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    return out.getvalue()


def _statistics(x: np.ndarray, pictures: bool) -> dict[str, Any]:
    """Of each number over the frames; of pictures, over frames and pixels, each channel in [0, 1]."""
    if pictures:
        x = x[np.linspace(0, len(x) - 1, min(len(x), SEEN)).astype(int)] / 255.0
    axes = (0, 1, 2) if pictures else (0,)
    found = {"min": x.min(axes), "max": x.max(axes), "mean": x.mean(axes, dtype=float), "std": x.std(axes, dtype=float)}
    shaped = {k: (np.asarray(v, float).reshape(-1, 1, 1) if pictures else np.atleast_1d(np.asarray(v, float))) for k, v in found.items()}
    return {k: v.tolist() for k, v in shaped.items()} | {"count": [len(x)]}


def _pooled(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Statistics of all episodes from those of each."""
    names = dict.fromkeys(key.split("/")[1] for key in rows[0] if key.startswith("stats/"))
    out = {}
    for name in names:
        of = {k: np.array([r[f"stats/{name}/{k}"] for r in rows], float) for k in ("min", "max", "mean", "std", "count")}
        count = of["count"].reshape(-1, *[1] * (of["mean"].ndim - 1))
        mean = (of["mean"] * count).sum(0) / count.sum()
        variance = ((of["std"] ** 2 + (of["mean"] - mean) ** 2) * count).sum(0) / count.sum()
        pooled = {"min": of["min"].min(0), "max": of["max"].max(0), "mean": mean, "std": np.sqrt(variance)}
        out[name] = {k: v.tolist() for k, v in pooled.items()} | {"count": [int(count.sum())]}
    return out


def _write_tasks(path: Path, tasks: Sequence[str]) -> None:
    """Indexed by the instruction, which pandas finds in the file's metadata."""
    pa, pq = _arrow()

    def said(name: str, kind: str, stored: str) -> dict[str, Any]:
        return {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": stored, "metadata": None}

    columns = [said("task_index", "int64", "int64"), said("task", "unicode", "object")]
    about = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=True) as aside:
        pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(about)}), aside)


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise ImportError(f"robot sets are stored as Parquet, which needs pyarrow ({e}): pip install 'fovea-rl[data,video]'") from e
    return pyarrow, pyarrow.parquet
