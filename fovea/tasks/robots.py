"""Starts of a robot's task, played by a policy of arrays: `data="robot:scene:reach"`, `data="robot:metaworld:button-press-v3,size=64"`.

What follows "robot:" is the name of an environment of `fovea.envs.robots`; `fovea list envs` has them. The score is 1 for success. Several
tasks, as in "robot:metaworld:reach-v3+push-v3", take turns; each is a source of its own, which metrics and claims tell apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fovea.tasks.gym import HELDOUT, Gym, parted
from fovea.types import Task

if TYPE_CHECKING:
    from fovea.policies.control import Spaces

ROBOTS = ("scene", "metaworld", "gymrobotics")


@dataclass(frozen=True)
class Robots(Gym):
    """As `Gym`. `title` is the name of all tasks, such as "scene:reach"; each of several is called by its own."""

    title: str = ""

    @classmethod
    def named(cls, what: str, split: str, seed: int = 0) -> Robots:
        """
        Raises:
          ValueError: not the name of a robot's task. ImportError: its packages are absent.
        """
        from fovea.envs.resolve import factory

        what, around = parted(what)
        name = what.partition(":")[0]
        if name not in ROBOTS:
            raise ValueError(f"data 'robot:{what}': found {name!r}, expected robot:NAME:TASK, where NAME is one of {', '.join(ROBOTS)}")
        made = cls(partial(_bare, factory(what)), around=around, split=split, seed=seed, title=what.partition(",")[0])
        return made if split == "train" else made.heldout()

    @property
    def name(self) -> str:
        return self.title

    @property
    def each(self) -> tuple[str, ...]:
        """The names of the tasks that take turns."""
        kind, _, names = self.title.partition(":")
        return tuple(f"{kind}:{n}" for n in names.split("+"))

    def __getitem__(self, i: int) -> Task:
        task, n = super().__getitem__(i), len(self.each)
        if n == 1:
            return task
        from fovea.envs.robots import turn

        seed = task.meta["seed"]
        if self.split == "train":  # a seed that is the turn of task i mod n; held-out ones follow one another anyhow
            seed = seed % (HELDOUT // n) * n + i % n
        return replace(task, source=turn(self.each, seed), meta={"seed": seed})

    def spaces(self, envs: Any) -> Spaces:
        """With the parts of what is seen, and of what is done.

        Raises:
          ValueError: several observations in a row, which have no parts.
        """
        if self.stack != 1:
            raise ValueError(f"data {self.name!r}: stack = {self.stack}; expected 1: what a robot sees and feels has parts")
        robot = envs.envs[0].unwrapped
        return replace(super().spaces(envs), parts=robot.parts, chunk=robot.chunk)


def _bare(make: Callable[[], Any]) -> Any:
    return make().env
