"""Environments by name: "NAME" or "NAME:what", where `what` is a word and options, such as "cards:points24,side=300"."""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Callable
from ctypes.util import find_library
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pkgutil import resolve_name
from typing import Any

from fovea.envs.browser import program
from fovea.envs.pool import Pool

APT = {"EGL": "libegl1", "GL": "libgl1", "GLU": "libglu1-mesa"}
"""System library -> the package of Debian that brings it."""


@dataclass(frozen=True)
class Listed:
    """An environment that has a name.

    Attributes:
      where: "module:class or function" that makes one; its first parameter is the word, the others are the options.
      summary: one line.
      example: a name that works.
      extra: what brings the packages it needs; "" for the library's own. packages: modules that must be there.
      libraries: of the system, as the linker calls them. chromium: whether it needs that program.
      pooled: whether it is slow to make and therefore lent (`Pool`), where it needs packages; False: it shares itself what is slow.
    """

    where: str
    summary: str
    example: str
    extra: str = ""
    packages: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    chromium: bool = False
    pooled: bool = True

    def problem(self) -> str:
        """Why it cannot run here; "" where it can. Nothing is imported."""
        absent = [p for p in self.packages if find_spec(p) is None]
        if absent:
            return f"missing {', '.join(absent)}: pip install 'fovea-rl[{self.extra}]'"
        unlinked = [name for name in self.libraries if find_library(name) is None]
        if unlinked:
            return f"missing the system libraries {', '.join(unlinked)} (Debian: {' '.join(APT[n] for n in unlinked)})"
        return "missing Chromium (Debian: chromium)" if self.chromium and not program() else ""


ENVIRONMENTS: dict[str, Listed] = {
    "cards": Listed("fovea.envs.cards:Cards", "card games: NumberLine, EZPoints, Points24, Blackjack", "cards:points24"),
    "desk": Listed("fovea.envs.desk:Desk", "jobs at a small desktop: click, drag, scroll, type", "desk:send"),
    "house": Listed("fovea.envs.house:House", "walks through a house by instructions, in the first person", "house:near"),
    "zoom": Listed("fovea.envs.zoom:Zoom", "a question about a picture, with a tool that enlarges a region of it", "zoom"),
    "look": Listed(
        "fovea.envs.zoom:Look", "a question about a picture, with a tool that enlarges the surroundings of a point", "look:crop"
    ),
    "minigrid": Listed(
        "fovea.envs.simulators:minigrid",
        "MiniGrid and BabyAI: rooms of squares, missions in words",
        "minigrid:BabyAI-GoToLocal-v0",
        extra="sim",
        packages=("gymnasium", "minigrid"),
    ),
    "miniworld": Listed(
        "fovea.envs.simulators:miniworld",
        "MiniWorld: rooms in three dimensions, in the first person",
        "miniworld:MiniWorld-OneRoom-v0",
        extra="sim",
        packages=("gymnasium", "miniworld", "pyglet"),
        libraries=("EGL", "GL", "GLU"),
    ),
    "atari": Listed("fovea.envs.simulators:atari", "Atari games", "atari:ALE/Pong-v5", extra="sim", packages=("gymnasium", "ale_py")),
    "vizdoom": Listed(
        "fovea.envs.simulators:vizdoom", "scenarios of Doom", "vizdoom:VizdoomBasic-v1", extra="sim", packages=("gymnasium", "vizdoom")
    ),
    "miniwob": Listed(
        "fovea.envs.miniwob:MiniWob",
        "MiniWoB++: web pages in Chromium, used by mouse and keyboard",
        "miniwob:click-test-2",
        extra="browser",
        packages=("miniwob", "playwright"),
        chromium=True,
        pooled=False,
    ),
    "scene": Listed(
        "fovea.envs.robots:scene",
        "small MuJoCo scenes: a hand over coloured pads, a peg over holes",
        "scene:reach",
        extra="sim",
        packages=("gymnasium", "mujoco"),
    ),
    "metaworld": Listed(
        "fovea.envs.robots:metaworld",
        "Meta-World: 50 tasks of one arm, with experts",
        "metaworld:button-press-v3",
        extra="sim",
        packages=("gymnasium", "mujoco", "metaworld"),
    ),
    "gymrobotics": Listed(
        "fovea.envs.robots:gymrobotics",
        "Gymnasium-Robotics: Fetch, Shadow hand, Adroit, kitchen",
        "gymrobotics:FetchReach-v4",
        extra="sim",
        packages=("gymnasium", "mujoco", "gymnasium_robotics"),
    ),
}
"""Every environment that a recipe may name."""


def environment(given: Any) -> Any:
    """The factory behind a name of `ENVIRONMENTS`; anything else is returned as it is. One is made to see that it can be.

    Those that need other packages are slow to make, and are lent to one episode after another.

    Raises:
      ValueError: an unknown name, with the nearest, an option that the environment does not have, or a word that is none of its own.
      ImportError: its packages are absent; the extra that brings them is named.
    """
    if not isinstance(given, str):
        return given
    make = factory(given)
    listed = ENVIRONMENTS[given.partition(":")[0]]
    make = Pool(make) if listed.extra and listed.pooled else make
    try:
        made = make()
    except Exception as e:
        if type(e).__module__.startswith("gymnasium."):
            raise ValueError(f"environment = {given!r}: {e}") from e
        raise
    if hasattr(made, "close"):
        made.close()
    return make


def factory(given: str) -> Callable[[], Any]:
    """What makes an environment of a name of `ENVIRONMENTS`, its word and options filled in; nothing is made yet.

    Raises:
      ValueError, ImportError: as `environment`.
    """
    name, _, what = given.partition(":")
    if name not in ENVIRONMENTS:
        near = difflib.get_close_matches(name, ENVIRONMENTS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"environment = {given!r}; expected FILE.py:NAME or one of {', '.join(ENVIRONMENTS)}{hint}")
    listed = ENVIRONMENTS[name]
    if problem := listed.problem():
        raise ImportError(f"environment = {given!r}: {problem}")
    target = resolve_name(listed.where)
    words, chosen = options(target, what, f"environment = {given!r}")
    if len(words) > 1:
        raise ValueError(f"environment = {given!r}: found {len(words)} words, {', '.join(words)}; expected one, and options KEY=VALUE")
    return partial(target, *words, **chosen)


def options(target: Callable[..., Any], what: str, given: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """(words, options of `target` by name) of "word,word,key=value", values as the parameters of `target` want them.

    Raises:
      ValueError: an option that `target` does not take, or a value of another type; `given` is named.
    """
    parts = [p for p in what.split(",") if p]
    takes = inspect.signature(target).parameters
    hints = typing.get_type_hints(target.__init__ if isinstance(target, type) else target)
    chosen: dict[str, Any] = {}
    for key, _, text in (p.partition("=") for p in parts if "=" in p):
        if key not in takes:
            raise ValueError(f"{given}: no option {key!r}; there are: {', '.join(takes)}")
        try:
            chosen[key] = {"true": True, "false": False}[text.lower()] if hints.get(key) is bool else hints.get(key, str)(text)
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{given}: {key} = {text!r}; expected {getattr(hints.get(key), '__name__', hints.get(key))}") from None
    return tuple(p for p in parts if "=" not in p), chosen
