"""How well a path was walked: SPL and nDTW.

    SPL  = S l / max(p, l)                              Anderson et al. 2018 (arXiv 1807.06757)
    nDTW = exp(−DTW(R, Q) / (|R| d))                    Ilharco et al. 2019 (arXiv 1907.05446), eq. 1

S is 1 for a success, l the length of the shortest path, p that of the path taken; R is the reference path, Q the one taken, d the distance
within which a goal counts as reached.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike


def length(path_K2: ArrayLike) -> float:
    """Length of a path through K points."""
    return float(np.linalg.norm(np.diff(np.asarray(path_K2, float), axis=0), axis=1).sum())


def spl(success: bool, shortest: float, taken: float) -> float:
    """Success weighted by path length; 1 where the shortest path has no length."""
    longest = max(taken, shortest)
    return float(success) * (shortest / longest if longest > 0 else 1.0)


def dtw(reference_K2: ArrayLike, taken_L2: ArrayLike) -> float:
    """Dynamic time warping: the least sum of distances over all ways to walk both paths forwards together, start to end."""
    a, b = np.asarray(reference_K2, float), np.asarray(taken_L2, float)
    far_KL = np.linalg.norm(a[:, None] - b[None], axis=-1)
    row = np.cumsum(far_KL[0])
    for far_L in far_KL[1:]:
        above, row = row, np.empty_like(row)
        row[0] = above[0] + far_L[0]
        for j in range(1, len(row)):
            row[j] = far_L[j] + min(above[j], above[j - 1], row[j - 1])
    return float(row[-1])


def ndtw(reference_K2: ArrayLike, taken_L2: ArrayLike, near: float) -> float:
    """1 for the reference itself, towards 0 the farther from it; `near` is d above."""
    return math.exp(-dtw(reference_K2, taken_L2) / (len(np.asarray(reference_K2)) * near))
