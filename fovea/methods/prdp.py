"""PRDP — Proximal Reward Difference Prediction (Deng et al. 2024, arXiv 2402.08714).

The optimum of E[r] − β KL(π ‖ π_ref) over whole chains has log π/π_ref = r/β − log Z. In the difference of two chains of one prompt Z
cancels, so that difference is regressed onto the difference of their rewards:
    g_t = log π_θ(x_{t−1}|x_t) − log π_ref(x_{t−1}|x_t),     g = mean_t g_t
    l(a, b) = ((g(a) − g(b)) − (r(a) − r(b))/β)²
    loss = mean over prompts, mean over pairs with r(a) > r(b), of max(l, l with every g_t clipped to g_old,t ± ε)
Steps that have gone ε beyond what sampled them, in the right direction, have no gradient. Nothing is normalised.

Departures from the paper: none from its listing, which is the default: the mean over the steps, ties left out. Its equations sum over the
steps and count ties (`time_reduce="sum"`, `ties=True`). The published β and ε are taken to belong to log-probabilities that are means over
the dimensions, too (`dim_reduce`), because they make no sense for sums over 16,384 of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fovea.batch import Batch, Needs, Streams
from fovea.math.differences import difference_loss
from fovea.methods import common


@dataclass(frozen=True)
class PRDP:
    """Hyperparameters.

    Attributes:
      beta: weight of the KL to the reference; in the paper 3e-5 with few prompts or several rewards, else 3e-6.
      eps: how far a step's log-probability may move on one rollout before its gradient ends, 1e-6 and 1e-4 in the paper; 0 is off.
      time_reduce: "mean" of a chain's steps (the listing) or their "sum" (the equations).
      dim_reduce: "mean" of a step's dimensions, or their "sum", the true log-density.
      ties: whether pairs of equal reward are drawn together.
    """

    beta: float = 3e-5
    eps: float = 1e-6
    time_reduce: Literal["mean", "sum"] = "mean"
    dim_reduce: Literal["mean", "sum"] = "mean"
    ties: bool = False

    def __post_init__(self) -> None:
        common.check_choices(self)
        if self.beta <= 0 or self.eps < 0:
            raise ValueError(f"PRDP: beta = {self.beta:g}, eps = {self.eps:g}; expected beta above 0 and eps of 0 (no clip) or more")

    @property
    def needs(self) -> Needs:
        return common.needs(beta=1.0, unit="group")

    def credit(self, batch: Batch) -> Tensor:
        """The reward less its group's mean: differences are what they were, and the run page shows them."""
        return common.group_credit(batch, batch.score_E.double(), scale="none")

    def loss(self, out: Streams, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.totals is not None
        reference_BT = batch.stored["reference/logp"].detach()
        gain_BT, old_BT = (common.per_dimension(x - reference_BT, batch, self.dim_reduce) for x in (out["logp"], batch.logp_old_BT))
        held_BT = old_BT + (gain_BT - old_BT).clamp(-self.eps, self.eps) if self.eps else gain_BT
        episodes, at_B = batch.episode_B.unique(return_inverse=True)
        count_N = gain_BT.new_zeros(len(episodes)).index_add(0, at_B, batch.mask_BT.sum(1).to(gain_BT.dtype)).clamp(min=1)

        def whole(x_BT: Tensor) -> Tensor:
            total_N = x_BT.new_zeros(len(episodes)).index_add(0, at_B, common.chosen(x_BT, batch).sum(1))
            return total_N / count_N if self.time_reduce == "mean" else total_N

        gain_N, held_N = whole(gain_BT), whole(held_BT)
        score_N, group_N = batch.score_E[episodes].to(gain_N.dtype), batch.group_E[episodes]
        loss, held = difference_loss(gain_N, held_N, score_N, group_N, self.beta, self.ties)
        per_group = loss / batch.totals.groups
        return per_group, {
            "loss/policy": per_group.detach(),
            "policy/clip_frac": held / batch.totals.groups,
            "policy/implied_reward": common.unit_mean(self.beta * gain_BT, batch),
        }
