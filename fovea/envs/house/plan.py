"""A house on a continuous plane: square rooms with coloured walls, doors, and coloured things; what is free, and the shortest way.

Metres, x to the right and y up; headings in radians, counter-clockwise from x. Walls are thin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fovea.tasks.worlds.draw import PALETTE

ROOM, DOOR, RADIUS = 4.0, 1.2, 0.2
"""Metres: side of a room, width of a door, radius of whoever walks."""
MARGIN, MESH = 0.3, 0.25
"""Metres: what a planned way keeps from walls and things; distance of the points that are searched. Two neighbours that keep the margin see
each other: half the diagonal of the mesh is 0.18."""
SHAPES = {"pillar": (0.22, 2.4), "cone": (0.4, 1.2), "ball": (0.35, 0.7), "box": (0.35, 0.9)}
"""Radius and height of each kind of thing, in metres."""
COLOURS = tuple(PALETTE)
LAYOUTS = ((1, 2), (2, 2), (2, 3))
Floats = NDArray[np.float64]
INF = math.inf


class Wall(NamedTuple):
    """A piece of wall: x = `at` (axis 0) or y = `at` (axis 1), from `first` to `last` in the other coordinate.

    `low` and `high` are the rooms at its sides of smaller and greater coordinate; -1 is outside.
    """

    axis: int
    at: float
    first: float
    last: float
    low: int
    high: int


class Thing(NamedTuple):
    shape: str
    colour: str
    x: float
    y: float
    room: int

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Plan:
    """A house.

    Attributes:
      rows, columns: of rooms; room number is row * columns + column, row 0 at y = 0.
      colours: of each room's walls, no two alike.
      doors: pairs of rooms (lower number first) and where their door's middle lies, in metres along the wall.
      things: no two alike.
    """

    rows: int
    columns: int
    colours: tuple[str, ...]
    doors: tuple[tuple[int, int, float], ...]
    things: tuple[Thing, ...]

    def room(self, x: float, y: float) -> int:
        """The room of a point inside the house."""
        return min(int(y // ROOM), self.rows - 1) * self.columns + min(int(x // ROOM), self.columns - 1)

    @cached_property
    def walls(self) -> tuple[Wall, ...]:
        gaps = {(a, b): at for a, b, at in self.doors}
        found: list[Wall] = []
        for axis, lines, cells in ((0, self.columns, self.rows), (1, self.rows, self.columns)):
            for line, cell in product(range(lines + 1), range(cells)):
                sides = [self._number(axis, line - 1, cell), self._number(axis, line, cell)]
                first, last = cell * ROOM, (cell + 1) * ROOM
                gap = gaps.get((sides[0], sides[1]))
                pieces = [(first, last)] if gap is None else [(first, first + gap - DOOR / 2), (first + gap + DOOR / 2, last)]
                found += [Wall(axis, line * ROOM, a, b, *sides) for a, b in pieces]
        return tuple(found)

    def _number(self, axis: int, line: int, cell: int) -> int:
        row, column = (cell, line) if axis == 0 else (line, cell)
        return row * self.columns + column if 0 <= row < self.rows and 0 <= column < self.columns else -1

    @cached_property
    def wall_arrays(self) -> tuple[NDArray[np.int64], Floats, Floats, Floats]:
        """Axis, place, first and last of each wall."""
        axis, at, first, last = zip(*(w[:4] for w in self.walls))
        return np.array(axis), np.array(at), np.array(first), np.array(last)

    # -- what is free ---------------------------------------------------------------------------------------------------------

    def clearance(self, points_P2: Floats) -> Floats:
        """Distance of each point from the nearest wall or thing, in metres; negative inside a thing."""
        axis, at, first, last = self.wall_arrays
        points_P2 = np.asarray(points_P2, float).reshape(-1, 2)
        across_PS = np.where(axis == 0, points_P2[:, :1], points_P2[:, 1:]) - at
        along_PS = np.where(axis == 0, points_P2[:, 1:], points_P2[:, :1])
        beyond_PS = np.maximum(np.maximum(first - along_PS, along_PS - last), 0.0)
        nearest_P = np.hypot(across_PS, beyond_PS).min(1)
        for thing in self.things:
            nearest_P = np.minimum(nearest_P, np.hypot(*(points_P2 - (thing.x, thing.y)).T) - SHAPES[thing.shape][0])
        return nearest_P

    def walked(self, at_2: Floats, heading: float, metres: float) -> Floats:
        """Where a walk straight ahead ends: before the first place that is closer than RADIUS to a wall or thing."""
        steps = max(1, math.ceil(metres / 0.05))
        way_P2 = at_2 + np.linspace(0, metres, steps + 1)[:, None] * (math.cos(heading), math.sin(heading))
        clear_P = self.clearance(way_P2) >= RADIUS
        clear_P[0] = True  # who stands somewhere may stay there
        return way_P2[np.argmin(clear_P) - 1] if not clear_P.all() else way_P2[-1]

    def sees(self, a_2: Floats, b_2: Floats, margin: float = RADIUS) -> bool:
        """Whether the straight way from a to b keeps `margin`."""
        count = max(2, math.ceil(float(np.hypot(*(b_2 - a_2))) / 0.05) + 1)
        return bool((self.clearance(np.linspace(a_2, b_2, count)) >= margin - 1e-9).all())

    # -- the shortest way -----------------------------------------------------------------------------------------------------

    @cached_property
    def mesh(self) -> tuple[Floats, NDArray[np.bool_]]:
        """(points (I, J, 2), whether each keeps MARGIN)."""
        x, y = (np.arange(MESH / 2, n * ROOM, MESH) for n in (self.columns, self.rows))
        points = np.stack(np.meshgrid(x, y, indexing="ij"), -1)
        return points, (self.clearance(points) >= MARGIN).reshape(points.shape[:2])

    def field(self, goal: tuple[float, float]) -> Floats:
        """(I, J) metres of the shortest way from each point of the mesh to `goal`, over eight neighbours; inf where none leads."""
        return _field(self, goal)

    def remaining(self, at_2: Floats, goal: tuple[float, float]) -> float:
        """Metres from any point to `goal`: straight where that is free, else over the mesh in its eight directions."""
        at_2 = np.asarray(at_2, float)
        if self.sees(at_2, np.array(goal)):
            return float(np.hypot(*(at_2 - goal)))
        points, free = self.mesh
        way = np.hypot(*np.moveaxis(points - at_2, -1, 0)) + self.field(goal)
        near = np.abs(points - at_2).max(-1) <= 2 * MESH
        return float(np.where(near & free, way, INF).min())

    def mesh_distance(self, at_2: Floats, goal: tuple[float, float]) -> float:
        """As `remaining`, from the nearest point of the mesh: rough and fast."""
        field = self.field(goal)
        i, j = (min(int(c / MESH), n - 1) for c, n in zip(at_2, field.shape))
        around = field[max(0, i - 1) : i + 2, max(0, j - 1) : j + 2]
        return float(field[i, j] if np.isfinite(field[i, j]) else around.min() + MESH)

    def path(self, start_2: Floats, goal: tuple[float, float]) -> Floats:
        """(K, 2) corners of the shortest way over the mesh, pulled straight and tight.

        Raises:
          ValueError: no way leads there.
        """
        points, _ = self.mesh
        field, way = self.field(goal), [np.asarray(start_2, float)]
        i, j = self._nearest(way[0], field)
        I, J = field.shape
        while True:
            way.append(points[i, j])
            beside = [(a, b) for a in range(max(0, i - 1), min(I, i + 2)) for b in range(max(0, j - 1), min(J, j + 2)) if (a, b) != (i, j)]
            best = min(beside, key=lambda n: field[n] + math.hypot(n[0] - i, n[1] - j) * MESH)
            if field[best] >= field[i, j]:
                break
            i, j = best
        way.append(np.array(goal))
        return self._pulled(way)

    def _nearest(self, at_2: Floats, field: Floats) -> tuple[int, int]:
        points, _ = self.mesh
        far = np.hypot(*np.moveaxis(points - at_2, -1, 0)) + np.where(np.isfinite(field), 0.0, INF)
        i, j = np.unravel_index(int(far.argmin()), far.shape)
        if far[i, j] > 4 * MESH:
            raise ValueError(f"no way leads from {tuple(np.round(at_2, 2))} to the goal")
        return int(i), int(j)

    def _pulled(self, way: list[Floats]) -> Floats:
        kept = [way[0]]
        while len(way) > 1:
            ahead = next((k for k in range(len(way) - 1, 1, -1) if self.sees(kept[-1], way[k])), 1)
            kept.append(way[ahead])
            way = way[ahead:]
        for k in range(1, len(kept) - 1):
            kept[k] = self._tightened(*kept[k - 1 : k + 2])
        return np.array(kept)

    def _tightened(self, before_2: Floats, corner_2: Floats, after_2: Floats) -> Floats:
        """The corner as near to the straight line between its neighbours as RADIUS allows."""
        line = after_2 - before_2
        foot = before_2 + line * np.clip((corner_2 - before_2) @ line / max(line @ line, 1e-9), 0, 1)
        good, bad = 0.0, 1.0
        for _ in range(6):
            share = (good + bad) / 2
            at = corner_2 + share * (foot - corner_2)
            good, bad = (share, bad) if self.sees(before_2, at) and self.sees(at, after_2) else (good, share)
        return corner_2 + good * (foot - corner_2)


@lru_cache(maxsize=64)
def _field(plan: Plan, goal: tuple[float, float]) -> Floats:
    points, free = plan.mesh
    near = free & (np.hypot(*np.moveaxis(points - goal, -1, 0)) <= 1.5 * MESH)
    field = np.where(near, np.hypot(*np.moveaxis(points - goal, -1, 0)), INF)
    moves = [(di, dj, MESH * math.hypot(di, dj)) for di, dj in product((-1, 0, 1), repeat=2) if di or dj]
    inner = tuple(slice(1, -1) for _ in range(2))
    while True:
        padded = np.pad(field, 1, constant_values=INF)
        I, J = field.shape
        around = [padded[1 + di : 1 + di + I, 1 + dj : 1 + dj + J] + cost for di, dj, cost in moves]
        closer = np.where(free, np.minimum(padded[inner], np.minimum.reduce(around)), INF)
        if np.array_equal(closer, field):
            return field
        field = closer


def draw_plan(rng: np.random.Generator) -> Plan:
    """A house of two, four or six rooms, connected, with one or two things in each."""
    rows, columns = LAYOUTS[int(rng.integers(len(LAYOUTS)))]
    n = rows * columns
    colours = tuple(str(c) for c in rng.permutation(COLOURS)[:n])
    names = [(s, c) for s in SHAPES for c in COLOURS]
    chosen, things = rng.permutation(len(names)), []
    for room, spot in ((r, s) for r in range(n) for s in range(int(rng.integers(1, 3)))):
        shape, colour = names[chosen[len(things)]]
        x, y = room % columns * ROOM, room // columns * ROOM
        # two opposite quarters of the room, off the lines between its doors
        corner = (0.95, 0.95) if spot == 0 else (ROOM - 0.95, ROOM - 0.95)
        dx, dy = np.array(corner) + rng.uniform(-0.25, 0.25, 2)
        things.append(Thing(shape, colour, float(x + dx), float(y + dy), room))
    return Plan(rows, columns, colours, _doors(rows, columns, rng), tuple(things))


def _doors(rows: int, columns: int, rng: np.random.Generator) -> tuple[tuple[int, int, float], ...]:
    """A random spanning tree over the rooms, and each other pair of neighbours with one chance in four."""
    n = rows * columns
    pairs = [(r, r + 1) for r in range(n) if (r + 1) % columns] + [(r, r + columns) for r in range(n - columns)]
    part, doors = list(range(n)), []
    for k in rng.permutation(len(pairs)):
        a, b = pairs[int(k)]
        joins = part[a] != part[b]
        if joins or rng.random() < 0.25:
            doors.append((a, b, float(ROOM / 2 + rng.uniform(-0.4, 0.4))))
            part = [part[a] if p == part[b] else p for p in part]
    return tuple(sorted(doors))
