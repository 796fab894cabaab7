"""What the policy-gradient methods share, as functions: the scored members of a batch, the terms of a loss, the metrics of a ratio.

The loss of such a method is a sum of terms, each a (B, T) tensor that is minimised: "policy" (−J), "kl" (β·KL to the reference),
"entropy" (−c·H), "value". `total` aggregates them all in one mode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from fovea.batch import Batch, Needs, Streams
from fovea.math import ratios
from fovea.math.advantages import gae, group_scored
from fovea.math.aggregate import MODES, aggregate
from fovea.math.clock import EpisodeClock
from fovea.math.kl import KL, k3
from fovea.math.options import check
from fovea.math.perception import MASKED
from fovea.math.rewards import SCALES, group_advantage, normalised_parts
from fovea.math.surrogates import ppo_clip, reinforce
from fovea.math.values import value_loss
from fovea.views import PatchMask

CHOICES: dict[str, tuple[str, ...]] = {
    "aggregation": MODES,
    "kl": tuple(KL),
    "kl_in": ("loss", "reward"),
    "scale": SCALES,
    "behaviour": ratios.BEHAVIOUR,
    "reward": ("auto", "score", "steps"),
    "kl_to": ("reference", "old"),
    "time_reduce": ("mean", "sum"),
    "dim_reduce": ("mean", "sum"),
}


def check_choices(method: Any) -> None:
    """Every field of `method` that is named in `CHOICES` must have one of the known values."""
    for f in fields(method):
        if f.name in CHOICES:
            check(f"{type(method).__name__}.{f.name}", getattr(method, f.name), CHOICES[f.name])
    if getattr(method, "part_weights", ()) and getattr(method, "beta", 0.0) and method.kl_in == "reward":
        raise ValueError("part_weights normalises the reward parts one by one, so a KL inside the reward has no place; set kl_in='loss'")


def needs(beta: float = 0.0, entropy_coef: float = 0.0, **more: Any) -> Needs:
    """Log-probs in the loss; reference log-probs only if β is not 0, entropies only if they are rewarded."""
    before = frozenset({"reference/logp"} if beta else ())
    return Needs(before=before, loss=frozenset({"logp", "entropy"} if entropy_coef else {"logp"}), **more)


def with_mask(own: Needs, mask: PatchMask, in_loss: bool = False) -> Needs:
    """`own` and the log-probs of the same answers under `mask`: once before credit, or with gradient in every loss."""
    extra = frozenset({MASKED})
    before, loss = (own.before, own.loss | extra) if in_loss else (own.before | extra, own.loss)
    return replace(own, before=before, loss=loss, views={"masked": mask})


# -- credit -------------------------------------------------------------------------------------------------------------------


def members(batch: Batch) -> Tensor:
    """(E,) bool: the scored episodes that are learned from (given answers included, baselines not)."""
    role_E = torch.tensor([r in ("sample", "gold") for r in batch.role_E], device=batch.ok_E.device)
    return batch.ok_E & role_E


def prompts(batch: Batch) -> Tensor:
    """(E,) long: equal for episodes with the same prompt, also where they are of several groups."""
    prompt_E = batch.group_E.clone()
    apart = int(prompt_E.max()) + 1
    prompt_E[batch.episode_B] = torch.where(batch.prefix_B < 0, prompt_E[batch.episode_B], apart + batch.prefix_B)
    return prompt_E


def score_with_kl(batch: Batch, beta: float, kl: str, kl_in: str) -> Tensor:
    """(E,) float64 score, less β Σ_t KL_t over the episode's units when the KL is part of the reward."""
    score_E = batch.score_E.double()
    if beta and kl_in == "reward":
        score_E = score_E.index_add(0, batch.episode_B, -beta * kl_to_reference(batch.logp_old_BT, batch, kl).sum(1).double())
    return score_E


def group_members(batch: Batch) -> Tensor:
    """(E,) bool: those `members` whose group has at least two of them, so that it can serve as a baseline."""
    member_E = group_scored(batch.group_E, members(batch))
    if not member_E.any():
        raise ValueError(
            f"none of {int(batch.group_E.unique().numel())} groups has two scored answers; expected group_size >= 2 for a baseline taken "
            "from the group (PPO, ReMax and REINFORCE++ train on single answers)"
        )
    return member_E


def group_credit(
    batch: Batch, score_E: Tensor, scale: str = "group", ddof: int = 1, eps: float = 1e-6, part_weights: Sequence[tuple[str, float]] = ()
) -> Tensor:
    """GRPO's advantage on the rows (B, T); with `part_weights` the named reward parts are normalised one by one instead of `score_E`."""
    member_E = group_members(batch)
    if part_weights:
        adv_E = normalised_parts(batch.parts_E, dict(part_weights), batch.group_E, member_E, scale, ddof, eps)
    else:
        adv_E = group_advantage(score_E, batch.group_E, member_E, scale, ddof, eps)
    return spread(adv_E, member_E, batch)


def spread(adv_E: Tensor, trained_E: Tensor, batch: Batch) -> Tensor:
    """(E,) -> (B, T) on the chosen units. Rows of the other episodes are dropped from the batch."""
    batch.drop(~trained_E[batch.episode_B])
    adv_BT = batch.per_row(adv_E).to(batch.mask_BT.dtype)
    return torch.where(batch.mask_BT > 0, adv_BT, 0.0)


def unit_rewards(batch: Batch, clock: EpisodeClock, source: str = "auto") -> tuple[Tensor, Tensor]:
    """Rewards (N, L) float64 on the clock of chosen units, and (N,) bool: which episodes have any verdict to learn from.

    source: "score" puts the episode's score on its last unit; "steps" each environment reward on the last unit of its turn; "auto" takes
    the steps of an episode in which any environment reward differs from 0, and the score otherwise.
    """
    steps_NL = clock.pack(batch.reward_at_units().double())
    ok_N = batch.ok_E[clock.episode_N]
    score_NL = clock.at_end(torch.where(ok_N, batch.score_E[clock.episode_N].double(), 0.0))
    if source == "steps":
        return steps_NL, torch.ones_like(ok_N)
    if source == "score":
        return score_NL, ok_N
    by_step_N = (steps_NL != 0).any(1)
    return torch.where(by_step_N[:, None], steps_NL, score_NL), ok_N | by_step_N


def gae_credit(
    batch: Batch, clock: EpisodeClock, reward_NL: Tensor, known_N: Tensor, next_value_N: Tensor | None, gamma: float, lam: float
) -> Tensor:
    """GAE on `clock` as (B, T) float64, not whitened; its targets are stored as "ret". Episodes that are not known are dropped."""
    value_BT = torch.where(clock.mask_BT, batch.stored["value"].double(), 0.0)
    adv_BT = clock.unpack(gae(reward_NL, clock.pack(value_BT), clock.mask_NL, next_value_N, gamma, lam))
    batch.store(ret=(adv_BT + value_BT).to(batch.mask_BT.dtype))
    batch.drop(~torch.isin(batch.episode_B, clock.episode_N[known_N]))
    return adv_BT


def extra(batch: Batch, name: str) -> Tensor:
    """A tensor (B, T, ...) that the episode program marked on the rows.

    Raises:
      ValueError: it did not.
    """
    if name not in batch.extras:
        known = ", ".join(batch.extras) or "none"
        raise ValueError(
            f"no row has the mark {name!r} (there are: {known}); expected an episode program that calls policy.mark({name!r}, ...)"
        )
    return batch.extras[name]


# -- loss ---------------------------------------------------------------------------------------------------------------------


def chosen(x_BT: Tensor, batch: Batch) -> Tensor:
    """Zero at masked units, whatever stood there, so that no infinity or NaN of padding reaches a gradient."""
    return torch.where(batch.mask_BT > 0, x_BT, 0.0)


def advantage(batch: Batch) -> Tensor:
    """The credited advantage (B, T)."""
    if batch.adv_BT is None:
        raise ValueError("batch.adv_BT is missing; expected method.credit(batch) before method.loss")
    return batch.adv_BT


def per_dimension(x_BT: Tensor, batch: Batch, reduce: str) -> Tensor:
    """A sum of log-densities over the dimensions of a continuous unit, as their "mean"; "sum" leaves it."""
    return x_BT / max(1, batch.actions_BT[0, 0].numel()) if reduce == "mean" else x_BT


def log_ratio(out: Streams, batch: Batch) -> Tensor:
    """log π_θ − log π_old (B, T) in nats."""
    return chosen(out["logp"] - batch.logp_old_BT, batch)


def kl_to_reference(logp_BT: Tensor, batch: Batch, kl: str) -> Tensor:
    """The estimator `kl` of KL(π ‖ π_ref) per unit (B, T) in nats."""
    return KL[kl](chosen(logp_BT, batch), chosen(batch.stored["reference/logp"], batch).detach())


def behaviour_weight(batch: Batch, level: str, cap: float) -> Tensor:
    """Truncated importance weights (B, T) of π_old over what really sampled; 1 when `level` is "none"."""
    return ratios.behaviour_weight(chosen(batch.logp_old_BT, batch), chosen(batch.logp_behaviour_BT, batch), batch.mask_BT, level, cap)


def penalties(out: Streams, batch: Batch, beta: float, kl: str, kl_in: str, entropy_coef: float) -> dict[str, Tensor]:
    """The terms "kl" and "entropy" that are switched on."""
    terms = {}
    if beta and kl_in == "loss":
        terms["kl"] = beta * kl_to_reference(out["logp"], batch, kl)
    if entropy_coef:
        terms["entropy"] = -entropy_coef * chosen(out["entropy"], batch)
    return terms


def total(terms: Mapping[str, Tensor], batch: Batch, mode: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum of the aggregated terms, and each as metric ``loss/<name>``."""
    assert batch.totals is not None, "batch.totals is missing: count the optimizer step before its losses"
    parts = {name: aggregate(x_BT, batch.mask_BT, batch.totals, mode, batch.turn_BT) for name, x_BT in terms.items()}
    return torch.stack(list(parts.values())).sum(), {f"loss/{name}": x.detach() for name, x in parts.items()}


def critic_error(
    out: Streams, batch: Batch, units_BT: Tensor, coef: float, clip: float, huber: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """c_v ½ (V − R)² at `units_BT` and 0 elsewhere, clipped or Huber's where these are positive; and what there is to see, (B, T) too."""

    def at(x_BT: Tensor) -> Tensor:
        return torch.where(units_BT, x_BT, 0.0)

    value_BT, ret_BT = at(out["value"]), at(batch.stored["ret"])
    seen = {"value/mean": value_BT, "value/return_mean": ret_BT, "value/error": (value_BT - ret_BT) ** 2}
    return coef * value_loss(value_BT, ret_BT, at(batch.stored["value"]), clip, huber), {n: x.detach() for n, x in seen.items()}


class Ratios(Protocol):
    """The hyperparameters that every method with an importance ratio has."""

    @property
    def eps_lo(self) -> float: ...
    @property
    def eps_hi(self) -> float: ...
    @property
    def aggregation(self) -> str: ...
    @property
    def beta(self) -> float: ...
    @property
    def kl(self) -> str: ...
    @property
    def kl_in(self) -> str: ...
    @property
    def entropy_coef(self) -> float: ...
    @property
    def behaviour(self) -> str: ...
    @property
    def behaviour_cap(self) -> float: ...


def policy_loss(
    method: Ratios, objective_BT: Tensor, ratio_BT: Tensor, log_ratio_BT: Tensor, out: Streams, batch: Batch, **terms: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and metrics of an objective J that is maximised: −J weighted for sampler mismatch, the method's penalties, and `terms`."""
    policy = -objective_BT * behaviour_weight(batch, method.behaviour, method.behaviour_cap)
    others = penalties(out, batch, method.beta, method.kl, method.kl_in, method.entropy_coef)
    loss, metrics = total({"policy": policy} | terms | others, batch, method.aggregation)
    return loss, metrics | ratio_metrics(ratio_BT, log_ratio_BT, out, batch, method.eps_lo, method.eps_hi)


def reinforce_loss(method: Ratios, out: Streams, batch: Batch, clip: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """`policy_loss` of A log π or, with `clip`, of PPO's clipped ratio, whose gradient is the same at π = π_old."""
    log_ratio_BT, adv_BT = log_ratio(out, batch), advantage(batch)
    ratio_BT = ratios.token_ratio(log_ratio_BT)
    if clip:
        objective_BT = ppo_clip(ratio_BT, adv_BT, method.eps_lo, method.eps_hi)
    else:
        objective_BT = reinforce(chosen(out["logp"], batch), adv_BT)
    return policy_loss(method, objective_BT, ratio_BT, log_ratio_BT, out, batch)


def unit_mean(x_BT: Tensor, batch: Batch) -> Tensor:
    """Mean over the chosen units of the whole step, as this micro-batch's share of it."""
    assert batch.totals is not None
    return aggregate(x_BT.detach(), batch.mask_BT, batch.totals, "token-mean")


def ratio_metrics(ratio_BT: Tensor, log_ratio_BT: Tensor, out: Streams, batch: Batch, eps_lo: float, eps_hi: float) -> dict[str, Tensor]:
    """How far the policy moved. Entropy is exact where the method declares it, else −log π_old of the sampled units (an estimate).

    Units of given answers were not sampled, so they say nothing of the entropy and are left out of it.
    """
    adv_BT, dtype = advantage(batch), ratio_BT.dtype
    low_BT = (ratio_BT < 1 - eps_lo) & (adv_BT < 0)
    high_BT = (ratio_BT > 1 + eps_hi) & (adv_BT > 0)
    metrics = {
        "policy/kl": k3(torch.zeros_like(log_ratio_BT), log_ratio_BT),
        "policy/ratio_mean": ratio_BT,
        "policy/clip_low_frac": low_BT.to(dtype),
        "policy/clip_high_frac": high_BT.to(dtype),
        "policy/clip_frac": (low_BT | high_BT).to(dtype),
    }
    if "reference/logp" in batch.stored:
        metrics["policy/kl_ref"] = k3(chosen(out["logp"], batch), chosen(batch.stored["reference/logp"], batch))
    assert batch.totals is not None
    sampled_BT = batch.mask_BT * ~batch.given_B[:, None]
    entropy_BT = out.get("entropy", -batch.logp_old_BT).detach()
    means = {name: unit_mean(x_BT, batch) for name, x_BT in metrics.items()}
    return means | {"policy/entropy": torch.where(sampled_BT > 0, entropy_BT, 0.0).sum() / batch.totals.sampled}
