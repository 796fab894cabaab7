"""Losses of judges: the numbers of the card, where they are lowest, and who gets a gradient."""

import math

import pytest
import torch

from fovea.math import adversarial as a


def leaf(*values):
    return torch.tensor(values, requires_grad=True)


def test_what_the_encoder_loses_by_each_judgement():
    assert [float(a.support_loss(torch.tensor([d]))) for d in (0.0, 2.0, -2.0)] == [0.0, -3.0, 1.0]
    assert float(a.support_loss(torch.tensor([0.0, 2.0, -2.0]))) == pytest.approx(-2 / 3)
    assert float(a.distribution_loss(torch.tensor([0.0]))) == pytest.approx(math.log(2))
    assert float(a.distribution_loss(torch.tensor([2.0]))) == pytest.approx(math.log1p(math.exp(-2)))


def test_what_the_judge_loses():
    source, ratio, target = leaf(1.0, 3.0), leaf(0.5, 1.5), leaf(2.0, -2.0)
    lost = a.support_judge_loss(source, ratio, target)
    assert lost.item() == pytest.approx(1.0 - 2.5)
    lost.backward()
    assert source.grad.tolist() == [-0.25, -0.75] and target.grad.tolist() == [1.0, 0.0] and ratio.grad is None
    assert float(a.distribution_judge_loss(torch.tensor([0.0]), torch.tensor([0.0, 2.0]))) == pytest.approx(
        math.log(2) + (math.log(2) + math.log1p(math.exp(2))) / 2
    )


def test_the_ratio_lowers_the_divergence_and_its_dual_weighs_the_mean():
    ratio, source, dual = leaf(0.5, 2.0), leaf(1.0, -1.0), torch.tensor(0.3, requires_grad=True)
    lost = a.ratio_loss(ratio, source, dual)
    assert lost.item() == pytest.approx(-0.75 + 0.3 * 0.25)
    lost.backward()
    assert ratio.grad.tolist() == pytest.approx([0.65, -0.35]) and source.grad is None and dual.grad is None


def test_the_best_judge_knows_the_ratio_of_both_and_the_loss_is_then_less_the_divergence():
    """On three places: D = 2 (τ p / q − 1), and −loss = Σ (τ p − q)² / q."""
    p, q, ratio = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5]), torch.tensor([0.5, 2.0, 1.0])
    count = 8  # samples of p and q in their proportions
    judged = (2 * (ratio * p / q - 1)).requires_grad_()
    source, target = ([i for i, share in enumerate(x) for _ in range(int(count * share))] for x in (p, q))
    lost = a.support_judge_loss(judged[source], ratio[source], judged[target])
    assert lost.item() == pytest.approx(-float(((ratio * p - q) ** 2 / q).sum()))
    lost.backward()
    assert judged.grad.abs().max() < 1e-7
    covered = torch.tensor([1.0, 1.0, 0.0]) / 2  # the target has not been in the third place
    free = a.support_judge_loss(torch.zeros(4), covered[[0, 0, 1, 2]] / p[[0, 0, 1, 2]], torch.zeros(4))
    assert float(free) == 0.0, "weights that leave it out make source and target the same"


def test_steepness_is_the_squared_gradient_and_has_one_itself():
    x, w = torch.tensor([[1.0, 2.0], [0.0, -1.0]], requires_grad=True), leaf(3.0, 4.0)
    assert float(a.steepness((x**2).sum(1), x)) == pytest.approx((4 * 5 + 4 * 1) / 2)
    steep = a.steepness(x @ w, x)
    assert float(steep) == 25.0
    steep.backward()
    assert w.grad.tolist() == [6.0, 8.0]


def matched(way, updates=300, blur=0.3):
    """(lowest, highest) of what target places become by an affine map that was the identity, and the mean ratio.

    The source has been everywhere from −1 to 1, the target from −1 to 0, which it sees 1.5 further up. The judge is the best one: it knows
    both densities, blurred.
    """
    source_N, seen_M = torch.linspace(-1, 1, 81), torch.linspace(-1, 0, 41) + 1.5
    slope_2, log_ratio_N, dual = leaf(1.0, 0.0), torch.zeros(81, requires_grad=True), torch.tensor(0.0)

    def density(at_K, of_J, weight):
        return (torch.exp(-(((at_K[:, None] - of_J) / blur) ** 2) / 2) * weight).mean(1) + 1e-6

    for _ in range(updates):
        target_M, ratio_N = slope_2[0] * seen_M + slope_2[1], log_ratio_N.exp()
        fixed_M, weight_N = target_M.detach(), ratio_N.detach() if way == "support" else 1.0
        share_M, share_N = (density(x, source_N, weight_N) / density(x, fixed_M, 1.0) for x in (target_M, source_N))
        if way == "support":
            lost = a.support_loss(2 * (share_M - 1))
            down = torch.autograd.grad(a.ratio_loss(ratio_N, 2 * (share_N - 1), dual), log_ratio_N)[0]
            log_ratio_N.data -= 20 * down.clamp(-0.02, 0.02)
            dual += 0.05 * (ratio_N.detach().mean() - 1)
        else:
            lost = a.distribution_loss(share_M.log())
        slope_2.data -= 0.05 * torch.autograd.grad(lost, slope_2)[0]
    ends = (slope_2[0] * seen_M + slope_2[1]).detach()
    return ends.min().item(), ends.max().item(), log_ratio_N.exp().mean().item()


def test_a_target_that_has_seen_a_half_is_brought_into_the_support_and_stretched_only_where_distributions_shall_be_equal():
    low, high, mean = matched("support")
    assert high < 1.1 and 0.7 < high - low < 1.1 and mean == pytest.approx(1, abs=0.02), "it was from 0.5 to 1.5"
    low, high, _ = matched("distribution")
    assert high < 1.1 and high - low > 1.5, "half of the states are spread over all of them"
