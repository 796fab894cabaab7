"""Twins of simulators: the same state in both, noted where there is one; wrong ones are refused."""

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest

from fovea.envs.pixels import PointMass
from fovea.envs.twin import Twin
from fovea.policies.control import Random, Spaces
from fovea.rollout.vector import VectorEngine
from fovea.tasks.gym import Gym

INVERTED = {"inverted": True, "limit": 5}


def episodes(rule, count=8):
    source = Gym("fovea/PointMass-v0", INVERTED, around=(rule,))
    engine = VectorEngine(Random(Spaces((32, 32, 3), 2, False)), source.vector(2))
    groups = engine.rollout([source[i] for i in range(count)], 1)
    engine.close()
    return [g.episodes[0].segments[0].extras for g in groups]


def test_a_twin_shows_the_state_that_the_unit_was_chosen_on():
    for extras in episodes(Twin({"inverted": False}, share=1.0)):
        assert bool(extras["paired"].all()) and len(extras["obs"]) == 5
        assert np.array_equal(extras["twin"].numpy(), 255 - extras["obs"].numpy())


def test_a_share_of_the_episodes_has_a_twin_and_always_the_same_ones():
    found = episodes(Twin({"inverted": False}, share=0.5), 30)
    paired = [bool(e["paired"].any()) for e in found]
    assert 5 < sum(paired) < 25 and all(bool(e["paired"].all()) == p for e, p in zip(found, paired, strict=True))
    assert [bool(e["paired"].any()) for e in episodes(Twin({"inverted": False}, share=0.5), 30)] == paired
    assert not any(e["paired"].any() for e in episodes(Twin(share=0.0)))


def test_one_that_began_elsewhere_is_a_stranger():
    extras = episodes(Twin({"inverted": False}, share=1.0, apart=1), 1)[0]
    red = 255 - extras["obs"].numpy()
    assert bool(extras["paired"].all()) and not any(np.array_equal(a, b) for a, b in zip(extras["twin"].numpy(), red, strict=True))


def test_held_out_episodes_have_none():
    assert Gym("fovea/PointMass-v0", INVERTED, around=(Twin(),)).heldout().around == ()


def test_without_a_seed_both_start_together_somewhere_else_each_time():
    env = Twin({"inverted": False}, share=1.0)(gym.make("fovea/PointMass-v0", **INVERTED))
    env.reset(seed=0)
    starts = []
    for _ in range(3):
        obs, _ = env.reset()
        twin = env.step(np.zeros(2, np.float32))[-1]["noted"]["twin"]
        assert np.array_equal(twin, 255 - obs)
        starts.append(obs.tobytes())
    assert len(set(starts)) == 3


def test_what_is_no_twin_is_refused():
    with pytest.raises(ValueError, match="its twin ended before it; expected a deterministic simulator"):
        episodes(Twin({"limit": 3}, share=1.0))
    assert not episodes(Twin({"limit": 3}, share=1.0, apart=1), 1)[0]["paired"][3:].any(), "a stranger may end earlier"
    with pytest.raises(ValueError, match="found no id, expected a simulator that Gymnasium knows"):
        Twin()(PointMass())
    with pytest.raises(ValueError, match=r"Twin.share is 1.5"):
        Twin(share=1.5)


def test_the_twin_does_what_was_really_done():
    done = []
    twin = SimpleNamespace(observation_space=PointMass().observation_space, step=lambda a: (done.append(a), 0, False, False, {}))
    from fovea.envs.twin import Twinned

    class Taken(PointMass):
        def step(self, action):
            obs, reward, terminated, truncated, info = super().step(action)
            return obs, reward, terminated, truncated, {**info, "noted": {"action": -action}}

    env = Twinned(Taken(), twin, Twin(share=0.0))
    env.reset(seed=0)
    env.paired = True
    info = env.step(np.array([0.5, 0.0]))[-1]
    assert done[0].tolist() == [-0.5, 0.0] and info["noted"]["action"].tolist() == [-0.5, 0.0]
