"""Sets that are begun or go on, and their statistics."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fovea.files import replacing, write_text
from fovea.tasks.lerobot.files import (
    CAMERAS,
    CHUNK,
    DATA,
    EPISODES,
    INDEX,
    VERSION,
    VIDEO,
    arrow,
    check_feature,
    cut,
    filled,
    inside,
    number_of,
)
from fovea.tasks.lerobot.reader import LeRobot
from fovea.video import join_clips, write_clip

SEEN = 64
"""Pictures of an episode that its statistics look at."""


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
            check_feature(f"features of {folder}", name, f)
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
            self._at = {"data": number_of(last, "data") + 1, "episodes": number_of(last, "meta/episodes") + 1}
            self._at |= {n: number_of(last, f"videos/{n}") + 1 for n in self._videos()}
            base = there._base[last["data/chunk_index"], last["data/file_index"]]
            in_file = sum(number_of(row, "meta/episodes") == number_of(last, "meta/episodes") for row in self.rows)
            cut(self.folder / filled(EPISODES, self._at["episodes"] - 1), in_file)
            cut(inside(self.folder, there.info["data_path"], last, "data"), last["dataset_to_index"] - base)

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
        file = self.folder / filled(VIDEO, at, name)
        if before and file.stat().st_size > self.video_mb * 2**20:
            at, before = at + 1, 0
            file = self.folder / filled(VIDEO, at, name)
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
        pa, pq = arrow()
        at, parts = self._at.get(kind, 0), self._open[kind]
        if parts and sum(p.nbytes for p in parts) > limit_mb * 2**20:
            at, parts = at + 1, []
        place = {f"{prefix}/chunk_index": at // CHUNK, f"{prefix}/file_index": at % CHUNK}
        table = pa.Table.from_pylist([{**row, **place}]) if row is not None else table
        parts = [*parts, table]
        file = self.folder / filled(template, at)
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file, durable=True) as aside, pq.ParquetWriter(aside, table.schema) as out:
            for part in parts:
                out.write_table(part)
        self._at[kind], self._open[kind] = at, parts
        return place


def _table(columns: Mapping[str, tuple[Mapping[str, Any], np.ndarray]]) -> Any:
    pa, _ = arrow()

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
    pa, pq = arrow()

    def said(name: str, kind: str, stored: str) -> dict[str, Any]:
        return {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": stored, "metadata": None}

    columns = [said("task_index", "int64", "int64"), said("task", "unicode", "object")]
    about = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=True) as aside:
        pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(about)}), aside)
