"""Order what was shuffled: tiles of a picture, pieces of a clip, points by their depth (Visual Jigsaw, arXiv 2509.25190, section 3).

The answer needs nobody to write it: K pieces are shown in a random order under the labels 1 to K, and asked for is, for every place, the
label of the piece that belongs there.

    "jigsaw:3x3"          nine tiles of a drawn scene, on one sheet (2x2, 4x4, ... likewise)
    "jigsaw:3x3-apart"    the same as nine pictures, each after its label: the paper's form
    "jigsaw:clip"         six pieces of a drawn clip, one frame of each on one sheet; "jigsaw:clip-apart" shows them as clips
    "jigsaw:depth"        points of a drawn scene, from the nearest to the farthest
    "jigsaw:3x3-places"   asks the other way round, for the place of every piece shown, which a small model reads off one after the other
    "jigsaw:3x3@FOLDER"   the same from the pictures of a folder; "clip@FOLDER" from its clips, or from pans over its pictures;
                          "depth@FOLDER" from pictures with a depth map in metres beside them (`room.jpg`, `room.depth.npy`)

A task is a pure function of (source, split, seed, index); the permutation is drawn with the task, so no two epochs are alike. One in five
scenes or files is held out, by its content or name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fovea.images import rgb
from fovea.tasks.endless import Endless
from fovea.tasks.worlds import split_of
from fovea.tasks.worlds.draw import PALETTE, PAPERS, SS, outline, shade
from fovea.types import Message, Task
from fovea.video import Video, probe, read_frames

SHEET, GAP = 60, 2
"""Pixels: side of a picture whose tiles are shown on one sheet, and between two tiles; three rows fill the tiny model's 64."""
LEAST_TILE = 28
"""Pixels: smallest side of a tile that is shown as a picture of its own; smaller pictures are left out."""
CLIP_PIECES, CLIP_FRAMES, TRIM = 6, 12, 0.05
"""Pieces of a clip, most frames of a piece, and the share of its frames that is cut off at both ends, so that borders do not match."""
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
CLIPS = (".mp4", ".webm", ".mkv", ".mov", ".avi")


# -- pieces -------------------------------------------------------------------------------------------------------------------


def cut(picture: Image.Image, rows: int, columns: int) -> list[Image.Image]:
    """Tiles in reading order, all of one size, so that no size tells a place; what is left over at the right and bottom is dropped.

    Raises:
      ValueError: a picture with fewer pixels than tiles.
    """
    w, h = picture.width // columns, picture.height // rows
    if not w or not h:
        raise ValueError(f"picture of {picture.width}x{picture.height} pixels: expected at least {columns}x{rows}, one for each tile")
    return [picture.crop((c * w, r * h, c * w + w, r * h + h)) for r in range(rows) for c in range(columns)]


def shuffle(pieces: Sequence[Any], order: Sequence[int]) -> tuple[list[Any], tuple[int, ...]]:
    """What is shown, and the answer: place j shows ``pieces[order[j]]``; ``answer[k]`` is the label of the place that shows piece k."""
    return [pieces[k] for k in order], inverse([k + 1 for k in order])


def assemble(shown: Sequence[Image.Image], answer: Sequence[int], rows: int, columns: int, gap: int = 0) -> Image.Image:
    """The tiles pasted in the order of `answer`, `gap` black pixels between them; without gap the right answer gives back the picture."""
    w, h = shown[0].size
    whole = Image.new("RGB", (columns * (w + gap) - gap, rows * (h + gap) - gap))
    for place, label in enumerate(answer):
        whole.paste(shown[label - 1], (place % columns * (w + gap), place // columns * (h + gap)))
    return whole


def pieces_of(frames: Sequence[Any], pieces: int = CLIP_PIECES, trim: float = TRIM, most: int = CLIP_FRAMES) -> list[list[Any]]:
    """Equal pieces of a clip in the order of time, the share `trim` of each cut off at both ends, at most `most` frames of what is left.

    Raises:
      ValueError: fewer frames than pieces.
    """
    size = len(frames) // pieces
    if not size:
        raise ValueError(f"clip of {len(frames)} frames: expected at least {pieces}, one for each piece")
    drop = int(trim * size)
    inner = [list(frames[i * size + drop : (i + 1) * size - drop]) for i in range(pieces)]
    return [[p[round(t)] for t in np.linspace(0, len(p) - 1, min(most, len(p)))] for p in inner]


def depth_points(
    depth_HW: NDArray[np.floating],
    rng: np.random.Generator,
    points: int = 6,
    apart: float = 40.0,
    deeper: float = 0.2,
    near: float = 0.1,
    far: float = 10.0,
    margin: int = 0,
) -> list[tuple[int, int]] | None:
    """Random points (x, y) in pixels, any two at least `apart` pixels and `deeper` metres from each other, none if 1,000 draws find none.

    Only depths from `near` to `far` metres count; `margin` pixels along the edges are left out.
    """  # fmt: skip
    H, W = depth_HW.shape
    found: list[tuple[int, int]] = []
    for _ in range(1000):
        x, y = int(rng.integers(margin, W - margin)), int(rng.integers(margin, H - margin))
        z = depth_HW[y, x]
        fits = near <= z <= far and all(np.hypot(x - u, y - v) >= apart and abs(z - depth_HW[v, u]) >= deeper for u, v in found)
        found += [(x, y)] if fits else []
        if len(found) == points:
            return found
    return None


def marked(picture: Image.Image, points: Sequence[tuple[int, int]], radius: int = 15, alpha: int = 120) -> Image.Image:
    """The picture with a red, half transparent, numbered disc at every point, 1 first."""
    layer = Image.new("RGBA", picture.size)
    pen = ImageDraw.Draw(layer)
    font = ImageFont.load_default(max(6, round(1.4 * radius)))
    for label, (x, y) in enumerate(points, 1):
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=(255, 0, 0, alpha))
        pen.text((x, y), str(label), font=font, fill=(255, 255, 255, 255), anchor="mm")
    return Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")


# -- drawn scenes -------------------------------------------------------------------------------------------------------------

HUES = (("red", "orange"), ("yellow", "green"), ("blue", "purple"))
SHAPES = (("circle", "star"), ("triangle",), ("square", "cross"))
Draw = Callable[[np.random.Generator, str, int], Any]
"""(generator, split, side in pixels) -> a picture, the frames of a clip, or a picture with its depth."""


def scene(rng: np.random.Generator, split: str, side: int) -> Image.Image:
    """Nine shapes, some across the borders of tiles, whose hue tells how far to the right and whose form tells how high they stand."""
    while True:
        kinds = [(str(rng.choice(HUES[c])), str(rng.choice(SHAPES[r]))) for r in range(3) for c in range(3)]
        if split_of(("jigsaw", *kinds)) == split:
            break
    unit = side / 3
    big = Image.new("RGB", (side * SS, side * SS), PAPERS[int(rng.integers(len(PAPERS)))])
    pen = ImageDraw.Draw(big)
    for k, (hue, shape) in enumerate(kinds):
        cx, cy = (np.array([k % 3, k // 3]) + 0.5 + rng.uniform(-0.15, 0.15, 2)) * unit
        points = outline(shape, cx, cy, rng.uniform(0.31, 0.42) * unit)
        pen.polygon([(x * SS, y * SS) for x, y in points], fill=shade(hue, rng.uniform(-10, 10, 3).tolist()))
    return big.resize((side, side), Image.Resampling.BOX)


def film(rng: np.random.Generator, split: str, side: int) -> list[Image.Image]:
    """36 frames of a scene across which a disc rolls to the right while it grows dark."""
    ground = np.asarray(scene(rng, split, side), np.float64)
    height, r = rng.uniform(0.2, 0.8) * side, rng.uniform(0.08, 0.14) * side
    frames = []
    for t in np.linspace(0, 1, 36):
        frame = Image.fromarray((ground * (1 - 0.75 * t)).astype(np.uint8))
        x = r + t * (side - 2 * r)
        ImageDraw.Draw(frame).ellipse([x - r, height - r, x + r, height + r], fill="white")
        frames.append(frame)
    return frames


def _haze(z: float, colour: tuple[int, int, int]) -> tuple[int, ...]:
    return tuple(round(190 + (v - 190) * np.exp(-z / 6)) for v in colour)


def terrace(rng: np.random.Generator, split: str, side: int) -> tuple[Image.Image, NDArray[np.floating]]:
    """Boards of one size that stand one behind the other, the farther the smaller, higher and paler, and the depth in metres."""
    while True:
        depths = np.sort(rng.integers(8, 80, 9))[::-1] / 10
        colours = [str(c) for c in rng.choice(list(PALETTE), len(depths))]
        if split_of(("terrace", depths.tolist(), colours)) == split:
            break
    horizon = side * 0.25
    picture, depth_HW = Image.new("RGB", (side, side), (205, 222, 240)), np.full((side, side), 100.0)
    pen, rows = ImageDraw.Draw(picture), np.arange(side) + 0.5
    ground = np.where(rows > horizon, 0.8 * (side - horizon) / np.maximum(rows - horizon, 0.1), 100.0)
    for y in np.flatnonzero(ground < 100):
        pen.line([(0, int(y)), (side, int(y))], fill=_haze(ground[y], (90, 120, 60)))
        depth_HW[y] = ground[y]
    for z, colour in zip(depths, colours, strict=True):
        foot, w, h = horizon + 0.8 * (side - horizon) / z, 0.35 * side / z, 0.5 * side / z
        x = rng.uniform(0, side - min(w, side))
        box = [round(x), round(foot - h), round(x + w), round(foot)]
        pen.rectangle(box, fill=_haze(z, PALETTE[colour]))
        depth_HW[max(0, box[1]) : box[3] + 1, max(0, box[0]) : box[2] + 1] = z
    return picture, depth_HW


# -- folders ------------------------------------------------------------------------------------------------------------------


@cache
def files(folder: Path, split: str, kinds: tuple[str, ...]) -> tuple[Path, ...]:
    """The folder's files of these kinds that belong to the split, by name.

    Raises:
      ValueError: there is none.
    """
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in kinds and p.is_file())
    mine = tuple(p for p in found if split_of((p.relative_to(folder).as_posix(),)) == split)
    if not mine:
        ends = ", ".join(kinds)
        raise ValueError(
            f"{folder}: found {len(found)} files ({ends}), none of them for the split {split!r}; one in five is held out by name"
        )
    return mine


def _pictures(folder: Path, least: int) -> Draw:
    def draw(rng: np.random.Generator, split: str, side: int) -> Image.Image:
        kept = files(folder, split, PICTURES)
        for i in rng.permutation(len(kept)):
            with Image.open(kept[i]) as picture:
                if min(picture.size) >= least:
                    return rgb(picture).copy()
        raise ValueError(f"{folder}: none of {len(kept)} pictures has sides of {least} pixels, as its tiles need")

    return draw


def _clips(folder: Path) -> Draw:
    """Frames of the folder's clips, two a second; without any clip, pans over its pictures from left to right."""

    def draw(rng: np.random.Generator, split: str, side: int) -> list[Image.Image]:
        if not any(p.suffix.lower() in CLIPS for p in folder.rglob("*")):
            picture = _pictures(folder, 1)(rng, split, side)
            w, h = picture.width // 3, picture.height
            return [picture.crop((round(x), 0, round(x) + w, h)) for x in np.linspace(0, picture.width - w, 36)]
        kept = files(folder, split, CLIPS)
        clip = kept[int(rng.integers(len(kept)))]
        stream = probe(clip)
        count = max(CLIP_PIECES, min(stream.total, round(stream.frames_at(2.0))))
        return read_frames(clip, sorted({int(i) for i in np.linspace(0, stream.total - 1, count)}))

    return draw


def _depths(folder: Path) -> Draw:
    def draw(rng: np.random.Generator, split: str, side: int) -> tuple[Image.Image, NDArray[np.floating]]:
        kept = [p for p in files(folder, split, PICTURES) if p.with_suffix(".depth.npy").is_file()]
        if not kept:
            raise ValueError(f"{folder}: found no picture of the split {split!r} with its depth map beside it, such as room.depth.npy")
        place = kept[int(rng.integers(len(kept)))]
        with Image.open(place) as file:
            picture = rgb(file).copy()
        depth_HW = np.load(place.with_suffix(".depth.npy"), allow_pickle=False)
        if depth_HW.shape != (picture.height, picture.width):
            found = f"a map of shape {depth_HW.shape}"
            raise ValueError(f"{place.with_suffix('.depth.npy')}: {found}, expected {(picture.height, picture.width)}, as the picture has")
        return picture, depth_HW

    return draw


# -- tasks --------------------------------------------------------------------------------------------------------------------


def _labelled(kind: str, word: str, count: int, ask: str) -> tuple[Message, ...]:
    """Every piece after its label, then what is asked for."""
    shown = [part for k in range(1, count + 1) for part in ({"type": "text", "text": f"{word} {k}: "}, {"type": kind})]
    example = ", ".join(map(str, [*range(2, count + 1), 1]))
    text = f"\n{ask} Give the {count} labels, separated by commas, for example: {example}. Think inside <think></think>, "
    return ({"role": "user", "content": [*shown, {"type": "text", "text": text + "then answer inside <answer></answer>."}]},)


def _asked(text: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]},)


@dataclass(frozen=True)
class Variant:
    """What is ordered, and how it is shown.

    Attributes:
      kind: "tiles", "clip" or "depth". rows, columns: of the sheet, or of the picture that is cut.
      apart: every piece is a picture or clip of its own after its label, as in the paper; else they stand on one sheet in reading order.
      places: asked for is the place of every shown piece, not the piece of every place.
    """

    kind: str
    rows: int
    columns: int
    apart: bool = False
    places: bool = False

    @classmethod
    def read(cls, text: str) -> Variant:
        """
        Raises:
          ValueError: no such variant, with those there are.
        """
        name, *ways = text.split("-")
        how = {way: way in ways for way in ("apart", "places")}
        grid = re.fullmatch(r"([1-9])x([1-9])", name)
        on_sheet = name != "depth" and not how["apart"]
        if set(ways) <= {*how} and (on_sheet or not how["places"]) and not (name == "depth" and how["apart"]):
            if name == "clip":
                return cls("clip", 2, CLIP_PIECES // 2, **how)
            if name == "depth":
                return cls("depth", 1, 6, **how)
            if grid and text[0] + text[2] != "11":
                return cls("tiles", int(grid[1]), int(grid[2]), **how)
        raise ValueError(f"jigsaw: found {text!r}, expected 2x2, 3x3, ... or clip, also with -apart or -places, or depth")

    @property
    def pieces(self) -> int:
        return self.rows * self.columns


def task_of(variant: Variant, given: Any, rng: np.random.Generator, *, id: str, source: str) -> Task:
    """The task that shuffles what was drawn: a picture, frames in the order of time, or a picture with its depth map (metres)."""
    params: dict[str, Any] = {"tags": ("think", "answer") if variant.apart else ("answer",)}
    if variant.kind == "depth":
        picture, depth_HW = given
        wide = min(picture.size)
        radius, apart = (15, 40.0) if wide >= 320 else (max(4, wide // 12), wide / 8)
        points = depth_points(depth_HW, rng, variant.pieces, apart, margin=radius)
        if points is None:
            raise ValueError(
                f"task {id}: found no {variant.pieces} points that are {apart:g} pixels and 0.2 metres apart; expected more depth"
            )
        nearest = sorted(range(len(points)), key=lambda k: depth_HW[points[k][1], points[k][0]])
        answer = tuple(k + 1 for k in nearest)
        prompt, images = _asked("Order the points from near to far."), (marked(picture, points, radius),)
    else:
        tiles = variant.kind == "tiles"
        pieces = cut(given, variant.rows, variant.columns) if tiles else pieces_of(given)
        shown, answer = shuffle(pieces, rng.permutation(variant.pieces).tolist())
        order = "row by row, from the top left to the bottom right" if tiles else "in the order of time"
        if variant.apart:
            thing, word, kind = ("picture", "Tile", "image") if tiles else ("clip", "Clip", "video")
            ask = f"These are the shuffled pieces of one {thing}. Which label belongs at each place, {order}?"
            prompt = _labelled(kind, word, variant.pieces, ask)
            images = tuple(shown if tiles else (Video(tuple(frames), fps=2.0) for frames in shown))
        else:
            stills = shown if tiles else [frames[len(frames) // 2] for frames in shown]
            what = "tiles" if tiles else "frames in time"
            prompt = _asked(f"Where does each of the {what} belong?" if variant.places else f"Order the {what}.")
            answer = inverse(answer) if variant.places else answer
            images = (assemble(stills, range(1, variant.pieces + 1), variant.rows, variant.columns, GAP),)
    gold = ("," if variant.apart else "").join(f" {k}" for k in answer).strip()
    meta = {
        "gold": gold,
        "response": ("<think>I look where one piece goes on in another.</think>" if variant.apart else "") + f"<answer>{gold}</answer>",
        "pieces": variant.pieces,
    }
    return Task(id, source, prompt, images, answer, "permutation", params, meta)


def inverse(answer: Sequence[int]) -> tuple[int, ...]:
    """From the label for every place to the place of every label, and back."""
    return tuple(int(k) + 1 for k in np.argsort(answer))


@dataclass(frozen=True)
class Jigsaw(Endless):
    """Sheets of one variant.

    Attributes:
      what: the variant as it is written in `data`, such as "3x3" or "depth@FOLDER".
    """

    what: str = "3x3"

    @classmethod
    def named(cls, what: str, split: str, seed: int) -> Jigsaw:
        source = cls(what, split=split, seed=seed)
        folder = source._folder
        if folder is not None and not folder.is_dir():
            raise ValueError(f"jigsaw: found no folder {str(folder)!r}; expected one with pictures")
        Variant.read(what.partition("@")[0])
        return source

    @property
    def _folder(self) -> Path | None:
        place = self.what.partition("@")[2]
        return Path(place).expanduser() if place else None

    def deal(self, i: int) -> Task:
        variant, folder = Variant.read(self.what.partition("@")[0]), self._folder
        rng = self.rng(i)
        given = drawing(variant, folder)(rng, self.split, SHEET)
        return task_of(variant, given, rng, id=f"{self.what}/{self.split}/{self.seed}/{i}", source=f"jigsaw_{self.what.partition('@')[0]}")


def drawing(variant: Variant, folder: Path | None) -> Draw:
    """Where the variant's pictures come from, cropped and resized where its sheet is to be small."""
    if variant.kind == "depth":
        return _depths(folder) if folder else terrace
    if variant.kind == "clip":
        frames = _clips(folder) if folder else film
        return frames if variant.apart else lambda rng, split, side: [f.resize((20, 31)) for f in frames(rng, split, side)]
    if folder is None:
        return scene
    whole = _pictures(folder, LEAST_TILE * max(variant.rows, variant.columns) if variant.apart else SHEET)
    return whole if variant.apart else lambda rng, split, side: square(whole(rng, split, side), side)


def square(picture: Image.Image, side: int) -> Image.Image:
    """The middle square of a picture, `side` pixels wide."""
    least = min(picture.size)
    x, y = (picture.width - least) // 2, (picture.height - least) // 2
    return picture.resize((side, side), Image.Resampling.BOX, (x, y, x + least, y + least))
