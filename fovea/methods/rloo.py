"""RLOO — REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024, "Back to Basics", arXiv 2402.14740).

    A_i = r_i − (1/(G−1)) Σ_{j≠i} r_j,     loss = −(1/N) Σ_i A_i Σ_t log π(y_it)

On-policy: the whole answer is one action, there is neither ratio nor clip. With several updates per rollout set `clip`, which replaces
log π by PPO's clipped ratio (equal gradient at π = π_old).

Departures from the paper: β is 0 unless set (the paper shapes the reward with a tuned β·k1: `beta=0.05, kl_in="reward"`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fovea.batch import Batch, Needs, Streams
from fovea.math.advantages import rloo
from fovea.methods import common


@dataclass(frozen=True)
class RLOO:
    """Hyperparameters.

    Attributes:
      clip: use the clipped ratio instead of log π. eps_lo, eps_hi: its interval.
      aggregation: "seq-mean-token-sum" in the paper.
      beta: weight of the KL to the reference. kl: its estimator, k1 in the paper. kl_in: "reward" in the paper.
      entropy_coef: weight of an entropy bonus, 0 in the paper.
      behaviour, behaviour_cap: truncated importance weights for sampler mismatch; see fovea.math.ratios.behaviour_weight.
    """

    clip: bool = False
    eps_lo: float = 0.2
    eps_hi: float = 0.2
    aggregation: str = "seq-mean-token-sum"
    beta: float = 0.0
    kl: Literal["k1", "k2", "k3", "k3+"] = "k1"
    kl_in: Literal["loss", "reward"] = "reward"
    entropy_coef: float = 0.0
    behaviour: Literal["none", "token", "sequence", "sequence-mask"] = "none"
    behaviour_cap: float = 2.0

    def __post_init__(self) -> None:
        common.check_choices(self)

    @property
    def needs(self) -> Needs:
        return common.needs(self.beta, self.entropy_coef)

    def credit(self, batch: Batch) -> Tensor:
        member_E = common.group_members(batch)
        score_E = common.score_with_kl(batch, self.beta, self.kl, self.kl_in)
        return common.spread(rloo(score_E, batch.group_E, member_E), member_E, batch)

    def loss(self, out: Streams, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return common.reinforce_loss(self, out, batch, self.clip)
