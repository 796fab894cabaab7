"""DART — decoupled training and adaptive data curation for GUI agents (arXiv 2509.23866). A step is one turn: an observation and a reply.

    A_i = (R_i − mean_D R) / (std_D R + 1e-6),   D: the steps of all episodes of a group, each with its episode's R
    J = mean over the steps of D with H ≥ q_20 of  w · min(ρA, clip(ρ, 1−ε_lo, 1+ε_hi) A) − β k3(π_θ ‖ π_ref)
    H_t: mean entropy of the tokens of a step,  q_20: the 20th percentile of H over D,  w = min(π_old / π_rollout, C), no gradient

π_old are the trainer's weights before the update, π_rollout is what drew the token: older weights, held more coarsely. How many episodes a
task gets, how long they are, and which recorded success joins them is `curation` of the recipe; that nobody waits is its `services`.

Departures from the paper: a group that is left with one episode does not train (the code gives its step the advantage R).
The released script differs from the paper and is the preset `SCRIPT`: the ratio is GSPO's, with a dual clip, and no step is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fovea.batch import Batch, Needs, Streams
from fovea.math.advantages import grpo
from fovea.math.clock import turn_starts, turn_sums
from fovea.math.entropy import at_least_quantile
from fovea.math.ratios import sequence_ratio_per_token, token_ratio
from fovea.math.surrogates import ppo_clip
from fovea.methods import common


@dataclass(frozen=True)
class DART:
    """Hyperparameters.

    Attributes:
      over: what the mean and std of a group are taken over: its "steps" (each with its episode's score) or its "episodes".
      ddof, std_eps: divisor n − ddof of that std (0 in the paper, 1 in the code), and what is added to it.
      quantile: steps with an entropy below this quantile of their group's do not train; 0 keeps all (as the released script does).
      ratio: of the "token" (paper), or GSPO's of the "sequence", which is a row of the batch (script).
      eps_lo, eps_hi: clip interval [1−ε_lo, 1+ε_hi], 0.2 and 0.28 in the paper.
      dual_clip: c of the dual clip; 0 is off, as in the paper.
      aggregation: steps weigh alike and so do the tokens of a step; see fovea.math.aggregate.
      beta: weight of the KL to the reference, 0.1. kl: its estimator.
      entropy_coef: weight of an entropy bonus, 0.
      behaviour, behaviour_cap: w; cap C = 1. See fovea.math.ratios.behaviour_weight.
    """

    over: Literal["steps", "episodes"] = "steps"
    ddof: int = 1
    std_eps: float = 1e-6
    quantile: float = 0.2
    ratio: Literal["token", "sequence"] = "token"
    eps_lo: float = 0.2
    eps_hi: float = 0.28
    dual_clip: float = 0.0
    aggregation: str = "turn-mean-token-mean"
    beta: float = 0.1
    kl: Literal["k1", "k2", "k3", "k3+"] = "k3"
    entropy_coef: float = 0.0
    behaviour: Literal["none", "token", "sequence", "sequence-mask"] = "token"
    behaviour_cap: float = 1.0

    def __post_init__(self) -> None:
        common.check_choices(self)
        if not 0 <= self.quantile < 1:
            raise ValueError(f"DART.quantile is {self.quantile}, expected a share below 1")

    @property
    def kl_in(self) -> str:
        return "loss"

    @property
    def needs(self) -> Needs:
        own = common.needs(self.beta, self.entropy_coef)
        return Needs(before=own.before | ({"entropy"} if self.quantile else frozenset()), loss=own.loss)

    def credit(self, batch: Batch) -> Tensor:
        member_E = common.group_members(batch)
        steps_E = steps(batch) if self.over == "steps" else member_E.long()
        adv_BT = common.spread(step_advantage(batch.score_E, batch.group_E, member_E, steps_E, self.ddof, self.std_eps), member_E, batch)
        if self.quantile:
            batch.mask_BT = batch.mask_BT * uncertain(batch, self.quantile)
        return torch.where(batch.mask_BT > 0, adv_BT, 0.0)

    def loss(self, out: Streams, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        log_ratio = common.log_ratio(out, batch)
        ratio = token_ratio(log_ratio) if self.ratio == "token" else sequence_ratio_per_token(log_ratio, batch.mask_BT)
        objective = ppo_clip(ratio, common.advantage(batch), self.eps_lo, self.eps_hi, self.dual_clip)
        return common.policy_loss(self, objective, ratio, log_ratio, out, batch)


SCRIPT: dict[str, Any] = {"ratio": "sequence", "eps_lo": 0.1, "dual_clip": 10.0, "quantile": 0.0}
"""What the released training script sets otherwise than the paper."""


def steps(batch: Batch) -> Tensor:
    """(E,) long: turns of each episode in which something was chosen."""
    starts_B = turn_starts(batch.turn_BT, batch.mask_BT).sum(1).long()
    return torch.zeros_like(batch.group_E).index_add(0, batch.episode_B, starts_B)


def step_advantage(score_E: Tensor, group_E: Tensor, member_E: Tensor, steps_E: Tensor, ddof: int = 1, eps: float = 1e-6) -> Tensor:
    """GRPO's advantage (E,) where an episode counts as often in its group's mean and std as it has steps; 0 for episodes without any."""
    owner_S = torch.arange(len(score_E), device=score_E.device).repeat_interleave(steps_E)
    adv_S = grpo(score_E[owner_S], group_E[owner_S], member_E[owner_S], ddof, eps)
    return torch.zeros(len(score_E), dtype=adv_S.dtype, device=adv_S.device).index_put((owner_S,), adv_S)


def uncertain(batch: Batch, quantile: float) -> Tensor:
    """(B, T) 0/1: units of the steps whose mean entropy is not below the quantile of all steps of their group."""
    mask_BT, turn_BT = batch.mask_BT, batch.turn_BT
    start_BT = turn_starts(turn_BT, mask_BT) > 0
    entropy_BT = turn_sums(common.chosen(batch.stored["entropy"], batch).double(), turn_BT, mask_BT)
    mean_BT = entropy_BT / turn_sums(mask_BT.double(), turn_BT, mask_BT).clamp(min=1)
    group_BT = batch.group_B[:, None].expand_as(turn_BT)
    kept_S = at_least_quantile(mean_BT[start_BT], group_BT[start_BT], quantile)
    return turn_sums(torch.zeros_like(mask_BT).masked_scatter(start_BT, kept_S.to(mask_BT.dtype)), turn_BT, mask_BT)
