"""What the tiny base is taught: rows of (picture or none, prompt, response), a pure function of (seed, stage, step).

Three kinds of rows: dense captions, questions answered after a look, and the same questions about a caption given as text (no picture).
The second stage adds the blurts of a hasty annotator: answers without a look, a stated part of them the slip of `worlds.glance_response`.
Two-digit strips (procedurally drawn, not part of the worlds) prepare for reading scans; no real handwriting is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fovea.tasks.worlds import FAMILIES, draw, draw_item
from fovea.tasks.worlds.families import COLOURS, SHAPES, Item, scene_boxes

DESCRIBE = "Describe the picture."
BOXES = "List the shapes with their boxes."
LETTERS = "Spell what is written."
STRIP_ASKS = ("Which number is written?", "Read the number.")


@dataclass(frozen=True)
class Row:
    """One training row. `image` is (64, 64, 3) uint8, or -1 for text only, or an index into the step's pictures."""

    image: int
    prompt: str
    response: str


PRACTICE = ("count", "colour", "relation", "compare", "odd", "chart", "two_step")


@dataclass(frozen=True)
class Mixture:
    """How a stage mixes its rows.

    Attributes:
      pictures: pictures per step; each gives a caption row and a question row.
      texts: text-only rows per step.
      practice: families of the text-only rows.
      captions: part of the pictures whose caption is also asked for.
      blurt: part of the questions answered without a look.
      hasty: part of the blurts that are a slip.
      weights: how often a family (or "strip") is drawn, where it is not 1.
      speak: False for pictures alone: only the probe on the visual tokens is trained.
    """

    pictures: int = 28
    texts: int = 12
    practice: tuple[str, ...] = PRACTICE
    captions: float = 1.0
    blurt: float = 0.0
    hasty: float = 0.0
    weights: tuple[tuple[str, float], ...] = (("read", 2.0), ("find", 1.2), ("chart", 1.2))
    speak: bool = True


def looked(item: Item) -> str:
    return f"<think>{item.look}</think><answer>{item.gold}</answer>"


def strip(rng: np.random.Generator) -> tuple[Item, np.ndarray]:
    """Two digits as a poor scan or in pen strokes."""
    text = f"{rng.integers(10)}{rng.integers(10)}"
    style = "blurred" if rng.random() < 0.8 else "handwritten"
    image = draw.lettering(text, style, rng)
    ask = STRIP_ASKS[int(rng.integers(2))]
    glance = text[::-1] if text[0] != text[1] else text[0] + str((int(text[1]) + 1) % 10)
    item = Item(ask, text, " ".join(text), glance, " ".join(text), ("strip", text), lambda: image)
    return item, np.asarray(image)


def caption_row(rng: np.random.Generator, i: int, item: Item) -> Row:
    if item.things and len(item.things) <= 4 and rng.random() < 0.5:
        return Row(i, BOXES, scene_boxes(item.things))
    return Row(i, LETTERS if item.key[0] in ("text", "strip") else DESCRIBE, item.caption)


def in_words(item: Item) -> str:
    """What replaces the picture in text-only practice: the caption in other words than an answer's, so that the question's are rare."""
    return item.caption.title()


SYMBOLS = "0123456789ACEHLNPRT"
PROBE_GROUPS = ((9, 1 + len(COLOURS) * len(SHAPES)), (5, 1 + len(SYMBOLS)), (5, 1 + len(COLOURS)), (5, 1 + draw.CHART_MAX))
PROBE_PLACES = 27


def probe_target(item: Item) -> np.ndarray:
    """What a linear probe should read off the visual tokens: (24 + 27,) floats, NaN where the picture is of another kind.

    Class of the thing in each of 9 cells, of each of 5 characters, colour and height of each of 5 bars (0 is none); then the offset from
    the cell's centre and the radius of the thing in each cell, in units of 8 pixels.
    """
    target = np.full(24 + PROBE_PLACES, np.nan, np.float32)
    words = item.caption.split()
    if item.things:
        target[:9] = 0
        for t in item.things:
            target[t.cell] = 1 + COLOURS.index(t.colour) * len(SHAPES) + SHAPES.index(t.shape)
            at = 24 + 3 * t.cell
            target[at : at + 3] = (t.cx - 12 - 20 * (t.cell % 3)) / 8, (t.cy - 12 - 20 * (t.cell // 3)) / 8, t.r / 8 - 1
    elif item.key[0] == "bars":
        target[14:24] = 0
        for i, (name, height) in enumerate(zip(words[::2], words[1::2], strict=True)):
            target[14 + i], target[19 + i] = 1 + COLOURS.index(name), int(height)
    else:
        target[9:14] = 0
        for i, char in enumerate(words):
            target[9 + i] = 1 + SYMBOLS.index(char)
    return target


def step_rows(seed: int, stage: int, step: int, mix: Mixture) -> tuple[np.ndarray, np.ndarray, list[Row]]:
    """Pictures (n, 64, 64, 3) uint8, their probe targets (n, 51) and the rows of one training step, all of the training split."""
    rng = np.random.default_rng([seed, stage, step])
    names = list(FAMILIES)
    more = dict(mix.weights)
    weights = np.array([more.get(n, 1.0) for n in [*names, "strip"]])
    weights /= weights.sum()
    images, targets, rows = [], [], []
    for i, kind in enumerate(rng.choice(len(weights), mix.pictures, p=weights)):
        if kind == len(names):
            item, pixels = strip(rng)
        else:
            item, _ = draw_item(names[kind], int(rng.integers(2**40)), "train", seed)
            pixels = np.asarray(item.paint())
        images.append(pixels)
        targets.append(probe_target(item))
        if not mix.speak:
            continue
        if rng.random() < mix.captions:
            rows.append(caption_row(rng, i, item))
        response = looked(item)
        if rng.random() < mix.blurt:
            response = f"<answer>{item.glance if rng.random() < mix.hasty else item.gold}</answer>"
        rows.append(Row(i, item.question, response))
    for kind in rng.integers(0, len(mix.practice), mix.texts):
        family = mix.practice[kind]
        item, _ = draw_item(family, int(rng.integers(2**40)), "train", seed)
        rows.append(Row(-1, f"{in_words(item)}\n{item.question}", looked(item)))
    if not images:
        return np.zeros((0, draw.SIZE, draw.SIZE, 3), np.uint8), np.zeros((0, 24 + PROBE_PLACES), np.float32), rows
    return np.stack(images), np.stack(targets), rows


def tokenizer_corpus(n: int = 300) -> Iterator[str]:
    """Text of the kind the base will read and write, for the vocabulary."""
    for name in FAMILIES:
        for i in range(n):
            item, _ = draw_item(name, i)
            words = f"{item.question} {item.look} {item.caption} {item.gold}"
            yield from (item.question, item.look, item.caption, item.gold, " ".join(w for w in words.split() if w.isalpha()))
            yield in_words(item)
    for text in (DESCRIBE, BOXES, LETTERS, *STRIP_ASKS, "user\n", "assistant\n", "system\n", "yes no the answer is a picture image"):
        yield from [text] * 40
    for name in FAMILIES:
        yield from [name] * 3
