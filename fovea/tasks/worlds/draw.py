"""How the worlds look: anti-aliased shapes, bar charts, printed, hand-drawn and blurred text on 64x64 pictures.

Everything is drawn `SS` times larger and scaled down. Coordinates are pixels of the final picture, x to the right, y down, from the
outer corner of the top left pixel; boxes are [x1, y1, x2, y2].
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIZE = 64
SS = 4

PALETTE = {
    "red": (226, 60, 66),
    "orange": (246, 139, 20),
    "yellow": (246, 208, 58),
    "green": (44, 162, 95),
    "blue": (52, 116, 240),
    "purple": (146, 72, 200),
}
PAPERS = ((250, 247, 240), (232, 239, 246), (24, 32, 50))
Point = tuple[float, float]
Box = tuple[float, float, float, float]


def shade(name: str, jitter: Sequence[float]) -> tuple[int, int, int]:
    """Palette colour moved by a small RGB jitter, clipped to 0..255."""
    r, g, b = (int(min(255, max(0, c + d))) for c, d in zip(PALETTE[name], jitter, strict=True))
    return r, g, b


def outline(shape: str, cx: float, cy: float, r: float) -> list[Point]:
    """Polygon of a shape of radius `r` around (cx, cy)."""
    if shape == "square":
        s = 0.86 * r
        return [(cx - s, cy - s), (cx + s, cy - s), (cx + s, cy + s), (cx - s, cy + s)]
    if shape == "cross":
        a, b = r, 0.36 * r
        unit = [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a), (-b, a), (-b, b), (-a, b), (-a, -b), (-b, -b)]
        return [(cx + x, cy + y) for x, y in unit]
    if shape == "star":
        radii, n, start = (1.08 * r, 0.46 * r), 10, -90.0
    elif shape == "triangle":
        radii, n, start = (1.12 * r,), 3, -90.0
        cy += 0.2 * r
    elif shape == "circle":
        radii, n, start = (0.96 * r,), 40, 0.0
    else:
        raise ValueError(f"shape: found {shape!r}, expected circle, square, triangle, star or cross")
    angles = [math.radians(start + 360.0 * i / n) for i in range(n)]
    return [(cx + radii[i % len(radii)] * math.cos(a), cy + radii[i % len(radii)] * math.sin(a)) for i, a in enumerate(angles)]


def bounds(points: Sequence[Point]) -> Box:
    """The tight box around a polygon."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    return min(xs), min(ys), max(xs), max(ys)


def polygons(figures: Sequence[tuple[list[Point], tuple[int, int, int]]], paper: tuple[int, int, int]) -> Image.Image:
    """Filled polygons on plain paper."""
    big = Image.new("RGB", (SIZE * SS, SIZE * SS), paper)
    pen = ImageDraw.Draw(big)
    for points, colour in figures:
        pen.polygon([(x * SS, y * SS) for x, y in points], fill=colour)
    return big.resize((SIZE, SIZE), Image.Resampling.BOX)


CHART_BASE, CHART_UNIT, CHART_MAX = 59.0, 6.75, 8


def bars(values: Sequence[int], colours: Sequence[tuple[int, int, int]], paper: tuple[int, int, int], fill: float) -> Image.Image:
    """A bar chart with a faint line at every unit; `fill` is the part of its slot that a bar covers."""
    big = Image.new("RGB", (SIZE * SS, SIZE * SS), paper)
    pen = ImageDraw.Draw(big)
    ink = (70, 78, 96) if sum(paper) > 384 else (196, 204, 220)
    faint = tuple(int(0.84 * p + 0.16 * i) for p, i in zip(paper, ink, strict=True))
    for unit in range(1, CHART_MAX + 1):
        y = (CHART_BASE - unit * CHART_UNIT) * SS
        pen.line([(5 * SS, y), (61 * SS, y)], fill=faint, width=SS // 2)
    slot = 54.0 / len(values)
    for i, (value, colour) in enumerate(zip(values, colours, strict=True)):
        x = 7.0 + slot * (i + (1 - fill) / 2)
        top = CHART_BASE - value * CHART_UNIT
        pen.rounded_rectangle(
            [x * SS, top * SS, (x + slot * fill) * SS, CHART_BASE * SS], radius=SS, fill=colour, corners=(True, True, False, False)
        )
    pen.line([(5 * SS, 3 * SS), (5 * SS, CHART_BASE * SS), (61 * SS, CHART_BASE * SS)], fill=ink, width=SS)
    return big.resize((SIZE, SIZE), Image.Resampling.BOX)


def _arc(cx: float, cy: float, rx: float, ry: float, start: float, stop: float) -> list[Point]:
    """Points of an elliptic arc; degrees clockwise from the right, because y points down."""
    n = max(4, int(abs(stop - start) / 24))
    angles = [math.radians(start + (stop - start) * i / n) for i in range(n + 1)]
    return [(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles]


_SEVEN = [(0.08, 0.06), (0.92, 0.06), (0.4, 0.98)]
STROKES: dict[str, tuple[tuple[list[Point], ...], ...]] = {
    "0": (([*_arc(0.5, 0.5, 0.42, 0.48, -90, 270)],), ([*_arc(0.5, 0.5, 0.3, 0.48, -90, 270)],)),
    "1": (
        ([(0.5, 0.02), (0.5, 0.98)],),
        ([(0.25, 0.25), (0.55, 0.02), (0.55, 0.98)],),
        ([(0.2, 0.28), (0.52, 0.02), (0.52, 0.98)], [(0.2, 0.98), (0.84, 0.98)]),
    ),
    "2": (
        ([*_arc(0.5, 0.3, 0.38, 0.28, -170, 30), (0.1, 0.97), (0.92, 0.97)],),
        ([*_arc(0.48, 0.28, 0.36, 0.26, -180, 60), *_arc(0.26, 0.84, 0.18, 0.13, 60, 300), (0.92, 0.97)],),
    ),
    "3": (
        ([*_arc(0.45, 0.27, 0.36, 0.25, -160, 90), *_arc(0.45, 0.73, 0.41, 0.25, -90, 160)],),
        ([(0.1, 0.04), (0.85, 0.04), (0.45, 0.42), *_arc(0.45, 0.7, 0.4, 0.28, -80, 160)],),
    ),
    "4": (
        ([(0.68, 0.98), (0.68, 0.02), (0.06, 0.68), (0.96, 0.68)],),
        ([(0.2, 0.04), (0.12, 0.54), (0.9, 0.54)], [(0.74, 0.1), (0.66, 0.98)]),
        ([(0.45, 0.02), (0.08, 0.62), (0.92, 0.62)], [(0.66, 0.35), (0.62, 0.98)]),
    ),
    "5": (
        ([(0.86, 0.04), (0.2, 0.04), (0.15, 0.46), *_arc(0.46, 0.68, 0.4, 0.29, -130, 150)],),
        ([(0.9, 0.04), (0.26, 0.04), (0.2, 0.42), (0.55, 0.38), *_arc(0.48, 0.69, 0.36, 0.28, -60, 150)],),
    ),
    "6": (
        ([(0.7, 0.03), (0.32, 0.3), *_arc(0.5, 0.7, 0.37, 0.27, 180, -180)],),
        ([(0.52, 0.02), (0.2, 0.45), *_arc(0.48, 0.72, 0.34, 0.25, 190, -170)],),
    ),
    "7": ((_SEVEN,), (_SEVEN, [(0.3, 0.5), (0.86, 0.5)]), ([(0.1, 0.16), (0.12, 0.05), (0.9, 0.05), (0.52, 0.5), (0.4, 0.98)],)),
    "8": (
        ([*_arc(0.5, 0.26, 0.32, 0.24, 90, 450)], [*_arc(0.5, 0.74, 0.38, 0.24, -90, 270)]),
        ([*_arc(0.5, 0.26, 0.34, 0.23, -60, -300), (0.72, 0.62), *_arc(0.5, 0.76, 0.3, 0.21, -30, 230), (0.7, 0.14)],),
    ),
    "9": (
        ([*_arc(0.48, 0.3, 0.36, 0.27, 0, -360), (0.8, 0.55), (0.5, 0.98)],),
        ([*_arc(0.5, 0.28, 0.33, 0.26, 0, -360), (0.82, 0.98)],),
        ([*_arc(0.46, 0.29, 0.34, 0.26, 0, -360), (0.8, 0.66), *_arc(0.5, 0.72, 0.3, 0.25, 0, 140)],),
    ),
    "A": (([(0.06, 0.98), (0.5, 0.02), (0.94, 0.98)], [(0.22, 0.64), (0.78, 0.64)]),),
    "C": (([*_arc(0.56, 0.5, 0.46, 0.48, -50, -310)],),),
    "E": (([(0.9, 0.03), (0.12, 0.03), (0.12, 0.97), (0.9, 0.97)], [(0.12, 0.5), (0.74, 0.5)]),),
    "H": (([(0.1, 0.02), (0.1, 0.98)], [(0.9, 0.02), (0.9, 0.98)], [(0.1, 0.5), (0.9, 0.5)]),),
    "L": (([(0.14, 0.02), (0.14, 0.97), (0.9, 0.97)],),),
    "N": (([(0.1, 0.98), (0.1, 0.02), (0.9, 0.98), (0.9, 0.02)],),),
    "P": (([(0.14, 0.98), (0.14, 0.03), (0.55, 0.03), *_arc(0.55, 0.28, 0.36, 0.25, -90, 90), (0.14, 0.53)],),),
    "R": (([(0.14, 0.98), (0.14, 0.03), (0.55, 0.03), *_arc(0.55, 0.27, 0.35, 0.24, -90, 90), (0.14, 0.51), (0.92, 0.98)],),),
    "T": (([(0.04, 0.03), (0.96, 0.03)], [(0.5, 0.03), (0.5, 0.98)]),),
}


@lru_cache(maxsize=64)
def _font(pixels: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(pixels)


def printed(text: str, rng: np.random.Generator) -> Image.Image:
    """Grey-level mask (SIZE*SS square, 0..255) of `text` in a printed face, at a random size and place."""
    side = SIZE * SS
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
    widest = 58.0 * SS
    pixels = int(rng.uniform(22, 36) * SS)
    left, top, right, bottom = pen.textbbox((0, 0), text, font=_font(pixels))
    if right - left > widest:
        pixels = int(pixels * widest / (right - left))
        left, top, right, bottom = pen.textbbox((0, 0), text, font=_font(pixels))
    x = (side - (right - left)) / 2 + rng.uniform(-1, 1) * min(5 * SS, (side - (right - left)) / 2)
    y = (side - (bottom - top)) / 2 + rng.uniform(-1, 1) * min(10 * SS, (side - (bottom - top)) / 2)
    pen.text((x - left, y - top), text, font=_font(pixels), fill=255, stroke_width=int(rng.integers(0, 3)))
    return mask


def glyph(char: str, rng: np.random.Generator, box: Box, side: int, width: float, wobble: float = 0.03) -> Image.Image:
    """One hand-drawn character as a (side, side) mask: a random variant of its strokes, slanted, stretched and wobbled inside `box`."""
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
    variants = STROKES[char]
    x1, y1, x2, y2 = box
    slant, tilt = rng.normal(0, 0.12), rng.normal(0, 0.07)
    narrow = rng.uniform(0.62, 1.0) if char != "1" else 0.8
    phase, strength = rng.uniform(0, 6.28, 4), rng.normal(0, wobble, 4)

    def place(p: Point) -> Point:
        u, v = (p[0] - 0.5) * narrow, p[1] - 0.5
        u, v = u - slant * v, v + tilt * u
        u += strength[0] * math.sin(4 * v + phase[0]) + strength[1] * math.sin(7 * v + phase[1])
        v += strength[2] * math.sin(4 * u + phase[2]) + strength[3] * math.sin(7 * u + phase[3])
        return x1 + (u + 0.5) * (x2 - x1), y1 + (v + 0.5) * (y2 - y1)

    for stroke in variants[int(rng.integers(len(variants)))]:
        dense = [
            place((a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t)) for a, b in itertools.pairwise(stroke) for t in (0, 0.25, 0.5, 0.75)
        ]
        dense.append(place(stroke[-1]))
        pen.line(dense, fill=255, width=max(1, round(width)), joint="curve")
        for x, y in (dense[0], dense[-1]):
            pen.ellipse([x - width / 2, y - width / 2, x + width / 2, y + width / 2], fill=255)
    return mask


def handwritten(text: str, rng: np.random.Generator) -> Image.Image:
    """Grey-level mask of `text` in jittered pen strokes."""
    side = SIZE * SS
    slot = min(22.0, 60.0 / len(text))
    tall = rng.uniform(1.15, 1.5) * slot
    x0 = (SIZE - slot * len(text)) * rng.uniform(0.25, 0.75)
    y0 = (SIZE - tall) * rng.uniform(0.25, 0.75)
    width = rng.uniform(0.1, 0.17) * slot * SS
    mask = np.zeros((side, side), np.uint8)
    for i, char in enumerate(text):
        dy, gap = rng.normal(0, 1.0), 0.12 * slot
        left, right, top, low = x0 + i * slot + gap, x0 + (i + 1) * slot - gap, y0 + dy, y0 + tall + dy
        mask = np.maximum(mask, np.asarray(glyph(char, rng, (SS * left, SS * top, SS * right, SS * low), side, width)))
    return Image.fromarray(mask)


def blurred(text: str, rng: np.random.Generator) -> Image.Image:
    """Grey-level mask of `text` as a poor scan: each character drawn into about 8x8 coarse pixels and scaled up again."""
    side = SIZE * SS
    slot = min(32.0, 64.0 / len(text))
    cell = slot * rng.uniform(0.9, 1.0)
    tall = cell * rng.uniform(1.0, 1.2) if len(text) > 2 else cell
    mask = Image.new("L", (side, side), 0)
    x0 = (SIZE - cell * len(text)) * rng.uniform(0.3, 0.7)
    y0 = (SIZE - tall) * rng.uniform(0.3, 0.7)
    resample = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.NEAREST)[int(rng.integers(3))]
    coarse = int(rng.integers(8, 10))
    for i, char in enumerate(text):
        wide, high = rng.uniform(0.6, 0.78), rng.uniform(0.88, 1.0)
        u, v = (1 - wide) / 2 + rng.normal(0, 0.04), (1 - high) / 2
        fine = glyph(char, rng, (64 * u, 64 * v, 64 * (u + wide), 64 * (v + high)), 64, rng.uniform(6, 11))
        small = fine.resize((coarse, coarse), Image.Resampling.BOX)
        gain = rng.uniform(1.0, 1.4)
        small = small.point([min(255, int(p * gain)) for p in range(256)])
        up = small.resize((max(1, round(cell * SS)), max(1, round(tall * SS))), resample)
        mask.paste(up, (round((x0 + i * cell) * SS), round(y0 * SS)))
    return mask


STYLES = {"printed": printed, "handwritten": handwritten, "blurred": blurred}


def lettering(text: str, style: str, rng: np.random.Generator) -> Image.Image:
    """`text` in one of `STYLES`, dark on light or light on dark."""
    mask = STYLES[style](text, rng)
    if style == "blurred":
        dark = (int(rng.integers(0, 40)),) * 3
        light = (int(rng.integers(205, 256)),) * 3
        paper, ink = (dark, light) if rng.random() < 0.6 else (light, dark)
    else:
        paper = PAPERS[int(rng.integers(len(PAPERS)))]
        ink = (38, 46, 66) if sum(paper) > 384 else (240, 243, 250)
        if rng.random() < 0.4:
            ink = PALETTE[("red", "green", "blue", "purple")[int(rng.integers(4))]] if sum(paper) > 384 else PALETTE["yellow"]
    big = Image.composite(Image.new("RGB", mask.size, ink), Image.new("RGB", mask.size, paper), mask)
    small = big.resize((SIZE, SIZE), Image.Resampling.BOX)
    return small.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.7))) if style == "handwritten" else small
