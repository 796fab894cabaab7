"""ViSurf — Visual Supervised-and-Reinforcement Fine-tuning (Liu et al. 2025, arXiv 2510.10606).

The task's gold answer y joins its group: G drawn answers and one label, all scored by the same verifier. Over these G + 1 members,
    A_i = (r_i − mean_g r) / (std_g r + ε)
    loss = (1/(G+1)) Σ_i (1/|y_i|) Σ_t [−min(ρ_it A_i, clip(ρ_it, 1−ε_lo, 1+ε_hi) A_i) + β k3(π_θ ‖ π_ref)]
With π_old(y) read off by teacher forcing beside the drawn answers, ρ is 1 at the first update, and the label's gradient is supervised
finetuning weighted by A_y: large where the policy fails, none where it succeeds. Three controls of the label's reward:
    aligning        the label is written in the policy's own style (fovea.rollout.given.answer_text)
    no thinking     the label has no thought, so it earns no reward for one (`thinking`, `label_thinks`)
    smoothing       where max_j r_j ≥ r_y among the drawn answers, r_y becomes their mean: A_y = 0, pure reinforcement (`smoothing`)

Departures from the paper: the standard deviation divides by n − 1 (`ddof`). Learning rate, KL and clip bounds, which the paper leaves open,
are those of the authors' earlier systems.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fovea.batch import Batch, Needs, Streams
from fovea.math.advantages import group_sums
from fovea.math.ratios import token_ratio
from fovea.math.surrogates import ppo_clip
from fovea.methods import common


@dataclass(frozen=True)
class ViSurf:
    """Hyperparameters.

    Attributes:
      thinking: (name, weight) of the reward part that pays for a thought, as the verifier weighs it; an empty name where none does.
      label_thinks: pay the label for the thought that it does not have; True leaves the control out.
      smoothing: switch the label off where a drawn answer is as good; False leaves the control out.
      clip_label: clip the label's ratio too. With several updates per rollout an unlikely label soon meets the upper bound.
      eps_lo, eps_hi: clip interval [1−ε_lo, 1+ε_hi], 0.2 for both.
      ddof, std_eps: divisor n − ddof of the group's std, and what is added to it.
      aggregation: "seq-mean-token-mean", so that a long label does not outweigh its group.
      beta: weight of the KL to the reference, 5e-3 in the authors' earlier systems.
      kl: its estimator. kl_in: "loss" or "reward" (meant with k1).
      entropy_coef: weight of an entropy bonus; 0 in the paper.
      behaviour, behaviour_cap: truncated importance weights for sampler mismatch; see fovea.math.ratios.behaviour_weight.
    """

    thinking: tuple[str, float] = ("thinking", 1.0)
    label_thinks: bool = False
    smoothing: bool = True
    clip_label: bool = True
    eps_lo: float = 0.2
    eps_hi: float = 0.2
    ddof: int = 1
    std_eps: float = 1e-6
    aggregation: str = "seq-mean-token-mean"
    beta: float = 5e-3
    kl: Literal["k1", "k2", "k3", "k3+"] = "k3"
    kl_in: Literal["loss", "reward"] = "loss"
    entropy_coef: float = 0.0
    behaviour: Literal["none", "token", "sequence", "sequence-mask"] = "none"
    behaviour_cap: float = 2.0

    def __post_init__(self) -> None:
        common.check_choices(self)

    @property
    def needs(self) -> Needs:
        return common.needs(self.beta, self.entropy_coef, members=("gold",))

    def credit(self, batch: Batch) -> Tensor:
        score_E = common.score_with_kl(batch, self.beta, self.kl, self.kl_in)
        label_E = torch.tensor([r == "gold" for r in batch.role_E], device=batch.ok_E.device) & batch.ok_E
        name, weight = self.thinking
        if name in batch.parts_E:
            earned_E = batch.parts_E[name].double().nan_to_num(0.0)
            score_E = torch.where(label_E, score_E + weight * (float(self.label_thinks) - earned_E), score_E)
        off_E = torch.zeros_like(label_E)
        if self.smoothing:
            score_E, off_E = smoothed(score_E, label_E, common.members(batch), batch.group_E)
        adv_BT = common.group_credit(batch, score_E, "group", self.ddof, self.std_eps)
        return torch.where(batch.per_row(off_E), 0.0, adv_BT)

    def loss(self, out: Streams, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        log_ratio, adv_BT, label_B1 = common.log_ratio(out, batch), common.advantage(batch), batch.given_B[:, None]
        ratio = token_ratio(log_ratio)
        objective = ppo_clip(ratio, adv_BT, self.eps_lo, self.eps_hi)
        if not self.clip_label:
            objective = torch.where(label_B1, ratio * adv_BT, objective)
        loss, metrics = common.policy_loss(self, objective, ratio, log_ratio, out, batch)
        assert batch.totals is not None
        trains_B = (label_B1 & (adv_BT != 0)).any(1)
        return loss, metrics | {"policy/label_frac": trains_B.to(loss.dtype).sum() / batch.totals.groups}


def smoothed(score_E: Tensor, label_E: Tensor, member_E: Tensor, group_E: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (E,) in which a label has the mean of the drawn answers where the best of them reaches it, and (E,) bool: these labels.

    Args:
      label_E: bool, the given answers. member_E: bool, all members that count, labels included.
    """
    drawn_E = member_E & ~label_E
    groups, index_E = group_E.unique(return_inverse=True)
    lowest_N = score_E.new_full((len(groups),), -torch.inf)
    best_E = lowest_N.scatter_reduce(0, index_E, torch.where(drawn_E, score_E, -torch.inf), "amax")[index_E]
    # counted from the best, so that the mean of equal scores is exactly their score
    n_E = group_sums(drawn_E.double(), group_E)
    mean_E = best_E + group_sums(torch.where(drawn_E, score_E - best_E, 0.0), group_E) / n_E.clamp(min=1)
    off_E = label_E & (best_E >= score_E)
    return torch.where(off_E, mean_E, score_E), off_E
