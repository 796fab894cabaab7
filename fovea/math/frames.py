"""Frames of a robot: poses as homogeneous matrices, turns as rotation vectors (axis times angle in radians), twists (v, ω).

T = [R p; 0 1]      Ad_T = [R [p]R; 0 R]      (Lynch and Park, Modern Robotics, sections 3.3.1 and 3.3.2, with v before ω)
"""

from __future__ import annotations

import numpy as np


def skew(p_3: np.ndarray) -> np.ndarray:
    """[p], (3, 3): [p] q = p × q."""
    x, y, z = np.asarray(p_3, float)
    return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])


def rotation(turn_3: np.ndarray) -> np.ndarray:
    """The matrix of a turn (Rodrigues), (3, 3)."""
    angle = float(np.linalg.norm(turn_3))
    if angle < 1e-9:
        return np.eye(3) + skew(turn_3)
    axis = skew(np.asarray(turn_3, float) / angle)
    return np.eye(3) + np.sin(angle) * axis + (1 - np.cos(angle)) * axis @ axis


def turn(rotation_33: np.ndarray) -> np.ndarray:
    """The turn of a matrix, by at most π: the inverse of `rotation`, (3,)."""
    R = np.asarray(rotation_33, float)
    # through the quaternion's largest component, which does not lose its digits near half a turn
    square = np.array([1 + np.trace(R), *(1 + 2 * np.diag(R) - np.trace(R))]) / 4
    most, odd = int(square.argmax()), np.array([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]])
    if most == 0:
        w, v = np.sqrt(square[0]), odd / (4 * np.sqrt(square[0]))
    else:
        i = most - 1
        v = (R[:, i] + R[i, :]) / (4 * np.sqrt(square[most]))
        v[i] = np.sqrt(square[most])
        w = odd[i] / (4 * v[i])
        v, w = (v, w) if w >= 0 else (-v, -w)
    size = float(np.linalg.norm(v))
    return 2 * v if size < 1e-9 else 2 * np.arctan2(size, w) * v / size


def pose(place_3: np.ndarray, turn_3: np.ndarray) -> np.ndarray:
    """T, (4, 4)."""
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = rotation(turn_3), place_3
    return T


def inverse(pose_44: np.ndarray) -> np.ndarray:
    """T⁻¹ = [Rᵀ −Rᵀp; 0 1]."""
    R, p = pose_44[:3, :3], pose_44[:3, 3]
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = R.T, -R.T @ p
    return T


def adjoint(pose_44: np.ndarray) -> np.ndarray:
    """Ad_T, (6, 6): takes a twist (v, ω) told in the frame T into the one that T is told in."""
    R, p = pose_44[:3, :3], pose_44[:3, 3]
    return np.block([[R, skew(p) @ R], [np.zeros((3, 3)), R]])
