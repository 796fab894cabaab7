"""Gaussian latents of world models, and returns along what was imagined.

A Gaussian is (mean, std), each (..., S), with independent dimensions.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

Gaussian = tuple[Tensor, Tensor]


def gaussian_kl(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q ‖ p) in nats, summed over the last axis.

    log(σ_p / σ_q) + [σ_q² + (μ_q − μ_p)²] / (2 σ_p²) − ½
    """
    (mean_q, std_q), (mean_p, std_p) = q, p
    ratio, gap = std_q / std_p, (mean_q - mean_p) / std_p
    return (0.5 * (ratio.square() + gap.square() - 1) - ratio.log()).sum(-1)


def balanced_kl(q: Gaussian, p: Gaussian, alpha: float) -> Tensor:
    """The value of KL(q ‖ p), whose gradient is α of it for p and 1 − α of it for q (Hafner et al. 2021, arXiv 2010.02193).

    α KL(sg(q) ‖ p) + (1 − α) KL(q ‖ sg(p))
    """
    fixed_q, fixed_p = (tuple(x.detach() for x in g) for g in (q, p))
    return alpha * gaussian_kl(fixed_q, p) + (1 - alpha) * gaussian_kl(q, fixed_p)  # type: ignore[arg-type]


def lambda_returns(reward_TN: Tensor, next_value_TN: Tensor, gamma: float, lam: float) -> Tensor:
    """R_t = r_t + γ [(1 − λ) V_{t+1} + λ R_{t+1}], the last from its value alone (Hafner et al. 2020, arXiv 1912.01603, equation 6).

    The same as `fovea.math.advantages.gae` plus the value, as one product with a triangular matrix, through which gradients flow.

    Args:
      reward_TN: what step t is paid. next_value_TN: value of where it leads.
    """
    T = len(reward_TN)
    powers_TT = _powers(T, gamma * lam).to(reward_TN)
    own_TN = reward_TN + gamma * (1 - lam) * next_value_TN
    last_N = gamma * lam * next_value_TN[-1:]
    return powers_TT @ torch.cat([own_TN[:-1], own_TN[-1:] + last_N])


@cache
def _powers(T: int, factor: float) -> Tensor:
    """(T, T): factor^(s − t) for s ≥ t, else 0."""
    ahead_TT = torch.arange(T)[None] - torch.arange(T)[:, None]
    return torch.where(ahead_TT >= 0, torch.tensor(factor, dtype=torch.float64) ** ahead_TT.clamp(min=0), 0.0)
