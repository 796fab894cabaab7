"""RL4VLM — Fine-Tuning Large Vision-Language Models as Decision-Making Agents via RL (Zhai et al. 2024, arXiv 2405.10292).

A turn is one action, whose log-probability counts the thought before it less:
    log π(a_k) = λ_thought Σ_{thought} log π(y_ki) + Σ_{action} log π(y_ki),   ρ_k = π(a_k)/π_old(a_k)
    L = mean_k [−min(ρ_k A_k, clip(ρ_k, 1−ε, 1+ε) A_k) + c_v ½ max((V_k − R̂_k)², (V_clip − R̂_k)²)]
with values, advantages and the guard against large ratios as in VL-DAC, which takes ratios of tokens and needs no λ_thought. The episode
program marks the action (`fovea.rollout.programs.ActionMarked`).

Departures from the paper: the first two tokens of a reply count as thought like the others, where the code leaves them out; the entropy
bonus that the code declares and never uses is 0. Warm-up, stop-gradient and KL, off by default, are VL-DAC's, to compare ratios alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fovea.batch import Batch, Needs, Streams
from fovea.math.clock import turn_sums
from fovea.math.ratios import token_ratio
from fovea.methods import common, turns


@dataclass(frozen=True)
class RL4VLM:
    """Hyperparameters.

    Attributes:
      thought_weight: λ_thought, 0.2 to 0.5 in the paper, tuned for each environment and model; 0 leaves thoughts alone.
      gamma: discount per turn, 0.9. lam: λ of GAE.
      reward: where the reward comes from: the "score", the environment's "steps", or "auto"; see common.unit_rewards.
      proper_time_limits: a turn that was cut off teaches nothing; otherwise the episode ended there.
      eps_lo, eps_hi: clip interval [1−ε_lo, 1+ε_hi], 0.1 in the code. ratio_max: a larger ρ_k leaves the clipped term alone; 10.
      value_coef: c_v, 0.5. value_clip: largest step of V, in reward units; ε in the code, 0 is off.
      value_warmup: steps that train the value loss alone; 0.
      critic: widths of the value head's hidden layers. stop_gradient: the value head pulls on nothing below it.
      aggregation: the ratio of a turn stands on all of its tokens, whose mean it is then; see fovea.math.aggregate.
      beta: weight of the KL to the reference, per token; 0. kl: its estimator.
      entropy_coef: weight of an entropy bonus; 0.
      behaviour, behaviour_cap: truncated importance weights for sampler mismatch; see fovea.math.ratios.behaviour_weight.
    """

    thought_weight: float = 0.5
    gamma: float = 0.9
    lam: float = 0.95
    reward: Literal["auto", "score", "steps"] = "auto"
    proper_time_limits: bool = False
    eps_lo: float = 0.1
    eps_hi: float = 0.1
    ratio_max: float = 10.0
    value_coef: float = 0.5
    value_clip: float = 0.1
    value_warmup: int = 0
    critic: tuple[int, ...] = (1024, 512)
    aggregation: str = "turn-mean-token-mean"
    stop_gradient: bool = False
    beta: float = 0.0
    kl: Literal["k1", "k2", "k3", "k3+"] = "k3"
    entropy_coef: float = 0.0
    behaviour: Literal["none", "token", "sequence", "sequence-mask"] = "none"
    behaviour_cap: float = 2.0

    def __post_init__(self) -> None:
        common.check_choices(self)

    @property
    def kl_in(self) -> str:
        return "loss"

    @property
    def needs(self) -> Needs:
        return turns.needs(self, True, extras=("action",))

    def credit(self, batch: Batch) -> Tensor:
        return turns.credit(batch, self.gamma, self.lam, self.reward, self.proper_time_limits)

    def loss(self, out: Streams, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        log_ratio = common.log_ratio(out, batch)
        weight = torch.where(common.extra(batch, "action") > 0, 1.0, self.thought_weight)
        ratio = token_ratio(turn_sums(weight * log_ratio, batch.turn_BT, batch.mask_BT))
        return turns.loss(self, ratio, log_ratio, out, batch)
