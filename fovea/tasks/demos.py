"""Demonstrations of a robot's task: `data="demos:scene:reach,count=20,noise=0.5"`, or with `set=FOLDER` those of a set that is there.

What stands before the options is the robot's task as `robot:` names it, or several. Their experts play `count` episodes in all, with
Gaussian noise on its actions, and they are kept as a set in the format LeRobotDataset v3 (`fovea.tasks.lerobot`), made once, in
CACHE/demos. A task is a frame of it: what was seen there, and the chunk of actions that followed, 0 behind the end of the episode.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fovea.envs.parts import Part, pack
from fovea.envs.robots import spelled
from fovea.tasks.lerobot import LeRobot, Writer
from fovea.tasks.robots import Robots
from fovea.types import Task

if TYPE_CHECKING:
    from fovea.policies.control import Spaces

CAMERA, STATE = "observation.images.", "observation.state"
LOSSLESS = 64
"""Pictures smaller than this, in pixels, are kept as PNG: H.264 would smear their colours."""


@dataclass(frozen=True)
class Demonstrations:
    """The frames of a set, as tasks.

    Attributes:
      robots: the starts of the task. folder: of the set.
    """

    robots: Robots
    folder: Path
    recorded: ClassVar[bool] = True

    @classmethod
    def named(cls, what: str, split: str, seed: int = 0) -> Demonstrations | Robots:
        """The demonstrations, or for the split "heldout" starts that the robot is to be tried on.

        Raises:
          ValueError: an option that is none, or a set of another robot.
        """
        parts = what.split(",")
        own = dict(p.split("=", 1) for p in parts if p.partition("=")[0] in ("count", "noise", "set"))
        task = ",".join(p for p in parts if p.partition("=")[0] not in own)
        robots = Robots.named(task, split)
        try:
            count, noise = int(own.get("count", 20)), float(own.get("noise", 0.0))
        except ValueError:
            raise ValueError(f"data 'demos:{what}': found {own}, expected a whole number for count and a number for noise") from None
        if count < 1 or noise < 0:
            raise ValueError(f"data 'demos:{what}': found count = {count}, noise = {noise:g}; expected at least 1, and 0 or more")
        if split == "heldout":
            return robots
        return cls(robots, Path(own["set"]) if "set" in own else made(task, robots, count, noise))

    @property
    def name(self) -> str:
        return f"{self.robots.name} demonstrations"

    def heldout(self) -> Robots:
        return self.robots.heldout()

    def digest(self) -> str:
        """SHA-256 of the set."""
        import hashlib

        files = sorted(f for f in self.folder.rglob("*") if f.is_file())
        return hashlib.sha256(b"".join(hashlib.sha256(f.read_bytes()).digest() for f in files)).hexdigest()

    def vector(self, count: int) -> Any:
        return self.robots.vector(count)

    def spaces(self, envs: Any) -> Spaces:
        return self.robots.spaces(envs)

    @cached_property
    def _frames(self) -> tuple[list[str], list[np.ndarray], list[np.ndarray], list[tuple[int, int]]]:
        """(instruction, what was seen (T, N), actions (T, A)) of each episode; (episode, frame) of each task."""
        env = self.robots.make()
        told, seen, acted = [], [], []
        for episode in LeRobot(self.folder):
            told.append(episode.task)
            acted.append(_of(self.folder, episode.fields, "action", episode.episode))
            seen.append(np.stack([pack(env.parts, _senses(self.folder, env.parts, episode, t)) for t in range(len(episode))]))
        if acted and acted[0].shape[1] * env.chunk != env.action_space.shape[0]:
            found, expected = acted[0].shape[1], env.action_space.shape[0] // env.chunk
            raise ValueError(f"{self.folder}, field 'action': found {found} numbers, expected {expected}, as {self.robots.name} takes")
        env.close()
        return told, seen, acted, [(e, t) for e, rows in enumerate(acted) for t in range(len(rows))]

    @cached_property
    def chunk(self) -> int:
        env = self.robots.make()
        env.close()
        return env.chunk

    def __len__(self) -> int:
        return len(self._frames[3])

    def __getitem__(self, i: int) -> Task:
        told, seen, acted, where = self._frames
        episode, t = where[i]
        chunk = np.zeros((self.chunk, acted[episode].shape[1]), np.float32)
        given = acted[episode][t : t + self.chunk]
        chunk[: len(given)] = given
        meta = {"obs": seen[episode][t], "actions": chunk.reshape(-1), "instruction": told[episode]}
        return Task(f"{self.robots.name}-demo-{episode}-{t}", self.name, (), verifier="return", meta=meta)


def made(task: str, robots: Robots, count: int, noise: float) -> Path:
    """The folder of a set that the expert plays, played first if it is not there yet."""
    import hashlib
    import shutil
    import time

    from fovea import starts
    from fovea.trainer import lock

    code = starts.code_of(["fovea.envs.robots", "fovea.envs.scenes", "fovea.tasks.demos"])
    key = hashlib.sha256(f"{task} {count} {noise} {code}".encode()).hexdigest()[:10]
    place = starts.home() / "demos" / key
    while not place.is_dir():
        try:
            with lock.held(place.with_name(f"{key}.lock")):
                if place.is_dir():  # made between the look and the lock
                    break
                aside = place.with_name(f"{key}.part")
                shutil.rmtree(aside, ignore_errors=True)
                play(robots, count, noise, aside)
                aside.replace(place)
        except lock.InUse:
            time.sleep(starts.WAIT_S)
    return place


def play(robots: Robots, count: int, noise: float, folder: Path, fps: float = 10.0) -> None:
    """Write `count` episodes of the expert into a set; the robot looks before every action."""
    starts, env = replace(robots, split="train", seed=1 << 20), robots.make()
    env.chunk, dims = 1, env.body.dims
    features: dict[str, dict[str, Any]] = {}
    for p in (p for p in env.parts if len(p.shape) == 3):
        stored = "image" if p.shape[0] < LOSSLESS else "video"
        features[f"{CAMERA}{p.name}"] = {"dtype": stored, "shape": p.shape, "names": ["height", "width", "channels"]}
    features |= {STATE: {"dtype": "float32", "shape": env.body.state().shape}, "action": {"dtype": "float32", "shape": (dims,)}}
    writer = Writer(folder, features, fps, robot=robots.name)
    for i in range(count):
        seed = starts[i].meta["seed"]
        env.reset(seed=seed)
        rows: dict[str, list[Any]] = {n: [] for n in features}
        rng, over = np.random.Generator(np.random.Philox(seed)), False
        while not over:
            senses = env.senses()
            action = np.clip(env.demonstrate() + noise * rng.standard_normal(dims), -1, 1)
            for name in features:
                rows[name].append(action if name == "action" else senses[name.removeprefix(CAMERA) if name != STATE else "state"])
            _, _, done, cut, _ = env.step(action)
            over = done or cut
        writer.add(env.body.instruction, {n: np.stack(x) for n, x in rows.items()})
    env.close()


def _of(folder: Path, fields: dict[str, np.ndarray], name: str, episode: int) -> np.ndarray:
    if name not in fields:
        raise ValueError(f"{folder}, episode {episode}: found the features {', '.join(fields)}; expected {name!r}, which the robot has")
    return fields[name]


def _senses(folder: Path, parts: tuple[Part, ...], episode: Any, t: int) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {"told": spelled(episode.task)}
    for p in parts:
        if p.name != "told":
            name = STATE if p.name == "state" else f"{CAMERA}{p.name}"
            out[p.name] = _of(folder, episode.fields, name, episode.episode)[t]
            if out[p.name].shape != p.shape:
                found = out[p.name].shape
                raise ValueError(f"{folder}, episode {episode.episode}, field {name!r}: found frames {found}, expected {p.shape}")
    return out
