"""A small flow model as a chain: S stochastic Euler steps along a learned velocity,

    x_{s+1} = x_s + v(x_s, s/S, c) / S + σ ε

(Flow-GRPO, Liu et al. 2025). Left out: the noise schedule that keeps the marginals of the deterministic flow; here σ is one number.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fovea.policies.chain import GaussianChain


class FlowPolicy(GaussianChain):
    """Velocity network for points of dimension A under a condition of dimension C, with a value head.

    Args:
      dim: A. condition: C. steps: S. sigma: standard deviation of each step's noise. width: hidden units.
    """

    def __init__(self, dim: int, condition: int, steps: int = 6, sigma: float = 0.3, width: int = 64):
        super().__init__(dim, torch.full((steps,), sigma))
        self.condition = condition
        self.trunk = nn.Sequential(nn.Linear(dim + condition + 1, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.velocity, self.critic = nn.Linear(width, dim), nn.Linear(width, 1)
        nn.init.zeros_(self.velocity.weight)

    def features(self, x_NA: Tensor, step_N: Tensor, condition_NC: Tensor) -> Tensor:
        return self.trunk(torch.cat([x_NA, condition_NC, step_N[:, None] / self.steps], -1))

    def mean(self, x_NA: Tensor, step_N: Tensor, condition_N: Tensor) -> Tensor:
        return x_NA + self.velocity(self.features(x_NA, step_N, condition_N)) / self.steps

    def value(self, x_NA: Tensor, step_N: Tensor, condition_N: Tensor) -> Tensor:
        return self.critic(self.features(x_NA, step_N, condition_N))[:, 0]
