"""HIL-SERL, RLIF and HG-DAgger by hand: targets, grippers, rewards of interventions, shifted pictures."""

import dataclasses

import pytest
import torch

from fovea.batch import Windows
from fovea.checks import check_method
from fovea.math.augment import shift, shifted
from fovea.math.grasps import command_index, commands, grasp_penalty
from fovea.methods import rlpd
from fovea.methods.hg_dagger import HGDagger
from fovea.methods.hil_serl import HILSERL
from fovea.methods.rlif import RLIF, before_intervention, transitions
from fovea.policies.control import Network, Spaces, build
from fovea.recipe import Recipe
from fovea.trainer.replay import Replay
from fovea.trainer.update import Adam

ADAM = Adam(1e-2)
F, T = False, True


def made(method, actions=2, width=4):
    torch.manual_seed(0)
    policy = build(method.needs.policy, Spaces((3,), actions, False), Network(width=width))
    return policy, method.init(policy, ADAM)


def say(critics, *values):
    """Critic i answers `values[i]` to everything."""
    for p in critics.parameters():
        p.data.zero_()
    critics.biases[-1].data[:, 0, 0] = torch.tensor(values)


def batch(actions=2, reward=(0.0, 1.0), ended=(F, T), units=1, key=7, **extras):
    B = len(reward)
    obs = torch.randn(B, units + 1, 3, generator=torch.Generator().manual_seed(0))
    paid, over = torch.zeros(B, units), torch.zeros(B, units, dtype=torch.bool)
    paid[:, -1], over[:, -1] = torch.tensor(reward), torch.tensor(ended)
    return Windows(obs, torch.zeros(B, units, actions), paid, over, key, extras)


def told(state):
    return {k: x.clone() for k, x in {**dict(state.tensors()), **state.modules["policy"].state_dict()}.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# -- soft actor-critic with prior data ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1e-12, 0.5])
def test_the_target_is_the_lesser_slow_critic_without_entropy_and_an_end_is_worth_its_reward(temperature):
    _, state = made(method := HILSERL(temperature=temperature))
    say(state.modules["slow"], 0.5, 0.8)
    for reward, ended, target in ((0.0, F, 0.485), (1.0, T, 1.0)):
        _, metrics = method.update(state, batch(reward=(reward,), ended=(ended,)))
        assert float(metrics["value/target"]) == pytest.approx(target, abs=1e-6)
        say(state.modules["slow"], 0.5, 0.8)


def test_a_random_few_of_the_critics_make_the_target():
    method, values, found = RLIF(critics=5, subset=2), [0.1, 0.2, 0.3, 0.4, 0.5], set()
    for key in range(0, 2000, 8):
        members = rlpd.drawn(method, batch(key=key))
        assert members is not None and len(set(members.tolist())) == 2
        found.add(min(values[i] for i in members.tolist()))
    assert found == {0.1, 0.2, 0.3, 0.4}, "the largest of all is never the lesser of two"
    assert rlpd.drawn(HILSERL(), batch()) is None and rlpd.drawn(RLIF(critics=2, subset=2), batch()) is None


def test_the_loss_of_the_critics_is_their_mean_and_their_layers_are_normalised():
    _, state = made(method := HILSERL(gamma=0.0))
    critics = state.modules["critics"]
    say(critics, 2.0, 3.0)
    _, metrics = method.update(state, batch(reward=(0.0, 1.0)))
    assert float(metrics["loss/critic"]) == pytest.approx((4 + 1 + 9 + 4) / 4, abs=1e-5)
    _, state = made(method)
    critics = state.modules["critics"]
    far, actions = torch.randn(5, 3), torch.zeros(5, 2)
    assert critics(100 * far, actions).sub(critics(1000 * far, actions)).abs().max() < 0.1, "values of what is far away stay small"


def test_policy_and_temperature_move_on_every_second_update():
    policy, state = made(method := HILSERL())
    before, alpha = {k: v.clone() for k, v in policy.state_dict().items()}, state.duals["temperature"].item()
    _, first = method.update(state, batch())
    assert all(torch.equal(before[k], v) for k, v in policy.state_dict().items()) and "loss/actor" not in first
    _, second = method.update(state, batch())
    assert not all(torch.equal(before[k], v) for k, v in policy.state_dict().items()) and "loss/actor" in second
    assert state.duals["temperature"].item() != alpha and state.counters == {"updates": 2}


@pytest.mark.parametrize(("grippers", "dimension", "nats"), [(0, 6, -3.0), (1, 7, -3.5), (2, 8, -4.0)])
def test_the_target_entropy_counts_the_grippers(grippers, dimension, nats):
    policy, state = made(HILSERL(grippers=grippers), dimension)
    assert rlpd.target_entropy(HILSERL(), policy) == nats and policy.draws == dimension - grippers
    assert len(state.modules["critics"].weights[0][0]) == 3 + 6, "the critics of actions do not see the grippers"


# -- grippers -------------------------------------------------------------------------------------------------------------------


def test_commands_have_numbers():
    assert command_index(torch.tensor([[-1.0], [0.0], [1.0], [-0.4], [0.7]])).tolist() == [0, 1, 2, 1, 2]
    assert command_index(torch.tensor([[-1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])).tolist() == [2, 8, 4], "close and open are 3·0 + 2"
    for grippers in (1, 2):
        every = torch.arange(3**grippers)
        assert torch.equal(command_index(commands(every, grippers)), every)


@pytest.mark.parametrize(
    ("opening", "command", "penalty"), [(1.0, -0.8, -0.02), (1.0, 0.0, 0), (1.0, 0.8, 0), (0.0, 0.8, -0.02), (0.0, -0.8, 0), (0.0, 0.4, 0)]
)
def test_a_command_that_changes_the_gripper_costs(opening, command, penalty):
    assert grasp_penalty(opening, command) == penalty


def test_the_grippers_critic_alone_sees_the_penalty():
    policy, state = made(method := HILSERL(gamma=0.97, grippers=1), 3)
    for network, says in ((policy.grasp, [0.0, 0.1, 0.9]), (state.modules["slow_grasp"], [9.0, 9.0, 0.4])):
        network.head.weight.data.zero_()
        network.head.bias.data = torch.tensor(says)
    say(state.modules["slow"], 0.5, 0.8)
    w = batch(3, reward=(0.0,), ended=(F,), grasp_penalty=torch.tensor([[-0.02]], dtype=torch.float64))
    w.actions[..., 2] = -1.0
    _, metrics = method.update(state, w)
    assert float(metrics["value/grasp_target"]) == pytest.approx(0.368, abs=1e-6)
    assert float(metrics["loss/grasp"]) == pytest.approx(0.368**2, abs=1e-5), "the command to close was number 0, worth 0"
    assert float(metrics["value/target"]) == pytest.approx(0.485, abs=1e-6)


def test_a_policy_with_grippers_gives_the_best_commands():
    policy, _ = made(HILSERL(grippers=2), 5)
    policy.grasp.head.weight.data.zero_()
    policy.grasp.head.bias.data = torch.eye(9)[2]
    out = policy.act(torch.randn(4, 3), torch.rand(4, 3, dtype=torch.float64), torch.tensor([T, F, F, T]))
    assert out["actions"].shape == (4, 5) and out["actions"][:, 3:].tolist() == [[-1.0, 1.0]] * 4 and out["logp"].shape == (4,)
    with pytest.raises(ValueError, match="2 actions, of which 2 move grippers"):
        build("gripping2", Spaces((3,), 2, False), Network())
    with pytest.raises(ValueError, match="grippers = 3; expected 0, 1 or 2"):
        HILSERL(grippers=3)


# -- the event as the reward ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("taken", "paid"),
    [
        ([5, 6, 7, 8], {4}),
        ([0, 1, 2, 3], set()),
        ([2, 3, 7], {1, 6}),
        ([], set()),
        (list(range(12)), set()),
    ],
)
def test_the_step_before_somebody_takes_over_is_paid(taken, paid):
    flags = torch.tensor([[t in taken for t in range(12)]])
    assert before_intervention(flags).tolist() == [[-1.0 if t in paid else 0.0 for t in range(12)]]


def test_what_the_environment_pays_changes_nothing():
    states = []
    for scale in (1.0, -1000.0):
        _, state = made(method := RLIF(critics=3, actor_every=1))
        for key in range(3):
            w = batch(units=2, key=key, intervened=torch.tensor([[F, T], [F, F]]))
            method.update(state, dataclasses.replace(w, reward_BL=scale * torch.randn(2, 2)))
        states.append(told(state))
    assert same(*states)


def test_a_window_is_its_first_unit_paid_by_its_second_and_an_end_is_a_transition_too():
    w = batch(units=2, intervened=torch.tensor([[F, T], [T, F]]), ended=(F, T))
    w.actions[1, 1] = 0.5
    found = transitions(w)
    assert found.reward_BL.tolist() == [[-1.0], [0.0], [0.0]] and found.ended_BL.tolist() == [[F], [F], [T]]
    assert torch.equal(found.obs, torch.stack([w.obs[0, :2], w.obs[1, :2], w.obs[1, 1:]])) and found.actions[2, 0].tolist() == [0.5, 0.5]
    assert transitions(w, ends=False).reward_BL.tolist() == [[-1.0], [0.0]] and not transitions(w, ends=False).ended_BL.any()
    with pytest.raises(ValueError, match="no unit says who acted; expected a Gym whose `around`"):
        transitions(batch(units=2))
    with pytest.raises(ValueError, match=r"replay.length = 1, expected at least 2, because RLIF looks ahead"):
        Recipe(model="network", data="gym:Pendulum-v1", method=RLIF(), horizon=4)
    Recipe(model="network", data="gym:Pendulum-v1", method=RLIF(), horizon=4, replay=Replay(length=2))


def test_an_intervention_four_units_on_is_worth_less_its_discount_and_none_is_worth_nothing():
    method = RLIF(gamma=0.99, critics=2, subset=0, temperature=1e-6, tau=0.5, actor_every=1000)
    torch.manual_seed(0)
    policy = build("squashed", Spaces((10,), 1, False), Network(width=32))
    state, eye, g = method.init(policy, Adam(5e-3)), torch.eye(10), torch.Generator().manual_seed(0)
    at = torch.tensor([0, 1, 2, 3, 5, 6, 7, 8]).repeat(8)  # two chains of four units; somebody takes over at the end of the first
    paid = torch.cat([before_intervention(torch.tensor([F, F, F, F, taken])[None])[0, :4] for taken in (T, F)])
    for key in range(400):
        actions = torch.rand(64, 1, 1, generator=g) * 2 - 1
        ended = (at % 5 == 3)[:, None]
        rlpd.update(method, state, Windows(torch.stack([eye[at], eye[at + 1]], 1), actions, paid.repeat(8)[:, None], ended, key))
    with torch.no_grad():
        value_10 = state.modules["critics"](eye, torch.zeros(10, 1)).mean(0)
    assert float(value_10[0]) == pytest.approx(-0.970299, abs=0.05) and float(value_10[3]) == pytest.approx(-1.0, abs=0.05)
    assert float(value_10[5]) == pytest.approx(0.0, abs=0.05) and float(value_10[:9].max()) <= 0.05, "0 is the most there is"


# -- imitation, pictures, contracts -----------------------------------------------------------------------------------------------


def test_imitation_by_hand():
    policy, state = made(method := HGDagger())
    policy.head.weight.data.zero_()
    policy.head.bias.data = torch.tensor([0.0, 0.0, -3.0, -3.0])
    w = batch()
    w.actions[:] = torch.tensor([0.5, -1.0])
    _, metrics = method.update(state, w)
    assert float(metrics["loss/imitation"]) == pytest.approx((0.25 + 1.0) / 2, abs=1e-6)
    for _ in range(200):
        _, metrics = method.update(state, w)
    assert float(metrics["loss/imitation"]) < 0.01


def test_a_shift_moves_every_picture_by_its_own_and_repeats_the_edge():
    picture = torch.arange(12).view(1, 3, 4, 1).expand(3, 3, 4, 1)
    moved = shift(picture, torch.tensor([[0, 0], [1, 0], [0, -2]]))[..., 0].tolist()
    assert moved[0] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert moved[1] == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]]
    assert moved[2] == [[2, 3, 3, 3], [6, 7, 7, 7], [10, 11, 11, 11]]


def test_frames_of_a_window_are_shifted_apart_and_vectors_are_not():
    obs = torch.zeros(64, 2, 9, 9, 1, dtype=torch.uint8)
    obs[:, :, 4, 4] = 255
    w = Windows(obs, torch.zeros(64, 1, 2), torch.zeros(64, 1), torch.zeros(64, 1, dtype=torch.bool), 11)
    places = shifted(w, 2).obs.flatten(2).float().argmax(-1)
    assert set(places.flatten().tolist()) == {9 * r + c for r in range(2, 7) for c in range(2, 7)}
    assert (places[:, 0] != places[:, 1]).any() and torch.equal(shifted(w, 2).obs, shifted(w, 2).obs)
    assert shifted(w, 0) is w and shifted(batch(), 2).obs.shape == (2, 2, 3)


@pytest.mark.parametrize("method", [HILSERL(), RLIF(critics=3), HGDagger()])
def test_they_keep_the_contract(method):
    assert check_method(method)
