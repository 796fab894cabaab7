import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from fovea.envs.gym import InWords, last_named, vector
from fovea.envs.pixels import Reach
from fovea.rollout.engine import Engine
from fovea.rollout.sampling import Sampling
from fovea.tasks.gym import Gym
from fovea.types import Task
from tests.rollout.fake_policy import FakePolicy, scripted

TASK = Task(id="reach", source="pixels", prompt=(), meta={"seed": 3})


@pytest.mark.parametrize("continuous", [False, True])
def test_reach_keeps_gymnasiums_rules(continuous):
    check_env(Reach(continuous=continuous), skip_render_check=True)


def test_reach_by_hand():
    env = Reach(limit=3)
    env.reset(seed=0)
    env.at, env.target = np.array([0.0, 0.0]), np.array([4.0, 4.0])
    assert env.step(0)[1:4] == (-0.02, False, False)  # against the wall: it stays
    assert env.step(1)[1:4] == (-0.02, False, False)
    picture, reward, terminated, truncated, _ = env.step(3)
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert (picture[4:8, 4:8] == 255).all() and picture.sum() == 255 * 3 * 16


def test_the_limit_truncates():
    env = Reach(limit=2)
    env.reset(seed=0)
    env.at, env.target = np.array([0.0, 0.0]), np.array([12.0, 12.0])
    assert [env.step(0)[2:4] for _ in range(2)] == [(False, False), (False, True)]


def test_in_words_shows_one_picture_per_turn_and_books_rewards():
    policy = FakePolicy(scripted({"Choose one of: up, down, left, right.": "go UP now"}))
    make = lambda: InWords(lambda: Reach(limit=3), ("up", "down", "left", "right"))  # noqa: E731
    (group,) = Engine(policy, environment=make).rollout([TASK], 2, Sampling(temperature=0))
    a, b = group.episodes
    assert len(a.segments) == 3 and a.stop == "cut" and a.segments[-1].bootstrap
    assert [s.reward for s in a.segments] == [(-0.02,)] * 3
    assert [s.prefix.key for s in a.segments] == [s.prefix.key for s in b.segments]


def test_an_answer_that_names_no_action_does_not_move():
    env = InWords(Reach, ("up", "down", "left", "right"), invalid_reward=-0.3, max_turns=2)
    before = env.reset(TASK, 0).images[0]
    from fovea.types import Action

    after, reward, terminated, truncated, info = env.step(Action("sideways"))
    assert after.images[0].tobytes() == before.tobytes() and (reward, terminated, truncated, info) == (
        -0.3,
        False,
        False,
        {"invalid": True},
    )
    assert env.step(Action("sideways"))[3]


@pytest.mark.parametrize(("text", "index"), [("left, no: right", 3), ("LEFT", 2), ("stay", None), ("", None)])
def test_last_named(text, index):
    assert last_named(text, ("up", "down", "left", "right")) == index


def test_the_longer_of_two_names_at_the_same_place_wins():
    assert last_named("turn right", ("turn", "turn right")) == 1 and last_named("RIGHTFIRE", ("fire", "rightfire", "right")) == 1


def test_vector_has_no_autoreset():
    assert vector(Reach, 2).metadata["autoreset_mode"].name == "DISABLED"
    assert vector("CartPole-v1", 2).metadata["autoreset_mode"].name == "DISABLED"


def test_observations_in_a_row_are_shown_side_by_side():
    envs = vector(Reach, 2, stack=3, size=8, limit=9)
    first, _ = envs.reset(seed=[1, 2])
    assert envs.single_observation_space.shape == (8, 8, 9) and first.shape == (2, 8, 8, 9)
    assert (first[..., :3] == first[..., 3:6]).all() and (first[..., 3:6] == first[..., 6:]).all(), "the first is repeated"
    second = envs.step(np.array([0, 1]))[0]
    assert (second[..., :6] == first[..., 3:]).all() and (second[..., 6:] != first[..., 6:]).any()
    with pytest.raises(ValueError, match="observations of Discrete cannot be stacked; expected a Box"):
        vector("FrozenLake-v1", 1, stack=2)


def test_actions_of_any_range_become_unit_ones():
    envs = vector("Pendulum-v1", 1, unit_actions=True)
    raw = vector("Pendulum-v1", 1)
    assert (envs.single_action_space.low, envs.single_action_space.high) == (-1, 1) and raw.single_action_space.high == 2
    envs.reset(seed=0), raw.reset(seed=0)
    assert np.allclose(envs.step(np.array([[0.5]], np.float32))[0], raw.step(np.array([[1.0]], np.float32))[0])


@pytest.mark.parametrize(
    ("name", "says"), [("FrozenLake-v1", "FrozenLake-v1 shows Discrete.*; expected a vector, or a picture"), ("Nope-v0", "gym:Nope-v0: .*")]
)
def test_a_simulator_that_cannot_be_played_is_named(name, says):
    with pytest.raises(ValueError, match=says):
        Gym(name).spaces(Gym(name).vector(1))
