"""GSPO — Group Sequence Policy Optimization (Zheng et al. 2025, arXiv 2507.18071).

Credit as in GRPO. The importance ratio is per sequence, normalised by length, and so is the clip:
    s_i = exp((1/|y_i|) Σ_t [log π(y_it) − log π_old(y_it)])
    loss = −(1/N) Σ_i min(s_i A_i, clip(s_i, 1−ε_lo, 1+ε_hi) A_i)
The interval is tiny because s_i is a geometric mean. It is written with the token form log s_it = sg[log s_i] + log π − sg[log π], which
has the same value and gradient, and allows advantages that differ between the units of a row.

Departures from the paper: a sequence is a row of the batch, so an episode whose history was trimmed has one ratio per row.
log s_i is limited to 10 before the exponential, as in verl.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fovea.batch import Batch, Needs, Streams
from fovea.math.ratios import sequence_ratio_per_token
from fovea.math.surrogates import ppo_clip
from fovea.methods import common


@dataclass(frozen=True)
class GSPO:
    """Hyperparameters.

    Attributes:
      eps_lo, eps_hi: clip interval [1−ε_lo, 1+ε_hi] of s_i, 3e-4 and 4e-4 in the paper.
      scale, ddof, std_eps: GRPO's normalisation of the advantage.
      part_weights: (name, weight) pairs: normalise each reward part in its group before summing; empty takes the score as it is.
      aggregation: "seq-mean-token-mean" in the paper.
      beta: weight of the KL to the reference, 0 in the paper. kl: its estimator. kl_in: "loss" or "reward" (meant with k1).
      entropy_coef: weight of an entropy bonus, 0 in the paper.
      behaviour, behaviour_cap: truncated importance weights for sampler mismatch; see fovea.math.ratios.behaviour_weight.
    """

    eps_lo: float = 3e-4
    eps_hi: float = 4e-4
    scale: Literal["group", "batch", "none"] = "group"
    ddof: int = 1
    std_eps: float = 1e-6
    part_weights: tuple[tuple[str, float], ...] = ()
    aggregation: str = "seq-mean-token-mean"
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
        return common.group_credit(batch, score_E, self.scale, self.ddof, self.std_eps, self.part_weights)

    def loss(self, out: Streams, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        log_ratio = common.log_ratio(out, batch)
        ratio = sequence_ratio_per_token(log_ratio, batch.mask_BT)
        objective = ppo_clip(ratio, common.advantage(batch), self.eps_lo, self.eps_hi)
        return common.policy_loss(self, objective, ratio, log_ratio, out, batch)
