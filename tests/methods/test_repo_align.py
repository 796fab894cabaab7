"""Alignment: who moves, each loss by hand, the directions of its duals, and what is lost where distributions are made equal."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import nn

from fovea.batch import Windows
from fovea.checks import check_method
from fovea.methods.repo_align import Align
from fovea.policies.control import Latents, Spaces, build
from fovea.trainer.update import Adam

SHAPE = (8, 8, 3)
SMALL: dict[str, Any] = dict(width=5, code=3)


def windows(B=4, L=2, seed=0, key=5, paired=0, **more):
    g = torch.Generator().manual_seed(seed)
    obs, twin = (torch.randint(0, 256, (B, n, *SHAPE), generator=g, dtype=torch.uint8) for n in (L + 1, L))
    actions, reward = torch.rand(B, L, 2, generator=g) * 2 - 1, torch.rand(B, L, generator=g)
    extras = {"twin": twin, "paired": torch.arange(B * L).view(B, L) < paired} if paired else {}
    return Windows(obs, actions, reward, torch.zeros(B, L, dtype=torch.bool), key, extras, **more)


def batch(**settings):
    return windows(recorded=windows(seed=1), **settings)


def made(method, rate=1e-2):
    torch.manual_seed(0)
    policy = build("world-model", Spaces(SHAPE, 2, False), Latents(width=6, stochastic=3, channels=2))
    return policy, method.init(policy, Adam(rate, max_grad_norm=0.0))


def constant(net: nn.Module, value: float):
    """A net that says the same of everything."""
    for p in net.parameters():
        p.data.zero_()
    list(net.parameters())[-1].data.fill_(value)


def judged(state, d, ratio=1.0):
    """A judge that says `d` through a code with no information, and a density ratio."""
    constant(state.modules["judge"].encode, 0.0)
    constant(state.modules["judge"].decide, d)
    if "ratio" in state.modules:
        constant(state.modules["ratio"], math.log(ratio))


def told(method, state, given):
    losses = {}
    state.descend = lambda name, loss, again=False: losses.setdefault(name, float(loss.detach()))
    method.update(state, given)
    return losses


@pytest.mark.parametrize("match", ["support", "distribution"])
def test_the_contract(match):
    check_method(Align(match=match, **SMALL))


@pytest.mark.parametrize("match", ["support", "distribution"])
def test_the_encoder_alone_moves_and_no_reward_or_action_matters(match):
    method = Align(match=match, **SMALL)
    policy, state = made(method)
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    source = [p.clone() for p in state.modules["source"].parameters()]
    for key in range(3):
        method.update(state, batch(key=key, paired=3))
    changed = {k.partition(".")[0] for k, v in policy.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"encoder"}
    assert all(torch.equal(a, b) for a, b in zip(source, state.modules["source"].parameters(), strict=True))
    other, state = made(method)
    for key in range(3):
        given = batch(key=key, paired=3)
        unpaid = dataclasses.replace(given, reward_BL=given.reward_BL - 7, actions=-given.actions)
        method.update(state, unpaid)
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), other.parameters(), strict=True))


def test_every_loss_by_hand_where_the_judge_says_the_same_of_all():
    method = Align(bound=0.1, squeeze=0.5, **SMALL)
    _, state = made(method)
    judged(state, 2.0, ratio=3.0)
    losses = told(method, state, batch())
    # f*(2) = 3; a code without information has 0 nats, and a constant no slope
    assert losses["judge"] == pytest.approx(-3 * 2 + 3 - 0.5 * 0.1)
    assert losses["encoder"] == pytest.approx(-3.0)
    assert losses["ratio"] == pytest.approx(3 * 2 + 1e-4 * (3 - 1)) and losses["dual"] == pytest.approx(1e-4 * (1 - 3))

    method = Align(match="distribution", squeeze=0.0, **SMALL)
    _, state = made(method)
    judged(state, 2.0)
    losses = told(method, state, batch())
    assert losses["judge"] == pytest.approx(math.log1p(math.exp(-2)) + math.log1p(math.exp(2)))
    assert losses["encoder"] == pytest.approx(math.log1p(math.exp(-2))) and set(losses) == {"judge", "encoder"}


def test_pairs_draw_the_embedding_of_a_picture_to_that_of_its_twin():
    method = Align(weight=0.0, calibration=2.0, **SMALL)
    policy, state = made(method)
    for p in policy.encoder.parameters():  # no longer that of the source
        p.data.mul_(1.5)
    given = batch(paired=3)
    with torch.no_grad():
        shown, twin = given.obs[:, :-1].flatten(0, 1)[:3], given.extras["twin"].flatten(0, 1)[:3]
        gap = policy.encoder(policy.pixels(shown)) - state.modules["source"](policy.pixels(twin))
    assert told(method, state, given)["encoder"] == pytest.approx(2 * float(0.5 * gap.square().mean()), rel=1e-5)
    assert told(method, made(method)[1], batch())["encoder"] == 0.0, "no picture has a twin"
    unpaired = dataclasses.replace(given, extras={**given.extras, "paired": torch.zeros(4, 2, dtype=torch.bool)})
    assert told(method, made(method)[1], unpaired)["encoder"] == 0.0
    own = dataclasses.replace(given, extras={**given.extras, "twin": given.obs[:, :-1]})
    assert told(method, made(method)[1], own)["encoder"] == 0.0, "the source's encoder, and pairs of the same picture"


@pytest.mark.parametrize(("ratio", "rises"), [(1.5, True), (0.5, False)])
def test_the_dual_of_the_ratio_rises_while_its_mean_is_above_one_and_then_draws_it_down(ratio, rises):
    method = Align(dual_rate=1.0, **SMALL)
    _, state = made(method)
    state.set_rate(1e-2)
    judged(state, 0.0, ratio)
    method.update(state, batch())
    moved = state.duals["ratio"].item() - 1e-4
    assert moved == pytest.approx(1e-2 if rises else -1e-2, rel=1e-3), "Adam's first step is as long as its rate"
    state.duals["ratio"].data.fill_(50.0 if rises else -50.0)
    means = [float(method.update(state, batch(key=key))[1]["align/ratio"]) for key in range(3)]
    assert means == sorted(means, reverse=rises) and means[0] == pytest.approx(ratio, rel=0.05) and means[0] != means[2]


@pytest.mark.parametrize(("nats", "start", "after"), [(0.0, 0.2, 0.2 - 0.05), (0.0, 0.02, 0.0), (1.5, 0.2, 0.2 + 0.1)])
def test_the_code_is_squeezed_more_while_it_keeps_more_nats_than_its_bound(nats, start, after):
    method = Align(bound=0.5, squeeze=start, squeeze_rate=0.1, **SMALL)
    _, state = made(method)
    judged(state, 0.0)
    state.modules["judge"].encode[-1].bias.data[:3] = math.sqrt(2 * nats / 3)  # means of a code of 3 numbers: ½ Σ μ²
    _, metrics = method.update(state, batch())
    assert float(metrics["align/nats"]) == pytest.approx(nats, abs=1e-6)
    assert float(state.duals["squeeze"]) == pytest.approx(after, abs=1e-6)


def test_the_slope_of_the_judge_costs_at_source_embeddings():
    losses, given = [], batch()
    for penalty in (0.0, 2.0):
        method = Align(penalty=penalty, **SMALL)
        policy, state = made(method)
        for p in state.modules["judge"].parameters():
            p.data.mul_(4)
        losses.append(told(method, state, given)["judge"])
    with torch.no_grad():
        seen = state.modules["source"](policy.pixels(windows(seed=1).obs[:, :-1].flatten(0, 1)))
    seen.requires_grad_()
    judgement, _ = state.modules["judge"](seen, given.noise(4 * 8, 3)[:8])
    slope = torch.autograd.grad(judgement.sum(), seen)[0].square().sum(1).mean()
    assert losses[1] - losses[0] == pytest.approx(2 * float(slope), rel=1e-2) and float(slope) > 1e-3


def test_learning_rates_are_multiples_of_the_recipes():
    _, state = made(Align())
    state.set_rate(3e-4)
    rates = {name: o.param_groups[0]["lr"] for name, o in state.optimizers.items()}
    assert rates == pytest.approx({"encoder": 3e-4, "judge": 3e-4, "ratio": 5e-5, "dual": 5e-3})


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"Align.match 'suport' is not known; .* did you mean 'support'"):
        Align(match="suport")  # type: ignore[arg-type]
    for name, value in {"width": 0, "penalty": -1.0, "weight": -0.5}.items():
        with pytest.raises(ValueError, match=rf"\.{name} is {value}"):
            Align(**{name: value})
    policy = build("world-model", Spaces((3,), 2, False), Latents(width=4, normalise=True))
    with pytest.raises(ValueError, match=r"network\.normalise = True; expected False"):
        Align().init(policy, Adam(1e-3))


def walks(count, until, g):
    """Places in a corridor (N, 2), walked from its left end, x = −1, up to x = `until`; half as wide as long."""
    return torch.rand(count, 2, generator=g) * torch.tensor([until + 1, 1.0]) - torch.tensor([1, 0.5])


def test_a_target_that_looks_as_if_it_lay_outside_is_brought_back_into_the_support():
    """The source has walked the whole corridor, the target its left half, 2 higher; the encoder is affine and was the identity."""
    torch.manual_seed(0)
    policy = build("world-model", Spaces((2,), 1, False), Latents(width=2, stochastic=2))
    policy.encoder = nn.Sequential(nn.Linear(2, 2))
    nn.init.eye_(policy.encoder[0].weight), nn.init.zeros_(policy.encoder[0].bias)
    method = Align(width=16, code=4, ratio_rate=1.0, dual_rate=1.0, squeeze=0.0, squeeze_rate=0.0, penalty=0.1)
    state = method.init(policy, Adam(1e-2, max_grad_norm=0.0, betas=(0.5, 0.999)))
    state.set_rate(1e-2)
    g, higher = torch.Generator().manual_seed(0), torch.tensor([0.0, 2.0])
    corridor, left = walks(400, 1.0, g), walks(200, 0.0, g)

    def outside():
        with torch.no_grad():
            return float(torch.cdist(policy.encoder(left + higher), corridor).amin(1).mean())

    def windows_of(places_B2, **more):
        B = len(places_B2)
        nothing = torch.zeros(B, 1, 1), torch.zeros(B, 1), torch.zeros(B, 1, dtype=torch.bool)
        return Windows(places_B2[:, None].expand(B, 2, 2), *nothing, **more)

    distances = [outside()]
    for i in range(70):
        source, target = windows_of(walks(48, 1.0, g)), walks(48, 0.0, g) + higher
        method.update(state, windows_of(target, key=2 * i, recorded=source))
        distances.append(outside())
    assert distances[0] > 1.4 and sum(distances[-20:]) / 20 < 0.25 * distances[0]
