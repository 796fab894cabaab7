"""A small flow model whose denoising steps are actions: T counts denoising steps, so any policy-gradient method trains it unchanged.

Generation starts from noise and takes S stochastic Euler steps along a learned velocity,

    x_{s+1} = x_s + v(x_s, s/S, c) / S + σ ε,      log π(x_{s+1} | x_s) = log N(x_{s+1}; x_s + v/S, σ² I),

the view of denoising as a decision process (DDPO, Black et al. 2023; Flow-GRPO, Liu et al. 2025). Left out: the noise schedule that keeps
the marginals of the deterministic flow; here σ is one number.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from fovea.batch import Batch
from fovea.policies.pixel import asked, normals, spread


class FlowPolicy(nn.Module):
    """Velocity network for points of dimension A under a condition of dimension C, with a value head.

    Args:
      dim: A. condition: C. steps: S. sigma: standard deviation of each step's noise. width: hidden units.
    """

    def __init__(self, dim: int, condition: int, steps: int = 6, sigma: float = 0.3, width: int = 64):
        super().__init__()
        self.dim, self.condition, self.steps, self.sigma, self.version = dim, condition, steps, sigma, 0
        self.draws = (steps + 1) * dim
        self.trunk = nn.Sequential(nn.Linear(dim + condition + 1, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.velocity, self.critic = nn.Linear(width, dim), nn.Linear(width, 1)
        nn.init.zeros_(self.velocity.weight)
        self.reference: list[FlowPolicy] = []  # in a list: not a submodule, so neither trained nor saved

    def features(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        return self.trunk(torch.cat([x, condition, time[..., None]], -1))

    def log_prob(self, action: Tensor, x: Tensor, features: Tensor) -> Tensor:
        """log N(action; x + v/S, σ² I), summed over the dimensions."""
        z = (action - x - self.velocity(features) / self.steps) / self.sigma
        return (-0.5 * z**2 - math.log(self.sigma) - 0.5 * math.log(2 * math.pi)).sum(-1)

    @torch.no_grad()
    def denoise(self, condition_EC: Tensor, uniform_ED: Tensor, greedy_E: Tensor) -> dict[str, Tensor]:
        """The whole chain for each row: "actions" (E, S, A) are x_1 .. x_S, "logp" (E, S); "x", "time", "condition" are what each step saw.

        Greedy rows take the mean of every step; their start is drawn like the others'.
        """
        E, S, A = len(condition_EC), self.steps, self.dim
        noise_ESA = normals(uniform_ED).to(condition_EC.dtype).view(E, S + 1, A)
        x, chain, logps = noise_ESA[:, 0], [noise_ESA[:, 0]], []
        time_S = torch.arange(S, dtype=x.dtype) / S
        for s in range(S):
            features = self.features(x, time_S[s].expand(E), condition_EC)
            mean = x + self.velocity(features) / S
            after = mean + self.sigma * noise_ESA[:, s + 1] * ~greedy_E[:, None]
            logps.append(self.log_prob(after, x, features))
            chain.append(after)
            x = after
        return {
            "actions": torch.stack(chain[1:], 1),
            "logp": torch.stack(logps, 1),
            "x": torch.stack(chain[:-1], 1),
            "time": time_S.expand(E, S),
            "condition": condition_EC[:, None].expand(E, S, -1),
        }

    def evaluate(self, batch: Batch, want: frozenset[str], variant: str = "policy") -> dict[str, Tensor]:
        """See `Learner`. The entropy of a step is that of its Gaussian, which σ fixes."""
        if (weights := asked(self, want, variant, "a flow policy")) is not self:
            return weights.evaluate(batch, want)
        real_BT = batch.mask_BT > 0
        x, time, condition = (batch.extras[name][real_BT] for name in ("x", "time", "condition"))
        features = self.features(x, time, condition)
        out: dict[str, Tensor] = {}
        if "logp" in want:
            out["logp"] = spread(self.log_prob(batch.actions_BT[real_BT], x, features), real_BT)
        if "entropy" in want:
            out["entropy"] = real_BT * (self.dim * (math.log(self.sigma) + 0.5 * math.log(2 * math.pi * math.e)))
        if "value" in want:
            out["value"] = spread(self.critic(features)[:, 0], real_BT)
        if "next_value" in want:
            out["next_value"] = x.new_zeros(batch.B)  # the chain ends with the sample: nothing follows
        return out

    def set_reference(self) -> None:
        """Freeze a copy of the current weights for variant "reference"."""
        self.reference = []
        self.reference = [copy.deepcopy(self).requires_grad_(False)]
