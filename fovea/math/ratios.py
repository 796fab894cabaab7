"""Importance ratios π_θ / π_old, per unit or per row. Log-ratios are in nats and are clamped to ±20 before the exponential."""

from __future__ import annotations

import torch
from torch import Tensor

LOG_RATIO_MAX = 20.0
BEHAVIOUR = ("none", "token", "sequence", "sequence-mask")


def token_ratio(log_ratio_BT: Tensor) -> Tensor:
    """ρ_t = exp(l_t), l_t = log π_θ(a_t) − log π_old(a_t)."""
    return log_ratio_BT.clamp(-LOG_RATIO_MAX, LOG_RATIO_MAX).exp()


def mean_log_ratio(log_ratio_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """log s_i = (1/L_i) Σ_t l_it over the chosen units of a row: (B, 1)."""
    return (log_ratio_BT * mask_BT).sum(1, keepdim=True) / mask_BT.sum(1, keepdim=True).clamp(min=1)


def sequence_ratio(log_ratio_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """s_i = exp((1/L_i) Σ_t l_it), the length-normalised ratio of GSPO (Zheng et al. 2025, arXiv 2507.18071): (B, 1)."""
    return token_ratio(mean_log_ratio(log_ratio_BT, mask_BT))


def sequence_ratio_per_token(log_ratio_BT: Tensor, mask_BT: Tensor, log_max: float = 10.0) -> Tensor:
    """GSPO's token form: the value of s_i on every unit, with the gradient s_i ∇log π(a_t) on unit t.

        log s_it = sg[log s_i] + log π(a_t) − sg[log π(a_t)]

    Args:
      log_max: upper limit of log s_i before the exponential (10 in verl).
    Returns:
      (B, T).
    """
    log_s_B1 = mean_log_ratio(log_ratio_BT, mask_BT).detach().clamp(-LOG_RATIO_MAX, log_max)
    return (log_s_B1 + log_ratio_BT - log_ratio_BT.detach()).exp()


def behaviour_weight(logp_old_BT: Tensor, logp_behaviour_BT: Tensor, mask_BT: Tensor, level: str = "token", cap: float = 2.0) -> Tensor:
    """Importance weight of the trainer's π_old over the distribution that really sampled, without gradient.

    Args:
      logp_old_BT, logp_behaviour_BT: nats; they differ by top-p/top-k, by another engine's arithmetic or by older weights.
      level: "token": min(w_t, cap), truncated importance sampling. "sequence": min(Π_t w_t, cap) on every unit of the row.
        "sequence-mask": Π_t w_t where it is at most `cap`, else 0 (TRL, cap 3). "none": 1.
    Returns:
      (B, T).
    """
    log_w_BT = ((logp_old_BT - logp_behaviour_BT) * mask_BT).detach()
    if level == "none":
        return torch.ones_like(log_w_BT)
    if level == "token":
        return token_ratio(log_w_BT).clamp(max=cap)
    w_BT = token_ratio(log_w_BT.sum(1, keepdim=True)).expand_as(log_w_BT)
    if level == "sequence":
        return w_BT.clamp(max=cap)
    return torch.where(w_BT <= cap, w_BT, 0.0)
