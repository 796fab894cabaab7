"""Deals for the card games of `fovea.envs.cards`: NumberLine, EZPoints, Points24 and Blackjack.

    "cards"                     the four games in turn
    "cards:points24"            one of them; several are separated by commas
    "cards:points24-solvable"   only hands that can make 24; in the original one hand in four cannot
    "cards:points24,side=300,reply=json"    options of the environment, which shows the tasks as it will

A deal is a pure function of (game, split, seed, index). One in five hands of Points24 (whatever their order) and first hands of Blackjack
is held out. NumberLine and EZPoints have few starts (30 and 10), which nobody plays without having met them: their held-out games are the
same starts in other pictures. Score is the return; right is a game that was won.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fovea.envs.cards import GAMES, Cards
from fovea.envs.resolve import options
from fovea.tasks.endless import Endless
from fovea.tasks.worlds import split_of
from fovea.types import Task

SOLVABLE = "-solvable"
FEW = (GAMES["numberline"], GAMES["ezpoints"])
"""Games with so few starts that none is held out."""


@dataclass(frozen=True)
class Deals(Endless):
    """Game after game; see the file's head.

    Attributes:
      games: keys of `GAMES`, followed by "-solvable" or not.
      shown: options of `Cards`.
    """

    games: Sequence[str] = tuple(GAMES)
    shown: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def named(cls, what: str, split: str, seed: int) -> Deals:
        """
        Raises:
          ValueError: an unknown game or option, with the known ones.
        """
        games, shown = options(Cards, what, f"data 'cards:{what}'")
        known = [name + end for name in GAMES for end in ("", SOLVABLE) if not end or hasattr(GAMES[name], "solutions")]
        if unknown := [g for g in games if g not in known]:
            raise ValueError(f"data 'cards:{what}': no game {', '.join(unknown)}; there are: {', '.join(known)}")
        return cls(games or tuple(GAMES), shown, split=split, seed=seed)

    def deal(self, i: int) -> Task:
        index, which = divmod(i, len(self.games))
        game = self.games[which].removesuffix(SOLVABLE)
        rng = self.rng(list(GAMES).index(game), index)
        while not self._fits(self.games[which], start := GAMES[game].deal(rng)):
            pass
        task = Task(
            id=f"{self.games[which]}/{self.split}/{self.seed}/{index}",
            source=self.games[which],
            prompt=(),
            verifier="return",
            meta={"game": game, "start": start},
        )
        first = Cards(game, **self.shown).reset(task, int(rng.integers(2**31)))
        return replace(task, prompt=first.messages, images=first.images)

    def _fits(self, name: str, start: Any) -> bool:
        kind = GAMES[name.removesuffix(SOLVABLE)]
        if kind not in FEW and split_of((kind.__name__, kind.key(start))) != self.split:
            return False
        return not name.endswith(SOLVABLE) or bool(kind(start, None).solutions(start["cards"]))
