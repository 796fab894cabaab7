"""The point mass before a drifting background, and simulators by their own ids."""

import itertools

import numpy as np
import pytest

from fovea.envs import registered
from fovea.envs.drift import Drift
from fovea.envs.gym import vector
from fovea.envs.pixels import PointMass


def played(env, seed, steps=5):
    obs, info = env.reset(seed=seed)
    rng, out = np.random.default_rng(seed), [(obs, 0.0, info["truth"])]
    for _ in range(steps):
        obs, reward, _, _, info = env.step(rng.uniform(-1, 1, 2))
        out.append((obs, reward, info["truth"]))
    return out


def test_a_seed_gives_the_same_pictures_and_rewards():
    for a, b in zip(played(PointMass(), 3), played(PointMass(), 3)):
        assert np.array_equal(a[0], b[0]) and a[1] == b[1]
    assert not np.array_equal(played(PointMass(), 3)[0][0], played(PointMass(), 4)[0][0])


def test_reward_and_moves_by_hand():
    env = PointMass(paid=2.0, limit=3)
    env.reset(seed=0)
    env.at = np.array([0.2, 0.3])
    _, reward, over, cut, info = env.step([1.0, 0.0])
    assert reward == pytest.approx(2 * np.exp(-4 * 0.4)) and info["truth"]["agent"].tolist() == pytest.approx([0.3, 0.3])
    assert env.step([5.0, -20.0])[4]["truth"]["agent"].tolist() == pytest.approx([0.4, 0.2]), "actions are clipped to ±1"
    assert (over, cut) == (False, False) and env.step([0, 0])[3]


def test_the_red_square_is_where_the_agent_is():
    env = PointMass(distractors=False)
    env.reset(seed=0)
    env.at = np.array([1.0, 0.0])
    picture = env.render()
    red = np.argwhere((picture == (255, 0, 0)).all(-1))
    assert red.min(0).tolist() == [0, 28] and red.max(0).tolist() == [3, 31] and len(red) == 16
    assert int((picture > 0).any(-1).sum()) == 32, "black but for two squares"


def test_inverted_pictures_are_the_same_world_in_other_colours():
    for a, b in zip(played(PointMass(), 1), played(PointMass(inverted=True), 1)):
        assert np.array_equal(255 - a[0], b[0]) and a[1] == b[1]


def test_only_the_background_differs_with_other_textures_and_none():
    one, other, none = (played(PointMass(**kw), 1) for kw in ({}, {"textures": 1}, {"distractors": False}))
    for a, b in zip(one, other):
        assert a[1] == b[1] and np.array_equal(a[2]["background"], b[2]["background"])
        assert 0.5 < (a[0] != b[0]).any(-1).mean() < 1 and (a[0] == b[0]).all(-1).sum() >= 16
    assert one[0][2]["agent"].tolist() == none[0][2]["agent"].tolist() and none[0][2]["background"].size == 0


def test_a_background_moves_at_every_step_and_is_as_loud_as_the_agent():
    shown = [picture.astype(float) for picture, _, _ in played(PointMass(), 0, 30)]
    assert all(np.abs(a - b).mean() > 5 for a, b in itertools.pairwise(shown))
    assert 30 < np.mean([s.std() for s in shown]) < 110


def test_textures_are_sums_of_sinusoids_by_hand():
    drift = Drift(5, 7, channels=2, count=3, seed=4)
    phase = np.array([0.3, -1.0, 2.0])
    parts = []
    for j in range(3):
        alone = np.zeros((3, 2))
        alone[j] = [np.cos(phase[j]), np.sin(phase[j])]
        parts.append((np.concatenate([alone[:, 0], alone[:, 1]]).astype(np.float32) @ drift.basis).reshape(5, 7, 2))
    assert np.allclose(drift.draw(phase), sum(parts), atol=1e-6)
    many = drift.draw(np.stack([phase, phase + 2 * np.pi]))
    assert many.shape == (2, 5, 7, 2) and np.allclose(many[0], many[1], atol=1e-5), "a whole turn changes nothing"


def test_phases_keep_their_spread():
    drift, rng = Drift(2, 2, count=4000, keep=0.9, spread=2.0), np.random.default_rng(0)
    phase = first = drift.begin(rng)
    for _ in range(3):
        phase = drift.go_on(phase, rng)
    assert phase.std() == pytest.approx(2.0, abs=0.1) and np.corrcoef(first, phase)[0, 1] == pytest.approx(0.9**3, abs=0.05)


def test_own_ids():
    envs = vector("fovea/PointMass-v0", 2, unit_actions=True, limit=7)
    obs, info = envs.reset(seed=[1, 2])
    assert obs.shape == (2, 32, 32, 3) and info["truth"]["agent"].shape == (2, 2) and info["truth"]["background"].shape == (2, 16)
    for wrong in ("PointMass", "PointMas-v0", "PointMass-v1"):
        with pytest.raises(ValueError, match=rf"gym:fovea/{wrong}: .* a name and its version, such as gym:fovea/PointMass-v0"):
            registered.register(f"fovea/{wrong}")
