"""DDPO — Denoising Diffusion Policy Optimization (Black et al. 2023, arXiv 2305.13301): PPO's loss on denoising steps.

    A = clip((r − mean) / (std + 1e-6), ±A_max),     J_t = min(ρ_t A, clip(ρ_t, 1−ε, 1+ε) A),     ρ_t = exp(log π_θ − log π_old)

Mean and standard deviation are those of the prompt where the rollout has enough of its samples, else those of the whole batch. The
log-probability of a step is the mean over its dimensions.

Departures from the paper: statistics of a prompt come from the present rollout alone, not from a buffer of earlier ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fovea.batch import Batch, Needs, Streams
from fovea.math.advantages import group_sums, grpo
from fovea.math.ratios import token_ratio
from fovea.math.surrogates import ppo_clip
from fovea.methods import common


@dataclass(frozen=True)
class DDPO:
    """Hyperparameters.

    Attributes:
      eps_lo, eps_hi: clip interval [1−ε_lo, 1+ε_hi]; 1e-4 in the authors' code.
      adv_max: A_max, 5 in the authors' code; 0 is off.
      min_count: samples of a prompt from which on its own statistics are used, 16 in the authors' code.
      std_eps: added to the standard deviation.
      dim_reduce: "mean" of a step's dimensions, or their "sum", the true log-density.
      aggregation: "token-mean", the mean over steps and samples.
      beta: weight of a KL to the reference, none in the paper. kl: its estimator. kl_in: "loss" or "reward".
      entropy_coef: weight of an entropy bonus, 0 in the paper.
      behaviour, behaviour_cap: truncated importance weights for sampler mismatch; see fovea.math.ratios.behaviour_weight.
    """

    eps_lo: float = 1e-4
    eps_hi: float = 1e-4
    adv_max: float = 5.0
    min_count: int = 16
    std_eps: float = 1e-6
    dim_reduce: Literal["mean", "sum"] = "mean"
    aggregation: str = "token-mean"
    beta: float = 0.0
    kl: Literal["k1", "k2", "k3", "k3+"] = "k3"
    kl_in: Literal["loss", "reward"] = "loss"
    entropy_coef: float = 0.0
    behaviour: Literal["none", "token", "sequence", "sequence-mask"] = "none"
    behaviour_cap: float = 2.0

    def __post_init__(self) -> None:
        common.check_choices(self)

    @property
    def needs(self) -> Needs:
        return common.needs(self.beta, self.entropy_coef)

    def credit(self, batch: Batch) -> Tensor:
        member_E = common.members(batch)
        score_E = common.score_with_kl(batch, self.beta, self.kl, self.kl_in)
        prompt_E = common.prompts(batch)
        own_E, shared_E = (grpo(score_E, of_E, member_E, ddof=0, eps=self.std_eps) for of_E in (prompt_E, torch.zeros_like(prompt_E)))
        adv_E = torch.where(group_sums(member_E.double(), prompt_E) >= self.min_count, own_E, shared_E)
        return common.spread(adv_E.clamp(-self.adv_max, self.adv_max) if self.adv_max else adv_E, member_E, batch)

    def loss(self, out: Streams, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        log_ratio = common.per_dimension(common.log_ratio(out, batch), batch, self.dim_reduce)
        ratio = token_ratio(log_ratio)
        objective = ppo_clip(ratio, common.advantage(batch), self.eps_lo, self.eps_hi)
        return common.policy_loss(self, objective, ratio, log_ratio, out, batch)
