"""Simulators of others in words: each runs, keeps the contract, starts alike from equal seeds; a dead one costs one episode."""

import gymnasium as gym
import numpy as np
import pytest

from fovea.checks import check_environment, check_source
from fovea.envs.gym import InWords, refuse_constant
from fovea.envs.pixels import Reach
from fovea.envs.pool import Pool
from fovea.envs.resolve import ENVIRONMENTS, environment
from fovea.rollout.engine import Engine
from fovea.rollout.sampling import Sampling
from fovea.tasks.resolve import pair
from fovea.types import Action, Task
from tests.rollout.fake_policy import FakePolicy, scripted

TASK = Task("t", "sim", ())
SIMULATORS = {
    "minigrid": ((56, 56), ("left", "right", "forward", "pick up", "drop", "toggle", "done")),
    "miniworld": ((80, 60), ("left", "right", "forward")),
    "atari": ((160, 210), ("noop", "fire", "right", "left", "rightfire", "leftfire")),
    "vizdoom": ((320, 240), ("wait", "attack", "move right", "move left")),
}


@pytest.mark.parametrize("name", SIMULATORS)
def test_a_simulator_runs_in_words(name):
    if problem := ENVIRONMENTS[name].problem():
        pytest.skip(problem)
    make = environment(ENVIRONMENTS[name].example)
    check_environment(make, TASK, max_steps=4)
    env = make()
    first = env.reset(TASK, 3)
    size, actions = SIMULATORS[name]
    assert first.images[0].size == size and env.actions == actions
    assert env.reset(TASK, 3).images[0].tobytes() == first.images[0].tobytes()
    *_, info = env.step(Action(f"I choose {actions[-1]}."))
    assert info["legal"]
    env.close()


def test_a_solved_grid_earns_what_the_card_says():
    pytest.importorskip("minigrid")
    env = environment("minigrid:MiniGrid-Empty-5x5-v0,fail=-1,frames=3")()
    shown = env.reset(TASK, 0)
    assert shown.messages[0]["content"][-1]["text"].startswith("Get to the green goal square. Choose one of: left, ")
    for word in ("forward", "forward", "right", "forward", "forward"):
        shown, reward, terminated, _, info = env.step(Action(word))
    assert terminated and reward == pytest.approx(1 - 0.9 * 5 / 100) and info["measures"]["success"] == 1 and len(shown.images) == 3
    env = environment("minigrid:MiniGrid-Empty-5x5-v0,fail=-1,max_turns=2")()
    env.reset(TASK, 0)
    assert [env.step(Action("left"))[1:4] for _ in range(2)] == [(0, False, False), (-1, False, True)]


def test_a_grid_that_is_not_there_is_named():
    pytest.importorskip("minigrid")
    with pytest.raises(ValueError, match=r"environment = 'minigrid:MiniGrid-Emty-5x5-v0': .*MiniGrid-Emty"):
        environment("minigrid:MiniGrid-Emty-5x5-v0")


def test_the_fourth_action_of_miniworld_goes_back():
    if problem := ENVIRONMENTS["miniworld"].problem():
        pytest.skip(problem)
    env = environment("miniworld:MiniWorld-OneRoom-v0,back=true")()
    env.reset(TASK, 1)
    before = env.env.unwrapped.agent.pos.copy()
    assert env.actions[-1] == "back" and env.step(Action("back"))[4]["legal"]
    assert np.linalg.norm(env.env.unwrapped.agent.pos - before) > 0.05
    env.close()


def test_seeds_are_starts_of_which_some_are_held_out():
    train, held = pair("seeds:grid", seed=4)
    check_source(train, 6)
    starts = [[source[i].meta["seed"] for i in range(30)] for source in (train, held)]
    assert not set(starts[0]) & set(starts[1]) and len(set(starts[0])) == 30 and train[0].source == "grid"
    assert held[3].meta == pair("seeds:grid", seed=5)[1][3].meta


def test_several_names_of_starts_take_turns():
    train, held = pair("seeds:near,far", seed=4)
    check_source(train, 6)
    assert [(t.source, t.meta["what"]) for t in (train[i] for i in range(3))] == [("near",) * 2, ("far",) * 2, ("near",) * 2]
    assert train[2].meta["seed"] == pair("seeds:near", seed=4)[0][1].meta["seed"] and held[0].meta["seed"] == held[1].meta["seed"]


class Black(Reach):
    def render(self):
        return np.zeros((16, 16, 3), np.uint8)


def test_a_first_picture_of_one_colour_is_refused_with_its_likely_cause(monkeypatch):
    env = InWords(Black, ("up", "down", "left", "right"))
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    with pytest.raises(RuntimeError, match=r"Black.*of one colour, \[0, 0, 0\]; likely SDL_VIDEODRIVER is 'dummy'"):
        env.reset(TASK, 0)
    monkeypatch.delenv("SDL_VIDEODRIVER")
    with pytest.raises(RuntimeError, match="likely an OpenGL that draws nothing"):
        env.reset(TASK, 0)
    refuse_constant(Reach().reset(seed=0)[0], "Reach")


def test_an_action_at_random_depends_on_seed_and_turn_alone():
    words = ("up", "down", "left", "right")

    def seen(seed):
        env = InWords(Reach, words, invalid_reward=None)
        env.reset(TASK, seed)
        return [env.step(Action(t))[0].images[0].tobytes() for t in ("hm", "", "sideways")], [env.step(Action("hm"))[4]["legal"]]

    assert seen(1) == seen(1) and len({repr(seen(s)[0]) for s in range(6)}) > 1 and seen(1)[1] == [False]


class Dying(gym.Wrapper):
    lives = 3  # steps of all copies together

    def step(self, action):
        Dying.lives -= 1
        if Dying.lives == 0:
            raise ConnectionError("the simulator has gone")
        return self.env.step(action)


def test_a_dead_simulator_costs_one_episode_and_is_counted():
    policy = FakePolicy(scripted({"Choose one of: up, down, left, right.": "up"}))
    make = lambda: InWords(lambda: Dying(Reach(limit=2)), ("up", "down", "left", "right"))  # noqa: E731
    engine = Engine(policy, environment=make)
    (group,) = engine.rollout([Task("t", "sim", (), meta={"seed": 3})], 3, Sampling(temperature=0))
    ends = [e.stop for e in group.episodes]
    assert sorted(ends) == ["cut", "cut", "error"] and engine.counts["errors"] == 1
    (dead,) = [e for e in group.episodes if e.error]
    assert dead.error == "ConnectionError: the simulator has gone" and not dead.score.ok


def test_a_pool_lends_again_what_it_has_and_replaces_what_broke():
    made = []

    def make():
        made.append(InWords(lambda: Dying(Reach(limit=1)), ("up", "down", "left", "right")))
        return made[-1]

    pool, policy = Pool(make), FakePolicy(scripted({"Choose one of: up, down, left, right.": "up"}))
    engine = Engine(policy, environment=pool, max_rows=1)
    Dying.lives = 2  # the second episode breaks its simulator
    (group,) = engine.rollout([Task("t", "sim", (), meta={"seed": 3})], 4, Sampling(temperature=0))
    assert [bool(e.error) for e in group.episodes] == [False, True, False, False]
    assert pool.counts == {"made": 2, "lent": 4, "broken": 1} and pool.free == [made[1]] and pool().actions[0] == "up"


def test_vizdoom_leaves_no_file_where_it_runs(tmp_path, monkeypatch):
    if problem := ENVIRONMENTS["vizdoom"].problem():
        pytest.skip(problem)
    monkeypatch.chdir(tmp_path)
    env = environment("vizdoom")()
    env.reset(TASK, 3)
    env.close()
    assert not [f for f in tmp_path.rglob("*") if f.is_file()]
