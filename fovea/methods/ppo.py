"""PPO — Proximal Policy Optimization (Schulman et al. 2017, arXiv 1707.06347), with a value head and GAE (arXiv 1506.02438).

    δ_t = r_t + γ V_{t+1} − V_t,   A_t = δ_t + γλ A_{t+1} (whitened over the batch),   R_t = A_t + V_t (not whitened)
    loss = mean[−min(ρA, clip(ρ, 1−ε_lo, 1+ε_hi) A) + c_v ½ max((V−R)², (V_clip−R)²) − c_e H]

t counts the units the policy chose: tokens, environment steps or denoising steps; rows of one episode follow one another. Where a
trajectory was cut, V_{T+1} is the critic's value of the next observation; where it terminated, 0. For A < 0, J = max(J, c·A) is the dual
clip (Ye et al. 2020, arXiv 1912.09729).

Departures from the paper: whitening, value clipping and the dual clip come from later implementations; each can be switched off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fovea.batch import Batch, Needs, Streams
from fovea.math.advantages import whiten
from fovea.math.clock import EpisodeClock
from fovea.math.ratios import token_ratio
from fovea.math.surrogates import ppo_clip
from fovea.methods import common


@dataclass(frozen=True)
class PPO:
    """Hyperparameters.

    Attributes:
      gamma: discount per action unit: 1 for answers that are scored at their end, 0.99 for control.
      lam: λ of GAE, 0.95 in the paper.
      reward: where the reward comes from: the "score", the environment's "steps", or "auto"; see common.unit_rewards.
      whiten: normalise advantages over the batch. ddof: its divisor is n − ddof.
      eps_lo, eps_hi: clip interval [1−ε_lo, 1+ε_hi], 0.2 for both in the paper.
      dual_clip: c of the dual clip, 3.0 in its paper; 0 is off.
      value_coef: c_v; 0.5 in common implementations. value_clip: largest step of V, in reward units; 0 is off.
      value_huber: δ of Huber's loss in place of the square, 10 in π_RL; 0 is off.
      aggregation: "token-mean" in the paper.
      beta: weight of the KL to the reference. kl: its estimator. kl_in: "reward" (per unit, InstructGPT) or "loss".
      entropy_coef: c_e; 0.01 is usual for control.
      behaviour, behaviour_cap: truncated importance weights for sampler mismatch; see fovea.math.ratios.behaviour_weight.
    """

    gamma: float = 1.0
    lam: float = 0.95
    reward: Literal["auto", "score", "steps"] = "auto"
    whiten: bool = True
    ddof: int = 1
    eps_lo: float = 0.2
    eps_hi: float = 0.2
    dual_clip: float = 3.0
    value_coef: float = 0.5
    value_clip: float = 0.2
    value_huber: float = 0.0
    aggregation: str = "token-mean"
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
        base = common.needs(self.beta, self.entropy_coef)
        return Needs(before=base.before | {"value", "next_value"}, loss=base.loss | {"value"})

    def credit(self, batch: Batch) -> Tensor:
        clock = EpisodeClock.of(batch.mask_BT, batch.episode_B)
        reward_NL, known_N = common.unit_rewards(batch, clock, self.reward)
        if self.beta and self.kl_in == "reward":
            reward_NL = reward_NL - self.beta * clock.pack(common.kl_to_reference(batch.logp_old_BT, batch, self.kl).double())
        next_value_N = None
        if batch.bootstrap_B.any():
            next_value_N = torch.where(batch.bootstrap_B, batch.stored["next_value"].double(), 0.0)[clock.last_row_N]
        adv_BT = common.gae_credit(batch, clock, reward_NL, known_N, next_value_N, self.gamma, self.lam)
        if self.whiten:
            adv_BT = whiten(adv_BT, batch.mask_BT, self.ddof)
        return common.chosen(adv_BT, batch).to(batch.mask_BT.dtype)

    def loss(self, out: Streams, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        log_ratio = common.log_ratio(out, batch)
        ratio = token_ratio(log_ratio)
        objective = ppo_clip(ratio, common.advantage(batch), self.eps_lo, self.eps_hi, self.dual_clip)
        critic, seen = common.critic_error(out, batch, batch.mask_BT > 0, self.value_coef, self.value_clip, self.value_huber)
        loss, metrics = common.policy_loss(self, objective, ratio, log_ratio, out, batch, value=critic)
        return loss, metrics | {name: common.unit_mean(x_BT, batch) for name, x_BT in seen.items()}
