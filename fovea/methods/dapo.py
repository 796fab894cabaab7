"""DAPO — Decoupled clip and dynamic sampling policy optimization (Yu et al. 2025, arXiv 2503.14476).

GRPO without a KL and with four changes:
    clip-higher          clip(ρ, 1−ε_lo, 1+ε_hi) with ε_hi > ε_lo, so that unlikely tokens can still grow
    token-level loss     loss = −Σ_i Σ_t J_it / Σ_i |y_i| over the whole optimizer step
    dynamic sampling     groups that are all right or all wrong are drawn again: `dynamic_sampling` of the recipe (fovea.tasks.gates)
    overlong shaping     a soft penalty on the last L_cache units before L_max (`overlong_max`, `overlong_cache`),
                         or overlong filtering: answers cut at the limit leave the loss (`filter_cut`)

Departures from the paper: scores are used as the verifier gives them. On scores in {0, 1} the default `overlong_factor` of 0.5 is the
paper's penalty on rewards in {−1, +1}. The standard deviation divides by n − 1 (`ddof`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fovea.batch import Batch, Needs, Streams
from fovea.math.ratios import token_ratio
from fovea.math.rewards import overlong_penalty
from fovea.math.surrogates import ppo_clip
from fovea.methods import common


@dataclass(frozen=True)
class DAPO:
    """Hyperparameters.

    Attributes:
      eps_lo, eps_hi: clip interval [1−ε_lo, 1+ε_hi], 0.2 and 0.28 in the paper.
      dual_clip: c of the dual clip, 3.0 in EasyR1's DAPO; 0 is off, as in the paper.
      overlong_max, overlong_cache: L_max and L_cache of the soft penalty in units (paper: 20480 and 4096); 0 is off.
      overlong_factor: size of the full penalty, in reward units.
      filter_cut: answers that were cut at the length limit do not train (TRL's mask_truncated_completions).
      ddof, std_eps: divisor n − ddof of the group's std, and what is added to it.
      aggregation: "token-mean" in the paper.
      beta: weight of the KL to the reference, 0 in the paper. kl: its estimator. kl_in: "loss" or "reward" (meant with k1).
      entropy_coef: weight of an entropy bonus, 0 in the paper.
      behaviour, behaviour_cap: truncated importance weights for sampler mismatch; see fovea.math.ratios.behaviour_weight.
    """

    eps_lo: float = 0.2
    eps_hi: float = 0.28
    dual_clip: float = 0.0
    overlong_max: int = 0
    overlong_cache: int = 0
    overlong_factor: float = 0.5
    filter_cut: bool = False
    ddof: int = 1
    std_eps: float = 1e-6
    aggregation: str = "token-mean"
    beta: float = 0.0
    kl: Literal["k1", "k2", "k3", "k3+"] = "k3"
    kl_in: Literal["loss", "reward"] = "loss"
    entropy_coef: float = 0.0
    behaviour: Literal["none", "token", "sequence", "sequence-mask"] = "none"
    behaviour_cap: float = 2.0

    def __post_init__(self) -> None:
        common.check_choices(self)
        if self.overlong_max and not 0 < self.overlong_cache <= self.overlong_max:
            raise ValueError(f"DAPO.overlong_cache is {self.overlong_cache}, expected between 1 and overlong_max = {self.overlong_max}")

    @property
    def needs(self) -> Needs:
        return common.needs(self.beta, self.entropy_coef)

    def credit(self, batch: Batch) -> Tensor:
        score_E = common.score_with_kl(batch, self.beta, self.kl, self.kl_in)
        if self.overlong_max:
            score_E = score_E + overlong_penalty(batch.length_E, self.overlong_max, self.overlong_cache, self.overlong_factor)
        adv_BT = common.group_credit(batch, score_E, "group", self.ddof, self.std_eps)
        if self.filter_cut:
            batch.drop(batch.cut_E[batch.episode_B])
        return adv_BT

    def loss(self, out: Streams, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        log_ratio = common.log_ratio(out, batch)
        ratio = token_ratio(log_ratio)
        objective = ppo_clip(ratio, common.advantage(batch), self.eps_lo, self.eps_hi, self.dual_clip)
        return common.policy_loss(self, objective, ratio, log_ratio, out, batch)
