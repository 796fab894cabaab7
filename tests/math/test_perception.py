"""Numbers of PAPO's and VPPO's papers by hand."""

import pytest
import torch

from fovea.math.perception import dependency, most_dependent, trajectory_scale

D = torch.float64


def logs(*p):
    return torch.tensor([p], dtype=D).log()


def test_dependency_of_two_tokens_by_hand():
    assert dependency(logs(0.8, 0.5), logs(0.2, 0.5))[0].tolist() == pytest.approx([0.6363, 0.0], abs=1e-4)


def test_its_gradient_is_one_less_the_ratio():
    logp = logs(0.8).requires_grad_()
    dependency(logp, logs(0.2)).sum().backward()
    assert logp.grad.item() == pytest.approx(0.75)


def test_it_is_never_negative_limited_and_nothing_without_a_picture():
    g = torch.Generator().manual_seed(0)
    a, b = (-5 * torch.rand(4, 50, generator=g, dtype=D) for _ in range(2))
    assert (dependency(a, b) >= 0).all()
    assert dependency(torch.tensor([[-60.0]]), torch.tensor([[0.0]])).item() == 10.0
    blind = dependency(a.requires_grad_(), torch.full_like(a, float("nan")))
    blind.sum().backward()
    assert not blind.any() and not a.grad.any()


def test_vppos_five_tokens():
    s = dependency(logs(0.9, 0.6, 0.5, 0.8, 0.7), logs(0.9, 0.1, 0.5, 0.4, 0.65))
    assert s[0].tolist() == pytest.approx([0, 0.9584, 0, 0.1931, 0.0027], abs=1e-4)
    assert s.mean().item() == pytest.approx(0.2309, abs=1e-4)
    assert most_dependent(s, torch.ones_like(s), 0.4)[0].tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(("length", "kept"), [(1, 1), (5, 2), (7, 3), (10, 4)])
def test_how_many_tokens_are_kept(length, kept):
    s = torch.rand(1, 12, generator=torch.Generator().manual_seed(1), dtype=D)
    mask = (torch.arange(12) < length).to(D)[None]
    found = most_dependent(s, mask, 0.4)
    assert found.sum() == kept
    assert not found[mask == 0].any()
    assert torch.equal(most_dependent(s[:, :length], mask[:, :length], 0.4), found[:, :length])
    assert torch.equal(most_dependent(s, mask, 1.0), mask)


def test_among_equals_the_first_are_kept():
    assert most_dependent(torch.zeros(1, 5), torch.tensor([[0.0, 1, 1, 1, 1]]), 0.5)[0].tolist() == [0, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("means", "alpha"),
    [((0.1, 0.3, 0.5, 0.3), (0.9, 1.0, 1.1, 1.0)), ((0.1, 0.2, 0.2, 0.9), (0.9, 0.94, 0.94, 1.22))],
)
def test_trajectory_factors_by_hand_have_mean_one(means, alpha):
    found = trajectory_scale(torch.tensor(means, dtype=D), torch.ones(4, dtype=torch.bool), 0.9)
    assert found.tolist() == pytest.approx(alpha, abs=1e-6)
    assert found.mean().item() == pytest.approx(1.0, abs=1e-6)


def test_rows_that_do_not_train_neither_count_nor_change():
    valid = torch.tensor([True, True, False, True, True])
    found = trajectory_scale(torch.tensor([0.1, 0.3, 9.0, 0.5, 0.3], dtype=D), valid, 0.9)
    assert found.tolist() == pytest.approx((0.9, 1.0, 1.0, 1.1, 1.0), abs=1e-6)
    assert trajectory_scale(torch.full((4,), 0.2), torch.ones(4, dtype=torch.bool), 0.9).tolist() == [1, 1, 1, 1]
    assert trajectory_scale(torch.tensor([0.2, 0.9]), torch.tensor([True, False]), 0.9).tolist() == [1, 1]
    assert (trajectory_scale(torch.rand(50), torch.ones(50, dtype=torch.bool), 0.01) > 0).all()
