"""CISPO — Clipped Importance Sampling Policy Optimization (MiniMax 2025, "MiniMax-M1", arXiv 2506.13585).

Credit as in GRPO. The importance weight is clipped and detached, so every unit keeps its gradient:
    J_it = sg[clip(ρ_it, 1−ε_lo, 1+ε_hi)] · A_i · log π(y_it),     loss = −Σ_i Σ_t J_it / Σ_i |y_i|

Departures from the paper: ε_hi, which it tunes without giving a number, is 4 here (a cap of 5, the value TRL recommends).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fovea.batch import Batch, Needs, Streams
from fovea.math.ratios import token_ratio
from fovea.math.surrogates import cispo
from fovea.methods import common


@dataclass(frozen=True)
class CISPO:
    """Hyperparameters.

    Attributes:
      eps_lo, eps_hi: the weight is kept in [1−ε_lo, 1+ε_hi]; ε_lo = 1 means no lower bound, as in the paper.
      scale, ddof, std_eps: GRPO's normalisation of the advantage.
      part_weights: (name, weight) pairs: normalise each reward part in its group before summing; empty takes the score as it is.
      aggregation: "token-mean" in the paper.
      beta: weight of the KL to the reference, 0 in the paper. kl: its estimator. kl_in: "loss" or "reward" (meant with k1).
      entropy_coef: weight of an entropy bonus, 0 in the paper.
      behaviour, behaviour_cap: truncated importance weights for sampler mismatch; see fovea.math.ratios.behaviour_weight.
    """

    eps_lo: float = 1.0
    eps_hi: float = 4.0
    scale: Literal["group", "batch", "none"] = "group"
    ddof: int = 1
    std_eps: float = 1e-6
    part_weights: tuple[tuple[str, float], ...] = ()
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
        score_E = common.score_with_kl(batch, self.beta, self.kl, self.kl_in)
        return common.group_credit(batch, score_E, self.scale, self.ddof, self.std_eps, self.part_weights)

    def loss(self, out: Streams, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        log_ratio = common.log_ratio(out, batch)
        ratio = token_ratio(log_ratio)
        objective = cispo(ratio, common.chosen(out["logp"], batch), common.advantage(batch), self.eps_lo, self.eps_hi)
        return common.policy_loss(self, objective, ratio, log_ratio, out, batch)
