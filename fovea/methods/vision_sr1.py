"""Vision-SR1 — self-rewarding by decomposed reasoning (Li et al. 2025, arXiv 2508.19652).

The policy describes the picture, thinks and answers; then the same policy, without the picture, answers from the description alone
(`fovea.rollout.programs.Described`). Whether that succeeds is the visual reward of the description. Reward parts "answer", "visual" and
"format" (0 or 1 each), and three ways to credit them:
    split       A_vis = z(visual + α format) on the description's tokens, A_ans = z(answer + α format) on all others   (the paper)
    multi       Σ_k of the clipped objective with A_k = z(part k), k in {answer, visual}, on all tokens   (the code's second version)
    additive    A = z(score) on all tokens, score = 0.9 answer + 0.1 format + 1.0 visual by the verifier   (the code's first version)
where z is centred and scaled in the group. The reader's own tokens are not trained.

Departures from the paper: the constant factors before the loss and of its two terms (½ each) are 1, which a learning rate absorbs; one KL
term serves both kinds of tokens (the paper's two have the same weight); the authors' notes once give the two advantages the other way round
(`swap`); without a description nobody reads, and the visual reward is 0 (their code then passes on the whole answer).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fovea.batch import Batch, Needs, Streams
from fovea.math.options import check
from fovea.math.ratios import token_ratio
from fovea.math.rewards import group_advantage, part
from fovea.math.surrogates import ppo_clip
from fovea.methods import common

MODES = ("split", "multi", "additive")


@dataclass(frozen=True)
class VisionSR1:
    """Hyperparameters.

    Attributes:
      mode: "split", "multi" or "additive".
      alpha: weight of the format in both rewards of "split".
      swap: give the description the answer's advantage and the rest the visual one ("split" only).
      eps_lo, eps_hi: clip interval [1−ε_lo, 1+ε_hi], 0.2 and 0.3 in the authors' code.
      dual_clip: c of the dual clip, 3.0 there; 0 is off.
      ddof, std_eps: divisor n − ddof of the group's std, and what is added to it.
      aggregation: "token-mean" in the authors' code.
      beta: weight of the KL to the reference, 0.01 there.
      kl: its estimator. kl_in: "loss", the only place where there are several advantages.
      entropy_coef: weight of an entropy bonus; 0 in the paper.
      behaviour, behaviour_cap: truncated importance weights for sampler mismatch; see fovea.math.ratios.behaviour_weight.
    """

    mode: Literal["split", "multi", "additive"] = "split"
    alpha: float = 0.1
    swap: bool = False
    eps_lo: float = 0.2
    eps_hi: float = 0.3
    dual_clip: float = 3.0
    ddof: int = 1
    std_eps: float = 1e-6
    aggregation: str = "token-mean"
    beta: float = 0.01
    kl: Literal["k1", "k2", "k3", "k3+"] = "k3"
    kl_in: Literal["loss", "reward"] = "loss"
    entropy_coef: float = 0.0
    behaviour: Literal["none", "token", "sequence", "sequence-mask"] = "none"
    behaviour_cap: float = 2.0

    def __post_init__(self) -> None:
        common.check_choices(self)
        check("VisionSR1.mode", self.mode, MODES)
        if self.beta and self.kl_in == "reward" and self.mode != "additive":
            raise ValueError(f"VisionSR1.kl_in is 'reward' in mode {self.mode!r}, which has no single reward; expected 'loss'")

    @property
    def needs(self) -> Needs:
        parts = {"split": ("answer", "visual", "format"), "multi": ("answer", "visual"), "additive": ()}[self.mode]
        return common.needs(self.beta, self.entropy_coef, parts=parts, extras=("described",) if self.mode == "split" else ())

    def credit(self, batch: Batch) -> Tensor:
        if self.mode == "additive":
            return common.group_credit(batch, common.score_with_kl(batch, self.beta, self.kl, self.kl_in), "group", self.ddof, self.std_eps)
        answer_BT, visual_BT = (self._channel(batch, name) for name in ("answer", "visual"))
        if self.mode == "multi":
            batch.store(adv_answer=answer_BT, adv_visual=visual_BT)
            return answer_BT + visual_BT
        described_BT = common.extra(batch, "described") > 0
        return torch.where(described_BT != self.swap, visual_BT, answer_BT)

    def _channel(self, batch: Batch, name: str) -> Tensor:
        """The advantage of one reward part on every unit (B, T)."""
        member_E = common.group_members(batch)
        reward_E = part(batch.parts_E, name).double()
        if self.mode == "split" and self.alpha:
            reward_E = reward_E + self.alpha * part(batch.parts_E, "format").double()
        return common.spread(group_advantage(reward_E, batch.group_E, member_E, "group", self.ddof, self.std_eps), member_E, batch)

    def loss(self, out: Streams, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        log_ratio = common.log_ratio(out, batch)
        ratio = token_ratio(log_ratio)
        channels = [batch.stored[name] for name in ("adv_answer", "adv_visual")] if self.mode == "multi" else [common.advantage(batch)]
        objective = torch.stack([ppo_clip(ratio, adv_BT, self.eps_lo, self.eps_hi, self.dual_clip) for adv_BT in channels]).sum(0)
        return common.policy_loss(self, objective, ratio, log_ratio, out, batch)
