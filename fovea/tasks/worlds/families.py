"""The ten question families: what is drawn, what is asked, what is right, and how one finds out by looking first.

Every family draws a `Item` from a numpy Generator and a level (1 easy .. 3 hard). Words used throughout:

* ``look``: the short text of somebody who inspects the picture before answering (a list, a tally, a comparison);
* ``glance``: the slip that somebody makes who answers at a glance (misses one, swaps two digits, a far too generous box);
* ``caption``: the complete description of the picture;
* ``key``: the logical content of the picture (what, which colour, in which cell, which number; not the jitter), which decides the split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from fovea.tasks.worlds import draw

COLOURS = tuple(draw.PALETTE)
SHAPES = ("circle", "square", "triangle", "star", "cross")
PLURAL = {s: s + ("es" if s == "cross" else "s") for s in SHAPES}
WORDS = """
    CAT HAT RAT PAT CAP TAP LAP NAP CAN PAN TAN RAN PEN TEN HEN NET PET LET ATE EAT TEA PEA ACE ARE EAR ART TAR CAR HER ARC ACT
    ANT APE LEAP HEAT NEAT PEAR TEAR NEAR HEAR REAL TALE LATE PALE LANE CANE CARE RARE HARE CHAT THAN THEN PLAN CLAN PART CART
    CHAR RENT LENT TENT CELL TELL HALL TALL CALL REAP CAPE TAPE RATE HATE PLEA LEAN EARN NEAT RACE LACE PACE PEACH TEACH REACH
    CHEAP LATER PLANT PLATE LEARN PEARL PANEL LANCE CLEAR CHART HEART EARTH
""".split()
WORDS = tuple(sorted({w for w in WORDS if w[-1] != w[-2]}))


@dataclass(frozen=True)
class Thing:
    """One shape of a scene: `cell` 0..8 in reading order on a 3x3 grid, centre and radius in pixels."""

    cell: int
    colour: str
    shape: str
    cx: float
    cy: float
    r: float
    tint: tuple[float, ...]

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def place(self) -> str:
        return f"row {self.cell // 3 + 1} column {self.cell % 3 + 1}"

    @property
    def points(self) -> list[draw.Point]:
        return draw.outline(self.shape, self.cx, self.cy, self.r)

    @property
    def box(self) -> tuple[int, int, int, int]:
        x1, y1, x2, y2 = (round(c) for c in draw.bounds(self.points))
        return x1, y1, x2, y2


@dataclass(frozen=True)
class Item:
    """A question before it becomes a Task. `paint` draws the picture when asked; `gold` is the answer as text."""

    question: str
    gold: str
    look: str
    glance: str
    caption: str
    key: tuple[Any, ...]
    paint: Callable[[], Image.Image]
    answer: Any = None
    verifier: str = "exact"
    params: Mapping[str, Any] = field(default_factory=dict)
    things: tuple[Thing, ...] = ()


@dataclass(frozen=True)
class Family:
    """A named kind of question: `sample(rng, level)` draws one Item."""

    name: str
    doc: str
    sample: Callable[[np.random.Generator, int], Item]


def pick(rng: np.random.Generator, options: Sequence[Any], n: int) -> list[Any]:
    """`n` different options in random order."""
    return [options[int(i)] for i in rng.permutation(len(options))[:n]]


def one(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    return options[int(rng.integers(len(options)))]


def crowd(rng: np.random.Generator, level: int) -> int:
    """How many shapes a scene of this level holds: 3-4, 5-6, 7-8."""
    return int(2 * level + 1 + rng.integers(2))


def scatter(rng: np.random.Generator, names: Sequence[tuple[str, str]], cells: Sequence[int] | None = None) -> tuple[Thing, ...]:
    """Place (colour, shape) pairs in random (or the given) cells with jitter; the result is in reading order."""
    spots = [int(c) for c in rng.permutation(9)[: len(names)]] if cells is None else list(cells)
    things = []
    for cell, (colour, shape) in zip(spots, names, strict=True):
        dx, dy = rng.uniform(-2, 2, 2)
        tint = tuple(float(t) for t in rng.uniform(-10, 10, 3))
        things.append(Thing(cell, colour, shape, 12 + 20 * (cell % 3) + dx, 12 + 20 * (cell // 3) + dy, rng.uniform(6.3, 8.3), tint))
    return tuple(sorted(things, key=lambda t: t.cell))


def scene_key(things: Sequence[Thing]) -> tuple[Any, ...]:
    return ("scene", *((t.cell, t.colour, t.shape) for t in things))


def survey(things: Sequence[Thing], note: Callable[[Thing], str] | None = None) -> str:
    """All nine cells in reading order, rows separated by a slash, a note after some shapes: ``red star 1 none none / ...``."""
    by_cell = {t.cell: " ".join(w for w in (t.name, note(t) if note else "") if w) for t in things}
    return " / ".join(" ".join(by_cell.get(3 * row + col, "none") for col in range(3)) for row in range(3))


def scene_caption(things: Sequence[Thing]) -> str:
    return survey(things)


def scene_boxes(things: Sequence[Thing]) -> str:
    """Every shape with its box: ``red star 4 5 19 18, ...``."""
    return ", ".join(f"{t.name} {numbers(t.box)}" for t in things)


def numbers(values: Sequence[int]) -> str:
    return " ".join(str(v) for v in values)


def shapes_item(rng: np.random.Generator, things: tuple[Thing, ...], **kw: Any) -> Item:
    paper = draw.PAPERS[int(rng.integers(len(draw.PAPERS)))]

    def paint() -> Image.Image:
        return draw.polygons([(t.points, draw.shade(t.colour, t.tint)) for t in things], paper)

    return Item(caption=scene_caption(things), key=scene_key(things), paint=paint, things=things, **kw)


def tally(kind: Callable[[Thing], Any]) -> Callable[[Thing], str]:
    """A note for `survey`: the running number of shapes of the same `kind`; None is not counted. It counts in reading order."""
    seen: dict[Any, int] = {}

    def note(t: Thing) -> str:
        k = kind(t)
        if k is None:
            return ""
        seen[k] = seen.get(k, 0) + 1
        return str(seen[k])

    return note


def placed(*targets: Thing) -> Callable[[Thing], str]:
    """A note for `survey`: where the targets are."""
    return lambda t: t.place if any(t is o for o in targets) else ""


def named(counts: Callable[[Thing], bool]) -> Callable[[Thing], str]:
    """A note for `survey`: the colour again, ``is red``, where a thing counts."""
    return lambda t: f"is {t.colour}" if counts(t) else ""


def miscount(n: int) -> str:
    """One is missed; nothing is seen as one."""
    return str(n - 1) if n > 1 else str(n + 1)


def by_colour(rng: np.random.Generator) -> bool:
    return bool(rng.random() < 0.5)


def count(rng: np.random.Generator, level: int) -> Item:
    n = crowd(rng, level)
    k = int(rng.integers(1, min(5, n) + 1)) if rng.random() < 0.9 else 0
    colour, shape = one(rng, COLOURS), one(rng, SHAPES)
    others_c, others_s = [c for c in COLOURS if c != colour], [s for s in SHAPES if s != shape]
    if by_colour(rng):
        pairs = [(colour if i < k else one(rng, others_c), one(rng, SHAPES)) for i in range(n)]
        things, target, counted = scatter(rng, pairs), f"{colour} shapes", lambda t: t.colour == colour
    else:
        pairs = [(one(rng, COLOURS), shape if i < k else one(rng, others_s)) for i in range(n)]
        things, target, counted = scatter(rng, pairs), PLURAL[shape], lambda t: t.shape == shape
    ask = one(rng, ("How many {} are there?", "Count the {}."))
    return shapes_item(
        rng, things, question=ask.format(target), gold=str(k), answer=k, verifier="number", params={"tolerance": 0},
        look=survey(things, tally(lambda t: counted(t) or None)), glance=miscount(k),
    )  # fmt: skip


def colour(rng: np.random.Generator, level: int) -> Item:
    shape = one(rng, SHAPES)
    target = one(rng, COLOURS)
    others_c, others_s = [c for c in COLOURS if c != target], [s for s in SHAPES if s != shape]
    pairs = [(target, shape)] + [(one(rng, others_c if i == 0 else COLOURS), one(rng, others_s)) for i in range(crowd(rng, level) - 1)]
    things = scatter(rng, pairs)
    ask = one(rng, ("What colour is the {}?", "Which colour has the {}?"))
    return shapes_item(
        rng, things, question=ask.format(shape), gold=target, answer=target,
        look=survey(things, named(lambda t: t.shape == shape)), glance=next(t.colour for t in things if t.colour != target),
    )  # fmt: skip


OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def relation(rng: np.random.Generator, level: int) -> Item:
    pairs = pick(rng, [(c, s) for c in COLOURS for s in SHAPES], 2 + (crowd(rng, level) - 2 if level > 1 else 1))
    line, (i, j) = int(rng.integers(3)), pick(rng, range(3), 2)
    across = by_colour(rng)
    first, second = (3 * line + i, 3 * line + j) if across else (3 * i + line, 3 * j + line)
    gold = (("left" if i < j else "right") if across else ("above" if i < j else "below"))  # fmt: skip
    rest = pick(rng, [c for c in range(9) if c not in (first, second)], len(pairs) - 2)
    things = scatter(rng, pairs, [first, second, *rest])
    a, b = (next(t for t in things if t.cell == c) for c in (first, second))
    return shapes_item(
        rng, things, question=f"Where is the {a.name} relative to the {b.name}: left, right, above or below?", gold=gold, answer=gold,
        look=f"{survey(things, placed(a, b))}, {a.name} {a.place}, {b.name} {b.place}", glance=OPPOSITE[gold],
    )  # fmt: skip


def compare(rng: np.random.Generator, level: int) -> Item:
    n = crowd(rng, level)
    a = int(rng.integers(0, 4))
    b = a if rng.random() < 0.3 else int(rng.integers(0, 4))
    while a + b > n:
        a, b = max(0, a - 1), max(0, b - 1)
    if a + b == 0:
        a = 1
    on_colour = by_colour(rng)
    kinds = pick(rng, COLOURS if on_colour else SHAPES, 6 if on_colour else 5)
    labels = [kinds[0]] * a + [kinds[1]] * b + [one(rng, kinds[2:]) for _ in range(n - a - b)]
    pairs = [(k, one(rng, SHAPES)) if on_colour else (one(rng, COLOURS), k) for k in labels]
    things = scatter(rng, pairs)

    def kind(t: Thing) -> str | None:
        label = t.colour if on_colour else t.shape
        return label if label in kinds[:2] else None

    first, second = (kinds[0], kinds[1]) if on_colour else (PLURAL[kinds[0]], PLURAL[kinds[1]])
    gold = "same" if a == b else (first if a > b else second)
    return shapes_item(
        rng, things, question=f"Are there more {first} or {second}{' shapes' if on_colour else ''}, or the same?", gold=gold, answer=gold,
        look=f"{survey(things, tally(kind))}, {first} {a} {second} {b}", glance=second if gold == first else first,
    )  # fmt: skip


def odd(rng: np.random.Generator, level: int) -> Item:
    n = crowd(rng, level)
    on_colour = by_colour(rng)
    common, rare = pick(rng, COLOURS if on_colour else SHAPES, 2)
    frees = SHAPES if on_colour else COLOURS
    pairs = [(k, one(rng, frees)) if on_colour else (one(rng, frees), k) for k in [rare] + [common] * (n - 1)]
    if len({p[1 if on_colour else 0] for p in pairs[1:]}) == 1:
        other = one(rng, [f for f in frees if f != pairs[1][1 if on_colour else 0]])
        pairs[1] = (common, other) if on_colour else (other, common)
    things = scatter(rng, pairs)
    gold = f"{pairs[0][0]} {pairs[0][1]}"
    wrong = next(t.name for t in things if t.name != gold)
    ask = one(rng, ("Which one is the odd one out by {}?", "All but one share their {}. Which one does not?"))
    return shapes_item(
        rng, things, question=ask.format("colour" if on_colour else "shape"), gold=gold, answer=gold,
        look=f"{survey(things, None if on_colour else lambda t: t.colour)}, {common} not {rare}", glance=wrong,
    )  # fmt: skip


def target_scene(rng: np.random.Generator, level: int) -> tuple[tuple[Thing, ...], Thing, str]:
    """A scene, one of its shapes, and a phrase that names it alone: by colour and shape, from level 2 also by its only colour."""
    n = crowd(rng, level)
    shape, hue = one(rng, SHAPES), one(rng, COLOURS)
    if level > 1 and by_colour(rng):
        pairs = [(hue, shape)] + [(one(rng, [c for c in COLOURS if c != hue]), one(rng, SHAPES)) for _ in range(n - 1)]
        phrase = f"{hue} shape"
    else:
        rest = [(c, s) for c in COLOURS for s in SHAPES if (c, s) != (hue, shape)]
        near = [(c, s) for c, s in rest if c == hue or s == shape]
        pairs = [(hue, shape)] + [one(rng, near if rng.random() < 0.5 else rest) for _ in range(n - 1)]
        phrase = f"{hue} {shape}"
    things = scatter(rng, pairs)
    return things, next(t for t in things if t.name == f"{hue} {shape}"), phrase


def find(rng: np.random.Generator, level: int) -> Item:
    things, t, phrase = target_scene(rng, level)
    row, col = divmod(t.cell, 3)
    generous = [max(0, 20 * col - 2), max(0, 20 * row - 2), min(64, 20 * col + 26), min(64, 20 * row + 26)]
    ask = one(rng, ("Find the {}. Give its box.", "Where is the {}? Give the box."))
    return shapes_item(
        rng, things, question=ask.format(phrase), gold=numbers(t.box), answer=list(t.box), verifier="box_iou", params={"threshold": 0.5},
        look=survey(things, placed(t)), glance=numbers(generous),
    )  # fmt: skip


def point(rng: np.random.Generator, level: int) -> Item:
    things, t, phrase = target_scene(rng, level)
    middle = (round(t.cx), round(t.cy))
    wrong = next(o for o in [*(o for o in things if o.colour == t.colour or o.shape == t.shape), *things] if o is not t)
    ask = one(rng, ("Point at the {}.", "Touch the {}: x and y?"))
    return shapes_item(
        rng, things, question=ask.format(phrase), gold=numbers(middle), answer=list(t.box), verifier="point_in_box",
        look=survey(things, placed(t)), glance=numbers((round(wrong.cx), round(wrong.cy))),
    )  # fmt: skip


def read(rng: np.random.Generator, level: int) -> Item:
    """Level 1: three digits, level 2: a word of three letters or more, level 3: four digits."""
    if level == 2:
        text = one(rng, WORDS)
    else:
        text = "".join(str(d) for d in rng.integers(0, 10, 3 if level == 1 else 4))
        if text[-1] == text[-2]:
            text = text[:-1] + str((int(text[-1]) + int(rng.integers(1, 10))) % 10)
    style = one(rng, tuple(draw.STYLES))
    ask = one(rng, ("Which {} is written?", "Read the {}."))
    seed = int(rng.integers(2**31))
    return Item(
        question=ask.format("word" if level == 2 else "number"), gold=text, answer=text, look=" ".join(text),
        glance=text[:-2] + text[-1] + text[-2], caption=" ".join(text), key=("text", text),
        paint=lambda: draw.lettering(text, style, np.random.default_rng(seed)),
    )  # fmt: skip


RANKS = (("tallest", -1), ("shortest", 0))


def best_so_far(value: Mapping[str, int], sign: int) -> str:
    """Every bar, and behind it the tallest (`sign` 1) or shortest (-1) up to there: ``red 3 so red 3 / blue 7 so blue 7``."""
    best, parts = "", []
    for name, height in value.items():
        best = name if not best or sign * height > sign * value[best] else best
        parts.append(f"{name} {height} so {best} {value[best]}")
    return " / ".join(parts)


def chart(rng: np.random.Generator, level: int) -> Item:
    """Three to five bars; level 1 asks a height, level 2 also an extreme, level 3 also a difference."""
    n = level + 2
    names = pick(rng, COLOURS, n)
    kind = ("height", "extreme", "difference")[int(rng.integers(level))]
    if kind == "extreme":
        values = [v + 1 for v in pick(rng, range(draw.CHART_MAX), n)]
    else:
        values = [int(v) for v in rng.integers(1, draw.CHART_MAX + 1, n)]
    value = dict(zip(names, values, strict=True))
    look = " ".join(f"{c} {v}" for c, v in value.items())
    numeric: dict[str, Any] = {}
    if kind == "height":
        asked = one(rng, names)
        question, gold = f"How tall is the {asked} bar?", str(value[asked])
        look = " ".join(f"{c} {v} is {v}" if c == asked else f"{c} {v}" for c, v in value.items())
        glance = miscount(value[asked])
    elif kind == "extreme":
        word, rank = one(rng, RANKS)
        ranked = sorted(names, key=lambda c: value[c])
        question, gold = f"Which bar is the {word}?", ranked[rank]
        look, glance = best_so_far(value, -1 if rank == 0 else 1), ranked[1 if rank == 0 else -2]
    else:
        high, low = sorted(pick(rng, names, 2), key=lambda c: -value[c])
        question, gold = f"How much taller is the {high} bar than the {low} bar?", str(value[high] - value[low])
        look, glance = f"{look}, {high} {value[high]} {low} {value[low]}", miscount(value[high] - value[low])
    if kind != "extreme":
        numeric = {"verifier": "number", "params": {"tolerance": 0}, "answer": int(gold)}
    paper = draw.PAPERS[int(rng.integers(len(draw.PAPERS)))]
    tints, fill = rng.uniform(-10, 10, (n, 3)), float(rng.uniform(0.55, 0.85))
    fields: dict[str, Any] = {"answer": gold, **numeric}
    return Item(
        question=question, gold=gold, look=look, glance=glance, caption=" ".join(f"{c} {v}" for c, v in value.items()),
        key=("bars", *value.items()), **fields,
        paint=lambda: draw.bars(values, [draw.shade(c, t) for c, t in zip(names, tints, strict=True)], paper, fill),
    )  # fmt: skip


def two_step(rng: np.random.Generator, level: int) -> Item:
    """First find the only shape of its kind and its colour, then count that colour."""
    n = crowd(rng, level)
    hue, shape = one(rng, COLOURS), one(rng, SHAPES)
    k = int(rng.integers(1, min(5, n) + 1))
    others_c, others_s = [c for c in COLOURS if c != hue], [s for s in SHAPES if s != shape]
    pairs = [(hue, shape)] + [(hue if i < k - 1 else one(rng, others_c), one(rng, others_s)) for i in range(n - 1)]
    things = scatter(rng, pairs)
    return shapes_item(
        rng, things, question=f"How many shapes have the colour of the {shape}, itself included?", gold=str(k), answer=k,
        verifier="number", params={"tolerance": 0}, glance=miscount(k),
        look=f"{survey(things, named(lambda t: t.shape == shape))}, {hue}, {survey(things, tally(lambda t: t.colour == hue or None))}",
    )  # fmt: skip


FAMILIES: dict[str, Family] = {
    f.name: f
    for f in (
        Family("count", "how many shapes of a colour or of a kind", count),
        Family("colour", "the colour of the only shape of its kind", colour),
        Family("relation", "left, right, above or below", relation),
        Family("compare", "which of two kinds is more frequent", compare),
        Family("odd", "the one that does not share what all others share", odd),
        Family("find", "the box around a named shape", find),
        Family("point", "a point on a named shape", point),
        Family("read", "a number or a word, printed, hand-drawn or blurred", read),
        Family("chart", "a height, an extreme or a difference in a bar chart", chart),
        Family("two_step", "look up a colour, then count it", two_step),
    )
}
