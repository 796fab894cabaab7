"""ReMax — REINFORCE with the greedy answer as baseline (Li et al. 2023, arXiv 2310.10505).

    A_i = r_i − r(greedy answer to the same task),     loss = −(1/N) Σ_i A_i Σ_t log π(y_it)

One answer per task is enough; the greedy answer is an extra member of the group that is scored and never trained on. With several
updates per rollout set `clip`, which replaces log π by PPO's clipped ratio.

Departures from the paper: β is 0 unless set (the paper has β·k1 in the reward: `beta=0.05, kl_in="reward"`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fovea.batch import Batch, Needs, Streams
from fovea.math.advantages import group_sums, remax
from fovea.methods import common


@dataclass(frozen=True)
class ReMax:
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
        return common.needs(self.beta, self.entropy_coef, members=("greedy",))

    def credit(self, batch: Batch) -> Tensor:
        greedy_E = torch.tensor([r == "greedy" for r in batch.role_E], device=batch.ok_E.device)
        if not greedy_E.any():
            raise ValueError("ReMax found no episode of role 'greedy'; expected one per group: roll out with members=method.needs.members")
        score_E = common.score_with_kl(batch, self.beta, self.kl, self.kl_in)
        scored_E = common.members(batch) | (greedy_E & batch.ok_E)
        has_baseline_E = group_sums((greedy_E & batch.ok_E).double(), batch.group_E) > 0
        return common.spread(remax(score_E, batch.group_E, scored_E, greedy_E), common.members(batch) & has_baseline_E, batch)

    def loss(self, out: Streams, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return common.reinforce_loss(self, out, batch, self.clip)
