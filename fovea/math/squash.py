"""A Gaussian squashed into (−1, 1) by tanh, the policy of soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905, appendix C)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus


def squashed(mean_BA: Tensor, log_std_BA: Tensor, noise_BA: Tensor) -> tuple[Tensor, Tensor]:
    """a = tanh(μ + σ ε) and its log-density, differentiable in μ and σ.

        log π(a) = Σ_A [ log N(μ + σ ε; μ, σ) − log(1 − a²) ]

    Args:
      log_std_BA: log σ.
      noise_BA: ε, standard normal; 0 gives the median action.
    Returns:
      (action_BA, logp_B in nats).
    """
    x_BA = mean_BA + log_std_BA.exp() * noise_BA
    gaussian_BA = -0.5 * noise_BA**2 - log_std_BA - 0.5 * math.log(2 * math.pi)
    return torch.tanh(x_BA), (gaussian_BA - log_slope(x_BA)).sum(-1)


def log_slope(x: Tensor) -> Tensor:
    """log(d tanh(x) / dx) = log(1 − tanh² x) = 2 (log 2 − x − softplus(−2x)), exact where tanh x rounds to 1."""
    return 2 * (math.log(2) - x - softplus(-2 * x))
