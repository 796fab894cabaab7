"""Card games seen in pictures and played in words, re-made from the rules of Gym-Cards (Zhai et al. 2024, arXiv 2405.10292).

    "cards:points24"    four cards, a formula that makes 24, one symbol per turn; "ezpoints" (two cards, 12), "numberline", "blackjack"
    "cards:points24,side=300,reply=json"    the pictures and replies of the paper; without, 64 pixels and short replies

A reply in JSON has `thoughts` and `action`, and before them what the game is read as; the action is the one name behind ``"action":``. A
short reply is ``<think>4 6 A A: 4*6*1*1</think><answer>*</answer>``. Where a reply names no action, or several, one is drawn at random, as
in the papers (RL4VLM, GTR, VL-DAC); `info["legal"]` says so.

Departures from the original: cards and numbers are drawn anew; every draw comes from the seed; numbers side by side, signs, powers and
whole division, all of which a Python expression allows, are no formula.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from PIL.Image import Image

from fovea.envs.cards.games import GAMES, Game
from fovea.envs.words import REPLIES, answered, only_named
from fovea.types import Action, Observation, Task, user

__all__ = ["GAMES", "Cards"]

LOOK, DRAW, RANDOM, SLIP = range(4)  # what a random number is for


class Cards:
    """One game per episode: that of `task.meta["game"]` from `task.meta["start"]` where the task has them, else `game`, dealt by the seed.

    Every turn shows the picture and the state alone (the history is trimmed). All that is random follows from the seed.

    Args:
      game: one of `GAMES`.
      side: of the square picture in pixels.
      reply: "short" or "json".
      slips: share of the turns in which `demonstrate` takes one number in the picture for another.
    """

    def __init__(self, game: str = "points24", side: int = 64, reply: str = "short", slips: float = 0.0):
        if game not in GAMES:
            raise ValueError(f"cards: no game {game!r}; there are: {', '.join(GAMES)}")
        if reply not in REPLIES:
            raise ValueError(f"cards: reply = {reply!r}; expected one of {', '.join(REPLIES)}")
        if side < 32 or not 0 <= slips <= 1:
            raise ValueError(f"cards: side = {side}, slips = {slips}; expected at least 32 pixels and a share between 0 and 1")
        self.kind, self.side, self.reply, self.slips = game, side, reply, slips

    def reset(self, task: Task, seed: int) -> Observation:
        kind = GAMES[task.meta.get("game", self.kind)]
        self.seed, self.turn = seed, 0
        draws = self._rng(DRAW)
        self.game: Game = kind(task.meta["start"] if "start" in task.meta else kind.deal(draws), draws)
        self._shown: tuple[list[int], Image] | None = None
        return self._look()

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        named = only_named(answered(str(action.value), self.reply), self.game.actions)
        index = named if named is not None else int(self._rng(RANDOM).integers(len(self.game.actions)))
        reward, terminated, truncated = self.game.step(self.game.actions[index])
        self.turn += 1
        measures = {"success": float(self.game.solved)}
        info = {"legal": named is not None, "action": self.game.actions[index], "measures": measures}
        return Observation() if terminated or truncated else self._look(), reward, terminated, truncated, info

    def demonstrate(self) -> str:
        """What a good player says now, who misreads the picture as often as `slips` says."""
        reading, rng = self.game.reading(), self._rng(SLIP)
        if rng.random() < self.slips:
            first, last = self.game.sights
            at = int(rng.integers(len(reading)))
            reading[at] = int(rng.choice([n for n in range(first, last + 1) if n != reading[at]]))
        thought, fields, action = self.game.advice(reading)
        if self.reply == "short":
            return f"<think>{thought}</think><answer>{action}</answer>"
        return json.dumps({**fields, "thoughts": f"I see {thought}. The next action is {action}.", "action": action})

    def _rng(self, purpose: int) -> np.random.Generator:
        turn = self.turn if purpose in (RANDOM, SLIP) else 0
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, purpose, turn])))

    def _look(self) -> Observation:
        reading = self.game.reading()
        if self._shown is None or self._shown[0] != reading:
            self._shown = reading, self.game.picture(self.side, self._rng(LOOK))
        return Observation(messages=user(self._ask()), images=(self._shown[1],))

    def _ask(self) -> str:
        state = self.game.state()
        if self.reply == "short":
            return f"{self.game.brief} {state}".rstrip()
        wanted = ", ".join(f'"{name}": ...' for name in (*self.game.fields, "thoughts", "action"))
        so_far = f'\nThe formula so far: "{state}".' if "formula" in self.game.fields else ""
        return f"{self.game.asks}{so_far}\nActions: {', '.join(self.game.actions)}.\nAnswer with JSON alone: {{{wanted}}}"
