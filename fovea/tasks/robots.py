"""Starts of a robot's task, played by a policy of arrays: `data="robot:scene:reach"`, `data="robot:metaworld:button-press-v3,size=64"`.

What follows "robot:" is the name of an environment of `fovea.envs.robots`; `fovea list envs` has them. The score is 1 for success.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fovea.tasks.gym import Gym, parted

if TYPE_CHECKING:
    from fovea.policies.control import Spaces

ROBOTS = ("scene", "metaworld", "gymrobotics")


@dataclass(frozen=True)
class Robots(Gym):
    """As `Gym`. `title` is the name of the source."""

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
