"""SAC, TD3 and DQN on networks that say constants, by hand; what they keep between updates."""

import dataclasses

import pytest
import torch
from torch import nn

from fovea.batch import Windows
from fovea.methods.dqn import DQN
from fovea.methods.sac import SAC
from fovea.methods.td3 import TD3
from fovea.policies.control import Network, Spaces, build
from fovea.trainer.update import Adam
from fovea.types import Context

ADAM = Adam(1e-2)
BOX, FEW = Spaces((3,), 2, False), Spaces((3,), 3, True)
F, T = False, True


def batch(actions, reward=(0.0, 1.0), ended=(F, T), units=1, key=7):
    B = len(reward)
    obs = torch.randn(B, units + 1, 3, generator=torch.Generator().manual_seed(0))
    paid, over = torch.zeros(B, units), torch.zeros(B, units, dtype=torch.bool)
    paid[:, -1], over[:, -1] = torch.tensor(reward), torch.tensor(ended)
    return Windows(obs, actions, paid, over, key)


def made(method, spaces, **network):
    torch.manual_seed(0)
    policy = build(method.needs.policy, spaces, Network(width=4, **network))
    return policy, method.init(policy, ADAM)


def say(critics, *values):
    """Critic i answers `values[i]` to everything."""
    for p in critics.parameters():
        p.data.zero_()
    critics.biases[-1].data[:, 0, 0] = torch.tensor(values)


def told(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("method", [SAC(gamma=0.97, temperature=1e-12), TD3(gamma=0.97)])
def test_the_target_is_the_lesser_slow_critic_discounted_and_an_end_is_worth_its_reward(method):
    _, state = made(method, BOX)
    say(state.modules["slow" if isinstance(method, SAC) else "slow_critics"], 0.8, 0.5)
    say(state.modules["critics"], 2.0, 3.0)
    _, metrics = method.update(state, batch(torch.zeros(2, 1, 2)))
    assert float(metrics["value/target"]) == pytest.approx((0.485 + 1.0) / 2, abs=1e-6)
    by_hand = sum(((q - 0.485) ** 2 + (q - 1.0) ** 2) / 2 for q in (2.0, 3.0))
    assert float(metrics["loss/critic"]) == pytest.approx(by_hand, abs=1e-5) and float(metrics["value/mean"]) == 2.5


def test_windows_of_several_units_give_targets_of_several_steps():
    method = DQN(gamma=0.5, double=False)
    policy, state = made(method, FEW)
    for network in (policy, state.modules["slow"]):
        network.head.weight.data.zero_()
        network.head.bias.data = torch.tensor([0.0, 0.0, 8.0])
    window = batch(torch.zeros(2, 3, dtype=torch.long), units=3)
    window.reward_BL[:] = torch.tensor([1.0, 2.0, 4.0])
    _, metrics = method.update(state, window)
    assert float(metrics["value/target"]) == pytest.approx((1 + 1 + 1 + 8 / 8 + 3) / 2)


def test_sac_counts_the_entropy_of_what_it_would_do_next():
    method = SAC(gamma=0.5, temperature=0.3)
    policy, state = made(method, BOX)
    policy.head.weight.data.zero_()
    policy.head.bias.data.zero_()  # mean 0, standard deviation 1
    say(state.modules["slow"], 0.0, 0.0)
    window = batch(torch.zeros(2, 1, 2), reward=(0.0, 0.0), ended=(F, F))
    x = window.noise(2, 2, 2)[0]
    logp = (torch.distributions.Normal(0.0, 1.0).log_prob(x) - (1 - x.tanh() ** 2).log()).sum(1)
    _, metrics = method.update(state, window)
    assert float(metrics["value/target"]) == pytest.approx(float((-0.5 * 0.3 * logp).mean()), abs=1e-5)
    assert float(metrics["policy/temperature"]) == pytest.approx(0.3)


@pytest.mark.parametrize(("entropy", "falls"), [(20.0, True), (-20.0, False)])
def test_sacs_temperature_falls_while_the_entropy_is_above_its_target(entropy, falls):
    method = SAC(entropy=entropy)  # the target is −20 dim(A) or +20 dim(A) nats
    _, state = made(method, BOX)
    method.update(state, batch(torch.zeros(2, 1, 2)))
    assert (state.duals["temperature"].item() < 0) == falls


def test_sacs_target_entropy_is_minus_the_dimension():
    method = SAC()
    _, state = made(method, BOX)
    rate, before = 0.01, state.duals["temperature"].item()
    for key in range(3):
        method.update(state, batch(torch.zeros(2, 1, 2), key=key))
    assert before - 3 * rate <= state.duals["temperature"].item() < before, "a new policy's entropy is above −2 nats"


def test_td3_moves_its_policy_and_its_slow_copies_on_every_second_update():
    method = TD3(tau=0.25)
    policy, state = made(method, BOX)
    before, slow_before = told(policy), told(state.modules["slow_policy"])
    _, first = method.update(state, batch(torch.zeros(2, 1, 2)))
    assert same(told(policy), before) and same(told(state.modules["slow_policy"]), slow_before) and "loss/actor" not in first
    _, second = method.update(state, batch(torch.zeros(2, 1, 2)))
    assert not same(told(policy), before) and "loss/actor" in second
    for k, x in told(state.modules["slow_policy"]).items():
        assert torch.allclose(x, slow_before[k] + 0.25 * (told(policy)[k] - slow_before[k]))


@pytest.mark.parametrize(("double", "value"), [(True, 0.5), (False, 7.0)])
def test_dqn_by_hand(double, value):
    method = DQN(gamma=0.9, double=double, every=2)
    policy, state = made(method, FEW)
    slow = state.modules["slow"]
    for network, says in ((policy, [1.0, 2.0, 0.0]), (slow, [5.0, 0.5, 7.0])):
        network.head.weight.data.zero_()
        network.head.bias.data = torch.tensor(says)
    window = batch(torch.tensor([[1]]), reward=(0.0,), ended=(F,))
    _, metrics = method.update(state, window)
    off = abs(2.0 - 0.9 * value)
    assert float(metrics["value/target"]) == pytest.approx(0.9 * value) and float(metrics["loss/critic"]) == pytest.approx(off - 0.5)
    assert slow.head.bias.tolist() == [5.0, 0.5, 7.0]
    method.update(state, window)
    assert same(told(slow), told(policy)), "the second update replaces the slow copy"


def test_epsilon_falls_over_its_part_of_the_run():
    method = DQN(first_epsilon=1.0, last_epsilon=0.05, decay=0.2)
    assert [method.explore(Context(step, 100)) for step in (0, 10, 20, 90)] == pytest.approx([1.0, 0.525, 0.05, 0.05])
    assert TD3().explore(Context(3, 10)) == 0.1


@pytest.mark.parametrize(("method", "spaces"), [(SAC(), BOX), (TD3(), BOX), (DQN(every=2), FEW)])
def test_an_update_depends_on_state_and_batch_alone_and_the_state_can_be_put_back(method, spaces):
    def window(key):
        return batch(torch.zeros(2, 1, dtype=torch.long) if spaces.discrete else torch.zeros(2, 1, 2), key=key)

    policy, state = made(method, spaces, normalise=True)
    for key in range(3):
        method.update(state, window(key))
    saved = {k: v.clone() for k, v in state.tensors()}
    weights = told(policy)
    after = [float(x) for x in method.update(state, window(9))[1].values()]
    other, again = made(dataclasses.replace(method), spaces, normalise=True)
    other.load_state_dict(weights)
    again.load_tensors(saved)
    assert [float(x) for x in method.update(again, window(9))[1].values()] == after
    assert same(told(other), told(policy)) and again.counters == state.counters
    assert same(dict(again.tensors()), dict(state.tensors()))
    missing = {k: v for k, v in saved.items() if not k.startswith("module.slow")}
    with pytest.raises(ValueError, match=r"'module.slow.*': found nothing, expected .*; is the method the same\?"):
        again.load_tensors(missing)


def test_gradients_are_scaled_down_to_their_limit():
    method = SAC()
    _, state = made(method, BOX)
    state.max_grad_norm = 1e-3
    norms = []
    step = state.optimizers["critics"].step
    state.optimizers["critics"].step = lambda: norms.append(
        nn.utils.get_total_norm([p.grad for p in state.modules["critics"].parameters()])
    )
    method.update(state, batch(torch.zeros(2, 1, 2)))
    assert norms[0] == pytest.approx(1e-3, rel=1e-3) and step
