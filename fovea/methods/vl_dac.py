"""VL-DAC — Vision-Language Decoupled Actor-Critic (arXiv 2508.04280): actions are tokens, values and advantages are turns.

    V_k = MLP(sg[h_k]),   h_k the last hidden state of turn k's prompt, before any token of its reply
    δ_k = R_k + γ V_{k+1} − V_k,   A_k = δ_k + γλ A_{k+1} (whitened over the turns of the rollout),   R̂_k = A_k + V_k (not whitened)
    L = mean_k (1/m_k) Σ_i [−min(ρ_ki A_k, clip(ρ_ki, 1−ε, 1+ε) A_k) + β k3(π_θ ‖ π_ref)] + α mean_k ½ (V_k − R̂_k)²

ρ_ki is the ratio of token i of turn k, all m_k tokens share A_k. The first `value_warmup` steps train the value head alone, by α L_V. In a
turn with any ρ above `ratio_max` the clipped term counts alone. A turn may be a row of its own or follow others in a longer row.

Departures from the paper: a rollout is whole episodes, not a fixed number of steps, so nothing is bootstrapped at its end; whitening adds
1e-8 under the root of the variance; a log-probability that is not finite ends the run, where the code skips the sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fovea.batch import Batch, Needs, Streams
from fovea.math.ratios import token_ratio
from fovea.methods import common, turns


@dataclass(frozen=True)
class VLDAC:
    """Hyperparameters.

    Attributes:
      gamma: discount per turn; the paper takes 0.9 to 1 (1 on EZPoints). lam: λ of GAE, 0.9 to 1 (1 on EZPoints).
      reward: where the reward comes from: the "score", the environment's "steps", or "auto"; see common.unit_rewards.
      proper_time_limits: a turn that was cut off teaches nothing; otherwise the episode ended there.
      eps_lo, eps_hi: clip interval [1−ε_lo, 1+ε_hi], 0.1 in the code. ratio_max: 10 in the code.
      value_coef: α, 0.15. value_clip: largest step of V, in reward units; 0 is off as in the paper, ε in the code.
      value_warmup: steps that train the value head alone, 2.
      critic: widths of the value head's hidden layers. stop_gradient: the value head pulls on nothing below it; without, the warm-up
        trains what it reads too.
      aggregation: turns weigh alike and so do the tokens of a turn; see fovea.math.aggregate.
      beta: weight of the KL, 0.05. kl: its estimator. kl_to: the frozen "reference" (code) or "old", the weights that
        sampled (as the paper writes).
      entropy_coef: weight of an entropy bonus, 0.
      behaviour, behaviour_cap: truncated importance weights for sampler mismatch; see fovea.math.ratios.behaviour_weight.
    """

    gamma: float = 0.99
    lam: float = 0.95
    reward: Literal["auto", "score", "steps"] = "auto"
    proper_time_limits: bool = False
    eps_lo: float = 0.1
    eps_hi: float = 0.1
    ratio_max: float = 10.0
    value_coef: float = 0.15
    value_clip: float = 0.0
    value_warmup: int = 2
    critic: tuple[int, ...] = (3072, 2048)
    aggregation: str = "turn-mean-token-mean"
    stop_gradient: bool = True
    beta: float = 0.05
    kl: Literal["k1", "k2", "k3", "k3+"] = "k3"
    kl_to: Literal["reference", "old"] = "reference"
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
        return turns.needs(self, self.kl_to == "reference")

    def credit(self, batch: Batch) -> Tensor:
        if self.beta and self.kl_to == "old":
            batch.store(**{"reference/logp": batch.logp_old_BT})
        return turns.credit(batch, self.gamma, self.lam, self.reward, self.proper_time_limits)

    def loss(self, out: Streams, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        log_ratio = common.log_ratio(out, batch)
        return turns.loss(self, token_ratio(log_ratio), log_ratio, out, batch)
