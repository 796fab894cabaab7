"""Commands of grippers: −1 closes, 0 leaves as it is, 1 opens (HIL-SERL, arXiv 2410.21845)."""

from __future__ import annotations

import torch
from torch import Tensor

OPEN = 0.9
"""A gripper is open above this, its opening going from 0 to 1."""


def command_index(command_BG: Tensor) -> Tensor:
    """The number of what G grippers were told together: Σ_g 3^(G−1−g) (round(a_g) + 1), from 0 to 3^G − 1 (B,)."""
    G = command_BG.shape[-1]
    return ((command_BG.round().long() + 1) * 3 ** torch.arange(G - 1, -1, -1)).sum(-1)


def commands(index_B: Tensor, grippers: int) -> Tensor:
    """The commands behind numbers of `command_index`: (B, G) of −1, 0 and 1."""
    return (index_B[:, None] // 3 ** torch.arange(grippers - 1, -1, -1) % 3 - 1).float()


def grasp_penalty(opening: float, command: float, penalty: float = -0.02) -> float:
    """What a command costs that changes a gripper's state: closing an open one, opening one that is not.

    Args:
      opening: from 0 (closed) to 1. command: below −0.5 closes, above 0.5 opens.
    """
    closes, opens = command < -0.5 and opening > OPEN, command > 0.5 and opening < OPEN
    return penalty if closes or opens else 0.0
