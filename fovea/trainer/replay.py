"""The replay buffer: recorded episodes in memory-mapped files, each observation once, the oldest overwritten, windows by address.

    replay/head.json     the layout, and how many frames of each lane are valid; checked, replaced as a whole
    replay/obs.bin       one file for each column: (lanes, frames, ...)

A *frame* is an observation with what was done on it; the last frame of an episode has no action. So an episode of T steps takes T + 1
frames and none is stored twice. A *lane* is a ring of frames into which one episode after another is written, in pieces if it is still
going on; as many episodes as there are lanes can be open at a time.

What is written since a checkpoint overwrites the oldest frames, which a run that goes back to the checkpoint needs again. So a lane has
`spare` frames more than it is sampled from, and the head says before each write how far it will reach. A process killed at any moment
leaves a head and frames from which the state of the last checkpoint can be had exactly, or an error that says why not.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fovea.batch import Windows
from fovea.files import fsync, write_text
from fovea.rollout.sampling import uniforms
from fovea.trainer.checkpoint import SEAL, sealed
from fovea.types import Episode, Group, Segment

HEAD = "head.json"
OWN = ("obs", "actions", "reward", "ended", "start")


class ReplayError(ValueError):
    """A replay buffer cannot be used; the message says which file, what was found and what was expected."""


@dataclass(frozen=True)
class Replay:
    """What is kept of the episodes, and what is drawn from it.

    Attributes:
      size: frames that are kept (an episode of T steps takes T + 1), shared evenly by the environments.
      start: environment steps with random actions before the first update.
      batch: windows in one update.
      length: units in one window: 1, or n for n-step targets.
      demonstrations: successful episodes that whoever watches the simulator plays before the first step.
      share: of each batch, what is drawn from a second buffer that holds the demonstrations, and all that was done in the policy's place
        since; with 0 there is none, and the demonstrations are kept with the rest.
    """

    size: int = 100_000
    start: int = 1_000
    batch: int = 256
    length: int = 1
    demonstrations: int = 0
    share: float = 0.0

    def __post_init__(self) -> None:
        if min(self.size, self.batch, self.length) < 1 or not 0 <= self.start <= self.size:
            raise ValueError(f"{self}; expected size, batch and length of at least 1, and start from 0 to size")
        if self.demonstrations < 0 or not 0 <= self.share <= 1:
            raise ValueError(f"{self}; expected demonstrations of 0 or more, and a share from 0 to 1")


@dataclass
class Lane:
    """One ring. `frames` were written in all, the last of them without an action yet; `reach` may have been; `start` is the number of the
    first frame of the last episode; `open` is the id of its last piece while it goes on."""

    frames: int = 0
    reach: int = 0
    start: int = 0
    open: str = ""


class ReplayBuffer:
    """Stores segments and draws windows of them.

    Args:
      folder: where the files are, or will be when the first segment says what a frame is.
      size: frames that windows are drawn from, shared evenly by the lanes.
      lanes: how many episodes can be open at a time.
      spare: frames of a lane that can be written after `state_dict` without making a return to that state impossible.
      stack: how many observations in a row the policy sees side by side in its last axis; only the newest of them is stored.
      mode: how its files are opened, "r+" or, only to be read, "r".
    Raises:
      ReplayError: the folder holds another buffer, or a damaged one.
    """

    def __init__(self, folder: str | Path, size: int, lanes: int = 1, spare: int = 0, stack: int = 1, mode: Any = "r+"):
        self.folder = Path(folder)
        self.kept = -(-size // lanes)
        self.layout = {"lanes": lanes, "kept": self.kept, "spare": spare, "stack": stack}
        self.lanes = [Lane() for _ in range(lanes)]
        self.stack, self.ring, self.mode = stack, self.kept + spare, mode
        self.columns: dict[str, Any] = {}
        self._starts: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        if (self.folder / HEAD).exists():
            self._open(self._read())

    @classmethod
    def left_in(cls, folder: str | Path) -> ReplayBuffer:
        """The buffer that a run left in a folder, to be read.

        Raises:
          ReplayError: there is none, or a damaged one.
        """
        layout = read_head(Path(folder))["layout"]
        return cls(folder, layout["kept"] * layout["lanes"], layout["lanes"], layout["spare"], layout["stack"], "r")

    def __len__(self) -> int:
        """Frames that windows are drawn from."""
        return sum(min(lane.frames, self.kept) for lane in self.lanes)

    @property
    def bytes(self) -> int:
        """Size of all columns on disk."""
        return sum(c.nbytes for c in self.columns.values())

    # -- writing --------------------------------------------------------------------------------------------------------------

    def add(self, groups: Sequence[Group]) -> None:
        """Append every segment; one whose episode `follows` an open one goes on with it, each frame being written once.

        Raises:
          ReplayError: a segment without observations, of another shape than the first, longer than a lane, or that does not begin where
            the one before ended. Nothing has been added then.
        """
        lanes, writes = [replace(lane) for lane in self.lanes], []
        for episode in (e for g in groups for e in g.episodes):
            for segment in episode.segments:
                given = _columns(episode, segment, self.stack)
                self._fits(episode, given)
                at, on = self._lane(lanes, episode)
                lane = lanes[at]
                first = lane.frames - on
                if not on:
                    lane.start = first
                elif not np.array_equal(lane_end(writes, at, self.columns["obs"], first % self.ring), given["obs"][0]):
                    raise ReplayError(f"{self.folder}: episode {episode.id!r} does not begin where {lane.open!r}, which it follows, ended")
                lane.frames, lane.open = first + len(segment) + 1, episode.id if episode.stop == "paused" else ""
                given["start"][:] = lane.start
                writes.append((at, first, given))
        if not writes:
            return  # the first segment says what a frame is; before it there are no files
        for lane in lanes:
            lane.reach = max(lane.reach, lane.frames)
        for mine, lane in zip(self.lanes, lanes):
            mine.reach = lane.reach
        self._write()
        for at, first, given in writes:
            for name, x in given.items():
                self.columns[name][at, np.arange(first, first + len(x)) % self.ring] = x
        self.lanes, self._starts = lanes, {}
        self._write()

    def _fits(self, episode: Episode, given: Mapping[str, np.ndarray]) -> None:
        """Refuse what cannot be written; the first segment of all says what a frame is."""
        if not self.columns:
            self._create({name: (x.dtype, x.shape[1:]) for name, x in given.items()})
        for name in {**self.columns, **given}:
            want = (self.columns[name].dtype.name, self.columns[name].shape[2:]) if name in self.columns else "none"
            found = (given[name].dtype.name, given[name].shape[1:]) if name in given else "none"
            if found != want:
                raise ReplayError(f"{self.folder}: episode {episode.id!r} has {name} {found}; expected {want} as in the first one")
        frames = len(given["obs"])
        if frames > self.kept:
            raise ReplayError(f"{self.folder}: episode {episode.id!r} has {frames} frames, a lane keeps {self.kept}; raise --replay.size")

    @staticmethod
    def _lane(lanes: Sequence[Lane], episode: Episode) -> tuple[int, bool]:
        """(where the episode is written, whether it goes on there); a new one takes the lane with the fewest frames that is not open."""
        for at, lane in enumerate(lanes):
            if episode.follows and lane.open == episode.follows:
                return at, True
        return min(range(len(lanes)), key=lambda at: (bool(lanes[at].open), lanes[at].frames)), False

    # -- drawing --------------------------------------------------------------------------------------------------------------

    def sample(self, count: int, key: int, length: int = 1) -> Windows:
        """`count` windows of `length` units, each drawn evenly from all that there are (with replacement) by the address `key`.

        Raises:
          ReplayError: no episode is that long.
        """
        lane_M, row_M = self.starts(length)
        if not len(row_M):
            raise ReplayError(f"{self.folder}: no window of {length} units in {len(self)} frames; expected longer episodes")
        drawn = uniforms(np.full(count, key, dtype=np.uint64), np.arange(count)).numpy()
        pick = np.minimum((drawn * len(row_M)).astype(np.int64), len(row_M) - 1)
        return self.windows(lane_M[pick], row_M[pick], length, key)

    def starts(self, length: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """(lane, frame number) of every window: its frames are there, with those of its first stack, and belong to one episode."""
        if length not in self._starts:
            found = [self._lane_starts(at, length) for at in range(len(self.lanes))]
            self._starts[length] = (
                np.concatenate([np.full(len(rows), at) for at, rows in enumerate(found)]),
                np.concatenate(found),
            )
        return self._starts[length]

    def _lane_starts(self, at: int, length: int) -> np.ndarray:
        frames = self.lanes[at].frames
        oldest = max(0, frames - self.kept)
        if frames - length <= oldest:
            return np.zeros(0, dtype=np.int64)
        start = self.columns["start"][at, np.arange(oldest, frames) % self.ring]
        rows = np.arange(oldest, frames - length)
        begun = start[: len(rows)]
        return rows[(begun == start[length:]) & (np.maximum(begun, rows - self.stack + 1) >= oldest)]

    def windows(self, lane_B: np.ndarray, row_B: np.ndarray, length: int = 1, key: int = 0) -> Windows:
        """The windows that begin at the given frames."""
        lane_B1, rows_BL = lane_B[:, None], row_B[:, None] + np.arange(length + 1)
        slots_BL = rows_BL % self.ring
        if self.stack == 1:
            obs = self.columns["obs"][lane_B1, slots_BL]
        else:
            begun_B = self.columns["start"][lane_B, row_B % self.ring]
            shown_BLS = np.maximum(rows_BL[:, :, None] + np.arange(1 - self.stack, 1), begun_B[:, None, None]) % self.ring
            apart = self.columns["obs"][lane_B[:, None, None], shown_BLS]
            obs = np.moveaxis(apart, 2, -2).reshape(*rows_BL.shape, *apart.shape[3:-1], self.stack * apart.shape[-1])
        of_units = {n: torch.from_numpy(c[lane_B1, slots_BL[:, :-1]]) for n, c in self.columns.items() if n not in ("obs", "start")}
        actions, reward_BL, ended_BL = (of_units.pop(name) for name in ("actions", "reward", "ended"))
        return Windows(torch.from_numpy(obs), actions, reward_BL, ended_BL, key=key, extras=of_units)

    # -- going back -----------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where every lane stands; plain JSON."""
        return {"lanes": [{k: v for k, v in asdict(lane).items() if k != "reach"} for lane in self.lanes]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state that `state_dict` told, this process's or an earlier one's.

        Raises:
          ReplayError: the frames of that state are not here, or have been overwritten since.
        """
        lanes = [Lane(**lane, reach=here.reach) for lane, here in zip(state["lanes"], self.lanes)]
        if len(state["lanes"]) != len(self.lanes):
            raise ReplayError(f"{self.folder}: the state has {len(state['lanes'])} lanes, expected {len(self.lanes)}")
        for at, lane in enumerate(lanes):
            if lane.frames > lane.reach:
                raise ReplayError(
                    f"{self.folder}: found {lane.reach} frames in lane {at}, expected the {lane.frames} that the checkpoint knows; "
                    "are the files of another run, or gone?"
                )
            if lane.frames and lane.reach - self.ring > max(0, lane.frames - self.kept):
                lost = lane.reach - self.ring - max(0, lane.frames - self.kept)
                raise ReplayError(
                    f"{self.folder}: the {lost} oldest frames that the checkpoint knows of lane {at} have been overwritten since; only the "
                    "newest checkpoint can be gone on from"
                )
        self.lanes, self._starts = lanes, {}

    def sync(self) -> None:
        """Return once everything so far would survive a power cut."""
        for name, column in self.columns.items():
            column.flush()
            fsync(self.folder / f"{name}.bin")
        if self.columns:
            self._write(durable=True)

    # -- files ----------------------------------------------------------------------------------------------------------------

    def _create(self, columns: Mapping[str, tuple[Any, tuple[int, ...]]]) -> None:
        frame = sum(np.dtype(kind).itemsize * int(np.prod(shape)) for kind, shape in columns.values())
        total = frame * len(self.lanes) * self.ring
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, (kind, shape) in columns.items():
                size = np.dtype(kind).itemsize * int(np.prod(shape)) * len(self.lanes) * self.ring
                with (self.folder / f"{name}.bin").open("wb") as f:
                    if hasattr(os, "posix_fallocate"):  # a page of a sparse file that finds the disk full ends the process without a word
                        os.posix_fallocate(f.fileno(), 0, size)
                    f.truncate(size)
        except OSError as e:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise ReplayError(
                f"{self.folder}: {len(self.lanes) * self.ring} frames of {frame} bytes take {total / 1e6:,.0f} MB, which could not be had "
                f"({e}); make room, or lower --replay.size"
            ) from e
        self._map({name: (np.dtype(kind).str, list(shape)) for name, (kind, shape) in columns.items()})
        self._write()

    def _map(self, columns: Mapping[str, Any]) -> None:
        self.columns = {
            name: np.memmap(self.folder / f"{name}.bin", np.dtype(kind), self.mode, shape=(len(self.lanes), self.ring, *shape))
            for name, (kind, shape) in columns.items()
        }

    def _write(self, durable: bool = False) -> None:
        """Replace the head."""
        columns = {name: [c.dtype.str, list(c.shape[2:])] for name, c in self.columns.items()}
        content = sealed({"layout": self.layout, "columns": columns, "lanes": [asdict(lane) for lane in self.lanes]})
        write_text(self.folder / HEAD, json.dumps(content, indent=1) + "\n", durable)

    def _read(self) -> dict[str, Any]:
        head = read_head(self.folder)
        if head["layout"] != self.layout:
            raise ReplayError(f"{self.folder / HEAD}: found a buffer of {head['layout']}, expected {self.layout}; choose another --out")
        return head

    def _open(self, head: Mapping[str, Any]) -> None:
        for name, (kind, shape) in head["columns"].items():
            file = self.folder / f"{name}.bin"
            want = np.dtype(kind).itemsize * int(np.prod(shape)) * len(self.lanes) * self.ring
            found = file.stat().st_size if file.is_file() else None
            if found != want:
                there = "no file" if found is None else f"{found} bytes"
                raise ReplayError(f"{file}: found {there}, expected {want} (was the folder copied whole?)")
        self._map(head["columns"])
        self.lanes = [Lane(**lane) for lane in head["lanes"]]


def read_head(folder: Path) -> dict[str, Any]:
    """The layout, the columns and the lanes of a buffer.

    Raises:
      ReplayError: they cannot be read, or are not what was written.
    """
    file = folder / HEAD
    try:
        head = json.loads(file.read_text(encoding="utf-8"))
        whole = sealed(head)[SEAL] == head[SEAL]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise ReplayError(f"{file}: found {type(e).__name__} ({e}), expected the JSON that fovea writes") from e
    if not whole:
        raise ReplayError(f"{file}: its content does not have the SHA-256 that it names (truncated or altered)")
    return head


def lane_end(writes: Sequence[tuple[int, int, Mapping[str, np.ndarray]]], at: int, obs: np.ndarray, slot: int) -> np.ndarray:
    """The last observation of a lane: among what is yet to be written, else in its file."""
    return next((given["obs"][-1] for lane, _, given in reversed(writes) if lane == at), obs[at, slot])


def _columns(episode: Episode, segment: Segment, stack: int) -> dict[str, np.ndarray]:
    """(T + 1, ...) observations and numbers of the first frame; (T, ...) whatever belongs to a unit."""
    missing = [name for name in ("obs", "next_obs") if name not in segment.extras]
    if missing or not len(segment):
        found = " and no ".join(missing or ["unit"])
        raise ReplayError(f"episode {episode.id!r}: found no {found} in its segment; expected units with the observations around them")
    obs = torch.cat([segment.extras["obs"], segment.extras["next_obs"]])
    if obs.shape[-1] % stack:
        raise ReplayError(f"episode {episode.id!r}: observations {tuple(obs.shape[1:])} are not {stack} side by side in the last axis")
    ended = np.zeros(len(segment), dtype=bool)
    ended[-1] = not segment.bootstrap
    more = {n: _array(x) for n, x in segment.extras.items() if n not in OWN and not n.startswith("next_")}
    return {
        "obs": _array(obs[..., -(obs.shape[-1] // stack) :]),
        "actions": _array(segment.actions),
        "reward": np.asarray(segment.reward, dtype=np.float32),
        "ended": ended,
        "start": np.zeros(len(segment) + 1, dtype=np.int64),
        **more,
    }


def _array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()
