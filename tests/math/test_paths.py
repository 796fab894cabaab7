"""SPL and nDTW by hand, and dynamic time warping against every alignment."""

import math

import numpy as np
import pytest

from fovea.math.paths import dtw, length, ndtw, spl


def test_spl_by_hand():
    assert spl(True, 10, 12) == pytest.approx(10 / 12) and spl(False, 10, 10) == 0
    assert spl(True, 10, 9) == 1 and spl(True, 0, 0) == 1


def test_ndtw_by_hand():
    way = [(0, 0), (1, 0)]
    assert ndtw(way, way, 3.0) == 1 and length([(0, 0), (3, 4), (3, 5)]) == 6
    assert ndtw(way, [(0, 0), (1, 1)], 3.0) == pytest.approx(math.exp(-1 / 6))
    assert ndtw(way, [(0, 0), (0, 0), (1, 0)], 3.0) == 1  # a rest costs nothing


def every_alignment(a, b):
    far = math.dist(a[0], b[0])
    if len(a) == len(b) == 1:
        return far
    rest = [(a[i:], b[j:]) for i, j in ((1, 1), (1, 0), (0, 1)) if len(a) > i and len(b) > j]
    return far + min(every_alignment(x, y) for x, y in rest)


def test_dtw_is_the_best_of_all_alignments():
    rng = np.random.default_rng(0)
    for n, m in ((1, 4), (4, 1), (3, 5), (5, 5)):
        a, b = rng.normal(size=(n, 2)), rng.normal(size=(m, 2))
        assert dtw(a, b) == pytest.approx(every_alignment(a.tolist(), b.tolist()))
