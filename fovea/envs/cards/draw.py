"""Pictures of cards and of a number line, drawn from strokes of our own at any size.

Lengths are fractions of the picture's side, x to the right, y down; everything is drawn `SS` times larger and scaled down.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from fovea.tasks.worlds.draw import PALETTE, PAPERS, SS, STROKES

RED, BLACK = (200, 30, 44), (24, 28, 40)
SUITS = {"hearts": RED, "diamonds": RED, "clubs": BLACK, "spades": BLACK}
CLOTHS = ((30, 108, 72), (36, 72, 112), (92, 44, 60), (58, 62, 70))
PAPER = (252, 251, 247)
FACES = {
    "J": [[(0.3, 0.03), (0.85, 0.03)], [(0.64, 0.03), (0.64, 0.74), (0.54, 0.92), (0.36, 0.98), (0.18, 0.9), (0.1, 0.72)]],
    "Q": [*STROKES["0"][0], [(0.56, 0.66), (0.98, 0.99)]],
    "K": [[(0.12, 0.02), (0.12, 0.98)], [(0.9, 0.02), (0.12, 0.58)], [(0.36, 0.42), (0.92, 0.98)]],
}
NAMES = ("A", "2", "3", "4", "5", "6", "7", "8", "9", "10", "J", "Q", "K")
"""What is written on the cards of ranks 1 to 13."""
Box = tuple[float, float, float, float]


class Sheet:
    """A square picture to draw on."""

    def __init__(self, side: int, ground: tuple[int, int, int]):
        self.side, self.scale = side, side * SS
        self.picture = Image.new("RGB", (self.scale, self.scale), ground)
        self.pen = ImageDraw.Draw(self.picture)

    def done(self) -> Image.Image:
        return self.picture.resize((self.side, self.side), Image.Resampling.BOX)

    def text(self, text: str, box: Box, ink: tuple[int, int, int]) -> None:
        """Letters and digits side by side inside `box`."""
        x1, y1, x2, y2 = box
        wide = (x2 - x1) / len(text)
        thick = 0.22 * min(wide, 0.6 * (y2 - y1))
        for i, char in enumerate(text):
            left, right = x1 + i * wide + thick / 2 + 0.06 * wide, x1 + (i + 1) * wide - thick / 2 - 0.06 * wide
            for stroke in FACES.get(char) or STROKES[char][-1 if char == "1" and len(text) == 1 else 0]:
                self.stroke([(left + u * (right - left), y1 + v * (y2 - y1)) for u, v in stroke], thick, ink)

    def stroke(self, points: Sequence[tuple[float, float]], thick: float, ink: tuple[int, int, int]) -> None:
        at = [(x * self.scale, y * self.scale) for x, y in points]
        width = max(1, round(thick * self.scale))
        self.pen.line(at, fill=ink, width=width, joint="curve")
        for x, y in (at[0], at[-1]):
            self.pen.ellipse([x - width / 2, y - width / 2, x + width / 2, y + width / 2], fill=ink)

    def panel(self, box: Box, fill: tuple[int, int, int], edge: tuple[int, int, int] | None = None) -> None:
        radius = 0.1 * min(box[2] - box[0], box[3] - box[1]) * self.scale
        self.pen.rounded_rectangle([c * self.scale for c in box], radius, fill, edge, max(1, self.scale // 200))

    def disc(self, x: float, y: float, r: float, fill: tuple[int, int, int]) -> None:
        self.pen.ellipse([c * self.scale for c in (x - r, y - r, x + r, y + r)], fill=fill)

    def card(self, rank: int, suit: str, box: Box) -> None:
        """The face of a card: its name, and small in the corner its suit."""
        x1, y1, x2, y2 = box
        w, h = x2 - x1, y2 - y1
        self.panel(box, PAPER, (170, 170, 165))
        name = NAMES[rank - 1]
        wide = w * (0.82 if len(name) == 2 else 0.64)
        middle = (x1 + x2) / 2
        self.text(name, (middle - wide / 2, y1 + 0.32 * h, middle + wide / 2, y2 - 0.1 * h), SUITS[suit])
        r = min(0.15 * w, 0.085 * h)
        self.suit(suit, x1 + 0.08 * w + r, y1 + 0.05 * h + r, r)

    def suit(self, suit: str, x: float, y: float, r: float) -> None:
        ink = SUITS[suit]

        def shape(*points: tuple[float, float]) -> None:
            self.pen.polygon([((x + u * r) * self.scale, (y + v * r) * self.scale) for u, v in points], fill=ink)

        if suit == "diamonds":
            shape((0, -1), (0.75, 0), (0, 1), (-0.75, 0))
        elif suit == "hearts":
            shape((-0.95, -0.2), (0.95, -0.2), (0, 1))
            for u in (-0.48, 0.48):
                self.disc(x + u * r, y - 0.35 * r, 0.52 * r, ink)
        else:
            shape((0, 0), (0.4, 1), (-0.4, 1))
            lobes = ((-0.48, 0.2), (0.48, 0.2)) if suit == "spades" else ((-0.5, 0.25), (0.5, 0.25), (0, -0.45))
            for u, v in lobes:
                self.disc(x + u * r, y + v * r, 0.5 * r, ink)
            if suit == "spades":
                shape((-0.95, 0.1), (0, -1), (0.95, 0.1))

    def back(self, box: Box) -> None:
        """A card that lies face down."""
        self.panel(box, PALETTE["purple"], (60, 30, 90))
        inset = 0.14 * (box[2] - box[0])
        self.panel((box[0] + inset, box[1] + inset, box[2] - inset, box[3] - inset), (190, 150, 220))


def hand(ranks: Sequence[int], side: int, rng: np.random.Generator) -> Image.Image:
    """Two cards side by side, or four in two rows."""
    sheet = _table(side, rng)
    columns = 2
    rows = -(-len(ranks) // columns)
    high = 0.46 if rows > 1 else 0.62
    for i, rank in enumerate(ranks):
        x, y = 0.25 + 0.5 * (i % columns), (0.25 + 0.5 * (i // columns)) if rows > 1 else 0.5
        _dealt(sheet, rank, (x - 0.21, y - high / 2, x + 0.21, y + high / 2), rng)
    return sheet.done()


def blackjack(player: Sequence[int], dealer: int, side: int, rng: np.random.Generator) -> Image.Image:
    """The dealer's card and the one face down above, the player's hand below."""
    sheet = _table(side, rng)
    _dealt(sheet, dealer, (0.17, 0.03, 0.47, 0.47), rng)
    sheet.back((0.53, 0.03, 0.83, 0.47))
    slot = min(0.33, 0.97 / len(player))
    left = 0.5 - slot * len(player) / 2
    for i, rank in enumerate(player):
        _dealt(sheet, rank, (left + i * slot + 0.015, 0.54, left + (i + 1) * slot - 0.015, 0.97), rng)
    return sheet.done()


def number_line(current: int, target: int, last: int, side: int, rng: np.random.Generator) -> Image.Image:
    """The current number (blue) and the target (green), and below them a line from 0 to `last` with both places marked."""
    return _line(current, target, last, side, PAPERS[int(rng.integers(len(PAPERS)))])


@lru_cache(maxsize=256)
def _line(current: int, target: int, last: int, side: int, paper: tuple[int, int, int]) -> Image.Image:
    sheet = Sheet(side, paper)
    ink, x0, step, y = (110, 116, 130), 0.1, 0.8 / last, 0.85
    for digit, colour, left in ((current, PALETTE["blue"], 0.06), (target, PALETTE["green"], 0.54)):
        sheet.panel((left, 0.06, left + 0.4, 0.62), colour)
        sheet.text(str(digit), (left + 0.08, 0.12, left + 0.32, 0.56), (255, 255, 255))
    sheet.stroke([(x0, y), (x0 + last * step, y)], 0.02, ink)
    for i in range(last + 1):
        sheet.disc(x0 + i * step, y, 0.025, ink)
    sheet.disc(x0 + target * step, y, 0.09, PALETTE["green"])
    sheet.disc(x0 + current * step, y, 0.055, PALETTE["blue"])
    return sheet.done()


def _table(side: int, rng: np.random.Generator) -> Sheet:
    return Sheet(side, CLOTHS[int(rng.integers(len(CLOTHS)))])


def _dealt(sheet: Sheet, rank: int, box: Box, rng: np.random.Generator) -> None:
    suit = tuple(SUITS)[int(rng.integers(4))]
    dx, dy = rng.uniform(-0.012, 0.012, 2)
    face, shape = _face(rank, suit, box[2] - box[0], box[3] - box[1], sheet.side)
    sheet.picture.paste(face, (round((box[0] + dx) * sheet.scale), round((box[1] + dy) * sheet.scale)), shape)


@lru_cache(maxsize=512)
def _face(rank: int, suit: str, w: float, h: float, side: int) -> tuple[Image.Image, Image.Image]:
    """A card of w x h, not scaled down, and the mask of its shape."""
    face, shape = Sheet(side, PAPER), Sheet(side, (0, 0, 0))
    face.card(rank, suit, (0, 0, w, h))
    shape.panel((0, 0, w, h), (255, 255, 255))
    whole = (0, 0, round(w * face.scale), round(h * face.scale))
    return face.picture.crop(whole), shape.picture.convert("L").crop(whole)
