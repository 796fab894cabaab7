"""dm_control in pixels: seeds, the sky, the switch for shadows, names."""

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("dm_control")

from fovea.envs.dmc import Suite
from fovea.envs.gym import vector


@pytest.fixture(scope="module")
def pair():
    made = Suite("walker-walk", size=32), Suite("walker-walk", size=32, background=False)
    yield made
    for env in made:
        env.close()


def test_a_seed_gives_the_same_episode_before_any_background(pair):
    first = {env: env.reset(seed=5) for env in pair}
    truths = [info["truth"]["agent"].tolist() for _, info in first.values()]
    assert truths[0] == truths[1]
    shown = [env.step(np.full(6, 0.3, np.float32)) for env in pair]
    again = pair[0].reset(seed=5)[0], pair[0].step(np.full(6, 0.3, np.float32))
    assert np.array_equal(again[0], first[pair[0]][0]) and np.array_equal(again[1][0], shown[0][0])
    assert shown[0][1] == shown[1][1] == again[1][1]
    assert pair[0].reset(seed=6)[1]["truth"]["agent"].tolist() != truths[0]


def test_only_what_is_bluest_is_replaced_and_by_grey(pair):
    (drifting, _), (plain, _) = (env.reset(seed=1) for env in pair)
    blue = (plain[..., 2] > plain[..., 0]) & (plain[..., 2] > plain[..., 1])
    assert 0.3 < blue.mean() < 1 and np.array_equal(drifting[~blue], plain[~blue])
    assert (np.ptp(drifting[blue], axis=-1) == 0).all() and drifting[blue].std() > 20


def test_an_action_is_repeated_and_the_limit_cuts(pair):
    env = pair[1]
    env.reset(seed=0)
    before = env.env.physics.data.time
    assert isinstance(env.step(np.zeros(6, np.float32))[1], float)
    assert env.env.physics.data.time - before == pytest.approx(2 * env.env.control_timestep())
    env.env._step_count = env.env._step_limit - 1
    _, _, ended, cut, _ = env.step(np.zeros(6, np.float32))
    assert cut and not ended


def test_the_fast_flags_are_a_switch(pair):
    assert pair[0].env.physics.model.vis.quality.shadowsize == 0 and pair[0].flags == {"shadow": False, "reflection": False}
    slow = Suite("walker-walk", size=32, fast=False)
    assert slow.env.physics.model.vis.quality.shadowsize > 0 and slow.flags == {}


def test_a_first_picture_of_one_colour_is_refused(monkeypatch, pair):
    env = pair[0]
    monkeypatch.setattr(env, "_scene", lambda: np.zeros((32, 32, 3), np.uint8))
    monkeypatch.setattr(env, "checked", False)
    with pytest.raises(
        RuntimeError, match=r"dmc/walker-walk: its first picture is of one colour.*MUJOCO_GL=egl, which takes Debian's libegl1"
    ):
        env.reset(seed=0)


def test_unknown_tasks_are_named():
    with pytest.raises(ValueError, match="dmc/walker-wlak: no such task; expected DOMAIN-TASK, such as walker-walk"):
        vector("dmc/walker-wlak-v0", 1)


def test_a_renderer_that_was_there_before_is_closed_in_time_at_the_end_of_the_process():
    program = """
from fovea.envs.mujoco import Lens, offscreen
offscreen()
import mujoco
lens = Lens(mujoco.MjModel.from_xml_string("<mujoco/>"), 8)
from fovea.envs.dmc import Suite
Suite("point_mass-easy")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0 and not ended.stderr, ended.stderr
