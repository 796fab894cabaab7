"""Episodes of a set, read from the middle of its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fovea.tasks.lerobot.files import CAMERAS, INDEX, as_array, decoded, inside, read_episodes, read_info, read_json, read_rows, read_tasks
from fovea.video import read_span


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
        self.info = read_info(self.folder)
        self.features: dict[str, dict[str, Any]] = self.info["features"]
        self.fps = float(self.info["fps"])
        self.tasks = read_tasks(self.folder / "meta/tasks.parquet")
        self.rows = read_episodes(self.folder, self.info)
        stats = self.folder / "meta/stats.json"
        self.stats: dict[str, Any] = read_json(stats) if stats.is_file() else {}
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
                path = inside(self.folder, self.info["video_path"], row, f"videos/{name}", name)
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
        path = inside(self.folder, self.info["data_path"], row, "data")
        first = int(row["dataset_from_index"]) - self._base[row["data/chunk_index"], row["data/file_index"]]
        columns = [*dict.fromkeys([*names, "episode_index", "frame_index", "task_index"])]
        table = read_rows(path, first + start, first + stop, columns)
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
                out[name] = np.stack([decoded(v, f"{path}, row {first + start + i}, field {name!r}") for i, v in enumerate(values or ())])
            elif feature["dtype"] == "string":
                out[name] = np.array(values, dtype=object)
            else:
                out[name] = as_array(table.column(name), feature, where)
        return out
