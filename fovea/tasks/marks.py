"""Marks: coloured frames, each with a mark so small that the picture as shown hides it.

    "marks"            which mark is in the frame of a colour?
    "marks:turns"      with chains of a scripted, clumsy searcher, for a start: replies with looks at points
    "marks:grounded"   the same chains as one reply; "marks:plain" without their points

Three to five frames of different colours on a 3x3 grid, each with another of five marks, any of which is asked for equally often: whoever
sees no mark is right in one of five. A picture has 512 pixels a side, and is shown with 64: a mark is 18 pixels wide there, two here.
Points and the names of files' columns are in pixels of the picture as shown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from fovea.tasks.search import Search, chains, in_turns, tree
from fovea.tasks.worlds import SPLITS, draw, split_of
from fovea.tasks.worlds.families import COLOURS, SHAPES, Thing, one, pick, scatter
from fovea.types import Task, user
from fovea.verifiers.parse import cited_points

KINDS = ("", "turns", "grounded", "plain")
SCALE = 8
"""Pixels of a picture for one of the picture as shown."""
HOLE, MARK = 3.0, 1.15
"""Half the side of a frame's hole and the radius of a mark, in pixels as shown."""
LOOKS = 4
AGAIN = "no."
SEARCH = Search(simulations=4, children=3, rollouts=2, max_depth=5, rollout_steps=4)


@dataclass(frozen=True)
class Scene:
    """Frames (`Thing.shape` is the mark inside), the one that is asked for, and how it is drawn."""

    frames: tuple[Thing, ...]
    asked: Thing
    paper: tuple[int, int, int]
    inks: tuple[str, ...]

    @property
    def key(self) -> tuple[object, ...]:
        return ("marks", *((f.cell, f.colour, f.shape) for f in self.frames), self.asked.colour)

    def paint(self) -> Image.Image:
        image = Image.new("RGB", (draw.SIZE * SCALE,) * 2, self.paper)
        pen = ImageDraw.Draw(image)
        for frame, ink in zip(self.frames, self.inks, strict=True):
            square = ("square", frame.cx, frame.cy)
            for points, colour in (
                (draw.outline(*square, frame.r), draw.shade(frame.colour, frame.tint)),
                (draw.outline(*square, HOLE / 0.86), self.paper),
                (draw.outline(frame.shape, frame.cx, frame.cy, MARK), draw.shade(ink, (0, 0, 0))),
            ):
                pen.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=colour)
        return image


def scene(rng: np.random.Generator) -> Scene:
    n = int(rng.integers(3, 6))
    frames = scatter(rng, list(zip(pick(rng, COLOURS, n), pick(rng, SHAPES, n), strict=True)))
    paper = draw.PAPERS[int(rng.integers(len(draw.PAPERS)))]
    return Scene(frames, one(rng, frames), paper, tuple(one(rng, [c for c in COLOURS if c != f.colour]) for f in frames))


@dataclass(frozen=True)
class Searcher:
    """A teacher who finds the frame that is asked for every other time, takes one for another otherwise, and often does not notice."""

    scene: Scene
    rng: np.random.Generator

    def __call__(self, steps: tuple[str, ...], n: int, final: bool) -> Sequence[str]:
        return [self._one(steps, final) for _ in range(n)]

    def _one(self, steps: tuple[str, ...], final: bool) -> str:
        seen = [f for s in steps for _, point in cited_points(s) for f in self.scene.frames if where(f) == point]
        right = bool(seen) and seen[-1] is self.scene.asked
        if seen and (final or self.rng.random() < (0.95 if right else 0.5)):
            return f"<answer>{seen[-1].shape}</answer>"
        if final:
            return f"<answer>{one(self.rng, SHAPES)}</answer>"
        fresh = [f for f in self.scene.frames if f not in seen] or list(self.scene.frames)
        found = self.scene.asked if self.scene.asked in fresh and self.rng.random() < 0.5 else one(self.rng, fresh)
        x, y = where(found)
        return f"{self.scene.asked.colour} ({x}, {y})."


def where(frame: Thing) -> tuple[int, int]:
    """Its centre in pixels of the picture as shown."""
    return round(frame.cx), round(frame.cy)


@dataclass(frozen=True)
class Marks:
    """An infinite source without state; see the file's head.

    Attributes:
      kind: one of `KINDS`. split: "train" or "heldout". seed: another seed is another stream of the same split.
    """

    kind: str = ""
    split: str = "train"
    seed: int = 0

    @classmethod
    def named(cls, what: str, split: str, seed: int) -> Marks:
        """
        Raises:
          ValueError: an unknown kind of chains, with the known ones.
        """
        if what not in KINDS:
            raise ValueError(f"data 'marks:{what}': no chains {what!r}; there are: {', '.join(KINDS[1:])}")
        return cls(what, split, seed)

    def heldout(self) -> Marks:
        return replace(self, split="heldout")

    def __getitem__(self, i: int) -> Task:
        if i < 0:
            raise IndexError(f"index: found {i}, expected 0 or more (marks have no end to count from)")
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, SPLITS.index(self.split), i])))
        while split_of((drawn := scene(rng)).key) != self.split:
            pass
        task = Task(
            id=f"marks/{self.split}/{self.seed}/{i}",
            source="marks",
            prompt=user(f"Which shape is in the {drawn.asked.colour} square?"),
            images=(drawn.paint(),),
            answer=drawn.asked.shape,
            verifier="grounded_turns",
            meta={"at": where(drawn.asked)},
        )
        return replace(task, meta={**task.meta, **shown(drawn, self.kind, rng)}) if self.kind else task


def shown(drawn: Scene, kind: str, rng: np.random.Generator) -> dict[str, object]:
    """What the searcher says: one of its chains, every other one of them corrected, in the form of `kind`."""
    found = []
    while not found:
        root = tree(Searcher(drawn, rng), lambda answer: float(answer == drawn.asked.shape), SEARCH)
        wants = bool(rng.random() < 0.5)
        found = [c for c in chains(root, AGAIN) if c.corrected == wants and len(cited_points(c.thought)) <= LOOKS]
    chain = one(rng, found)
    if kind == "turns":
        return {"turns": in_turns(chain)}
    if kind == "plain":
        chain = replace(chain, thought=re.sub(r" \(\d+, \d+\)", "", chain.thought))
    return {"response": chain.text}
