import numpy as np
import pytest

from fovea.math.frames import adjoint, inverse, pose, rotation, skew, turn

QUARTER = np.pi / 2


def test_numbers_by_hand():
    T = pose(np.array([1.0, 2.0, 3.0]), np.array([0, 0, QUARTER]))
    assert np.allclose(T, [[0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]])
    assert np.allclose(inverse(T), [[0, 1, 0, -2], [-1, 0, 0, 1], [0, 0, 1, -3], [0, 0, 0, 1]])
    assert np.allclose(adjoint(T) @ [1, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 1]), "R v = y, and p × R ω = (2, −1, 0)"
    assert (skew(np.array([1, 2, 3])) @ [0, 0, 1]).tolist() == [2, -1, 0]
    since = inverse(pose(np.array([1.0, 0, 0]), np.array([0, 0, QUARTER]))) @ pose(np.array([1.0, 2, 0]), np.array([0, 0, np.pi]))
    assert np.allclose(since[:3, 3], [2, 0, 0]) and np.allclose(turn(since[:3, :3]), [0, 0, QUARTER])


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-6, 0.3, 2.0, np.pi - 1e-7, np.pi])
def test_a_turn_comes_back(angle):
    for axis in np.array([[1, 0, 0], [0, -1, 0], [0.6, 0, 0.8], [-2 / 3, 1 / 3, 2 / 3]]):
        R = rotation(angle * axis)
        assert np.allclose(R @ R.T, np.eye(3)) and np.isclose(np.linalg.det(R), 1)
        back = turn(R)
        assert np.allclose(rotation(back), R, atol=1e-9) and np.linalg.norm(back) <= np.pi + 1e-9
        assert angle == np.pi or np.allclose(back, angle * axis, atol=1e-7), "half a turn is both ways round"


def test_frames_within_frames():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = (pose(*rng.normal(size=(2, 3))) for _ in range(2))
        assert np.allclose(adjoint(a @ b), adjoint(a) @ adjoint(b)) and np.allclose(adjoint(inverse(a)) @ adjoint(a), np.eye(6))
        assert np.allclose(inverse(a) @ a, np.eye(4))
