"""Somebody beside the policy who may take over for some steps: wrappers of Gymnasium environments, for training episodes alone.

What was really done travels in ``info["noted"]``: "action" takes the place of the policy's, "intervened" says whose it was. Whatever else
an environment notes becomes an extra of the unit (`fovea.rollout.vector`).

    Astray       takes over when the policy has left the way, or does not get on (HIL-SERL's person)
    ByValue      takes over when an action was bad by a reference value (RLIF)
    ByTurns      takes over now and then, whatever happens (DAgger); `by_chance`: with a given share of the steps
    Page         a person at a browser, with keyboard or gamepad (`fovea.envs.page`)

A scripted person plays what the environment's own `demonstrate()` says, in [−1, 1]. Whoever watches acts as the environment does, also
where actions are told in another frame (`fovea.envs.frames`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import gymnasium as gym
import numpy as np

from fovea.envs.frames import turning

DEMONSTRATE = "demonstrate"
"""The option of `reset` that asks for an episode in which the person acts from first to last."""


class Watcher(Protocol):
    """Who watches one environment."""

    def begin(self, scene: Any, obs: Any, rng: np.random.Generator) -> None:
        """An episode begins."""
        ...

    def takes(self, scene: Any, proposed: np.ndarray) -> np.ndarray | None:
        """What is done instead of the policy's action; None leaves it."""
        ...

    def shows(self, scene: Any) -> np.ndarray:
        """What the person does in an episode of their own."""
        ...

    def sees(self, scene: Any, obs: Any) -> bool | None:
        """What came of a step; who says True or False ends the episode, as a success or as a failure."""
        ...


class Watched(gym.Wrapper):
    """An environment with somebody who may take over."""

    def __init__(self, env: gym.Env, watcher: Watcher):
        super().__init__(env)
        self.watcher, self.demonstrates, self.frames = watcher, False, tuple(turning(env))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        given = dict(options or {})
        self.demonstrates = bool(given.pop(DEMONSTRATE, False))
        obs, info = self.env.reset(seed=seed, options=given)
        self.watcher.begin(self.env.unwrapped, obs, np.random.Generator(np.random.Philox(seed or 0)))
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        scene, watcher = self.env.unwrapped, self.watcher
        proposed = np.asarray(action)
        for frame in self.frames:
            proposed = frame.outward(proposed)
        taken = watcher.shows(scene) if self.demonstrates else watcher.takes(scene, proposed)
        for frame in reversed(self.frames):
            taken = None if taken is None else frame.inward(taken)
        done = np.asarray(action if taken is None else taken, dtype=self.action_space.dtype)
        obs, reward, terminated, truncated, info = self.env.step(done)
        if (verdict := watcher.sees(scene, obs)) is not None:
            # a failure is cut: whether it should be worth nothing or be valued as it stands is for `LimitEnds` to say
            reward, terminated, truncated = float(verdict), verdict, not verdict
            info = {**info, "measures": {**info.get("measures", {}), "marked": float(verdict)}}
        noted = {"action": done, "intervened": False, **info.get("noted", {})}  # whoever is nearer to the environment knows what was done
        noted["intervened"] = noted["intervened"] or taken is not None
        return obs, reward, bool(terminated), bool(truncated), {**info, "noted": noted}

    def close(self) -> None:
        getattr(self.watcher, "close", lambda: None)()
        super().close()


class Scripted:
    """Decides by a rule, and then acts for a while as the environment's `demonstrate` says.

    Attributes:
      ways: what was left of the way before each step of the episode.
      last: (value of the policy's last action, value of the best one), None before it has acted and after somebody else did.
    """

    def __init__(self, rule: Any):
        self.rule = rule

    def begin(self, scene: Any, obs: Any, rng: np.random.Generator) -> None:
        self.rng, self.ways, self.last, self.left = rng, [], None, 0
        self.wait = int(rng.integers(self.rule.pause[0], self.rule.pause[1] + 1))

    def takes(self, scene: Any, proposed: np.ndarray) -> np.ndarray | None:
        self.ways.append(getattr(scene, "left", 0.0))
        if not self.left and not self.wait and self.rng.random() < self.rule.wants(self, scene, proposed):
            self.left = int(self.rng.integers(self.rule.hold[0], self.rule.hold[1] + 1))
            self.wait = int(self.rng.integers(self.rule.pause[0], self.rule.pause[1] + 1))
        if self.left:
            self.left, self.last = self.left - 1, None
            return scene.demonstrate()
        self.wait, self.last = max(0, self.wait - 1), (scene.value(proposed), scene.value()) if hasattr(scene, "value") else None
        return None

    def shows(self, scene: Any) -> np.ndarray:
        return scene.demonstrate()

    def sees(self, scene: Any, obs: Any) -> None: ...


@dataclass(frozen=True)
class Astray:
    """Takes over when the policy is off the way or does not get on.

    Attributes:
      aside: units from the way (`scene.aside`) from which on it is.
      patience, onward: it does not get on where so many steps brought it fewer than so many units (`scene.left`).
      chance: of taking over at a step then.
      hold: steps of a correction, from and to. pause: steps that the policy has afterwards, from and to.
    """

    aside: float = 4.0
    patience: int = 8
    onward: float = 2.0
    chance: float = 0.9
    hold: tuple[int, int] = (3, 6)
    pause: tuple[int, int] = (2, 2)

    def __call__(self, env: gym.Env) -> gym.Wrapper:
        return Watched(env, Scripted(self))

    def wants(self, seen: Scripted, scene: Any, proposed: np.ndarray) -> float:
        stands = len(seen.ways) > self.patience and seen.ways[-1 - self.patience] - seen.ways[-1] < self.onward
        return self.chance if stands or scene.aside > self.aside else 0.0


@dataclass(frozen=True)
class ByValue:
    """Takes over when an action of the policy is worth less than the best one by a reference value (`scene.value`).

    Attributes:
      when: "lookback" judges the policy's last action, of which the environment has just shown what it led to; "proposal" the one that it
        is about to take, as the paper has it.
      alpha, gap, chance, flip: see `too_low`.
      hold, pause: as in `Astray`.
    """

    when: Literal["lookback", "proposal"] = "lookback"
    alpha: float = 0.98
    gap: float | None = None
    chance: float = 0.95
    flip: float = 0.05
    hold: tuple[int, int] = (4, 4)
    pause: tuple[int, int] = (1, 1)

    def __call__(self, env: gym.Env) -> gym.Wrapper:
        return Watched(env, Scripted(self))

    def wants(self, seen: Scripted, scene: Any, proposed: np.ndarray) -> float:
        judged = (scene.value(proposed), scene.value()) if self.when == "proposal" else seen.last
        return self.flip if judged is None else too_low(*judged, self.alpha, self.gap, self.chance, self.flip)


@dataclass(frozen=True)
class ByTurns:
    """Takes over after 1 to 5 steps of the policy, for 3 to 7 (DAgger in RLIF's comparison); `chance` at a step then."""

    chance: float = 1.0
    hold: tuple[int, int] = (3, 7)
    pause: tuple[int, int] = (1, 5)

    def __call__(self, env: gym.Env) -> gym.Wrapper:
        return Watched(env, Scripted(self))

    def wants(self, seen: Scripted, scene: Any, proposed: np.ndarray) -> float:
        return self.chance


def by_chance(share: float) -> ByTurns:
    """Takes over at any step with probability `share`, for that step."""
    return ByTurns(share, (1, 1), (0, 0))


def never() -> ByTurns:
    """Shows what to do when asked to, and lets the policy be."""
    return by_chance(0.0)


def too_low(
    value: float, reference: float, alpha: float = 0.97, gap: float | None = None, chance: float = 0.95, flip: float = 0.05
) -> float:
    """The probability of taking over (RLIF, arXiv 2311.12996, section 4).

        chance   where value < α · reference, or, with a gap δ, where reference > value + δ
        flip     else

    Args:
      alpha: means what it should only where values are positive: −1 is "less" than 0.97 · −1.
      gap: takes the place of α.
    """
    low = value < alpha * reference if gap is None else reference > value + gap
    return chance if low else flip


class LimitEnds(gym.Wrapper):
    """A time limit ends the episode as success does, so that its value is not estimated (HIL-SERL's code)."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated or truncated, False, info


Around = Callable[[gym.Env], gym.Env]
