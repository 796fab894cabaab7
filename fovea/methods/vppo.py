"""VPPO — Visually-Perceptive Policy Optimization (Huang et al. 2025, arXiv 2510.09285).

DAPO, where the picture decides which answers and which tokens are learned from. S_t is how much more likely a token is with the picture
than with one whose blocks are partly black (the estimate K of PAPO, taken once by the policy that rolled out):
    token gradient filtering        only the ⌈k L⌉ tokens of an answer with the largest S_t have a policy gradient: m_t = 1
    trajectory advantage shaping    A'_i = α_i A_i with α_i from α_min upwards by the answer's mean S; the mean of α is 1
    loss = −Σ_t m_t J_t(A') / Σ_t 1 + c mean_t(−log π_θ(y_t)),      the last term keeps entropy down

Departures from the paper: one mask per prompt, so that a group shares the masked prompt (`mask_per="response"` is the paper's); blocks are
cut of the picture as given, not as resized; minimum, maximum and mean of α are taken over the rollout (the code: mini-batch and
micro-batch); the mean over tokens is the code's (the paper divides by each answer's length: `aggregation="seq-mean-token-mean"`). Where no
token depends on the picture (a mask that covers nothing), nothing is filtered. DAPO's dynamic sampling is the recipe's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fovea.batch import Batch, Needs, Streams
from fovea.math.options import check
from fovea.math.perception import MASKED, dependency, most_dependent, trajectory_scale
from fovea.math.ratios import token_ratio
from fovea.math.surrogates import ppo_clip
from fovea.methods import common
from fovea.views import PatchMask

KEEP = ("top", "bottom", "random")


@dataclass(frozen=True)
class VPPO:
    """Hyperparameters.

    Attributes:
      share: k, the part of an answer's tokens that have a policy gradient, 0.4 in the paper; 1 is all of them.
      alpha_min: the smallest α, 0.9 in the paper; 1 leaves the advantages.
      penalty: c, weight of the entropy penalty: 0.06 for 7B, 0.12 for 8B.
      keep: which tokens: "top"; "bottom" and "random" are controls.
      mask_probability, mask_patch, mask_per: of the second reading's pictures; see fovea.views.PatchMask.
      eps_lo, eps_hi: clip interval [1−ε_lo, 1+ε_hi], 0.2 and 0.28. dual_clip: c of the dual clip, 3.
      aggregation: "token-mean" over all tokens of the answers, filtered or not.
      beta: weight of the KL to the reference, 0 in the paper. kl: its estimator. kl_in: "loss" or "reward" (meant with k1).
      entropy_coef: weight of an entropy bonus, 0 in the paper.
      behaviour, behaviour_cap: truncated importance weights for sampler mismatch; see fovea.math.ratios.behaviour_weight.
    """

    share: float = 0.4
    alpha_min: float = 0.9
    penalty: float = 0.06
    keep: Literal["top", "bottom", "random"] = "top"
    mask_probability: float = 0.5
    mask_patch: int = 14
    mask_per: Literal["prompt", "response"] = "prompt"
    eps_lo: float = 0.2
    eps_hi: float = 0.28
    dual_clip: float = 3.0
    aggregation: str = "token-mean"
    beta: float = 0.0
    kl: Literal["k1", "k2", "k3", "k3+"] = "k3"
    kl_in: Literal["loss", "reward"] = "loss"
    entropy_coef: float = 0.0
    behaviour: Literal["none", "token", "sequence", "sequence-mask"] = "none"
    behaviour_cap: float = 2.0

    def __post_init__(self) -> None:
        common.check_choices(self)
        check("VPPO.keep", self.keep, KEEP)
        _ = self.needs  # the view checks its own numbers
        if not (0 < self.share <= 1 and 0 < self.alpha_min <= 1):
            raise ValueError(f"VPPO: share {self.share}, alpha_min {self.alpha_min}; expected both above 0, at most 1")

    @property
    def needs(self) -> Needs:
        mask = PatchMask(self.mask_probability, self.mask_patch, self.mask_per)
        return common.with_mask(common.needs(self.beta, self.entropy_coef), mask)

    def credit(self, batch: Batch) -> Tensor:
        adv_BT = common.group_credit(batch, common.score_with_kl(batch, self.beta, self.kl, self.kl_in))
        s_BT = dependency(common.chosen(batch.logp_old_BT, batch), common.chosen(batch.stored[MASKED], batch))
        units_B = batch.mask_BT.sum(1)
        alpha_B = trajectory_scale(s_BT.sum(1) / units_B.clamp(min=1), units_B > 0, self.alpha_min)
        batch.store(kept=self._kept(s_BT, batch), dependency=s_BT)
        return adv_BT * alpha_B[:, None]

    def loss(self, out: Streams, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        log_ratio = common.log_ratio(out, batch)
        ratio = token_ratio(log_ratio)
        objective = ppo_clip(ratio, common.advantage(batch), self.eps_lo, self.eps_hi, self.dual_clip) * batch.stored["kept"]
        penalty = -self.penalty * common.chosen(out["logp"], batch)
        loss, metrics = common.policy_loss(self, objective, ratio, log_ratio, out, batch, entropy_own=penalty)
        means = {"perception/kl": batch.stored["dependency"], "perception/kept": batch.stored["kept"]}
        return loss, metrics | {name: common.unit_mean(x, batch) for name, x in means.items()}

    def _kept(self, s_BT: Tensor, batch: Batch) -> Tensor:
        """(B, T) of 0 and 1."""
        if not s_BT.any():
            return batch.mask_BT
        if self.keep == "random":
            draw = torch.Generator().manual_seed(batch.context.step)
            s_BT = torch.rand(s_BT.shape, generator=draw, dtype=s_BT.dtype)
        return most_dependent(-s_BT if self.keep == "bottom" else s_BT, batch.mask_BT, self.share)
