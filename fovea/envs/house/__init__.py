"""GridHouse: walk through a house by instructions, in the first person, on a continuous plane.

    "house"         a thing in the same room; "house:next" one in the room next door, "house:far" one more than one room away
    "house:far,side=224,stride=.25,turn=15,near=3,reply=json,frames=0,invalid=end"     the rules of vision-and-language navigation (VLN-CE)

A reply names up to three of "forward", "left", "right" and "stop", in their order, each with a length or an angle or without:
``<answer>left 30 degrees, forward 75 cm</answer>``; or it gives the number of one of them, 0 to 3. The goal is reached by a stop within
`near` metres of it, by the way one would walk.

Measures of an ended episode: `success`; `spl` and `ndtw` (fovea.math.paths); `sdtw`, their product with success; `oracle`, whether the goal
was near at any time; `error`, the metres that were left to walk; `legal`, the share of replies that named an action.
"""

from __future__ import annotations

import heapq
import json
import math
import re
from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from PIL.Image import Image

from fovea.envs.house.plan import SHAPES, Floats, Plan, Thing, draw_plan
from fovea.envs.house.view import picture
from fovea.envs.words import REPLIES, answered, only_named
from fovea.math.paths import length, ndtw, spl
from fovea.types import Action, Observation, Task, user

__all__ = ["ACTIONS", "KINDS", "House", "Plan", "Route", "draw_route", "picture"]

ACTIONS = ("forward", "left", "right", "stop")
KINDS = {"near": (1, 1), "next": (2, 2), "far": (3, 99)}
"""How many rooms the way leads through, first and last included: at least, at most."""
MOST = 3
"""Commands in a reply, and units of one command."""
BESIDE = 0.45
"""Metres between a thing and the place beside it that is the goal."""
LEAST = 1.5
"""Metres of the shortest way that is asked for."""
EXPANDED, HASTE = 5000, 2.0
"""Poses that `demonstrate` looks at, at most, to find its way; how much the metres left count against the actions taken."""
COMMAND = re.compile(r"\b(forward|left|right|stop)\b(?:\s+(?:by\s+)?(\d{1,4}(?:\.\d{1,3})?)\s*(cm)?)?")
RANDOM, SLIP = range(2)  # what a random number is for


@dataclass(frozen=True, eq=False)
class Route:
    """A way through a house.

    Attributes:
      start, heading: metres and radians. goal: the place beside `thing`.
      path: corners of the shortest way.
      text: the instruction.
    """

    plan: Plan
    start: tuple[float, float]
    heading: float
    thing: Thing
    goal: tuple[float, float]
    path: Floats
    text: str

    @property
    def points(self) -> Floats:
        """The shortest way as a point every quarter of a metre, and its end."""
        marks = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(self.path, axis=0), axis=1))])
        at = np.append(np.arange(0, marks[-1], 0.25), marks[-1])
        return np.stack([np.interp(at, marks, self.path[:, k]) for k in range(2)], -1)


@lru_cache(maxsize=64)
def draw_route(kind: str, seed: int) -> Route:
    """A house and a way through it: a pure function of its arguments."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, list(KINDS).index(kind)])))
    least, most = KINDS[kind]
    while True:
        plan = draw_plan(rng)
        for _ in range(8):
            thing = plan.things[int(rng.integers(len(plan.things)))]
            goal = _beside(plan, thing)
            metres = plan.field(goal)
            reached = np.argwhere(np.isfinite(metres) & (metres >= LEAST))
            i, j = reached[int(rng.integers(len(reached)))]
            start = plan.mesh[0][i, j]
            path = plan.path(start, goal)
            rooms = _rooms(plan, path)
            if least <= len(rooms) <= most:
                heading = float(rng.uniform(-math.pi, math.pi))
                return Route(plan, (float(start[0]), float(start[1])), heading, thing, goal, path, instruction(plan, rooms, thing))


def _beside(plan: Plan, thing: Thing) -> tuple[float, float]:
    """The place on the side of a thing that looks to the middle of its room."""
    middle = np.array([thing.x // 4 * 4 + 2, thing.y // 4 * 4 + 2])
    towards = middle - (thing.x, thing.y)
    x, y = (thing.x, thing.y) + towards / np.hypot(*towards) * (SHAPES[thing.shape][0] + BESIDE)
    return float(x), float(y)


def _rooms(plan: Plan, path: Floats) -> list[int]:
    """The rooms that a path leads through, in its order."""
    rooms: list[int] = []
    for a, b in pairwise(path):
        for x, y in np.linspace(a, b, max(2, int(np.hypot(*(b - a)) / 0.1))):
            if not rooms or plan.room(x, y) != rooms[-1]:
                rooms.append(plan.room(x, y))
    return rooms


def instruction(plan: Plan, rooms: list[int], thing: Thing) -> str:
    """The way in words: rooms by the colour of their walls, and the thing at its end."""
    names = [f"{plan.colours[r]} room" for r in rooms]
    if len(names) == 1:
        return f"Go to the {thing.name}."
    through = f", go through the {' and the '.join(names[1:-1])}," if len(names) > 2 else ""
    return f"Leave the {names[0]}{through} into the {names[-1]}, and go to the {thing.name}."


@dataclass(order=True)
class _Node:
    """A pose on the way of `demonstrate`, and the action that led there."""

    guess: float
    taken: int
    at: Floats = field(compare=False)
    heading: float = field(compare=False)
    before: _Node | None = field(compare=False)
    action: str = field(compare=False)

    def actions(self) -> dict[tuple[float, ...], str]:
        """Pose -> action from the first node to this one, where it stops."""
        found, node, action = {}, self, "stop"
        while node is not None:
            found[_pose(node.at, node.heading)] = action
            node, action = node.before, node.action
        return found


def _pose(at_2: Floats, heading: float, digits: int = 6) -> tuple[float, ...]:
    return round(float(at_2[0]), digits), round(float(at_2[1]), digits), round(heading % math.tau, digits)


class House:
    """One walk per episode: that of `task.meta["house"]` = (kind, seed) where the task has it, else of `kind` and the episode's seed.

    Args:
      kind: one of `KINDS`. side: of the picture in pixels.
      stride, turn: metres and degrees of a command that names none; one command goes three times as far at most.
      near: metres from the goal that count as there.
      max_turns: replies until the episode is cut.
      reply: "short" or "json".
      frames: pictures in a prompt, the newest last; 0 keeps the whole conversation.
      reward: of a stop near the goal: "success" gives 1, "soft" 1 − distance / near. fail: of an episode that ends in another way.
      invalid: what follows a reply without an action: one at "random" (VL-DAC), or the "end" (ActiveVLN).
      slips: share of the turns in which `demonstrate` goes another way.
    """

    def __init__(
        self,
        kind: str = "near",
        side: int = 64,
        stride: float = 0.5,
        turn: float = 30.0,
        near: float = 1.0,
        max_turns: int = 60,
        reply: str = "short",
        frames: int = 1,
        reward: str = "success",
        fail: float = 0.0,
        invalid: str = "random",
        slips: float = 0.0,
    ):
        chosen = {
            "kind": (kind, tuple(KINDS)),
            "reply": (reply, REPLIES),
            "reward": (reward, ("success", "soft")),
            "invalid": (invalid, ("random", "end")),
        }
        wrong = [f"{n} = {v!r}, expected one of {', '.join(known)}" for n, (v, known) in chosen.items() if v not in known]
        numbers = {
            "side": side >= 16,
            "stride": stride > 0,
            "turn": turn > 0,
            "near": near > 0,
            "max_turns": max_turns > 0,
            "frames": frames >= 0,
        }
        wrong += [f"{n} is too small" for n, fine in numbers.items() if not fine] + ([] if 0 <= slips <= 1 else ["slips is no share"])
        if wrong:
            raise ValueError(f"house: {'; '.join(wrong)}")
        self.kind, self.side, self.stride, self.turn, self.near, self.max_turns = kind, side, stride, math.radians(turn), near, max_turns
        self.reply, self.frames, self.reward, self.fail, self.invalid, self.slips = reply, frames, reward, fail, invalid, slips

    def reset(self, task: Task, seed: int) -> Observation:
        kind, house = task.meta.get("house", (self.kind, seed))
        self.seed, self.route = seed, draw_route(kind, int(house))
        self.at, self.heading = np.array(self.route.start), self.route.heading
        self.track, self.turns, self.named = [self.at], 0, 0
        self._planned: dict[tuple[float, ...], str] = {}
        self.seen: deque[Image] = deque(maxlen=self.frames or 1)
        return self._look()

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        commands = self.commands(action.value)
        self.turns += 1
        self.named += bool(commands)
        ends = not commands and self.invalid == "end"
        if not commands and not ends:
            commands = [(ACTIONS[int(self._rng(RANDOM).integers(len(ACTIONS)))], 1.0)]
        stopped = any(self._do(name, units) for name, units in commands)
        over, cut = stopped or ends, self.turns >= self.max_turns
        info: dict[str, Any] = {"legal": not ends and bool(self.named)}
        if not (over or cut):
            return self._look(), 0.0, False, False, info
        measures = self.measures(stopped)
        won = 1.0 if self.reward == "success" else max(0.0, 1 - measures["error"] / self.near)
        return Observation(), won if measures["success"] else self.fail, over, cut and not over, {**info, "measures": measures}

    def commands(self, said: Any) -> list[tuple[str, float]]:
        """(action, how many units) of what was said, MOST at most and nothing after a stop; of a number, the action with that index."""
        if not isinstance(said, str):
            return [(ACTIONS[int(said)], 1.0)] if 0 <= int(said) < len(ACTIONS) else []
        text, found = answered(said, self.reply).lower(), []
        for name, amount, cm in COMMAND.findall(text)[:MOST]:
            unit = self.stride if name == "forward" else math.degrees(self.turn)
            units = float(amount) / (100 if cm else 1) / unit if amount else 1.0
            found.append((name, min(units, MOST)))
            if name == "stop":
                break
        index = None if found else only_named(text, [str(i) for i in range(len(ACTIONS))])
        return found if index is None else [(ACTIONS[index], 1.0)]

    def measures(self, stopped: bool) -> dict[str, float]:
        """What the episode came to; see the file's head."""
        route, track = self.route, np.array(self.track)
        left = [route.plan.remaining(at, route.goal) for at in track]
        success = stopped and left[-1] <= self.near
        alike = ndtw(route.points, track, self.near)
        return {
            "success": float(success),
            "spl": spl(success, length(route.path), length(track)),
            "ndtw": alike,
            "sdtw": alike * success,
            "oracle": float(min(left) <= self.near),
            "error": left[-1],
            "legal": self.named / max(1, self.turns),
        }

    def demonstrate(self) -> str:
        """What somebody who knows the way says now, and as often as `slips` says, another action."""
        action = self._best()
        rng = self._rng(SLIP)
        if rng.random() < self.slips:
            action = str(rng.choice([a for a in ACTIONS if a != action]))
        towards = {"forward": "ahead", "stop": "here"}.get(action, action)
        thought = f"{self.route.thing.name if self.route.plan.sees(self.at, np.array(self.route.goal)) else 'door'} {towards}"
        if self.reply == "short":
            return f"<think>{thought}</think><answer>{action}</answer>"
        return json.dumps({"thoughts": thought, "action": action})

    def _best(self) -> str:
        """The next action of a few that lead near the goal."""
        here = _pose(self.at, self.heading)
        if here not in self._planned:
            self._planned |= self._way()
        return self._planned.get(here, "stop")

    def _way(self) -> dict[tuple[float, ...], str]:
        """Pose -> action on the way from here, by weighted A* over actions; empty where none is found within EXPANDED poses."""
        plan, goal = self.route.plan, self.route.goal

        def far(at_2: Floats) -> float:
            return HASTE * plan.mesh_distance(at_2, goal)

        start = _Node(far(self.at) / self.stride, 0, self.at, self.heading, None, "")
        queue, known = [start], set()
        for _ in range(EXPANDED):
            if not queue:
                break
            node = heapq.heappop(queue)
            if far(node.at) <= 0.7 * HASTE * self.near and plan.remaining(node.at, goal) <= 0.9 * self.near:
                return node.actions()
            if (seen := _pose(node.at, node.heading, 1)) in known:
                continue
            known.add(seen)
            for name, at, heading in (
                ("forward", plan.walked(node.at, node.heading, self.stride), node.heading),
                ("left", node.at, node.heading + self.turn),
                ("right", node.at, node.heading - self.turn),
            ):
                heapq.heappush(queue, _Node(node.taken + 1 + far(at) / self.stride, node.taken + 1, at, heading, node, name))
        return {}

    def _do(self, name: str, units: float) -> bool:
        """Carry out one command; True for a stop."""
        if name == "forward":
            self.at = self.route.plan.walked(self.at, self.heading, units * self.stride)
            self.track.append(self.at)
        elif name != "stop":
            self.heading += (1 if name == "left" else -1) * units * self.turn
        return name == "stop"

    def _rng(self, purpose: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, purpose, self.turns])))

    def _look(self) -> Observation:
        self.seen.append(picture(self.route.plan, self.at, self.heading, self.side))
        later = self.frames == 0 and self.turns > 0
        return Observation(
            messages=user("" if later else self._ask(), images=len(self.seen)),
            images=tuple(self.seen),
            append=later,
        )

    def _ask(self) -> str:
        if self.reply == "short":
            return f"{self.route.text} {', '.join(ACTIONS[:-1])} or {ACTIONS[-1]}?"
        degrees = math.degrees(self.turn)
        return (
            f"{self.route.text}\nYou see the way ahead; of several pictures the last is the newest. Actions: forward ({self.stride:g} m), "
            f"left or right ({degrees:g} degrees), stop. Up to {MOST} of them, separated by commas; an action may say how far, such "
            f'as "forward {MOST * self.stride:g} m", up to three times that. Stop where the way ends.\n'
            'Answer with JSON alone: {"thoughts": ..., "action": ...}'
        )
