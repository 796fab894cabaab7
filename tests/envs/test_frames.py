"""Where a robot's base stands does not matter to what it feels and does in its hand's own frames."""

import gymnasium as gym
import numpy as np
import pytest

from fovea.envs.frames import Relative, turning
from fovea.envs.parts import Part, pack
from fovea.envs.watched import Watched, never
from fovea.math.frames import pose, rotation, turn
from fovea.tasks.gym import Gym

REACH = 0.1


class Arm(gym.Env):
    """A hand that moves and turns before an object that pulls at it; all of it as its base, which stands anywhere, tells it."""

    metadata = {"render_modes": [], "state": {"place": (0, 3), "turn": (3, 6), "velocity": (6, 9), "force": (9, 12)}}  # noqa: RUF012

    def __init__(self, base=None, chunk=1, packed=False):
        self.base, self.chunk, self.packed = np.eye(4) if base is None else base, chunk, packed
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (13,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (7 * chunk,), np.float32)
        if packed:
            self.parts = (Part("eye", (1, 1, 3), "uint8"), Part("state", (13,)))

    def reset(self, *, seed=None, options=None):
        rng = np.random.default_rng(seed)
        self.hand = self.base @ pose(*rng.normal(size=(2, 3)))
        self.thing, self.move = (self.base @ [*rng.normal(size=3), 1])[:3], np.zeros(3)
        self.grip = 0.0
        return self.look(), {}

    def step(self, action):
        for one in np.asarray(action, float).reshape(self.chunk, 7):
            self.move = one[:3]
            self.hand[:3, 3] += REACH * one[:3]
            self.hand[:3, :3] = rotation(REACH * one[3:6]) @ self.hand[:3, :3]
            self.grip = one[6]
        return self.look(), 0.0, False, False, {}

    def look(self):
        told = [self.hand[:3, 3], turn(self.hand[:3, :3]), self.move, self.thing - self.hand[:3, 3], [self.grip]]
        state = np.concatenate(told)
        return pack(self.parts, {"eye": np.full((1, 1, 3), 7), "state": state}) if self.packed else state

    def demonstrate(self):
        """Straight at the object, in the base's words."""
        away = self.thing - self.hand[:3, 3]
        return np.tile([*np.clip(away, -0.5, 0.5), 0, 0, 0.2, 0.5], self.chunk).astype(np.float32)


def played(env, actions, seed=3):
    seen = [env.reset(seed=seed)[0]]
    return np.array(seen + [env.step(a)[0] for a in actions])


ACTIONS = np.random.default_rng(1).uniform(-1, 1, (8, 7))
BASE = pose(np.array([2.0, -1.0, 0.5]), np.array([0.4, -1.1, 2.0]))


def test_where_the_base_stands_changes_nothing():
    here, there = (played(Relative(Arm(base)), ACTIONS) for base in (None, BASE))
    assert np.abs(here - there).max() < 1e-6
    assert np.abs(played(Arm(), ACTIONS) - played(Arm(BASE), ACTIONS)).max() > 1, "without frames it does"
    assert (here[0, :6] == pytest.approx(np.zeros(6), abs=1e-9)) and here[-1, 12] == ACTIONS[-1, 6], "the gripper is no direction"


def test_a_move_is_the_hands_own():
    env = Relative(Arm())
    env.reset(seed=0)
    env.unwrapped.hand = pose(np.zeros(3), np.array([0, 0, np.pi / 2]))
    env._told(env.unwrapped.look())
    seen = env.step(np.array([1.0, 0, 0, 0, 0, 0, 0]))[0]
    assert np.allclose(env.unwrapped.hand[:3, 3], [0, REACH, 0]), "its x is the base's y"
    assert np.allclose(seen[6:9], [1, 0, 0]), "and it feels itself move along its x"
    assert np.allclose(env.inward(np.array([0, 1.0, 0, 0, 0, 1.0, 0.5])), [1, 0, 0, 0, 0, 1, 0.5])


def test_chunks_and_rows_of_parts_are_told_alike():
    single, chunked = Relative(Arm(BASE, packed=True)), Relative(Arm(BASE, 2, packed=True))
    one, two = single.reset(seed=5)[0], chunked.reset(seed=5)[0]
    assert (one == two).all() and one[:3].tolist() == [7, 7, 7] and np.abs(one[3:].view(np.float32)[:6]).max() < 1e-6
    straight = np.array([0.5, 0, -0.5, 0, 0, 0, 0.1], np.float32)  # without turns a chunk is its actions one after another
    for _ in range(2):
        one = single.step(straight)[0]
    two = chunked.step(np.tile(straight, 2))[0]
    assert np.allclose(one[3:].view(np.float32), two[3:].view(np.float32), atol=1e-6)


class Helper:
    """Does what the environment shows, and remembers what was proposed."""

    def begin(self, scene, obs, rng): ...

    def takes(self, scene, proposed):
        self.proposed = proposed
        return scene.demonstrate()

    shows = sees = lambda self, *_: None


@pytest.mark.parametrize("within", [True, False])
def test_what_a_person_does_is_kept_in_the_hands_frame(within):
    scene, helper = Arm(BASE), Helper()
    env = Relative(Watched(scene, helper)) if within else Watched(Relative(scene), helper)
    env.reset(seed=2)
    before, frame = scene.hand.copy(), next(turning(env if within else env.env))
    meant, proposed = scene.demonstrate(), np.array([0.3, 0.2, 0.1, 0, 0, 0, 0], np.float32)
    noted = env.step(proposed)[4]["noted"]
    assert np.allclose(helper.proposed, [*before[:3, :3] @ proposed[:3], 0, 0, 0, 0], atol=1e-6), "a person sees the base's words"
    assert np.allclose(noted["action"][:3], before[:3, :3].T @ meant[:3], atol=1e-6) and noted["action"][6] == meant[6]
    assert np.allclose(scene.hand[:3, 3], before[:3, 3] + REACH * meant[:3], atol=1e-6) and frame is not None


@pytest.mark.parametrize("within", [True, False])
def test_what_is_kept_of_a_person_is_what_a_policy_could_have_done(within):
    scene, helper = Arm(pose(np.zeros(3), np.array([0, 0, np.pi / 4]))), Helper()
    env = Relative(Watched(scene, helper)) if within else Watched(Relative(scene), helper)
    scene.demonstrate = lambda: np.array([1.0, 1, 1, 0, 0, 1, 1], np.float32)
    for seed in range(5):
        env.reset(seed=seed)
        before = scene.hand.copy()
        kept = env.step(np.zeros(7, np.float32))[4]["noted"]["action"]
        inside = before[:3, :3].T @ np.ones(3)
        assert np.abs(inside).max() > 1.1 and np.allclose(kept[:3], np.clip(inside, -1, 1), atol=1e-6) and kept[6] == 1
        moved = (scene.hand[:3, 3] - before[:3, 3]) / REACH
        assert np.allclose(moved, np.ones(3) if within else before[:3, :3] @ kept[:3], atol=1e-6)


def test_frames_are_chosen_by_name_and_kept_in_held_out_episodes():
    made, held = (Gym.named("fovea/Insertion-v0,around=relative+never", split) for split in ("train", "heldout"))
    assert made.around == (Relative, never()) and made.heldout().around == (Relative,) == held.around
    with pytest.raises(ValueError, match="does not say where its hand is; expected metadata"):
        made.vector(1)
