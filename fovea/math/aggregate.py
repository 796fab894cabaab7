"""From a per-unit loss (B, T) to a scalar. Every denominator is a total of the whole optimizer step, so the scalar is a sum over rows.

| mode | formula | used by |
|---|---|---|
| seq-mean-token-mean | (1/N) Σ_i (1/L_i) Σ_t x | GRPO as published, GSPO |
| token-mean | Σ_i Σ_t x / Σ_i L_i | DAPO |
| seq-mean-token-sum | (1/N) Σ_i Σ_t x | RLOO (log-probability of a whole answer) |
| dr_grpo | Σ_i Σ_t x / (N · L_max) | Dr. GRPO |
| turn-mean-token-mean | (1/K) Σ_k (1/m_k) Σ_{t∈k} x | VL-DAC |
| seq-mean-token-sum-norm | Σ_i Σ_t x / L_max | verl: no 1/N, scale the learning rate accordingly |

N counts rows with at least one chosen unit, L_i the chosen units of row i; K counts turns, m_k the chosen units of turn k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fovea.batch import Totals
from fovea.math.clock import turn_sums
from fovea.math.options import check

MODES = ("seq-mean-token-mean", "token-mean", "seq-mean-token-sum", "dr_grpo", "seq-mean-token-sum-norm", "turn-mean-token-mean")


def aggregate(x_BT: Tensor, mask_BT: Tensor, totals: Totals, mode: str = "token-mean", turn_BT: Tensor | None = None) -> Tensor:
    """Scalar; summed over the micro-batches of a step it equals the value of the whole step.

    Args:
      x_BT: any per-unit quantity; values at masked units are ignored, even NaN.
      totals: counts over the whole optimizer step.
      turn_BT: which turn of its row a unit belongs to; None makes every row one turn.
    """
    check("aggregation", mode, MODES)
    if mode == "turn-mean-token-mean":
        turn_BT = torch.zeros_like(mask_BT, dtype=torch.long) if turn_BT is None else turn_BT
        return (torch.where(mask_BT > 0, x_BT, 0.0) / turn_sums(mask_BT, turn_BT, mask_BT).clamp(min=1)).sum() / totals.turns
    x_B = torch.where(mask_BT > 0, x_BT, 0.0).sum(1)
    if mode == "token-mean":
        return x_B.sum() / totals.tokens
    if mode == "seq-mean-token-mean":
        return (x_B / mask_BT.sum(1).clamp(min=1)).sum() / totals.rows
    if mode == "seq-mean-token-sum":
        return x_B.sum() / totals.rows
    if mode == "dr_grpo":
        return x_B.sum() / (totals.rows * totals.max_tokens)
    return x_B.sum() / totals.max_tokens
