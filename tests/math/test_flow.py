"""Steps of a flow: the card's numbers by hand, the same marginals with and without noise."""

import math

import pytest
import torch

from fovea.math import flow


def step(x, v, t, delta=0.25, level=0.5):
    mean, std = flow.sde_step(torch.tensor(x), torch.tensor(v), torch.tensor(t), delta, level)
    return float(mean), float(std)


def test_a_step_by_hand():
    """x = 1, v = 2, t = ½, δ = ¼: x̂_0 = 0, x̂_1 = 2, σ = ½."""
    assert float(flow.ode_step(torch.tensor(1.0), torch.tensor(2.0), 0.25)) == 0.5
    assert step(1.0, 2.0, 0.5) == pytest.approx((0.375, 0.25))
    logp = flow.step_logp(torch.tensor(0.5), torch.tensor(0.375), torch.tensor(0.25))
    assert float(logp) == pytest.approx(0.34236, abs=1e-5)


@pytest.mark.parametrize(("t", "weight", "std"), [(1.0, 0.625, 0.5), (0.75, 0.375, 0.4330), (0.5, 0.1875, 0.25), (0.25, -0.041667, 0.1443)])
def test_weights_of_the_noise_on_the_whole_grid(t, weight, std):
    """With x̂_0 = 0 and x̂_1 = 1, so x = t and v = 1, the mean is the weight of x̂_1."""
    assert step(t, 1.0, t) == pytest.approx((weight, std), abs=5e-5)


def test_the_grid_ends_at_the_action():
    assert flow.times(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_without_a_level_a_step_is_that_of_the_ode_and_has_no_likelihood():
    x, v = torch.randn(5), torch.randn(5)
    mean, std = flow.sde_step(x, v, torch.tensor(0.75), 0.25, 0.0)
    torch.testing.assert_close(mean, flow.ode_step(x, v, 0.25))
    mean.requires_grad_()
    logp = flow.step_logp(x, mean, std)
    assert std.tolist() == [0.0] * 5 == logp.tolist() == flow.step_entropy(std).tolist()
    logp.sum().backward()
    assert mean.grad is None or mean.grad.abs().sum() == 0


def test_the_learned_deviation_lies_between_its_bounds():
    out = flow.learned_std(torch.tensor([0.0, 1e9, -1e9]), 0.08, 0.16)
    assert out.tolist() == pytest.approx([math.sqrt(0.08 * 0.16), 0.16, 0.08]) and float(out[0]) == pytest.approx(0.113137, abs=1e-6)


def test_entropy_is_that_of_a_gaussian():
    assert float(flow.step_entropy(torch.tensor(0.25))) == pytest.approx(float(torch.distributions.Normal(0.0, 0.25).entropy()))


def test_random_steps_keep_the_marginals_of_the_flow():
    """A ~ N(1.5, 0.4²): the velocity E[ε − A | x_t] is known. K = 128 steps end at the same mean and deviation by both ways."""
    m, s, K, n = 1.5, 0.4, 128, 40_000
    generator = torch.Generator().manual_seed(0)
    ends = {}
    for level in (0.0, 0.5):
        x = torch.randn(n, generator=generator)
        for t in flow.times(K)[:-1]:
            variance = t**2 + (1 - t) ** 2 * s**2
            gap = x - (1 - t) * m
            velocity = t * gap / variance - (m + (1 - t) * s**2 * gap / variance)
            mean, std = flow.sde_step(x, velocity, t, 1 / K, level)
            x = mean + std * torch.randn(n, generator=generator)
        ends[level] = (float(x.mean()), float(x.std()))
    assert ends[0.0] == pytest.approx((m, s), rel=0.02) and ends[0.5] == pytest.approx((m, s), rel=0.02)
