"""Flow matching, and its steps made random so that they have a likelihood (π_RL, arXiv 2510.25889; Flow-GRPO, arXiv 2505.05470).

    x_t = t ε + (1−t) A,   v = ε − A,   x̂_0 = x_t − t v   (what is clean),   x̂_1 = x_t + (1−t) v   (what is noise)

Noise is at t = 1, the action at t = 0; K steps of δ = 1/K lead there.
    ODE         x_{t−δ} = x_t − δ v
    Flow-SDE    mean = (1−(t−δ)) x̂_0 + (t−δ − σ²δ/2t) x̂_1,   std = σ √δ,   σ = a √(t/(1−t))     the same marginals as the ODE
    Flow-Noise  mean = that of the ODE, std from a learned head
The paper's equations 8 and 9 mix two directions of time; these are those of its code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def times(steps: int) -> Tensor:
    """(K + 1,): where each step begins, and 0."""
    return 1 - torch.arange(steps + 1, dtype=torch.float32) / steps


def ode_step(x: Tensor, velocity: Tensor, delta: float | Tensor) -> Tensor:
    return x - delta * velocity


def sde_step(x: Tensor, velocity: Tensor, t: Tensor, delta: float, level: float) -> tuple[Tensor, Tensor]:
    """(mean, std) of a step of Flow-SDE; with a = `level` = 0 that of the ODE, and 0.

    t: broadcasts against x. At t = 1, where σ has no value, that of the second point of the grid stands in the denominator.
    """
    sigma = level * (t / (1 - t).clamp(min=delta)).sqrt()
    clean, noise = x - t * velocity, x + (1 - t) * velocity
    mean = (1 - (t - delta)) * clean + (t - delta - sigma**2 * delta / (2 * t)) * noise
    return mean, (sigma * math.sqrt(delta)).expand_as(mean)


def learned_std(out: Tensor, low: float, high: float) -> Tensor:
    """Standard deviation in (low, high) from a head's output, evenly in the logarithm."""
    return torch.exp(math.log(low) + (math.log(high) - math.log(low)) * (torch.tanh(out) + 1) / 2)


def step_logp(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(x; mean, std²) of every number, nats; 0 where nothing was drawn."""
    drawn = std > 0
    safe = torch.where(drawn, std, 1.0)
    return torch.where(drawn, -0.5 * ((x - mean) / safe) ** 2 - safe.log() - 0.5 * math.log(2 * math.pi), 0.0)


def step_entropy(std: Tensor) -> Tensor:
    """Entropy of every number, nats; 0 where nothing is drawn."""
    drawn = std > 0
    return torch.where(drawn, torch.where(drawn, std, 1.0).log() + 0.5 * math.log(2 * math.pi * math.e), 0.0)
