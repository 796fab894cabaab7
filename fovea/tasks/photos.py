"""Tasks on photographs that come inside Python packages: scikit-image's and scikit-learn's samples and two hundred small faces and others.

A check that a system has met real pixels, not a benchmark: there are seventeen photographs. Training and held-out tasks take theirs from
different photographs. Needs the extra `photos`; nothing is downloaded.

    "photos:jigsaw"        nine shuffled tiles of a photograph;  "photos:places" asks for the place of every tile
    "photos:count"         a scene of `fovea.tasks.worlds` whose shapes are cut from one photograph, tinted and pasted on another; likewise
                           colour, relation, compare, odd, find, point, two_step
    "photos:detect"        every such shape with its box
    "photos:turn"          by how much a photograph was turned
    "photos:faces"         how many of nine patches are faces;  "photos:face"  the box of the only one
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from fovea.images import rgb
from fovea.tasks import jigsaw
from fovea.tasks.endless import Endless
from fovea.tasks.worlds import draw, make
from fovea.tasks.worlds.families import Item, scene_boxes
from fovea.types import Task, user

SCENES = {
    "train": ("astronaut.png", "china.jpg", "coffee.png", "motorcycle_left.png", "page.png", "retina.jpg", "coins.png"),
    "heldout": ("camera.png", "chelsea.png", "flower.jpg", "rocket.jpg"),
}
"""Photographs with an arrangement of their own, whose tiles have one place each."""
TEXTURES = {"train": ("brick.png", "grass.png", "moon.png", "ihc.png"), "heldout": ("gravel.png", "text.png")}
SIDE = draw.SIZE
TURNS = ("not at all", "left", "half", "right")


def _folder(package: str, inside: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"photographs come with {package}, which is not installed; pip install 'fovea-rl[photos]' brings it")
    return Path(spec.submodule_search_locations[0]) / inside


@cache
def photograph(name: str) -> Image.Image:
    """One photograph in colour, at most 256 pixels on its shorter side.

    Raises:
      ImportError: without the package it comes with.
      FileNotFoundError: a version of that package without it.
    """
    folder = _folder("sklearn", "datasets/images") if name in ("china.jpg", "flower.jpg") else _folder("skimage", "data")
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{folder / name}: found no file; expected a photograph of scikit-image 0.25 or scikit-learn 1.5, or newer")
    with Image.open(folder / name) as file:
        picture = rgb(file).copy()
    scale = min(1.0, 256 / min(picture.size))
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)


@cache
def patches(split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Faces and other patches (n, 25, 25) of the split, grey; every fifth is held out."""
    file = _folder("skimage", "data") / "lfw_subset.npy"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: found no file; expected the faces of scikit-image 0.25 or newer")
    grey = (np.load(file, allow_pickle=False) * 255).astype(np.uint8)
    held = np.arange(100) % 5 == 0
    mine = held if split == "heldout" else ~held
    return grey[:100][mine], grey[100:][mine]


def snippet(rng: np.random.Generator, split: str, side: int = SIDE, whole: bool = False) -> Image.Image:
    """A random square of a random photograph of the split, perhaps mirrored, with its light and colour changed a little.

    whole: most of a photograph that has an arrangement, instead of any part of any.
    """
    names = SCENES[split] if whole else (*SCENES[split], *TEXTURES[split])
    picture = photograph(names[int(rng.integers(len(names)))])
    size = int(min(picture.size) * rng.uniform(*((0.85, 1.0) if whole else (0.3, 1.0))))
    x, y = int(rng.integers(0, picture.width - size + 1)), int(rng.integers(0, picture.height - size + 1))
    part = picture.resize((side, side), Image.Resampling.BOX, (x, y, x + size, y + size))
    part = ImageOps.mirror(part) if rng.random() < 0.5 else part
    part = ImageEnhance.Brightness(part).enhance(rng.uniform(0.8, 1.2))
    return ImageEnhance.Color(part).enhance(rng.uniform(0.7, 1.3))


# -- families -----------------------------------------------------------------------------------------------------------------


def _pasted(item: Item, rng: np.random.Generator, split: str) -> Image.Image:
    """The shapes of a scene cut from one photograph and tinted, before another that is paler and has little colour."""
    ground = ImageEnhance.Color(snippet(rng, split)).enhance(0.25)
    ground = Image.blend(ground, Image.new("RGB", ground.size, (128, 128, 128)), 0.45)
    light_HW1 = np.asarray(ImageOps.autocontrast(snippet(rng, split).convert("L")), np.float64)[..., None] / 255
    for thing in item.things:
        tinted = np.clip(np.array(draw.shade(thing.colour, thing.tint)) * (0.75 + 0.5 * light_HW1), 0, 255)
        mask = Image.new("L", (SIDE * draw.SS, SIDE * draw.SS))
        ImageDraw.Draw(mask).polygon([(x * draw.SS, y * draw.SS) for x, y in thing.points], fill=255)
        ground.paste(Image.fromarray(tinted.astype(np.uint8)), mask=mask.resize((SIDE, SIDE), Image.Resampling.BOX))
    return ground


def _scene(family: str, index: int, split: str, seed: int, rng: np.random.Generator) -> Task:
    return make(family, index, split, seed, paint=lambda item: _pasted(item, rng, split))


def _detect(index: int, split: str, seed: int, rng: np.random.Generator) -> Task:
    seen: list[Item] = []

    def paint(item: Item) -> Image.Image:
        seen.append(item)
        return _pasted(item, rng, split)

    task = make("odd", index, split, seed, paint=paint)
    gold = scene_boxes(seen[0].things)
    boxes = [{"bbox_2d": list(t.box), "label": t.name} for t in seen[0].things]
    meta = {**task.meta, "family": "detect", "gold": gold, "response": f"<answer>{gold}</answer>"}
    return replace(task, prompt=user("List the shapes with their boxes."), answer=boxes, verifier="detection", params={}, meta=meta)


def _jigsaw(variant: str, index: int, split: str, seed: int, rng: np.random.Generator) -> Task:
    picture = snippet(rng, split, jigsaw.SHEET, whole=True)
    return jigsaw.task_of(jigsaw.Variant.read(variant), picture, rng, id="", source="")


def _turn(index: int, split: str, seed: int, rng: np.random.Generator) -> Task:
    turns = int(rng.integers(4))
    picture = snippet(rng, split, whole=True).rotate(90 * turns)
    return _plain("How was the picture turned: left, right, half or not at all?", TURNS[turns], picture)


def _mosaic(rng: np.random.Generator, split: str, faces: int) -> tuple[Image.Image, NDArray[np.bool_]]:
    """Nine patches of 20 pixels, `faces` of them faces, and which they are."""
    face, other = patches(split)
    is_face = np.zeros(9, bool)
    is_face[rng.permutation(9)[:faces]] = True
    tiles = [Image.fromarray((face if f else other)[int(rng.integers(len(face)))]).resize((20, 20), Image.Resampling.BOX) for f in is_face]
    return jigsaw.assemble([rgb(t) for t in tiles], range(1, 10), 3, 3, jigsaw.GAP), is_face


def _faces(index: int, split: str, seed: int, rng: np.random.Generator) -> Task:
    count = int(rng.integers(1, 7))
    picture, _ = _mosaic(rng, split, count)
    return _plain("How many faces are there?", str(count), picture, answer=count, verifier="number")


def _face(index: int, split: str, seed: int, rng: np.random.Generator) -> Task:
    picture, is_face = _mosaic(rng, split, 1)
    row, column = divmod(int(is_face.argmax()), 3)
    box = [22 * column, 22 * row, 22 * column + 20, 22 * row + 20]
    gold = " ".join(map(str, box))
    return _plain("Find the face. Give its box.", gold, picture, answer=box, verifier="box_iou", params={"threshold": 0.5})


def _plain(question: str, gold: str, picture: Image.Image, **fields: Any) -> Task:
    meta = {"gold": gold, "response": f"<answer>{gold}</answer>"}
    return Task("", "", user(question), (picture,), **{"answer": gold, **fields}, meta=meta)


PASTED = ("count", "colour", "relation", "compare", "odd", "find", "point", "two_step")
FAMILIES: dict[str, Callable[[int, str, int, np.random.Generator], Task]] = {
    "jigsaw": partial(_jigsaw, "3x3"),
    "places": partial(_jigsaw, "3x3-places"),
    **{name: partial(_scene, name) for name in PASTED},
    "detect": _detect,
    "turn": _turn,
    "faces": _faces,
    "face": _face,
}


@dataclass(frozen=True)
class Photos(Endless):
    """Deals its families in turn, as `fovea.tasks.worlds.World` does.

    Attributes:
      families: names of `FAMILIES`.
    """

    families: tuple[str, ...] = tuple(FAMILIES)

    @classmethod
    def named(cls, what: str, split: str, seed: int) -> Photos:
        """
        Raises:
          ValueError: an unknown family, with the known ones.
          ImportError: without the packages that the photographs come with.
        """
        names = tuple(n for n in what.split(",") if n) or tuple(FAMILIES)
        unknown = [n for n in names if n not in FAMILIES]
        if unknown:
            raise ValueError(f"photos: no family {', '.join(unknown)}; there are: {', '.join(FAMILIES)}")
        for package in ("skimage", "sklearn"):
            _folder(package, "")
        return cls(names, split=split, seed=seed)

    def deal(self, i: int) -> Task:
        turn, which = divmod(i, len(self.families))
        family = self.families[which]
        rng = self.rng(turn, *family.encode())
        task = FAMILIES[family](turn, self.split, self.seed, rng)
        return replace(task, id=f"photo_{family}/{self.split}/{self.seed}/{turn}", source=f"photo_{family}")
