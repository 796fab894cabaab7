"""Divergences of Gaussians and returns along imagined steps, by hand."""

import pytest
import torch

from fovea.math.advantages import gae
from fovea.math.bootstrapped import multiplier_loss
from fovea.math.latent import balanced_kl, gaussian_kl, lambda_returns


def one(mean, std):
    return torch.tensor([mean], dtype=torch.float64), torch.tensor([std], dtype=torch.float64)


@pytest.mark.parametrize(("q", "kl"), [((1.0, 0.5), 0.8181472), ((0.0, 1.0), 0.0), ((2.0, 0.1), 3.8075851)])
def test_kl_of_gaussians_by_hand(q, kl):
    assert float(gaussian_kl(one(*q), one(0.0, 1.0))) == pytest.approx(kl, abs=1e-7)


def test_kl_agrees_with_torch_and_adds_over_dimensions():
    g = torch.Generator().manual_seed(0)
    mean_q, mean_p = torch.randn(2, 4, 3, generator=g)
    std_q, std_p = torch.rand(2, 4, 3, generator=g) + 0.1
    normal = torch.distributions.Normal
    known = torch.distributions.kl_divergence(normal(mean_q, std_q), normal(mean_p, std_p)).sum(-1)
    assert torch.allclose(gaussian_kl((mean_q, std_q), (mean_p, std_p)), known, atol=1e-5)


def test_balancing_changes_gradients_and_not_the_value():
    alpha, leaves = 5 / 6, [x.requires_grad_() for x in (*one(1.0, 0.5), *one(0.3, 2.0))]
    plain = gaussian_kl((leaves[0], leaves[1]), (leaves[2], leaves[3])).sum()
    balanced = balanced_kl((leaves[0], leaves[1]), (leaves[2], leaves[3]), alpha).sum()
    assert alpha == pytest.approx(0.8333, abs=1e-4) and balanced.item() == pytest.approx(plain.item(), abs=1e-12)
    for share, a, b in zip((1 - alpha, 1 - alpha, alpha, alpha), torch.autograd.grad(balanced, leaves), torch.autograd.grad(plain, leaves)):
        assert float(a) == pytest.approx(share * float(b), abs=1e-12)


def test_the_multiplier_grows_by_what_is_violated():
    for kl, grad in ((5.0, -2.0), (3.0, 0.0), (1.0, 2.0)):
        log_beta = torch.tensor(1e-5).log().requires_grad_()
        multiplier_loss(log_beta, torch.tensor(3.0 - kl)).backward()
        assert log_beta.grad.item() == grad


def test_lambda_returns_by_hand():
    reward, value, last = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.5, 1.0, 0.0]), torch.tensor([3.0])
    found = lambda_returns(reward[:, None], torch.cat([value[1:], last])[:, None], 0.9, 0.95)
    assert found[:, 0].tolist() == pytest.approx([4.4808175, 4.0185, 4.7], abs=1e-5)


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_lambda_returns_are_advantages_plus_values_and_have_their_gradients(lam):
    g = torch.Generator().manual_seed(0)
    reward_TN, value_TN = (torch.randn(n, 3, generator=g, dtype=torch.float64).requires_grad_() for n in (5, 6))
    found = lambda_returns(reward_TN, value_TN[1:], 0.9, lam)
    adv_NT = gae(reward_TN.T, value_TN[:-1].T, torch.ones(3, 5), value_TN[-1], 0.9, lam)
    known = adv_NT.T + value_TN[:-1]
    assert torch.allclose(found, known)
    weights = torch.arange(15.0, dtype=torch.float64).view(5, 3)
    for a, b in zip(*(torch.autograd.grad((x * weights).sum(), [reward_TN, value_TN]) for x in (found, known))):
        assert torch.allclose(a, b, atol=1e-12)
