"""Starts of a Gymnasium environment as tasks: `data="gym:CartPole-v1"`. What is paid on the way is the score."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Self

from fovea.math.options import choose
from fovea.rollout.sampling import address
from fovea.types import Task

if TYPE_CHECKING:
    from fovea.policies.control import Spaces

HELDOUT = 1 << 30
"""Held-out starts have seeds from here on, training ones below."""


AROUND: dict[str, str] = {
    "learned": "fovea.envs.success:Learned",
    "astray": "fovea.envs.watched:Astray",
    "by-value": "fovea.envs.watched:ByValue",
    "by-turns": "fovea.envs.watched:ByTurns",
    "by-chance": "fovea.envs.watched:by_chance",
    "never": "fovea.envs.watched:never",
    "page": "fovea.envs.page:Page",
    "relative": "fovea.envs.frames:Relative",
    "limit-ends": "fovea.envs.watched:LimitEnds",
}
"""What an environment may have around it, by name: "NAME" or "NAME:what", the options of what it makes."""


def wrapper(name: str) -> Callable[[Any], Any]:
    """What a name of `AROUND` stands for.

    Raises:
      ValueError: an unknown name, with the nearest, or an option that it does not take.
    """
    from fovea.envs.resolve import options

    kind, _, what = name.partition(":")
    target = resolve_name(choose("around", kind, AROUND))
    if not what and hasattr(target, "step"):
        return target  # a wrapper without settings
    takes = inspect.signature(target).parameters
    parts = [part for part in what.split(",") if part]
    told = [part if "=" in part else f"{[*takes, part][min(i, len(takes))]}={part}" for i, part in enumerate(parts)]
    chosen = options(target, ",".join(told), f"around = {name!r}")[1]
    if lacks := [k for k, p in takes.items() if p.default is p.empty and k not in chosen]:
        raise ValueError(f"around = {name!r}: found no {lacks[0]}, expected {kind}:{lacks[0].upper()}")
    return target(**chosen)


def parted(what: str) -> tuple[str, tuple[str, ...]]:
    """A name without its option "around=NAME+NAME", and those names."""
    parts = what.split(",")
    names = [n for p in parts if p.startswith("around=") for n in p.removeprefix("around=").split("+")]
    return ",".join(p for p in parts if not p.startswith("around=")), tuple(names)


def start_seed(name: str, split: str, seed: int, i: int) -> int:
    """The environment's seed for start i of a split; no held-out one is among those for training."""
    return HELDOUT + i if split == "heldout" else address(seed, name, i) % HELDOUT


@dataclass(frozen=True)
class Gym:
    """Task i is an episode that starts as its seed says; there are as many as one likes.

    Attributes:
      make: a registered id ("module:id" where a module registers it), or a function that makes one environment.
      kwargs: its arguments.
      stack: observations in a row that the policy sees at once.
      around: wrappers of training episodes, the innermost first: who watches and may take over (`fovea.envs.watched`; the first of two has
        the last word), what pays instead of the environment (`fovea.envs.success`). Held-out episodes have those alone that are `always`
        there, because they tell the same in other words (`fovea.envs.frames`). Those of `AROUND` may be given by their names, "learned"
        or "page:8765".
      split: "train" or "heldout": whose seeds. seed: another one gives other training starts.
    """

    make: Any
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    stack: int = 1
    around: tuple[Any, ...] = ()
    split: str = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "around", tuple(wrapper(w) if isinstance(w, str) else w for w in self.around))

    @classmethod
    def named(cls, what: str, split: str, seed: int = 0) -> Gym:
        """ "ID", or "ID,around=NAME" with several names joined by "+".

        Raises:
          ValueError: no environment is named, or an unknown option.
        """
        id, around = parted(what)
        if not id:
            raise ValueError('data "gym": found no environment, expected gym:ID such as gym:CartPole-v1')
        if "," in id:
            unknown = id.partition(",")[2]
            raise ValueError(f'data "gym:{what}": found {unknown!r}, expected around=NAME (a Gym object takes the rest)')
        made = cls(id, around=around, split=split, seed=seed)
        return made if split == "train" else made.heldout()

    @property
    def name(self) -> str:
        return self.make if isinstance(self.make, str) else getattr(self.make, "__name__", type(self.make).__name__)

    def heldout(self) -> Self:
        return replace(self, around=tuple(w for w in self.around if getattr(w, "always", False)), split="heldout", seed=0)

    def __getitem__(self, i: int) -> Task:
        start = start_seed(self.name, self.split, self.seed, i)
        return Task(f"{self.name}-{self.split}-{i}", self.name, (), verifier="return", meta={"seed": start})

    @property
    def anywhere(self) -> Task:
        """The task of episodes that follow one another and start wherever the run says."""
        return Task(self.name, self.name, (), verifier="return")

    def shown(self) -> Self:
        """The same, made to render pictures where it can: what sees numbers is to be looked at."""
        from fovea.envs.gym import renders

        return replace(self, kwargs={"render_mode": "rgb_array", **self.kwargs}) if renders(self.make) else self

    def vector(self, count: int) -> Any:
        """`count` copies in lock-step.

        Raises:
          ImportError: Gymnasium, or the package of the environment, is not installed.
          ValueError: there is no such environment.
        """
        from fovea.envs.gym import vector

        try:
            kwargs = self.shown().kwargs if any(getattr(w, "looks", False) for w in self.around) else self.kwargs
            return vector(self.make, count, stack=self.stack, unit_actions=True, around=self.around, **kwargs)
        except Exception as e:
            if type(e).__module__.startswith("gymnasium."):
                raise ValueError(f"gym:{self.name}: {e}") from e
            raise

    def spaces(self, envs: Any) -> Spaces:
        """What a policy must see and do.

        Raises:
          ValueError: it shows something else than pictures (H, W, C) of bytes or vectors, or takes several kinds of actions at once.
        """
        from fovea.policies.control import Spaces

        seen, taken = envs.single_observation_space, envs.single_action_space
        shape = getattr(seen, "shape", None) or ()
        picture = len(shape) == 3 and str(seen.dtype) == "uint8"
        if not hasattr(seen, "low") or not (picture or len(shape) == 1):
            raise ValueError(f"gym:{self.name} shows {seen}; expected a vector, or a picture (height, width, channels) of bytes")
        if hasattr(taken, "n") and getattr(taken, "start", 0) == 0:
            return Spaces(tuple(shape), int(taken.n), True)
        if not hasattr(taken, "low") or len(taken.shape) != 1:
            raise ValueError(f"gym:{self.name} takes {taken}; expected Discrete(n), or a Box of one dimension")
        return Spaces(tuple(shape), int(taken.shape[0]), False)
