"""Robots: scenes with experts, cameras the right way up, chunks, the same start for a seed, simulators that break."""

from dataclasses import replace

import numpy as np
import pytest

from fovea.envs.parts import Part, pack, unpack

pytest.importorskip("gymnasium")


def test_parts_of_an_observation_come_back_whatever_their_sizes():
    torch = pytest.importorskip("torch")
    parts = (Part("a", (1, 3), "uint8"), Part("b", (2,)), Part("c", (2, 2), "int64"))
    values = {"a": [[1, 2, 3]], "b": [0.5, -2.25], "c": [[1, -2], [3, 1 << 40]]}
    row = pack(parts, values)
    assert row.dtype == np.uint8 and row.shape == (3 + 8 + 32,)
    found = unpack(parts, torch.from_numpy(np.stack([row, row])).view(2, 1, -1))
    for p in parts:
        assert found[p.name].shape == (2, 1, *p.shape) and found[p.name][1, 0].tolist() == values[p.name]
    with pytest.raises(ValueError, match=r"part 'b': found an array \(3,\), expected \(2,\)"):
        pack(parts, values | {"b": [1, 2, 3]})


pytest.importorskip("mujoco")

from fovea.envs import mujoco as drawing  # noqa: E402
from fovea.envs.resolve import environment  # noqa: E402
from fovea.envs.robots import LETTERS, Robot, scene, spelled  # noqa: E402
from fovea.tasks.robots import Robots  # noqa: E402
from fovea.types import Action, Task  # noqa: E402

TASK = Task("t", "s", ())


@pytest.mark.parametrize("name", ["reach", "insert"])
def test_the_expert_solves_every_start_and_nobody_else_does(name):
    env = scene(name).env
    won = {"expert": 0, "random": 0}
    rng = np.random.default_rng(0)
    for kind in won:
        for seed in range(8):
            env.reset(seed=seed)
            over = reward = 0
            while not over:
                chunk = env.demonstrate() if kind == "expert" else rng.uniform(-1, 1, env.action_space.shape)
                _, reward, done, cut, info = env.step(chunk)
                over = done or cut
            assert info["measures"]["success"] == float(done) == reward
            won[kind] += done
    assert won["expert"] == 8 and won["random"] <= 3


def test_the_same_seed_is_the_same_start_and_another_is_another():
    a, b = scene("reach").env, scene("reach").env
    first = a.reset(seed=7)[0]
    a.step(a.demonstrate())
    assert (b.reset(seed=7)[0] == first).all() and (a.reset(seed=7)[0] == first).all()
    assert (b.reset(seed=8)[0] != first).any()


def test_the_hand_is_where_the_picture_shows_it():
    """Seen from the top: x to the right, y up."""
    env = scene("reach", size=64).env
    env.reset(seed=0)
    body = env.body
    for x, y in ((0.2, 0.2), (-0.2, 0.2), (0.1, -0.2)):
        body.data.qpos[:2] = x, y
        body.mj.mj_forward(body.model, body.data)
        rows, columns = (body.picture("top").max(-1) < 90).nonzero()
        assert np.sign(columns.mean() - 31.5) == np.sign(x) and np.sign(31.5 - rows.mean()) == np.sign(y)


def test_a_chunk_is_its_actions_one_after_another_and_ends_with_the_task():
    one, four = scene("reach", chunk=1).env, scene("reach", chunk=4).env
    one.reset(seed=2)
    four.reset(seed=2)
    chunk = np.linspace(-1, 1, 8)
    for action in chunk.reshape(4, 2):
        one.step(action)
    four.step(chunk)
    np.testing.assert_allclose(one.body.state(), four.body.state())
    assert one.steps == four.steps == 4
    four.steps = four.body.limit - 1
    _, _, done, cut, _ = four.step(np.zeros(8))
    assert cut and not done and four.steps == four.body.limit


class Breaks:
    instruction, dims, limit, cameras = "break", 1, 5, ("eye",)
    made = 0

    def __init__(self, how):
        self.how, Breaks.made = how, Breaks.made + 1

    def reset(self, seed):
        self.at = 0.0

    def step(self, action):
        if self.how == "raises":
            raise OSError("the simulator is gone")
        self.at = float("nan") if self.how == "explodes" else self.at + 1
        return 0.0, False

    def state(self):
        return np.array([self.at], np.float32)

    def picture(self, camera):
        return np.zeros((4, 4, 3), np.uint8) if self.how == "black" else np.arange(48, dtype=np.uint8).reshape(4, 4, 3)

    def close(self):
        pass


@pytest.mark.parametrize(("how", "says"), [("raises", "OSError: the simulator is gone"), ("explodes", "not finite")])
def test_a_simulator_that_breaks_costs_one_episode(how, says):
    env = Robot(lambda: Breaks(how))
    env.reset(seed=0)
    made = Breaks.made
    with pytest.warns(UserWarning, match=says):
        seen, reward, done, cut, info = env.step([0.0])
    assert (reward, done, cut, info["crashed"], env.crashes, Breaks.made) == (0.0, False, True, True, 1, made + 1)
    assert np.isfinite(seen).all() and env.reset(seed=1)[0].shape == seen.shape


@pytest.mark.filterwarnings("error")
def test_a_scene_that_explodes_is_replaced_and_not_put_back_to_its_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where MuJoCo writes its log
    env = scene("reach").env
    env.reset(seed=0)
    env.body.data.qpos[0] = np.nan
    with pytest.warns(UserWarning, match="not finite"):
        _, reward, done, cut, info = env.step(np.zeros(8))
    assert (reward, done, cut, info["crashed"]) == (0.0, False, True, True)
    with pytest.raises(ValueError, match=r"'reach the .* pad', step 0: found the action .*nan.*, expected finite numbers"):
        env.step(np.full(8, np.nan))


def test_a_first_picture_of_one_colour_is_refused():
    with pytest.raises(RuntimeError, match=r"Breaks, camera 'eye': its first picture is of one colour"):
        Robot(lambda: Breaks("black")).reset(seed=0)


def test_a_policy_that_reads_and_writes_is_told_the_instruction():
    env = environment("scene:insert,camera=top+front,size=24")()
    seen = env.reset(TASK, 3)
    colour = env.env.body.colour
    assert f"Put the peg into the {colour} hole. Move by 12 numbers." in str(seen.messages) and len(seen.images) == 2
    assert seen.array["front"].shape == (24, 24, 3)
    over, info = False, {}
    while not over:
        said = env.demonstrate()
        _, _, done, cut, info = env.step(Action(said))
        over = done or cut
    assert info["measures"]["success"] == 1.0 and info["legal"]
    env.reset(TASK, 3)
    assert not env.step(Action("left a bit"))[4]["legal"]
    env.close()


def test_an_instruction_is_told_in_bytes():
    row = spelled("reach the rêd pad")
    assert row.dtype == np.uint8 and row.shape == (LETTERS,)
    assert bytes(row).rstrip(b"\0").decode() == "reach the rêd pad" and len(spelled("x" * 500)) == LETTERS


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("scene:fly", "no scene 'fly'; there are: reach, insert"),
        ("scene:reach,camera=back", "camera 'back'; expected one of top, front"),
        ("scene:reach,chunk=0", "expected at least 1"),
        ("scene:reach,camera=top+top", "camera 'top.top'; expected each of them once"),
        ("scene:reach,size=0", "size = 0; expected 1 to 4096 pixels"),
        ("scene:reach,size=64000", "size = 64000; expected 1 to 4096 pixels"),
    ],
)
def test_wrong_names_are_explained(name, says):
    with pytest.raises(ValueError, match=says):
        environment(name)


def test_osmesa_is_taken_where_egl_has_no_device_and_what_to_install_is_said(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(drawing, "_egl_devices", lambda: 0)
    monkeypatch.setattr(drawing, "find_library", lambda name: None)
    with pytest.raises(ImportError, match="libegl1 libegl-mesa0 libgl1, or libosmesa6"):
        drawing.offscreen()
    monkeypatch.setattr(drawing, "find_library", lambda name: "libOSMesa.so.8")
    told = []
    monkeypatch.setattr(drawing, "_tell", told.append)
    assert drawing.offscreen() == "osmesa" and told == ["osmesa"]
    monkeypatch.setenv("MUJOCO_GL", "egl")
    assert drawing.offscreen() == "egl"


def test_shadows_can_be_brought_back():
    with_them, without = (scene("insert", size=48, shadows=s).env for s in (True, False))
    with_them.reset(seed=1)
    without.reset(seed=1)
    assert not with_them.body.data.qpos.any() or (with_them.body.data.qpos == without.body.data.qpos).all()
    from fovea.envs.scenes import _lens

    flags = [_lens("Insert", 48, s).flags for s in (True, False)]
    assert all(flags[0].values()) and not any(flags[1].values())
    quality = [env.body.model.vis.quality.shadowsize for env in (with_them, without)]
    assert quality[0] > 0 and quality[1] == 0, "one way to draw does not change the other"


FALLING = """<mujoco><worldbody><geom type="box" size="1 .5 .1" rgba="1 0 0 1"/><geom type="box" pos="1 1 0" size=".3 .3 .1"/>
<camera name="fixed" pos="0 0 3" xyaxes="-1 0 0 0 -1 -0.01"/>
<body pos="0 0 3"><freejoint/><geom size=".01"/><camera name="held" xyaxes="-1 0 0 0 -1 -0.01"/></body></worldbody></mujoco>"""


def test_a_camera_in_the_world_is_turned_and_one_that_is_held_is_not():
    import mujoco

    model = mujoco.MjModel.from_xml_string(FALLING)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    lens = drawing.Lens(model, 32)
    fixed, held = lens.picture(data, "fixed"), lens.picture(data, "held")
    lens.close()
    assert (fixed != held).any() and np.abs(fixed.astype(int) - held[::-1, ::-1]).mean() < 2


def test_meta_world_is_the_right_way_up_and_its_expert_wins():
    pytest.importorskip("metaworld")
    from fovea.envs.robots import metaworld

    env = metaworld(size=48, camera="corner+topview").env
    env.reset(seed=3)
    picture = env.body.picture("corner").astype(float)
    model, data = env.body.env.model, env.body.env.data
    assert data.cam("corner").xmat.reshape(3, 3)[2, 1] < 0, "its camera hangs upside down"
    hand = data.body("hand").xpos - data.cam("corner").xpos
    right, up, back = data.cam("corner").xmat.reshape(3, 3).T
    scale = 24 / np.tan(np.radians(model.cam("corner").fovy[0] / 2)) / -(hand @ back)
    column, row = 24 - scale * (hand @ right), 24 + scale * (hand @ up)
    assert 0 < column < 48 and 0 < row < 48 and picture.std() > 10
    model.geom_rgba[:, :] = (0, 0, 0, 1)
    for geom in range(model.ngeom):
        if model.geom_bodyid[geom] == model.body("hand").id:
            model.geom_rgba[geom], model.geom_matid[geom] = (1, 0, 1, 1), -1
    found = env.body.picture("corner").astype(int)
    rows, columns = ((found[..., 0] > 60) & (found[..., 2] > 60) & (found[..., 1] < 60)).nonzero()
    if len(rows):
        assert abs(rows.mean() - row) < 8 and abs(columns.mean() - column) < 8
    over = done = False
    while not over:
        _, _, done, cut, _ = env.step(env.demonstrate())
        over = done or cut
    assert done
    env.close()


def test_an_expert_of_meta_world_knows_the_goal_after_every_step():
    """Reaching is all about it; the package cuts the goal to 0 where it takes it for hidden."""
    pytest.importorskip("metaworld")
    from fovea.envs.robots import metaworld

    env = metaworld("reach-v3", size=8, chunk=1).env
    env.reset(seed=3)
    goal, over, done = env.body.obs[-3:].copy(), False, False
    while not over:
        _, _, done, cut, _ = env.step(env.demonstrate())
        over = done or cut
        assert (env.body.obs[-3:] == goal).all() and goal.all()
    assert done and env.steps < 80
    env.close()


def test_gymnasium_robotics_shows_where_its_goal_is():
    pytest.importorskip("gymnasium_robotics")
    from fovea.envs.robots import gymrobotics

    env = gymrobotics(size=32).env
    first = env.reset(seed=3)[0]
    assert (env.reset(seed=3)[0] == first).all() and (env.reset(seed=4)[0] != first).any()
    _, reward, done, _, info = env.step(np.zeros(env.action_space.shape))
    assert info["measures"]["success"] == float(done) == reward
    env.close()


def test_a_row_of_observations_of_parts_is_refused():
    with pytest.raises(ValueError, match=r"stack = 2; expected 1: what a robot sees and feels has parts"):
        source = replace(Robots.named("scene:reach", "train"), stack=2)
        source.spaces(source.vector(1))
