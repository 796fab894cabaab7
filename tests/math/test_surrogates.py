import math

import pytest
import torch

from fovea.math import kl, ratios, surrogates
from fovea.math.values import value_loss


def t(*x):
    return torch.tensor(x, dtype=torch.float64)


@pytest.mark.parametrize(
    "ratio, adv, dual, eps_hi, want",
    [
        (1.5, 1, 0, 0.2, 1.2),
        (1.5, -1, 0, 0.2, -1.5),
        (0.5, 1, 0, 0.2, 0.5),
        (0.5, -1, 0, 0.2, -0.8),
        (5, -1, 0, 0.2, -5),
        (5, -1, 3, 0.2, -3),
        (5, 1, 3, 0.2, 1.2),
        (1.5, 1, 0, 0.28, 1.28),
    ],
)
def test_worked_numbers_of_the_clip(ratio, adv, dual, eps_hi, want):
    assert surrogates.ppo_clip(t(ratio), t(adv), 0.2, eps_hi, dual=dual).item() == pytest.approx(want, abs=1e-12)


def test_delta_is_the_dual_clip_for_bad_actions_and_changes_nothing_else():
    ratio = torch.linspace(0.1, 8, 50, dtype=torch.float64)
    for adv in (t(1.0), t(-1.0)):
        assert torch.equal(surrogates.ppo_clip(ratio, adv, delta=3.0), surrogates.ppo_clip(ratio, adv, dual=3.0))


def weight(objective_of_logp, log_ratio):
    """Coefficient of ∇log π in the gradient of an objective."""
    logp = t(log_ratio).requires_grad_()
    (grad,) = torch.autograd.grad(objective_of_logp(logp).sum(), logp)
    return grad.item()


@pytest.mark.parametrize("ratio, adv, want, ppo", [(1.5, 1, 1.2, 0.0), (1.5, -1, -1.2, -1.5), (0.5, 1, 0.5, 0.5)])
def test_worked_gradient_weights_of_cispo_and_ppo(ratio, adv, want, ppo):
    log_ratio = math.log(ratio)
    got = weight(lambda logp: surrogates.cispo(ratios.token_ratio(logp), logp, t(adv), eps_lo=1.0, eps_hi=0.2), log_ratio)
    assert got == pytest.approx(want, abs=1e-12)
    assert weight(lambda logp: surrogates.ppo_clip(ratios.token_ratio(logp), t(adv)), log_ratio) == pytest.approx(ppo, abs=1e-12)


def test_worked_numbers_of_gspo():
    log_ratio, mask = t(0.1, -0.2, 0.4)[None].requires_grad_(), torch.ones(1, 3, dtype=torch.float64)
    assert ratios.token_ratio(log_ratio)[0].tolist() == pytest.approx([1.1052, 0.8187, 1.4918], abs=5e-5)
    s = ratios.sequence_ratio(log_ratio, mask)
    assert s.item() == pytest.approx(1.10517, abs=5e-6)
    per_token = ratios.sequence_ratio_per_token(log_ratio, mask)
    assert per_token[0].tolist() == pytest.approx([1.10517] * 3, abs=5e-6)
    objective = surrogates.ppo_clip(per_token, t(1.0), 3e-4, 4e-4).mean()
    assert objective.item() == pytest.approx(1.0004, abs=1e-12)
    (grad,) = torch.autograd.grad(objective, log_ratio)
    assert (grad == 0).all()


def test_gspo_token_form_has_the_gradient_of_the_sequence_form():
    g = torch.Generator().manual_seed(0)
    log_ratio = (0.1 * torch.randn(4, 6, generator=g, dtype=torch.float64)).requires_grad_()
    mask, adv = (torch.rand(4, 6, generator=g) > 0.3).double(), torch.randn(4, 1, generator=g, dtype=torch.float64)
    mask[:, 0] = 1
    per_row = (ratios.sequence_ratio(log_ratio, mask) * adv).sum()
    per_token = ((ratios.sequence_ratio_per_token(log_ratio, mask) * adv * mask).sum(1) / mask.sum(1)).sum()
    assert torch.allclose(per_row, per_token, atol=1e-12)
    a, b = (torch.autograd.grad(x, log_ratio)[0] for x in (per_row, per_token))
    assert torch.allclose(a, b, atol=1e-12)


def test_extreme_log_ratios_stay_finite():
    far = t(-1e4, 1e4)[None]
    assert ratios.token_ratio(far)[0].tolist() == pytest.approx([math.exp(-20), math.exp(20)])
    assert ratios.sequence_ratio_per_token(t(1e4)[None], torch.ones(1, 1)).item() == pytest.approx(math.exp(10))


def test_behaviour_weights_by_hand():
    old, sampled, mask = t(-1.0, -1.0, -9)[None], t(-1 - math.log(3), -1 + math.log(2), -1)[None], t(1, 1, 0)[None]

    def weights(level, cap):
        return ratios.behaviour_weight(old, sampled, mask, level, cap)[0, :2].tolist()

    assert weights("none", 2.0) == [1, 1]
    assert weights("token", 2.0) == pytest.approx([2.0, 0.5])
    assert weights("sequence", 3.0) == pytest.approx([1.5, 1.5])
    assert weights("sequence", 1.2) == pytest.approx([1.2, 1.2])
    assert weights("sequence-mask", 3.0) == pytest.approx([1.5, 1.5])
    assert weights("sequence-mask", 1.2) == [0, 0]


def test_gradients_by_finite_differences():
    g = torch.Generator().manual_seed(1)
    logp = (0.3 * torch.randn(3, 5, generator=g, dtype=torch.float64)).requires_grad_()
    adv, ref = torch.randn(3, 1, generator=g, dtype=torch.float64), torch.randn(3, 5, generator=g, dtype=torch.float64)
    mask = torch.ones(3, 5, dtype=torch.float64)
    functions = {
        "clip": lambda x: surrogates.ppo_clip(ratios.token_ratio(x), adv),
        "higher": lambda x: surrogates.ppo_clip(ratios.token_ratio(x), adv, 0.2, 0.28, dual=1.25),
        "delta": lambda x: surrogates.ppo_clip(ratios.token_ratio(x), adv, delta=1.3),
        "reinforce": lambda x: surrogates.reinforce(x, adv),
        "sequence": lambda x: surrogates.ppo_clip(ratios.sequence_ratio(x, mask), adv, 0.05, 0.05),
        "k1": lambda x: kl.k1(x, ref),
        "k2": lambda x: kl.k2(x, ref),
        "k3": lambda x: kl.k3(x, ref),
        "value": lambda x: value_loss(x, ref, torch.zeros_like(x), 0.2),
    }
    for f in functions.values():
        assert torch.autograd.gradcheck(f, (logp,), eps=1e-7, atol=1e-6)


def test_worked_numbers_of_the_kl():
    logp, ref = t(math.log(0.5)), t(math.log(0.25))
    for f, want in ((kl.k1, 0.6931), (kl.k2, 0.2402), (kl.k3, 0.1931)):
        assert f(logp, ref).item() == pytest.approx(want, abs=5e-5)
        assert f(logp, logp).item() == 0.0
    p, q = t(0.5, 0.5), t(0.25, 0.75)
    expected = {name: float((p * kl.KL[name](p.log(), q.log())).sum()) for name in kl.KL}
    assert expected["k1"] == pytest.approx(0.14384, abs=5e-6)
    assert expected["k3"] == pytest.approx(0.14384, abs=5e-6)
    assert expected["k3+"] == pytest.approx(0.14384, abs=5e-6)
    assert expected["k2"] == pytest.approx(0.16121, abs=5e-6)


def test_k3_is_clamped_and_never_negative():
    assert kl.k3(t(0.0), t(1e3)).item() == 10.0
    assert (kl.k3(torch.linspace(-30, 30, 301), torch.zeros(301)) >= 0).all()


def test_k3_straight_through_has_the_value_of_k3_and_the_gradient_of_k2():
    logp = t(-0.3, -1.2, -2.0).requires_grad_()
    ref = t(-0.9, -1.0, -0.5)
    mixed = kl.k3_straight_through(logp, ref)
    assert torch.allclose(mixed, kl.k3(logp, ref), atol=1e-12)
    assert torch.allclose(torch.autograd.grad(mixed.sum(), logp)[0], torch.autograd.grad(kl.k2(logp, ref).sum(), logp)[0], atol=1e-12)


def test_only_k2_has_the_gradient_of_the_kl():
    """Exact expectations over a three-way choice: Σ_a π(a) ∇k(a) against ∇KL."""
    theta = t(0.2, -0.5, 0.9).requires_grad_()
    ref = t(0.5, 0.1, -0.3).log_softmax(0)
    logp = theta.log_softmax(0)
    pi = logp.exp().detach()
    (true,) = torch.autograd.grad((logp.exp() * (logp - ref)).sum(), theta, retain_graph=True)
    got = {n: torch.autograd.grad((pi * f(logp, ref)).sum(), theta, retain_graph=True)[0] for n, f in kl.KL.items()}
    assert torch.allclose(got["k2"], true, atol=1e-12) and torch.allclose(got["k3+"], true, atol=1e-12)
    assert torch.allclose(got["k1"], torch.zeros(3, dtype=torch.float64), atol=1e-12)
    assert not torch.allclose(got["k3"], true, atol=1e-3)


def test_value_clip_takes_the_worse_of_both_errors():
    value, ret, old = t(1.0, 1.0, 0.1), t(0.0, 2.0, 2.0), t(0.0, 0.0, 0.0)
    assert value_loss(value, ret).tolist() == [0.5, 0.5, pytest.approx(0.5 * 1.9**2)]
    assert value_loss(value, ret, old, 0.2).tolist() == pytest.approx([0.5, 0.5 * 1.8**2, 0.5 * 1.9**2])
