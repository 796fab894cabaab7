"""Dr. GRPO — GRPO done right (Liu et al. 2025, "Understanding R1-Zero-Like Training", arXiv 2503.20783).

Removes two biases of GRPO: the division by the group's standard deviation (which favours tasks that are nearly solved or nearly
hopeless) and the division by the answer's own length (which favours short right answers and long wrong ones):
    A_i = r_i − mean_g r,     loss = −(1/(N · L_max)) Σ_i Σ_t min(ρ_it A_i, clip(ρ_it, 1−ε_lo, 1+ε_hi) A_i)

Departures from the paper: none. L_max is the run's limit on new units, as its code does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fovea.batch import Batch, Needs, Streams
from fovea.math.ratios import token_ratio
from fovea.math.surrogates import ppo_clip
from fovea.methods import common


@dataclass(frozen=True)
class DrGRPO:
    """Hyperparameters.

    Attributes:
      eps_lo, eps_hi: clip interval [1−ε_lo, 1+ε_hi], 0.2 for both in the paper.
      aggregation: "dr_grpo"; verl's "seq-mean-token-sum-norm" leaves out 1/N.
      beta: weight of the KL to the reference, 0 in the paper. kl: its estimator. kl_in: "loss" or "reward" (meant with k1).
      entropy_coef: weight of an entropy bonus, 0 in the paper.
      behaviour, behaviour_cap: truncated importance weights for sampler mismatch; see fovea.math.ratios.behaviour_weight.
    """

    eps_lo: float = 0.2
    eps_hi: float = 0.2
    aggregation: str = "dr_grpo"
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
        score_E = common.score_with_kl(batch, self.beta, self.kl, self.kl_in)
        return common.group_credit(batch, score_E, scale="none")

    def loss(self, out: Streams, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        log_ratio = common.log_ratio(out, batch)
        ratio = token_ratio(log_ratio)
        objective = ppo_clip(ratio, common.advantage(batch), self.eps_lo, self.eps_hi)
        return common.policy_loss(self, objective, ratio, log_ratio, out, batch)
