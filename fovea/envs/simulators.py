"""Simulators of others, by name, played in words: MiniGrid and BabyAI, MiniWorld, Atari, ViZDoom (extra `sim`).

An answer that names no action is replaced by one at random, as in VL-DAC; `invalid=-0.1` makes it a reward and keeps the simulator still.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from fovea.envs.gym import InWords

RANDOM = "random"
_MINIGRID = ("left", "right", "forward", "pick up", "drop", "toggle", "done")


def minigrid(
    id: str = "BabyAI-GoToLocal-v0",
    tile: int = 8,
    whole: bool = False,
    frames: int = 1,
    reply: str = "",
    max_turns: int = 100,
    invalid: str = RANDOM,
    fail: float = 0.0,
) -> InWords:
    """MiniGrid or BabyAI. The prompt is the mission; the picture is the player's own view of 7 x 7 squares, or the `whole` grid.

    Args:
      tile: side of a square in pixels. Others: as in `InWords`.
    """
    import gymnasium
    from minigrid.wrappers import RGBImgObsWrapper, RGBImgPartialObsWrapper

    wrapper = RGBImgObsWrapper if whole else RGBImgPartialObsWrapper
    return InWords(
        lambda: wrapper(gymnasium.make(id), tile_size=tile),
        _MINIGRID,
        lambda env: f"{str(env.unwrapped.mission).capitalize()}. {_choice(_MINIGRID)}",
        see=lambda env, observation: observation["image"],
        wins=True,
        **_rules(frames, reply, max_turns, invalid, fail),
    )


def miniworld(
    id: str = "MiniWorld-OneRoom-v0",
    back: bool = False,
    frames: int = 1,
    reply: str = "",
    max_turns: int = 400,
    invalid: str = RANDOM,
    fail: float = 0.0,
) -> InWords:
    """MiniWorld's walks to the red box, 60 x 80 pixels. `back` adds the fourth action of VL-DAC, which the package's own space lacks."""
    if not os.environ.get("DISPLAY"):
        import pyglet

        pyglet.options["headless"] = True  # before miniworld, which opens a window on import
    import gymnasium
    import miniworld as _  # noqa: F401 - registers its environments

    words = ("left", "right", "forward", "back")[: 4 if back else 3]
    return InWords(
        lambda: gymnasium.make(id, disable_env_checker=True),
        words,
        f"Go to the red box. {_choice(words)}",
        see=lambda env, observation: observation,
        wins=True,
        **_rules(frames, reply, max_turns, invalid, fail),
    )


def atari(
    id: str = "ALE/Pong-v5", frames: int = 1, reply: str = "", max_turns: int = 1000, invalid: str = RANDOM, fail: float = 0.0
) -> InWords:
    """A game of the Arcade Learning Environment, 210 x 160 pixels; actions are called as the console's, "rightfire" and the like."""
    import ale_py
    import gymnasium

    gymnasium.register_envs(ale_py)
    return _named_by(
        lambda: gymnasium.make(id, render_mode="rgb_array"),
        lambda env: [str(m).lower() for m in env.unwrapped.get_action_meanings()],
        **_rules(frames, reply, max_turns, invalid, fail),
    )


def vizdoom(
    id: str = "VizdoomBasic-v1",
    frame_skip: int = 4,
    frames: int = 1,
    reply: str = "",
    max_turns: int = 300,
    invalid: str = RANDOM,
    fail: float = 0.0,
) -> InWords:
    """A scenario of ViZDoom, 240 x 320 pixels; actions are called by their buttons, "move left" and the like, or "wait"."""
    import gymnasium
    from vizdoom import gymnasium_wrapper as _  # noqa: F401 - registers its environments

    def names(env: Any) -> list[str]:
        buttons = [str(b).rpartition(".")[2].replace("_", " ").lower() for b in env.unwrapped.game.get_available_buttons()]
        return [" and ".join(b for b, down in zip(buttons, pressed) if down) or "wait" for pressed in env.unwrapped.button_map]

    def make() -> Any:
        env = gymnasium.make(id, render_mode="rgb_array", frame_skip=frame_skip)
        env.unwrapped.game.set_doom_config_path(f"{_scratch().name}/vizdoom.ini")  # type: ignore[attr-defined]  # else in the current folder
        return env

    return _named_by(
        make,
        names,
        see=lambda env, observation: observation["screen"],
        **_rules(frames, reply, max_turns, invalid, fail),
    )


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder that is gone when the process ends."""
    return tempfile.TemporaryDirectory(prefix="fovea-")


def _named_by(make: Callable[[], Any], names: Callable[[Any], Sequence[str]], **rules: Any) -> InWords:
    """An environment that itself knows what its actions are called."""
    env = make()
    words = tuple(names(env))
    return InWords(lambda: env, words, _choice(words), **rules)


def _choice(words: Sequence[str]) -> str:
    return f"Choose one of: {', '.join(words)}."


def _rules(frames: int, reply: str, max_turns: int, invalid: str, fail: float) -> dict[str, Any]:
    return {"frames": frames, "reply": reply, "max_turns": max_turns, "invalid_reward": invalid_reward(invalid), "fail": fail}


def invalid_reward(invalid: str) -> float | None:
    """The reward that `invalid` names; None for "random".

    Raises:
      ValueError: neither "random" nor a number.
    """
    try:
        return None if invalid == RANDOM else float(invalid)
    except ValueError:
        raise ValueError(f"invalid = {invalid!r}; expected {RANDOM!r} or a number") from None
