"""Entropies of the usual policies, in nats per action unit."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def categorical(logits: Tensor) -> Tensor:
    """H = −Σ_v p_v log p_v over the last axis: (..., V) -> (...). Banned actions may carry −inf."""
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp.masked_fill(logp.isneginf(), 0.0)).sum(-1)


def gaussian(log_std: Tensor) -> Tensor:
    """H = Σ_a (log σ_a + ½ log 2πe) of a diagonal normal: (..., A) -> (...)."""
    return (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


def at_least_quantile(x_S: Tensor, group_S: Tensor, quantile: float) -> Tensor:
    """(S,) bool: entries that are at least the quantile of their group, which is interpolated linearly between entries."""
    keep_S = torch.zeros_like(x_S, dtype=torch.bool)
    for g in group_S.unique():
        mine_S = group_S == g
        keep_S[mine_S] = x_S[mine_S] >= torch.quantile(x_S[mine_S], quantile)
    return keep_S
