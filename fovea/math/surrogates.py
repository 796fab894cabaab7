"""Surrogate objectives J per action unit, to be maximised; the loss is −J after aggregation.

ratio: ρ = π_θ/π_old with gradient; adv: advantage without gradient; any broadcastable shapes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ppo_clip(ratio: Tensor, adv: Tensor, eps_lo: float = 0.2, eps_hi: float = 0.2, dual: float = 0.0, delta: float = 0.0) -> Tensor:
    """J = min(ρA, clip(ρ, 1−ε_lo, 1+ε_hi)·A) (PPO, Schulman et al. 2017, arXiv 1707.06347).

    Args:
      eps_hi: larger than eps_lo gives DAPO's clip-higher (arXiv 2503.14476).
      dual: c > 1 bounds the loss of bad actions, J = max(J, c·A) where A < 0 (dual clip, Ye et al. 2020, arXiv 1912.09729); 0 is off.
      delta: upper limit of ρ in the unclipped term, above 1+ε_hi (TRL's two-sided clip); 0 is off.
    """
    free = ratio.clamp(max=delta) if delta else ratio
    objective = torch.minimum(free * adv, ratio.clamp(1 - eps_lo, 1 + eps_hi) * adv)
    return torch.where(adv < 0, torch.maximum(objective, dual * adv), objective) if dual else objective


def cispo(ratio: Tensor, logp: Tensor, adv: Tensor, eps_lo: float = 1.0, eps_hi: float = 4.0) -> Tensor:
    """J = sg[clip(ρ, 1−ε_lo, 1+ε_hi)]·A·log π: the weight is clipped, no gradient is ever zeroed (MiniMax-M1, arXiv 2506.13585)."""
    return ratio.detach().clamp(1 - eps_lo, 1 + eps_hi) * adv * logp


def reinforce(logp: Tensor, adv: Tensor) -> Tensor:
    """J = A·log π (Williams 1992)."""
    return adv * logp


def guarded_clip(ratio: Tensor, adv: Tensor, wild: Tensor, eps_lo: float = 0.1, eps_hi: float = 0.1) -> Tensor:
    """PPO's J; where `wild` (bool), its clipped term alone, which has no gradient outside the interval (code of RL4VLM and VL-DAC)."""
    return torch.where(wild, ratio.clamp(1 - eps_lo, 1 + eps_hi) * adv, ppo_clip(ratio, adv, eps_lo, eps_hi))
