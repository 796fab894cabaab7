"""PAPO — Perception-Aware Policy Optimization (Wang et al. 2025, arXiv 2507.06448).

GRPO, and the wish that an answer be less likely without the picture. The same answers are read again with blocks of the picture blackened,
I', and the distance between the two readings is driven up:
    loss = GRPO − γ mean_t K_t + η₁ H + η₂ H',     K_t = e^δ − δ − 1,  δ = log π'(y_t|I') − log π_θ(y_t|I)
    H = −mean_t log π_θ(y_t|I),  H' = −mean_t log π'(y_t|I')
The entropies stand with a plus sign: they are kept down, because the unbounded −K would otherwise be served by entropy alone.

One mask per prompt and step, so that the answers of a group share the masked prompt too. The masked reading is taken once per rollout by
the policy that rolled out, without gradient, so that η₂ H' is a constant, as in the published code; `masked_gradient` recomputes it with
gradient in every update. Prompts without pictures have no K.

The defaults are those of PAPO on GRPO ("PAPO-G"). PAPO on DAPO ("PAPO-D") is γ 0.01, η₁ = η₂ = 0.03, ε_hi 0.28, β 0 and the recipe's
`dynamic_sampling`.

Departures from the paper: K is the code's estimator, which is unbiased under answers drawn from π_θ (the paper writes it with r = π/π').
Means are those of the whole optimizer step, not of micro-batches. The supervised term of the code (off there) is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fovea.batch import Batch, Needs, Streams
from fovea.math.perception import MASKED, dependency, most_dependent, seen
from fovea.math.ratios import token_ratio
from fovea.math.surrogates import ppo_clip
from fovea.methods import common
from fovea.views import PatchMask


@dataclass(frozen=True)
class PAPO:
    """Hyperparameters.

    Attributes:
      gamma: γ; the paper's scripts have 0.02 on GRPO and 0.01 on DAPO, 0.04 collapses there. Small models need 0.1 to 0.5.
      eta, eta_masked: η₁ and η₂, off by default as in the code; 0.05 (7B with γ 0.02) or 0.03 (without a KL to the reference).
      mask_probability, mask_patch, mask_per: of the second reading's pictures; see fovea.views.PatchMask.
      masked_gradient: take the second reading with gradient in every update.
      top: share of each answer's units, those with the largest K, that the term is taken over; 1 is all of them (the code has 0.2 as
        an option).
      limit: K counts up to this; 0.2 is the code's clipped form (off there).
      anneal: part of the run in which γ, η₁ and η₂ fall linearly to 0; 0 leaves them as they are.
      eps_lo, eps_hi: clip interval [1−ε_lo, 1+ε_hi], 0.2 and 0.3 in the code. dual_clip: c of the dual clip, 3.
      aggregation: "token-mean" in the code; of the perception terms too.
      beta: weight of the KL to the reference, 0.01. kl: its estimator. kl_in: "loss" or "reward" (meant with k1).
      entropy_coef: weight of an entropy bonus; 0 in the paper.
      behaviour, behaviour_cap: truncated importance weights for sampler mismatch; see fovea.math.ratios.behaviour_weight.
    """

    gamma: float = 0.02
    eta: float = 0.0
    eta_masked: float = 0.0
    mask_probability: float = 0.6
    mask_patch: int = 14
    mask_per: Literal["prompt", "response"] = "prompt"
    masked_gradient: bool = False
    top: float = 1.0
    limit: float = 10.0
    anneal: float = 0.0
    eps_lo: float = 0.2
    eps_hi: float = 0.3
    dual_clip: float = 3.0
    aggregation: str = "token-mean"
    beta: float = 0.01
    kl: Literal["k1", "k2", "k3", "k3+"] = "k3"
    kl_in: Literal["loss", "reward"] = "loss"
    entropy_coef: float = 0.0
    behaviour: Literal["none", "token", "sequence", "sequence-mask"] = "none"
    behaviour_cap: float = 2.0

    def __post_init__(self) -> None:
        common.check_choices(self)
        _ = self.needs  # the view checks its own numbers
        for name, value, high in (("top", self.top, 1), ("anneal", self.anneal, 1), ("limit", self.limit, 10)):
            if not 0 <= value <= high:
                raise ValueError(f"PAPO.{name} is {value}, expected 0 to {high}")

    @property
    def needs(self) -> Needs:
        return common.with_mask(
            common.needs(self.beta, self.entropy_coef),
            PatchMask(self.mask_probability, self.mask_patch, self.mask_per),
            in_loss=self.masked_gradient,
        )

    def credit(self, batch: Batch) -> Tensor:
        return common.group_credit(batch, common.score_with_kl(batch, self.beta, self.kl, self.kl_in))

    def loss(self, out: Streams, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        log_ratio = common.log_ratio(out, batch)
        ratio = token_ratio(log_ratio)
        objective = ppo_clip(ratio, common.advantage(batch), self.eps_lo, self.eps_hi, self.dual_clip)
        logp = common.chosen(out["logp"], batch)
        masked = seen(logp, common.chosen((out if self.masked_gradient else batch.stored)[MASKED], batch))
        k = dependency(logp, masked).clamp(max=self.limit)
        if self.top < 1:
            k = k * most_dependent(k.detach(), batch.mask_BT, self.top)
        left = max(0.0, 1 - batch.context.progress / self.anneal) if self.anneal else 1.0
        terms = {"perception": -self.gamma * k, "entropy_own": -self.eta * logp, "entropy_masked": -self.eta_masked * masked}
        scaled = {name: left * x for name, x in terms.items()}
        loss, metrics = common.policy_loss(self, objective, ratio, log_ratio, out, batch, **scaled)
        return loss, metrics | {"perception/kl": common.unit_mean(k, batch), "perception/gap": common.unit_mean(logp - masked, batch)}
