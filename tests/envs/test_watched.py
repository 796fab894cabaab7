"""The scene of peg and slot, and who takes over in it."""

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from fovea.envs.insertion import FLOOR_Y, GAMMA, STEP, Insertion
from fovea.envs.pixels import Reach
from fovea.envs.success import Judged, Learned, Verdicts, frames, judge, train
from fovea.envs.watched import Astray, ByTurns, ByValue, LimitEnds, Scripted, Watched, by_chance, never, too_low
from fovea.tasks.gym import Gym


def scene(**options):
    env = Insertion(see="numbers", **options)
    env.reset(seed=1)
    return env


def play(env, act, seed=0, limit=200, **options):
    """(rewards, infos, terminated) of an episode."""
    obs, _ = env.reset(seed=seed, options=options or None)
    rewards, infos = [], []
    for _ in range(limit):
        obs, reward, terminated, truncated, info = env.step(act(obs))
        rewards.append(reward)
        infos.append(info)
        if terminated or truncated:
            break
    return rewards, infos, terminated


# -- the scene --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("see", ["picture", "numbers"])
def test_the_scene_keeps_gymnasiums_rules(see):
    check_env(Insertion(see), skip_render_check=True)


def test_a_peg_stays_where_it_met_a_wall():
    env = scene()
    env.at, env.slot = np.array([10.0, 10.0]), 12.0
    env.step(np.array([0.0, 1.0]))
    assert env.at.tolist() == [10.0, 11.0], "the shelf begins at 12, the peg is 2 wide"
    env.step(np.array([1.0, 1.0]))
    assert env.at.tolist() == [10.0, 11.0], "what presses on it does not slide"
    env.step(np.array([1.0, 0.0]))
    assert env.at.tolist() == [11.5, 11.0]
    env.at = np.array([12.6, 20.5])
    env.step(np.array([0.0, 1.0]))
    assert env.at[1] == 21.0, "0.6 beside a slot with 0.5 to spare"
    env.at = np.array([12.4, 20.5])
    env.step(np.array([0.0, 1.0]))
    assert env.at[1] == 22.0


def test_the_floor_of_the_slot_is_success_and_the_limit_is_none():
    env = scene(limit=3)
    env.at = np.array([env.slot, FLOOR_Y - 1.0])
    _, reward, terminated, truncated, info = env.step(np.array([0.0, 1.0], np.float32))
    assert (reward, terminated, truncated, info["measures"]["success"]) == (1.0, True, False, 1.0)
    env.reset(seed=1)
    assert [env.step(np.zeros(2))[1:4] for _ in range(3)] == [(0.0, False, False)] * 2 + [(0.0, False, True)]


def test_the_picture_shows_peg_floor_and_walls_where_they_are():
    env = scene()
    env.at, env.slot = np.array([5.5, 7.0]), 10.0
    picture = env.render()
    assert picture.shape == (32, 32, 3) and picture.dtype == np.uint8
    assert picture[6:8, 4:7, 0].tolist() == [[128, 255, 128]] * 2 and picture[..., 0].sum() == 4 * 255 + 2
    assert (picture[12:14, 1:22, 2] == 255).all() and not picture[12:14, 22:, 2].any() and not picture[22:, 9:11, 2].any()
    assert picture[22:, 8, 2].tolist() == [128] * 10, "the slot is 3 wide: half of this column is wall"
    assert (picture[29:, 9:11, 1] == 255).all()
    assert Insertion(side=128).render_mode == "rgb_array" and Insertion(side=64).observation_space.shape == (64, 64, 3)
    with pytest.raises(ValueError, match="see = 'sound'; expected 'picture' or 'numbers'"):
        Insertion("sound")


def test_somebody_without_flaws_succeeds_and_gets_nearer_with_every_step():
    for seed in range(5):
        env = scene()
        env.reset(seed=seed)
        before, over = env.value(), False
        while not over:
            action = env.demonstrate()
            assert env.value(action) == pytest.approx(
                before * GAMMA ** (1 - (env.left - env._left(env._moved(action)[0])) / STEP), rel=1e-9
            )
            _, _, over, cut, _ = env.step(action)
            assert not cut and env.value() > before
            before = env.value()


def test_flaws_are_systematic_and_repeat_with_the_seed():
    env = scene(bias=1.5)
    env.at = np.array([env.slot, 19.0])
    assert env.demonstrate()[0] == pytest.approx(1.0), "the slot is believed to be further to the right"
    env.felt = True
    assert env.demonstrate()[0] == 0.0
    wrong, again, right = Insertion("numbers", wrong=1.0), Insertion("numbers", wrong=1.0), Insertion("numbers")
    for e in (wrong, again, right):
        e.reset(seed=4)
    assert wrong.demonstrate().tolist() == again.demonstrate().tolist() != right.demonstrate().tolist()
    assert scene(speed=0.5).demonstrate().max() <= 0.5
    assert Insertion("numbers", wrong=0.2).habitual.mean() == pytest.approx(0.2, abs=0.06)


# -- who takes over -----------------------------------------------------------------------------------------------------------------


def test_the_rule_of_values_by_hand():
    assert too_low(0.90, 1.0, 0.97) == 0.95 and too_low(0.98, 1.0, 0.97) == 0.05
    assert too_low(-1.0, -1.0, 0.97) == 0.95, "equal, but −1 < 0.97 · −1"
    assert too_low(-1.0, -1.0, gap=0.0) == 0.05 and too_low(-1.2, -1.0, gap=0.1) == 0.95 and too_low(-1.05, -1.0, gap=0.1) == 0.05


def still(_):
    return np.zeros(2, np.float32)


def flags(infos):
    return [bool(i["noted"]["intervened"]) for i in infos]


def test_a_correction_lasts_as_long_as_it_should_and_the_policy_acts_in_between():
    taken = flags(play(ByValue(chance=1.0, flip=0.0)(scene(limit=30)), still)[1])
    assert taken == ([False, *[True] * 4] * 6), "a step of the policy that led nowhere, then four of the person's"
    proposal = flags(play(ByValue("proposal", chance=1.0, flip=0.0)(scene(limit=10)), still)[1])
    assert proposal == [False, True, True, True, True] * 2, "the policy has a step of its own first"
    turns = flags(play(ByTurns()(scene(limit=200, speed=0.01)), still)[1])
    changes = [i for i in range(1, 200) if turns[i] != turns[i - 1]]
    lengths = np.diff(changes)
    assert not turns[0] and set(lengths[::2]) <= set(range(3, 8)) and set(lengths[1::2]) <= set(range(1, 6)) and len(set(lengths)) > 4
    share = np.mean(flags(play(by_chance(0.3)(scene(limit=400, speed=0.01)), still, limit=400)[1]))
    assert 0.22 < share < 0.38
    assert not any(flags(play(never()(scene()), still)[1]))


def test_somebody_who_sees_the_policy_astray_brings_it_back():
    env = Astray(chance=1.0)(scene(limit=60))
    taken = flags(play(env, still)[1])
    assert not any(taken[:8]) and taken[8], "eight steps that lead nowhere"
    env.reset(seed=0)
    env.unwrapped.at = np.array([2.5, 25.0]) * 0 + np.array([28.0, 4.0])
    assert env.unwrapped.aside < 4
    env.unwrapped.at = np.array([29.0, 20.0])
    assert env.unwrapped.aside > 4 and flags([env.step(np.zeros(2, np.float32))[4]]) == [False], "the pause comes first"
    env.step(np.zeros(2, np.float32))
    assert flags([env.step(np.zeros(2, np.float32))[4]]) == [True]


def test_what_was_done_is_noted_and_an_episode_can_be_the_persons_own():
    env = ByTurns(hold=(100, 100), pause=(2, 2))(scene(limit=60))
    _, infos, _ = play(env, lambda _: np.array([0.25, 0.5], np.float32))
    assert infos[0]["noted"]["action"].tolist() == [0.25, 0.5] and flags(infos)[:4] == [False, False, True, True]
    assert infos[5]["noted"]["action"].tolist() != [0.25, 0.5]
    rewards, infos, done = play(env, still, demonstrate=True)
    assert all(flags(infos)) and done and rewards[-1] == 1.0
    assert not all(flags(play(env, still)[1])), "the next episode is not"


def test_of_two_who_watch_the_inner_one_has_the_last_word():
    first, idle = np.array([0.25, 0.5], np.float32), Watched(by_chance(1.0)(scene(limit=60)), Scripted(never()))
    _, infos, _ = play(idle, lambda _: first)
    assert all(flags(infos)) and infos[0]["noted"]["action"].tolist() != first.tolist()
    _, infos, _ = play(by_chance(1.0)(never()(scene(limit=60))), lambda _: first)
    assert all(flags(infos)) and infos[0]["noted"]["action"].tolist() != first.tolist()


def test_the_same_seed_and_proposals_are_the_same_episode():
    one, two = (ByValue()(Insertion("numbers", noise=0.3, slips=0.1)) for _ in range(2))
    a, b = (play(e, still, seed=9)[1] for e in (one, two))
    assert [i["noted"]["action"].tolist() for i in a] == [i["noted"]["action"].tolist() for i in b]


def test_a_limit_can_be_an_end():
    env = LimitEnds(scene(limit=2))
    env.reset(seed=0)
    assert [env.step(still(0))[2:4] for _ in range(2)] == [(False, False), (True, False)]


# -- a learned reward ---------------------------------------------------------------------------------------------------------------

FEW = Learned(positives=30, negatives=60, threshold=0.5, steps=100, learning_rate=3e-3)


def test_a_classifier_of_success_is_trained_from_the_scenes_own_frames():
    good, bad = frames(FEW, Insertion("numbers", noise=0.1), 0)
    assert good.shape == (30, 3) and bad.shape == (60, 3) and good[:, 1].min() >= 28 / 16 - 1 > bad[:, 1].max()
    _, verdicts = train(FEW, Insertion("numbers", noise=0.1))
    assert verdicts.accuracy > 0.8 and verdicts.precision > 0.7
    with pytest.raises(ValueError, match="cannot demonstrate"):
        frames(FEW, Reach(), 0)


def test_precision_and_recall_by_hand():
    above = lambda x: x[:, 0]  # noqa: E731
    good, bad = torch.tensor([[1.0], [2.0], [-1.0], [3.0]]), torch.tensor([[-1.0], [1.0], [-2.0], [-2.0], [-3.0], [-1.0]])
    assert judge(FEW, above, good, bad) == Verdicts(accuracy=0.8, precision=0.75, recall=0.75)


class Says:
    def __init__(self, logit):
        self.logit = logit

    def eval(self):
        return self

    def __call__(self, obs):
        return torch.full((len(obs),), self.logit)


def test_the_classifier_pays_and_ends_and_is_told_whether_it_was_right():
    env = Judged(scene(), Says(9.0), 0.85)
    _, reward, terminated, truncated, info = (env.reset(seed=0), env.step(still(0)))[1]
    assert (reward, terminated, truncated) == (1.0, True, False) and info["measures"]["precision"] == 0.0
    blind = Judged(scene(), Says(-9.0), 0.85)
    rewards, infos, terminated = play(blind, lambda _: blind.unwrapped.demonstrate())
    assert not terminated and not any(rewards) and infos[-1]["measures"]["success"] == 1.0 and "precision" not in infos[-1]["measures"]


def test_wrappers_go_around_the_environment_in_their_order():
    made = Gym("fovea/Insertion-v0", {"see": "numbers"}, around=(LimitEnds, ByTurns())).vector(1).envs[0]
    assert isinstance(made, Watched) and isinstance(made.env, LimitEnds)
