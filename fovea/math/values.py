"""Losses of a value head."""

from __future__ import annotations

import torch
from torch import Tensor


def value_loss(value: Tensor, ret: Tensor, value_old: Tensor | None = None, clip: float = 0.0, huber: float = 0.0) -> Tensor:
    """½ (V − R)², or with clipping ½ max((V − R)², (V_clip − R)²), V_clip = V_old + clamp(V − V_old, ±clip) (PPO's implementation).

    Args:
      value: current estimate, with gradient.
      ret: target, in reward units.
      value_old: estimate when the data were collected; needed only when `clip` is positive.
      clip: largest step of the value, in reward units; 0 is off.
      huber: δ of Huber's loss, δ (|V − R| − δ/2) beyond δ, which takes the square's place; 0 is off.
    """
    error = (value - ret).abs()
    if clip and value_old is not None:
        near = value_old + (value - value_old).clamp(-clip, clip)
        error = torch.maximum(error, (near - ret).abs())
    return torch.where(error <= huber, 0.5 * error**2, huber * (error - 0.5 * huber)) if huber else 0.5 * error**2
