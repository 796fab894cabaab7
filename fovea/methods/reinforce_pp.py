"""REINFORCE++ (Hu 2025, arXiv 2501.03262): PPO's loss and global whitening without a critic; one answer per task is enough.

    r_t = −β k1_t, plus the score on the last unit      R_t = Σ_{s≥t} γ^{s−t} r_s      A = (R − mean) / √(var + 1e-8) over all units

`baseline=True` is the form for groups: the score less its group's mean goes to every unit, then the same global whitening. The group
only removes the difficulty of the task; the scale is the batch's.

Departures from the paper: in the baseline form the KL stays inside the reward unless `kl_in="loss"`. A trajectory that was cut counts
as ended. ε_lo = ε_hi = 0.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fovea.batch import Batch, Needs, Streams
from fovea.math.advantages import group_center, returns_to_go, whiten
from fovea.math.clock import EpisodeClock
from fovea.math.ratios import token_ratio
from fovea.math.surrogates import ppo_clip
from fovea.methods import common


@dataclass(frozen=True)
class ReinforcePP:
    """Hyperparameters.

    Attributes:
      baseline: subtract the group's mean score first (needs two answers per task).
      gamma: discount per action unit, 1 in the paper.
      reward: where the reward comes from: the "score", the environment's "steps", or "auto"; see common.unit_rewards.
      ddof: whitening divides by n − ddof, 1 in verl and EasyR1.
      eps_lo, eps_hi: clip interval [1−ε_lo, 1+ε_hi]. dual_clip: c of the dual clip; 0 is off.
      aggregation: "token-mean" in the paper.
      beta: weight of the KL to the reference, 0.01 in OpenRLHF. kl: its estimator. kl_in: "reward" in the paper.
      entropy_coef: weight of an entropy bonus, 0 in the paper.
      behaviour, behaviour_cap: truncated importance weights for sampler mismatch; see fovea.math.ratios.behaviour_weight.
    """

    baseline: bool = False
    gamma: float = 1.0
    reward: Literal["auto", "score", "steps"] = "auto"
    ddof: int = 1
    eps_lo: float = 0.2
    eps_hi: float = 0.2
    dual_clip: float = 0.0
    aggregation: str = "token-mean"
    beta: float = 0.01
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
        if self.baseline:
            member_E = common.group_members(batch)
            score_E = common.score_with_kl(batch, self.beta, self.kl, self.kl_in)
            adv_BT = common.spread(group_center(score_E, batch.group_E, member_E), member_E, batch)
            return whiten(adv_BT, batch.mask_BT, self.ddof)
        clock = EpisodeClock.of(batch.mask_BT, batch.episode_B)
        reward_NL, known_N = common.unit_rewards(batch, clock, self.reward)
        if self.beta and self.kl_in == "reward":
            reward_NL = reward_NL - self.beta * clock.pack(common.kl_to_reference(batch.logp_old_BT, batch, self.kl).double())
        ret_BT = clock.unpack(returns_to_go(reward_NL, clock.mask_NL, self.gamma)).to(batch.mask_BT.dtype)
        batch.drop(~torch.isin(batch.episode_B, clock.episode_N[known_N]))
        return whiten(ret_BT, batch.mask_BT, self.ddof)

    def loss(self, out: Streams, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        log_ratio = common.log_ratio(out, batch)
        ratio = token_ratio(log_ratio)
        objective = ppo_clip(ratio, common.advantage(batch), self.eps_lo, self.eps_hi, self.dual_clip)
        return common.policy_loss(self, objective, ratio, log_ratio, out, batch)
