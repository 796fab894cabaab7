"""The rules of NumberLine, EZPoints, Points24 and Blackjack, with what a player sees and what a good one does.

Ranks are 1 (ace) to 13 (king); jack, queen and king count 10. A game has a `start` of plain numbers, and `step(action)` gives
(reward, terminated, truncated).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from PIL.Image import Image

from fovea.envs.cards import draw, solve

Step = tuple[float, bool, bool]
Start = Mapping[str, Any]


class Game(Protocol):
    """One game under way.

    Attributes:
      actions: what may be said. sights: the numbers that can be seen in its picture, first and last.
      asks: what is asked, for a reader of pictures and rules; brief: the same in few words.
    """

    actions: ClassVar[tuple[str, ...]]
    sights: ClassVar[tuple[int, int]]
    asks: ClassVar[str]
    brief: ClassVar[str]
    fields: ClassVar[tuple[str, ...]]
    solved: bool

    def step(self, action: str) -> Step: ...

    def state(self) -> str:
        """What the prompt says of the state, beside the picture."""
        ...

    def reading(self) -> list[int]:
        """The numbers in the picture."""
        ...

    def advice(self, reading: Sequence[int]) -> tuple[str, dict[str, Any], str]:
        """(thought in few words, the same as fields, action) of a good player who reads these numbers."""
        ...

    def picture(self, side: int, rng: np.random.Generator) -> Image: ...


def value(rank: int) -> int:
    return min(rank, 10)


@dataclass
class NumberLine:
    """From one number to another: +1 on arrival, which ends it; −1 for a step that brings it no nearer; cut after 10 steps."""

    start: Start
    rng: np.random.Generator
    steps: int = 0
    solved: bool = False

    actions: ClassVar[tuple[str, ...]] = ("-", "+")
    sights: ClassVar[tuple[int, int]] = (0, 5)
    asks: ClassVar[str] = (
        'The picture shows the current number (blue) and the target (green). "+" adds one to the current number and "-" takes one away, '
        "between 0 and 5. Bring it to the target."
    )
    brief: ClassVar[str] = "From blue to green: + or -?"
    fields: ClassVar[tuple[str, ...]] = ("current", "target")
    LIMIT: ClassVar[int] = 10

    def __post_init__(self) -> None:
        self.at, self.target = int(self.start["current"]), int(self.start["target"])

    @staticmethod
    def deal(rng: np.random.Generator) -> Start:
        current, target = (int(n) for n in rng.integers(0, 6, 2))
        return {"current": current, "target": target if target != current else (target + 1) % 5}

    @staticmethod
    def key(start: Start) -> tuple[int, ...]:
        return start["current"], start["target"]

    def step(self, action: str) -> Step:
        before = abs(self.target - self.at)
        self.at = min(5, max(0, self.at + (1 if action == "+" else -1)))
        self.steps += 1
        self.solved = self.at == self.target
        reward = 1.0 if self.solved else 0.0 if abs(self.target - self.at) < before else -1.0
        return reward, self.solved, not self.solved and self.steps >= self.LIMIT

    def state(self) -> str:
        return ""

    def reading(self) -> list[int]:
        return [self.at, self.target]

    def advice(self, reading: Sequence[int]) -> tuple[str, dict[str, Any], str]:
        current, target = reading
        return f"{current} to {target}", {"current": current, "target": target}, "+" if target > current else "-"

    def picture(self, side: int, rng: np.random.Generator) -> Image:
        return draw.number_line(self.at, self.target, 5, side, rng)


@dataclass
class Points:
    """A formula, one symbol per turn, that uses every card once. "=" ends it: +10 where it makes the target, else −1.

    A number that is not left in the hand costs 1 and stands as a blank; a symbol beyond `longest` costs 1 and cuts the game.
    """

    start: Start
    rng: np.random.Generator
    formula: list[str] = field(default_factory=list)
    solved: bool = False

    target: ClassVar[int]
    longest: ClassVar[int]
    operations: ClassVar[str]
    actions: ClassVar[tuple[str, ...]]
    sights: ClassVar[tuple[int, int]] = (1, 13)
    asks: ClassVar[str]
    brief: ClassVar[str]
    fields: ClassVar[tuple[str, ...]] = ("cards", "formula")

    def __post_init__(self) -> None:
        self.cards = [int(c) for c in self.start["cards"]]

    @staticmethod
    def key(start: Start) -> tuple[int, ...]:
        return tuple(sorted(start["cards"]))

    @property
    def written(self) -> solve.Formula:
        """The symbols so far, blanks left out."""
        return tuple(s for s in self.formula if s)

    def step(self, action: str) -> Step:
        if len(self.formula) > self.longest:
            return -1.0, False, True
        left = Counter(value(c) for c in self.cards) - Counter(int(s) for s in self.written if s.isdecimal())
        if action == "=":
            self.solved = not left and solve.evaluate(self.written) == self.target
            return 10.0 if self.solved else -1.0, True, False
        absent = action.isdecimal() and not left[int(action)]
        self.formula.append("" if absent else action)
        return -1.0 if absent else 0.0, False, False

    def state(self) -> str:
        return "".join(self.written)

    def reading(self) -> list[int]:
        return list(self.cards)

    def solutions(self, cards: Sequence[int]) -> tuple[solve.Formula, ...]:
        """Formulas of these cards that make the target, the shortest first, of equals those in the order of the cards."""
        values = [value(c) for c in cards]

        def rank(f: solve.Formula) -> tuple[int, bool]:
            return len(f), [int(s) for s in f if s.isdecimal()] != values

        return tuple(sorted(solve.formulas(tuple(sorted(values)), self.target, self.operations), key=rank))

    def advice(self, reading: Sequence[int]) -> tuple[str, dict[str, Any], str]:
        so_far = self.written
        goal = next((f for f in self.solutions(reading) if f[: len(so_far)] == so_far), ())
        names = [draw.NAMES[c - 1] for c in reading]
        aim = "".join(goal) or "none"
        action = goal[len(so_far)] if len(goal) > len(so_far) else "="
        return f"{' '.join(names)}: {aim}", {"cards": names, "formula": aim}, action

    def picture(self, side: int, rng: np.random.Generator) -> Image:
        return draw.hand(self.cards, side, rng)


class EZPoints(Points):
    """Two cards that make 12, as a sum or a product."""

    target, longest, operations = 12, 5, "+*"
    actions = (*map(str, range(1, 11)), "+", "*", "=")
    brief = "Make 12."
    asks = (
        "The picture shows two cards; jack, queen and king count 10. Write a formula that uses each card once and makes 12, one symbol "
        'at a time, and end it with "=".'
    )

    @staticmethod
    def deal(rng: np.random.Generator) -> Start:
        first = int(rng.integers(2, 14))
        product = value(first) in (1, 2, 3, 4, 6) and bool(rng.random() < 0.5)
        second = 12 // value(first) if product else 12 - value(first)
        return {"cards": [first, second] if rng.random() < 0.5 else [second, first]}


class Points24(Points):
    """Four cards, drawn independently, that make 24; not every hand can."""

    target, longest, operations = 24, 20, "+-*/"
    actions = (*map(str, range(1, 11)), "+", "-", "*", "/", "(", ")", "=")
    brief = "Make 24."
    asks = (
        "The picture shows four cards; an ace counts 1, and jack, queen and king count 10. Write a formula that uses each card once and "
        'makes 24, one symbol at a time, and end it with "=".'
    )

    @staticmethod
    def deal(rng: np.random.Generator) -> Start:
        return {"cards": [int(c) for c in rng.integers(1, 14, 4)]}


@dataclass
class Blackjack:
    """Endless deck; over 21 loses at once; the dealer draws to 17. +1, 0 or −1; a natural earns no more."""

    start: Start
    rng: np.random.Generator
    solved: bool = False

    actions: ClassVar[tuple[str, ...]] = ("stand", "hit")
    sights: ClassVar[tuple[int, int]] = (1, 13)
    asks: ClassVar[str] = (
        "The picture shows the dealer's cards above, one of them face down, and your hand below. Come closer to 21 than the dealer without "
        'going over; an ace counts 1 or 11, and jack, queen and king count 10. "hit" takes a card, "stand" ends your turn.'
    )
    brief: ClassVar[str] = "hit or stand?"
    fields: ClassVar[tuple[str, ...]] = ("cards", "dealer")

    def __post_init__(self) -> None:
        self.player, self.dealer = [int(c) for c in self.start["cards"]], [int(self.start["dealer"]), self._draw()]

    @staticmethod
    def deal(rng: np.random.Generator) -> Start:
        first, second, shown = (int(c) for c in rng.integers(1, 14, 3))
        return {"cards": [first, second], "dealer": shown}

    @staticmethod
    def key(start: Start) -> tuple[int, ...]:
        return (*sorted(start["cards"]), start["dealer"])

    def _draw(self) -> int:
        return int(self.rng.integers(1, 14))

    def step(self, action: str) -> Step:
        if action == "hit":
            self.player.append(self._draw())
            over = sum(map(value, self.player)) > 21
            return -1.0 if over else 0.0, over, False
        while (dealer := solve.total([value(c) for c in self.dealer])) < solve.DEALER_STANDS:
            self.dealer.append(self._draw())
        reward = solve.outcome(solve.total([value(c) for c in self.player]), dealer)
        self.solved = reward > 0
        return reward, True, False

    def state(self) -> str:
        return ""

    def reading(self) -> list[int]:
        return [self.dealer[0], *self.player]

    def advice(self, reading: Sequence[int]) -> tuple[str, dict[str, Any], str]:
        shown, *mine = (value(c) for c in reading)
        play = solve.best_play(sum(mine), 1 in mine, shown) if sum(mine) <= 21 else {"stand": 0.0}
        dealer, *names = (draw.NAMES[c - 1] for c in reading)
        return f"{dealer} {' '.join(names)}: {solve.total(mine)}", {"cards": names, "dealer": dealer}, max(play, key=lambda a: play[a])

    def picture(self, side: int, rng: np.random.Generator) -> Image:
        return draw.blackjack(self.player, self.dealer[0], side, rng)


GAMES: dict[str, type[Any]] = {"numberline": NumberLine, "ezpoints": EZPoints, "points24": Points24, "blackjack": Blackjack}
