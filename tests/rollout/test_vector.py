import json

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from fovea.batch import collate
from fovea.envs.gym import vector
from fovea.envs.pixels import Reach
from fovea.policies.pixel import PixelPolicy
from fovea.rollout.sampling import Sampling
from fovea.rollout.vector import VectorEngine
from fovea.types import Context, Task

TASKS = [Task(id=f"t{i}", source="pixels", prompt=()) for i in range(3)]


def policy(kind="categorical"):
    torch.manual_seed(0)
    return PixelPolicy((16, 16, 3), 2 if kind == "gaussian" else 4, kind)


def engine(envs=4, kind="categorical", **kwargs):
    return VectorEngine(policy(kind), vector(Reach, envs, continuous=kind == "gaussian", limit=6), **kwargs)


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
@pytest.mark.parametrize("envs", [1, 2, 5, 16])
def test_the_number_of_environments_changes_nothing(kind, envs):
    first, again = engine(3, kind).rollout(TASKS, 4), engine(envs, kind).rollout(TASKS, 4)
    for g, h in zip(first, again, strict=True):
        for a, b in zip(g.episodes, h.episodes, strict=True):
            (s,), (t,) = a.segments, b.segments
            assert torch.allclose(s.actions.double(), t.actions.double(), atol=1e-5) and s.reward == t.reward and s.bootstrap == t.bootstrap
            assert torch.equal(s.extras["obs"], t.extras["obs"]) and torch.equal(s.extras["next_obs"], t.extras["next_obs"])


def test_members_of_a_group_share_their_start_and_groups_do_not():
    groups = engine().rollout(TASKS, 4)
    starts = [[e.segments[0].extras["obs"][0] for e in g.episodes] for g in groups]
    assert all(torch.equal(x, mine[0]) for mine in starts for x in mine)
    assert not torch.equal(starts[0][0], starts[1][0])
    assert len({str(e.segments[0].actions.tolist()) for e in groups[0].episodes}) > 1


def test_a_fixed_seed_gives_the_same_start_at_every_step():
    task = Task(id="fixed", source="pixels", prompt=(), meta={"seed": 5})
    first, later = (engine().rollout([task], 1, context=Context(step=s))[0].episodes[0].segments[0] for s in (0, 9))
    expected, _ = Reach().reset(seed=5)
    assert np.array_equal(first.extras["obs"][0], expected) and torch.equal(first.extras["obs"][0], later.extras["obs"][0])


def test_replaying_the_actions_gives_the_stored_observations_and_rewards():
    task = Task(id="fixed", source="pixels", prompt=(), meta={"seed": 7})
    (group,) = engine().rollout([task], 6)
    for episode in group.episodes:
        (s,) = episode.segments
        env = Reach(limit=6)
        obs, _ = env.reset(seed=7)
        for t, action in enumerate(s.actions.tolist()):
            assert np.array_equal(s.extras["obs"][t], obs)
            obs, reward, terminated, truncated, _ = env.step(action)
            assert reward == s.reward[t]
        assert np.array_equal(s.extras["next_obs"][0], obs)
        assert (terminated, truncated) == (not s.bootstrap, s.bootstrap)
        assert episode.score is not None and episode.score.value == pytest.approx(sum(s.reward))
        assert episode.stop == ("cut" if s.bootstrap else "terminated")


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_logp_while_sampling_equals_logp_in_training(kind):
    driver = engine(kind=kind)
    batch = collate(driver.rollout(TASKS, 3))
    out = driver.policy.evaluate(batch, frozenset({"logp", "value", "next_value", "entropy"}))
    assert torch.allclose(out["logp"], batch.logp_old_BT, atol=1e-5) and out["next_value"].shape == (batch.B,)
    assert (out["entropy"][batch.mask_BT == 0] == 0).all() and (out["entropy"][batch.mask_BT > 0] != 0).all()


def test_greedy_members_do_not_depend_on_the_seed():
    a, b = (engine(seed=s).rollout([Task(id="f", source="p", prompt=(), meta={"seed": 1})], 1, members=("greedy",))[0] for s in (0, 1))
    assert [e.role for e in a.episodes] == ["sample", "greedy"]
    assert torch.equal(a.episodes[1].segments[0].actions, b.episodes[1].segments[0].actions)
    assert collate([a]).B == 1
    cold = engine(seed=5).rollout([Task(id="f", source="p", prompt=(), meta={"seed": 1})], 1, Sampling(temperature=0))[0]
    assert torch.equal(cold.episodes[0].segments[0].actions, a.episodes[1].segments[0].actions) and cold.episodes[0].role == "sample"


def test_no_random_number_is_used_twice_in_an_episode():
    driver = engine(kind="gaussian")
    driver.policy.head.weight.data.zero_()  # the action is then the noise itself
    noise = [x for g in driver.rollout(TASKS, 2) for e in g.episodes for x in e.segments[0].actions.flatten().tolist()]
    assert len(noise) > 30 and len(set(noise)) == len(noise)


def test_max_steps_cuts():
    groups = engine(max_steps=2).rollout(TASKS, 3)
    assert all(len(e.segments[0]) <= 2 for g in groups for e in g.episodes)
    assert any(e.segments[0].bootstrap for g in groups for e in g.episodes)


def test_a_stream_goes_on_where_the_last_call_was_cut():
    driver = engine(3)
    first = driver.stream(TASKS[0], 4, Context(step=0))
    second = driver.stream(TASKS[0], 4, Context(step=1))
    for groups in (first, second):
        assert sum(len(e.segments[0]) for g in groups for e in g.episodes) == 12
    cut = [e.segments[0] for g in first for e in g.episodes if e.stop == "paused" and len(e.segments[0]) == 4]
    assert cut
    for segment in cut:
        assert any(torch.equal(segment.extras["next_obs"][0], e.segments[0].extras["obs"][0]) for g in second for e in g.episodes)


def test_autoreset_is_refused():
    with pytest.raises(ValueError, match="autoreset"):
        VectorEngine(policy(), SyncVectorEnv([Reach] * 2, autoreset_mode=AutoresetMode.NEXT_STEP))


def pieces(groups):
    return [(e.id, e.follows, e.stop, dict(e.score.parts), e.segments[0].actions.tolist()) for g in groups for e in g.episodes]


def test_pieces_of_a_stream_name_the_one_before_and_the_last_knows_the_whole_return():
    driver = engine(3)
    groups = [g for step in range(4) for g in driver.stream(TASKS[0], 4, Context(step))]
    by_id = {e.id: e for g in groups for e in g.episodes}
    ended = [e for e in by_id.values() if e.stop != "paused"]
    followers = [e for e in by_id.values() if e.follows]
    assert followers and all(by_id[e.follows].stop == "paused" for e in followers)
    for e in ended:
        chain = [e]
        while chain[-1].follows:
            chain.append(by_id[chain[-1].follows])
        rewards = [r for piece in chain for r in piece.segments[0].reward]
        assert e.score.parts == pytest.approx({"return": sum(rewards), "steps": len(rewards)}) and len(rewards) <= 6
    assert any(e.follows for e in ended) and not any(e.score.parts for e in by_id.values() if e.stop == "paused")


@pytest.mark.parametrize("steps", [1, 4])
def test_a_stream_goes_on_in_another_process_as_if_it_had_not_been_interrupted(steps):
    whole, first, second = engine(3), engine(3), engine(3)
    for step in range(3):
        whole.stream(TASKS[0], steps, Context(step))
        first.stream(TASKS[0], steps, Context(step))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step in range(3, 6):
        assert pieces(second.stream(TASKS[0], steps, Context(step))) == pieces(whole.stream(TASKS[0], steps, Context(step)))
    assert second.lost == 0


def test_an_episode_that_cannot_be_played_again_is_given_up_and_counted():
    first, second = engine(2), engine(2)
    first.stream(TASKS[0], 2, Context(0))
    state = first.state_dict()
    going = [p for p in state["playing"] if p]
    going[0]["shows"] = "another picture"
    second.load_state_dict(state)
    assert second.lost == 1
    after = second.stream(TASKS[0], 2, Context(1))
    assert sum(bool(e.follows) for g in after for e in g.episodes) == len(going) - 1
    with pytest.raises(ValueError, match="the saved stream had 2 environments, this one has 3"):
        engine(3).load_state_dict(state)
