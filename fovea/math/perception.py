"""How much an answer depends on the picture, from log-probabilities with the picture (`logp`) and with a masked one (`masked`).

Rows whose prompt has no picture carry NaN in `masked` and depend on nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fovea.math.kl import k3

MASKED = "masked/logp"


def dependency(logp_BT: Tensor, masked_BT: Tensor) -> Tensor:
    """k3 of KL(π(·|I) ‖ π(·|I')) per unit (B, T), in [0, 10]; its gradient in log π(·|I) is 1 − e^δ, δ = log π' − log π.

    PAPO's K (arXiv 2507.06448, code) and VPPO's S (arXiv 2510.09285, code).
    """
    return k3(logp_BT, seen(logp_BT, masked_BT))


def seen(logp_BT: Tensor, masked_BT: Tensor) -> Tensor:
    """The masked reading (B, T), and the plain one where there is no picture."""
    return torch.where(masked_BT.isfinite(), masked_BT, logp_BT)


def most_dependent(dependency_BT: Tensor, mask_BT: Tensor, share: float) -> Tensor:
    """(B, T) of 0 and 1: in each row the ⌈share · L⌉ chosen units with the largest dependency; among equals the earlier ones."""
    chosen_BT = mask_BT > 0
    keep_B = torch.ceil(chosen_BT.sum(1).double() * share - 1e-6)
    order_BT = torch.where(chosen_BT, dependency_BT, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank_BT = torch.empty_like(order_BT).scatter_(1, order_BT, torch.arange(order_BT.shape[1]).expand_as(order_BT))
    return (chosen_BT & (rank_BT < keep_B[:, None])).to(mask_BT.dtype)


def trajectory_scale(mean_B: Tensor, valid_B: Tensor, least: float) -> Tensor:
    """VPPO's factors α (B,) with mean 1 over the valid rows: from `least` at the smallest mean dependency upwards (section 3.3, code).

    1 everywhere with fewer than two valid rows or equal dependencies; 1 on rows that are not valid.
    """
    ones_B = torch.ones_like(mean_B)
    valid = mean_B[valid_B]
    if len(valid) < 2 or float(valid.max() - valid.min()) <= 1e-6:
        return ones_B
    n = (mean_B - valid.min()) / (valid.max() - valid.min())
    most = least + (1 - least) / (n[valid_B].mean() + 1e-8)
    return torch.where(valid_B, least + n.clamp(0, 1) * (most - least), ones_B)
