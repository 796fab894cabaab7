"""What somebody in a house sees: rays against walls, things as flat shapes that face the viewer. NumPy only."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fovea.envs.house.plan import SHAPES, Floats, Plan
from fovea.tasks.worlds.draw import PALETTE

EYE, CEILING, FIELD_OF_VIEW = 1.2, 2.4, math.radians(80)
"""Metres above the floor; radians from the left edge of the picture to the right."""
SKY, TILES = np.array([236, 236, 232], np.float32), np.array([[150, 132, 110], [176, 158, 134]], np.float32)
RGB = {name: np.array(rgb, np.float32) for name, rgb in PALETTE.items()}


@lru_cache(maxsize=8)
def _columns(side: int) -> tuple[Floats, Floats, float]:
    """(places of columns right of the middle, of rows below the horizon, both in units of depth; pixels per unit)."""
    half = math.tan(FIELD_OF_VIEW / 2)
    centre = (np.arange(side) + 0.5) / side * 2 - 1
    return centre * half, centre * half, side / 2 / half


def cast(plan: Plan, at_2: Floats, directions_W2: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """(how often each direction fits between `at` and the first wall, the wall); inf and 0 where a ray leaves through nothing."""
    axis, place, first, last = plan.wall_arrays
    with np.errstate(divide="ignore", invalid="ignore"):
        times_WS = (place - at_2[axis]) / directions_W2[:, axis]
        along_WS = at_2[1 - axis] + times_WS * directions_W2[:, 1 - axis]
    hit_WS = (times_WS > 1e-9) & (along_WS >= first) & (along_WS <= last)
    times_WS = np.where(hit_WS, times_WS, np.inf)
    wall_W = times_WS.argmin(1)
    return times_WS[np.arange(len(wall_W)), wall_W], wall_W


def picture(plan: Plan, at_2: Floats, heading: float, side: int = 64) -> Image.Image:
    """The view from a place, level, `side` x `side` pixels."""
    across_W, below_H, pixels = _columns(side)
    ahead, right = np.array([math.cos(heading), math.sin(heading)]), np.array([math.sin(heading), -math.cos(heading)])
    directions_W2 = ahead + across_W[:, None] * right
    depth_W, wall_W = cast(plan, at_2, directions_W2)
    shown = _ground(at_2, directions_W2, below_H)
    high_W, low_W = -(CEILING - EYE) / depth_W, EYE / depth_W
    wall_HW = (below_H[:, None] >= high_W) & (below_H[:, None] < low_W)
    np.copyto(shown, _wall_colours(plan, at_2, directions_W2, depth_W, wall_W)[None], where=wall_HW[..., None])
    _draw_things(shown, plan, at_2, ahead, right, depth_W, across_W, below_H, pixels)
    return Image.fromarray(shown.astype(np.uint8))


def _ground(at_2: Floats, directions_W2: Floats, below_H: Floats) -> NDArray[np.float32]:
    """Ceiling above the horizon, floor tiles of one metre below."""
    side = len(below_H)
    shown = np.empty((side, len(directions_W2), 3), np.float32)
    shown[: side // 2] = SKY
    floor_H = EYE / below_H[side // 2 :]
    places_HW2 = at_2 + floor_H[:, None, None] * directions_W2
    odd_HW = np.floor(places_HW2).astype(np.int64).sum(-1) & 1
    shown[side // 2 :] = TILES[odd_HW]
    return shown


def _wall_colours(plan: Plan, at_2: Floats, directions_W2: Floats, depth_W: Floats, wall_W: NDArray[np.int64]) -> NDArray[np.float32]:
    """Each column's wall: the colour of the room it is seen from, darker far away, on walls along x, and at a joint every metre."""
    axis, place, _, _ = plan.wall_arrays
    walls = np.array([(w.low, w.high) for w in plan.walls])
    axis_W = axis[wall_W]
    from_low_W = np.where(axis_W == 0, at_2[0], at_2[1]) < place[wall_W]
    room_W = np.where(from_low_W, walls[wall_W, 0], walls[wall_W, 1])
    hit_W2 = at_2 + np.where(np.isfinite(depth_W), depth_W, 0.0)[:, None] * directions_W2
    along_W = np.where(axis_W == 0, hit_W2[:, 1], hit_W2[:, 0])
    light_W = np.clip(1.08 - 0.05 * depth_W, 0.55, 1.0) * np.where(axis_W == 0, 1.0, 0.86) * np.where(along_W % 1.0 < 0.06, 0.75, 1.0)
    colours = np.stack([RGB[c] for c in plan.colours])
    return (colours[room_W] * light_W[:, None]).astype(np.float32)


def _draw_things(
    shown: NDArray[np.float32],
    plan: Plan,
    at_2: Floats,
    ahead: Floats,
    right: Floats,
    depth_W: Floats,
    across_W: Floats,
    below_H: Floats,
    pixels: float,
) -> None:
    """Things before the walls, the farthest first."""
    found = []
    for thing in plan.things:
        offset = (thing.x - at_2[0], thing.y - at_2[1])
        depth = offset[0] * ahead[0] + offset[1] * ahead[1]
        if depth > 0.15:
            found.append((depth, offset[0] * right[0] + offset[1] * right[1], thing))
    side = len(below_H)
    for depth, aside, thing in sorted(found, key=lambda f: -f[0]):
        radius, height = SHAPES[thing.shape]
        first, last = (int(side / 2 + pixels * (aside + s * radius) / depth) for s in (-1, 1))
        columns = slice(max(0, first), min(side, last + 1))
        if columns.start >= columns.stop:
            continue
        u_W = (across_W[columns] * depth - aside) / radius
        v_H = (EYE - below_H * depth) / height  # 0 at the floor, 1 at the top
        seen_HW = _covers(thing.shape, u_W, v_H[:, None]) & (depth_W[columns] > depth)
        light_W = np.clip(1.08 - 0.05 * depth, 0.55, 1.0) * (0.8 - 0.25 * u_W)
        colour_W3 = np.minimum(RGB[thing.colour] * light_W[:, None], 255)
        np.copyto(shown[:, columns], colour_W3[None].astype(np.float32), where=seen_HW[..., None])


def _covers(shape: str, u: Floats, v: Floats) -> NDArray[np.bool_]:
    """Where a thing covers what is behind it: u from −1 to 1 across, v from 0 to 1 upwards."""
    if shape == "cone":
        return (v >= 0) & (np.abs(u) <= 1 - v)
    if shape == "ball":
        return u * u + (2 * v - 1) ** 2 <= 1
    return (v >= 0) & (v <= 1) & (np.abs(u) <= 1)
