"""Marks: coloured squares, each with a mark in it so small that the picture as shown hides its shape.

    "marks"            which mark is in the square of a colour?
    "marks:turns"      with chains of a scripted, clumsy searcher, for a start: replies with looks at points
    "marks:practice"   the same, and in turn with them crops alone, whose mark is to be read
    "marks:grounded"   the same chains as one reply; "marks:plain" without their points

Three to five squares of different colours on a 3x3 grid, each with another of five shapes in its own colour, any of which is asked for
equally often: whoever sees no mark is right in one of five. A picture has 512 pixels a side, and is shown with 64: a mark is 13 pixels wide
there, less than two here. Points are in pixels of the picture as shown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from fovea.envs.zoom import LAST
from fovea.tasks.endless import Endless
from fovea.tasks.search import Chain, Search, chains, in_turns, tree
from fovea.tasks.worlds import draw, split_of
from fovea.tasks.worlds.families import COLOURS, SHAPES, Thing, one, pick, scatter, survey
from fovea.types import Task, user
from fovea.verifiers.parse import cited_points

KINDS = ("", "turns", "practice", "grounded", "plain")
SCALE = 8
"""Pixels of a picture for one of the picture as shown."""
HOLE, MARK = 2.75, 0.85
"""Half the side of the hole in a square and the radius of the mark in it, in pixels as shown."""
AROUND = 3
"""Half the side of a crop, in pixels as shown."""
LOOKS = 4
AGAIN = "no."
CALL, SEEN = "find", "picture"
"""Tags of calls and of crops: words of the tiny model's, which spells others letter by letter."""
SEARCH = Search(simulations=4, children=3, rollouts=2, max_depth=5, rollout_steps=4)


@dataclass(frozen=True)
class Scene:
    """Squares (`Thing.shape` is the mark inside), the one that is asked for, and the paper."""

    squares: tuple[Thing, ...]
    asked: Thing
    paper: tuple[int, int, int]

    @property
    def key(self) -> tuple[object, ...]:
        return ("marks", *((t.cell, t.colour, t.shape) for t in self.squares), self.asked.colour)

    def paint(self) -> Image.Image:
        image = Image.new("RGB", (draw.SIZE * SCALE, draw.SIZE * SCALE), self.paper)
        pen = ImageDraw.Draw(image)
        for t in self.squares:
            ink = draw.shade(t.colour, t.tint)
            for shape, radius, colour in (("square", t.r, ink), ("square", HOLE / 0.86, self.paper), (t.shape, MARK, ink)):
                pen.polygon([(x * SCALE, y * SCALE) for x, y in draw.outline(shape, t.cx, t.cy, radius)], fill=colour)
        return image

    def crop(self) -> Image.Image:
        """The surroundings of the mark that is asked for."""
        (x, y), r = where(self.asked), AROUND
        return self.paint().crop(((x - r) * SCALE, (y - r) * SCALE, (x + r) * SCALE, (y + r) * SCALE))

    def looked(self, at: Thing) -> str:
        """What somebody notes who looks over all cells and takes one of the squares for the one that is asked for."""
        return survey([replace(t, shape="square") for t in self.squares], lambda t: at.place if t.cell == at.cell else "")


def scene(rng: np.random.Generator) -> Scene:
    n = int(rng.integers(3, 6))
    squares = scatter(rng, list(zip(pick(rng, COLOURS, n), pick(rng, SHAPES, n), strict=True)))
    paper = draw.PAPERS[int(rng.integers(len(draw.PAPERS)))]
    nearly = tuple(replace(t, cx=where(t)[0] + rng.uniform(-0.5, 0.5), cy=where(t)[1] + rng.uniform(-0.5, 0.5)) for t in squares)
    return Scene(nearly, one(rng, nearly), paper)


def where(square: Thing) -> tuple[int, int]:
    """The middle of its cell, in pixels of the picture as shown."""
    return 12 + 20 * (square.cell % 3), 12 + 20 * (square.cell // 3)


@dataclass(frozen=True)
class Searcher:
    """A teacher who finds the square that is asked for every other time, takes one for another otherwise, and often does not notice."""

    scene: Scene
    rng: np.random.Generator

    def __call__(self, steps: tuple[str, ...], n: int, final: bool) -> Sequence[str]:
        return [self._one(steps, final) for _ in range(n)]

    def _one(self, steps: tuple[str, ...], final: bool) -> str:
        seen = [t for s in steps for _, point in cited_points(s) for t in self.scene.squares if where(t) == point]
        right = bool(seen) and seen[-1] is self.scene.asked
        if seen and (final or self.rng.random() < (0.95 if right else 0.5)):
            return f"<answer>{seen[-1].shape}</answer>"
        if final:
            return f"<answer>{one(self.rng, SHAPES)}</answer>"
        fresh = [t for t in self.scene.squares if t not in seen] or list(self.scene.squares)
        found = self.scene.asked if self.scene.asked in fresh and self.rng.random() < 0.5 else one(self.rng, fresh)
        x, y = where(found)
        noted = f"{self.scene.asked.colour} {found.place}" if steps else self.scene.looked(found)
        return f"{noted} ({x}, {y})."


@dataclass(frozen=True)
class Marks(Endless):
    """See the file's head.

    Attributes:
      kind: one of `KINDS`.
    """

    kind: str = ""

    @classmethod
    def named(cls, what: str, split: str, seed: int) -> Marks:
        """
        Raises:
          ValueError: an unknown kind of chains, with the known ones.
        """
        if what not in KINDS:
            raise ValueError(f"data 'marks:{what}': no chains {what!r}; there are: {', '.join(KINDS[1:])}")
        return cls(what, split=split, seed=seed)

    def deal(self, i: int) -> Task:
        rng = self.rng(i)
        while split_of((drawn := scene(rng)).key) != self.split:
            pass
        task = Task(
            id=f"marks/{self.split}/{self.seed}/{i}",
            source="marks",
            prompt=user(f"Find the {drawn.asked.colour} square. Which shape is in it?"),
            images=(drawn.paint(),),
            answer=drawn.asked.shape,
            verifier="grounded_turns",
            params={"call": CALL, "seen": SEEN},
            meta={"at": where(drawn.asked)},
        )
        if self.kind == "practice" and i % 2:
            read = f"<think>{LAST}</think><answer>{drawn.asked.shape}</answer>"
            return replace(task, images=(drawn.crop(),), meta={**task.meta, "turns": (read,)})
        return replace(task, meta={**task.meta, **shown(drawn, self.kind, rng)}) if self.kind else task


def shown(drawn: Scene, kind: str, rng: np.random.Generator) -> dict[str, object]:
    """What the searcher says: one of its chains, every other one of them corrected, in the form of `kind`."""
    found: list[Chain] = []
    while not found:
        root = tree(Searcher(drawn, rng), lambda answer: float(answer == drawn.asked.shape), SEARCH)
        wants = bool(rng.random() < 0.5)
        told = [replace(c, thought=once(c.thought)) for c in chains(root, AGAIN) if c.corrected == wants]
        found = [c for c in told if len(cited_points(c.thought)) <= LOOKS]
    chain = one(rng, found)
    if kind in ("turns", "practice"):
        return {"turns": in_turns(chain, call=CALL)}
    if kind == "plain":
        chain = replace(chain, thought=re.sub(r" \(\d+, \d+\)", "", chain.thought))
    return {"response": chain.text}


def once(thought: str) -> str:
    """The thought without the steps that a correction repeats, but its last."""
    wrong, again, right = thought.partition(f"\n{AGAIN} ")
    lines = right.split("\n")
    return wrong + again + "\n".join(s for s in lines if s not in wrong.split("\n") or s is lines[-1])
