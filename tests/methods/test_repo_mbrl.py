"""RePo and Dreamer: which loss moves what, the constraint, rewards that belong to the latent after them."""

import pytest
import torch

from fovea.batch import Windows
from fovea.checks import check_method
from fovea.math.latent import balanced_kl, gaussian_kl
from fovea.methods.dreamer import Dreamer
from fovea.methods.imagined import behave, drawing_loss, reward_loss, see
from fovea.methods.repo_mbrl import RePo
from fovea.policies.control import Latents, Spaces, build
from fovea.trainer.update import Adam

SHAPE = (8, 8, 3)


def batch(B=3, L=4, shape=SHAPE, key=5):
    g = torch.Generator().manual_seed(0)
    obs = torch.randint(0, 256, (B, L + 1, *shape), generator=g, dtype=torch.uint8)
    actions, reward = torch.rand(B, L, 2, generator=g) * 2 - 1, torch.rand(B, L, generator=g)
    return Windows(obs, actions, reward, torch.zeros(B, L, dtype=torch.bool), key)


def made(method, rate=1e-2):
    torch.manual_seed(0)
    policy = build("world-model", Spaces(SHAPE, 2, False), Latents(width=6, stochastic=3, channels=2))
    return policy, method.init(policy, Adam(rate, max_grad_norm=100.0))


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def moved(before, module):
    return [not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)]


@pytest.mark.parametrize("method", [RePo(), RePo(beta=0.0, draw=False), Dreamer()])
def test_the_contract(method):
    check_method(method)


def test_the_drawing_of_repo_has_no_gradient_to_its_world_model_and_dreamers_has():
    policy, state = made(RePo())
    seen = see(RePo(), policy, batch())
    own = [*policy.encoder.parameters(), *policy.dynamics.parameters()]
    drawn = drawing_loss(state.modules["decoder"], seen.latent_TBF.detach(), seen.pixels)
    assert all(g is None for g in torch.autograd.grad(drawn, own, allow_unused=True, retain_graph=True))
    drawn = drawing_loss(state.modules["decoder"], seen.latent_TBF, seen.pixels)
    used = torch.autograd.grad(drawn, own, allow_unused=True)
    assert any(g is not None and float(g.abs().sum()) > 0 for g in used[: len(list(policy.encoder.parameters()))])


def test_a_decoder_changes_nothing_else():
    ends = []
    for draw in (True, False):
        policy, state = made(RePo(draw=draw))
        for key in range(3):
            RePo(draw=draw).update(state, batch(key=key))
        ends.append(weights(policy))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_the_likelihood_of_a_picture_is_summed_over_its_pixels():
    latent, pixels = torch.zeros(2, 3, 4), torch.full((2, 3, *SHAPE), 0.5)
    assert float(drawing_loss(lambda z: torch.zeros(2, 3, *SHAPE), latent, pixels)) == pytest.approx(8 * 8 * 3 * 0.125)


def test_the_constraint_by_its_gradient():
    method = RePo(bound=0.5, beta=0.1)
    policy, state = made(method)
    seen = see(method, policy, batch())
    kl = balanced_kl(seen.q, seen.p, 5 / 6).mean()
    assert float(kl) == pytest.approx(float(gaussian_kl(seen.q, seen.p).mean()), rel=1e-5)
    told, before = {}, state.duals["beta"].item()
    state.descend = lambda name, loss, again=False: told.setdefault(name, loss)
    _, metrics = method.update(state, batch())
    assert float(told["model"].detach()) == pytest.approx(float(reward_loss(policy, seen) + 0.1 * (kl - 0.5)), rel=1e-5)
    assert float(told["beta"].detach()) == pytest.approx(float(-before * (kl - 0.5)), rel=1e-4)
    assert float(metrics["model/beta"]) == pytest.approx(0.1) and float(metrics["model/kl"]) == pytest.approx(float(kl), rel=1e-5)


@pytest.mark.parametrize(("bound", "grows"), [(1e-6, True), (1e3, False)])
def test_beta_grows_while_the_bound_is_broken(bound, grows):
    method = RePo(bound=bound, beta=0.1)
    _, state = made(method)
    before = state.duals["beta"].item()
    method.update(state, batch())
    assert (state.duals["beta"].item() > before) == grows
    assert "beta" not in made(RePo(beta=0.0))[1].optimizers


def test_the_reward_of_an_action_is_that_of_the_latent_it_leads_to():
    policy, _ = made(RePo())
    window = batch(B=1, L=3)
    seen = see(RePo(), policy, window)
    assert seen.reward_TB[:, 0].tolist() == window.reward_BL[0].tolist() and len(seen.latent_TBF) == 3
    other = batch(B=1, L=3)
    other.obs[:, 2:] = 0  # after the second action
    other.actions[:, 1:] = 0
    again = see(RePo(), policy, other)
    assert torch.equal(again.latent_TBF[0], seen.latent_TBF[0]) and not torch.equal(again.latent_TBF[1], seen.latent_TBF[1])
    first = batch(B=1, L=3)
    first.obs[:, 0] = 0
    assert torch.equal(see(RePo(), policy, first).latent_TBF, seen.latent_TBF), "the first observation is not looked at"


def test_actor_and_critic_move_themselves_alone():
    method = RePo()
    policy, state = made(method)
    seen = see(method, policy, batch())
    before = {name: weights(m) for name, m in (*policy.named_children(), ("critic", state.modules["critic"]))}
    behave(method, state, seen)
    parts = {**dict(policy.named_children()), "critic": state.modules["critic"]}
    assert {name for name, m in parts.items() if any(moved(before[name], m))} == {"actor", "critic"}


@pytest.mark.parametrize("method", [RePo(), Dreamer()])
def test_the_models_loss_leaves_actor_and_critic(method):
    policy, state = made(method)
    state.descend = lambda name, loss, again=False, own=state.descend: own(name, loss) if name == "model" else None
    before = {name: weights(m) for name, m in policy.named_children()}
    method.update(state, batch())
    assert {name for name, m in policy.named_children() if any(moved(before[name], m))} == {"encoder", "dynamics", "reward"}


def test_imagination_has_so_many_steps_and_the_last_only_gives_its_value():
    method = RePo(imagine=4, gamma=0.5, lam=1.0)
    policy, state = made(method)
    rewards, critic = [], state.modules["critic"]
    policy.reward.register_forward_hook(lambda _, given, out: rewards.append(len(given[0])))
    for p in critic.parameters():
        p.data.zero_()
    critic[-1].bias.data.fill_(8.0)
    for p in policy.reward.parameters():
        p.data.zero_()
    metrics = behave(method, state, see(method, policy, batch()))
    assert rewards == [2] and float(metrics["value/mean"]) == 8.0
    target = torch.tensor([8 * 0.5**2, 8 * 0.5])
    assert float(metrics["loss/critic"]) == pytest.approx(float((0.5 * (8 - target) ** 2).mean()))


def test_nats_below_dreamers_allowance_cost_nothing():
    losses = []
    for free in (1e3, 2e3):
        policy, state = made(Dreamer(free=free))
        Dreamer(free=free).update(state, batch())
        losses.append(weights(policy))
    assert all(torch.equal(a, b) for a, b in zip(*losses, strict=True))


def test_learning_rates_are_multiples_of_the_recipes():
    _, state = made(RePo())
    state.set_rate(3e-4)
    rates = {name: o.param_groups[0]["lr"] for name, o in state.optimizers.items()}
    assert rates == pytest.approx({"model": 3e-4, "actor": 8e-5, "critic": 8e-5, "beta": 1e-4, "decoder": 3e-4})


@pytest.mark.parametrize(
    ("method", "wrong"), [(RePo, {"imagine": 2}), (Dreamer, {"imagine": 1}), (Dreamer, {"lam": 1.5}), (RePo, {"beta": -1.0})]
)
def test_numbers_that_cannot_be_are_refused(method, wrong):
    with pytest.raises(ValueError, match=rf"\.{next(iter(wrong))} is"):
        method(**wrong)
