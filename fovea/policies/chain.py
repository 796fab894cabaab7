"""What denoisers share: T counts the steps of a chain of Gaussians, so any policy-gradient method trains them unchanged.

    x_{s+1} = mean(x_s, s, c) + σ_s ε,      log π(x_{s+1} | x_s, c) = log N(x_{s+1}; mean, σ_s² I)

The view of denoising as a decision process is that of DDPO (Black et al. 2023, arXiv 2305.13301).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fovea.batch import Batch
from fovea.math.diffusion import normal_logp
from fovea.policies.pixel import asked, normals, spread
from fovea.types import Prefix


class GaussianChain(nn.Module):
    """A denoiser; a subclass gives `mean`, and what it is conditioned on as the data of its prefixes.

    Args:
      dim: A, numbers of a sample. sigma_S: standard deviation of each step's noise; a step without noise is taken, but nobody chose it.

    Attributes:
      units_per_forward: steps that `evaluate` computes at a time; 0 is all of them.
      gradient_checkpointing: compute those steps again in the backward pass, so that only one lot of them is in memory.
    """

    sigma_S: Tensor

    def __init__(self, dim: int, sigma_S: Tensor):
        super().__init__()
        self.dim, self.steps, self.version = dim, len(sigma_S), 0
        self.draws = (self.steps + 1) * dim
        self.register_buffer("sigma_S", sigma_S, persistent=False)
        self.units_per_forward, self.gradient_checkpointing = 0, False
        self.reference: list[Any] = []  # in a list: not a submodule, so neither trained nor saved

    def mean(self, x_NA: Tensor, step_N: Tensor, condition_N: Tensor) -> Tensor:
        """Where each step goes on average: (N, A)."""
        raise NotImplementedError

    def value(self, x_NA: Tensor, step_N: Tensor, condition_N: Tensor) -> Tensor:
        """What a critic expects of each x: (N,)."""
        raise ValueError(f"a {type(self).__name__} has no value head; expected a method that asks for no values")

    def conditions(self, prefixes: Sequence[Prefix]) -> Tensor:
        return torch.stack([p.data for p in prefixes]).to(self.sigma_S.device)

    @torch.no_grad()
    def denoise(self, prefixes_E: Sequence[Prefix], uniform_ED: Tensor, greedy_E: Tensor) -> dict[str, Tensor]:
        """The whole chain for each row: "actions" (E, S, A) are x_1 .. x_S, "logp" (E, S), "mask" (E, S) where there was noise to draw;
        "x" and "step" are what each step saw.

        Greedy rows take the mean of every step; their start is drawn like the others'.
        """
        E, S, at = len(prefixes_E), self.steps, self.sigma_S.device
        condition_E = self.conditions(prefixes_E)
        noise_ESA = normals(uniform_ED).float().view(E, S + 1, self.dim).to(at)
        chain, logps = [noise_ESA[:, 0]], []
        for s in range(S):
            step_E, sigma_E = torch.full((E,), s, device=at), self.sigma_S[s].expand(E)
            mean = self.mean(chain[-1], step_E, condition_E)
            chain.append(mean + sigma_E[:, None] * noise_ESA[:, s + 1] * ~greedy_E.to(at)[:, None])
            logps.append(normal_logp(chain[-1], mean, sigma_E) if sigma_E[0] > 0 else sigma_E)
        streams = {"actions": torch.stack(chain[1:], 1), "logp": torch.stack(logps, 1), "x": torch.stack(chain[:-1], 1)}
        fixed = {"mask": (self.sigma_S > 0).expand(E, S), "step": torch.arange(S).expand(E, S)}
        return {k: x.cpu() for k, x in (streams | fixed).items()}

    def logp(self, x_NA: Tensor, step_N: Tensor, condition_N: Tensor, action_NA: Tensor) -> Tensor:
        return normal_logp(action_NA, self.mean(x_NA, step_N, condition_N), self.sigma_S[step_N])

    def evaluate(self, batch: Batch, want: frozenset[str], variant: str = "policy") -> dict[str, Tensor]:
        """See `Learner`. The entropy of a step is that of its Gaussian, which σ fixes."""
        if (weights := asked(self, want, variant, f"a {type(self).__name__}")) is not self:
            return weights.evaluate(batch, want)
        real_BT, at = batch.mask_BT > 0, self.sigma_S.device
        seen = [batch.extras["x"][real_BT].to(at), batch.extras["step"][real_BT].to(at)]
        of_N, table = batch.prefix_B[:, None].expand_as(real_BT)[real_BT].to(at), self.conditions(batch.prefixes)
        actions_NA = batch.actions_BT[real_BT].to(at)
        parts = torch.arange(len(of_N), device=at).split(self.units_per_forward or max(1, len(of_N)))

        def computed(function: Any, *streams: Tensor) -> Tensor:
            kept = self.gradient_checkpointing and torch.is_grad_enabled()
            lots = ([x[n] for x in seen] + [table[of_N[n]]] + [x[n] for x in streams] for n in parts)
            found = [checkpoint(function, *lot, use_reentrant=False) if kept else function(*lot) for lot in lots]
            return spread(torch.cat(found).to(batch.mask_BT.device), real_BT)

        out: dict[str, Tensor] = {}
        if "logp" in want:
            out["logp"] = computed(self.logp, actions_NA)
        if "entropy" in want:
            each_N = self.dim * (self.sigma_S[seen[1]].log() + 0.5 * math.log(2 * math.pi * math.e))
            out["entropy"] = spread(each_N.to(batch.mask_BT.device), real_BT)
        if "value" in want:
            out["value"] = computed(self.value)
        if "next_value" in want:
            out["next_value"] = torch.zeros(batch.B)  # the chain ends with the sample: nothing follows
        return out

    def set_reference(self) -> None:
        """Freeze a copy of the current weights for variant "reference"."""
        self.reference = []
        self.reference = [copy.deepcopy(self).requires_grad_(False)]
