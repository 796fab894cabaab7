"""GRPO — Group Relative Policy Optimization (Shao et al. 2024, "DeepSeekMath", arXiv 2402.03300).

The baseline of an answer is the other answers to the same task:
    A_i = (r_i − mean_g r) / (std_g r + ε)
    J_it = min(ρ_it A_i, clip(ρ_it, 1−ε_lo, 1+ε_hi) A_i),     loss = (1/G) Σ_i (1/|y_i|) Σ_t [−J_it + β k3(π_θ ‖ π_ref)]

Departures from the paper: the standard deviation divides by n − 1 (as TRL, verl and EasyR1 do; `ddof=0` is the paper's).
The fields also hold the variants in use elsewhere: clip-higher, dual clip, TRL's delta, batch scale, normalised reward parts, token-mean
aggregation, KL inside the reward, truncated importance weights.
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
class GRPO:
    """Hyperparameters.

    Attributes:
      eps_lo, eps_hi: clip interval [1−ε_lo, 1+ε_hi]; the paper has 0.2 for both, EasyR1 0.2 and 0.3.
      dual_clip: c of the dual clip, 3.0 in verl and EasyR1; 0 is off, as in the paper and TRL.
      delta: TRL's cap on ρ in the unclipped term, above 1+ε_hi; 0 is off.
      scale: divide by the std of the "group" (paper), of the "batch", or by "none".
      ddof: 1 for the sample std, 0 for the population std of the paper.
      std_eps: added to the std: 1e-6 in verl and EasyR1, 1e-4 in TRL.
      part_weights: (name, weight) pairs: normalise each reward part in its group before summing; empty takes the score as it is.
      aggregation: "seq-mean-token-mean" is the paper's; see fovea.math.aggregate.
      beta: weight of the KL to the reference: paper and VLM-R1 0.04, EasyR1 0.01, TRL 0. Zero needs no reference.
      kl: estimator, k3 in the paper. kl_in: "loss" (paper) or "reward" (meant with k1).
      entropy_coef: weight of an entropy bonus; 0 in the paper.
      behaviour, behaviour_cap: truncated importance weights for sampler mismatch; see fovea.math.ratios.behaviour_weight.
    """

    eps_lo: float = 0.2
    eps_hi: float = 0.2
    dual_clip: float = 0.0
    delta: float = 0.0
    scale: Literal["group", "batch", "none"] = "group"
    ddof: int = 1
    std_eps: float = 1e-6
    part_weights: tuple[tuple[str, float], ...] = ()
    aggregation: str = "seq-mean-token-mean"
    beta: float = 0.04
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
        return common.group_credit(batch, score_E, self.scale, self.ddof, self.std_eps, self.part_weights)

    def loss(self, out: Streams, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        log_ratio = common.log_ratio(out, batch)
        ratio = token_ratio(log_ratio)
        objective = ppo_clip(ratio, common.advantage(batch), self.eps_lo, self.eps_hi, self.dual_clip, self.delta)
        return common.policy_loss(self, objective, ratio, log_ratio, out, batch)
