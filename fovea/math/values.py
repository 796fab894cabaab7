"""Losses of a value head."""

from __future__ import annotations

import torch
from torch import Tensor


def value_loss(value: Tensor, ret: Tensor, value_old: Tensor | None = None, clip: float = 0.0) -> Tensor:
    """½ (V − R)², or with clipping ½ max((V − R)², (V_clip − R)²), V_clip = V_old + clamp(V − V_old, ±clip) (PPO's implementation).

    Args:
      value: current estimate, with gradient.
      ret: target, in reward units.
      value_old: estimate when the data were collected; needed only when `clip` is positive.
      clip: largest step of the value, in reward units; 0 is off.
    """
    square = (value - ret) ** 2
    if clip and value_old is not None:
        near = value_old + (value - value_old).clamp(-clip, clip)
        square = torch.maximum(square, (near - ret) ** 2)
    return 0.5 * square
