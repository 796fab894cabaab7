"""Regression of log-ratios onto reward differences: what two members of a group say about each other, with no baseline and no scale."""

from __future__ import annotations

import torch
from torch import Tensor

from fovea.math.advantages import group_sums


def pairs(score_N: Tensor, group_N: Tensor, ties: bool = False) -> Tensor:
    """(N, N) bool: ordered pairs (a, b) of one group with r(a) > r(b); `ties` adds each pair of equal scores once."""
    earlier_NN = torch.ones(len(score_N), len(score_N), dtype=torch.bool, device=score_N.device).triu(1)
    better_NN = score_N[:, None] > score_N[None]
    equal_NN = (score_N[:, None] == score_N[None]) & earlier_NN
    return (group_N[:, None] == group_N[None]) & (better_NN | equal_NN if ties else better_NN)


def difference_loss(
    gain_N: Tensor, held_N: Tensor, score_N: Tensor, group_N: Tensor, beta: float, ties: bool = False
) -> tuple[Tensor, Tensor]:
    """Per group, the mean over its pairs of max(l(gain), l(held)); l(g) = ((g(a) − g(b)) − (r(a) − r(b))/β)² (PRDP, Deng et al. 2024).

    Args:
      gain_N: log π_θ − log π_ref of each member, with gradient. held_N: the same with its move since sampling clipped.
      score_N: reward, any scale; an offset per group changes nothing.
      beta: weight of the KL to the reference, in the unit of the score per unit of the gain.
    Returns:
      The sum over the groups, where one without pairs counts 0; and, summed alike, the share of pairs that the clipped value decides.
    """
    pair_NN = pairs(score_N, group_N, ties)
    target_NN = (score_N[:, None] - score_N[None]) / beta
    free_NN, clipped_NN = ((g[:, None] - g[None] - target_NN) ** 2 for g in (gain_N, held_N))
    weight_NN = pair_NN.to(gain_N.dtype) / group_sums(pair_NN.sum(1), group_N).clamp(min=1)[:, None]
    loss_NN = torch.where(pair_NN, torch.maximum(free_NN, clipped_NN), 0.0)
    return (loss_NN * weight_NN).sum(), ((clipped_NN > free_NN) * weight_NN).sum().detach()
