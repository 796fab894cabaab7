"""What the methods with one value per turn share: credit on the clock of turns, and an actor beside a critic (VL-DAC, RL4VLM)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from fovea.batch import Batch, Critic, Needs, Streams
from fovea.math.advantages import whiten
from fovea.math.clock import EpisodeClock, turn_starts, turn_sums
from fovea.math.surrogates import guarded_clip
from fovea.methods import common


class TurnCritic(common.Ratios, Protocol):
    """The hyperparameters of a method that has one value per turn."""

    @property
    def ratio_max(self) -> float: ...
    @property
    def value_coef(self) -> float: ...
    @property
    def value_clip(self) -> float: ...
    @property
    def value_warmup(self) -> int: ...
    @property
    def critic(self) -> tuple[int, ...]: ...
    @property
    def stop_gradient(self) -> bool: ...


def needs(method: TurnCritic, reference: bool, **more: Any) -> Needs:
    """As common.needs, and the values; `reference`: whether the KL is one to the reference."""
    own = common.needs(
        method.beta if reference else 0.0, method.entropy_coef, critic=Critic(method.critic, apart=method.stop_gradient), **more
    )
    return replace(own, before=own.before | {"value"}, loss=own.loss | {"value"})


def loss(method: TurnCritic, ratio_BT: Tensor, log_ratio_BT: Tensor, out: Streams, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and metrics of an actor with these ratios and a critic of turns; that of the critic alone in the first `value_warmup` steps.

    In a turn with any ratio above `ratio_max` the clipped term of the objective counts alone.
    """
    assert batch.totals is not None
    error_BT, seen = common.critic_error(out, batch, turn_starts(batch.turn_BT, batch.mask_BT), method.value_coef, method.value_clip)
    critic_BT = turn_sums(error_BT, batch.turn_BT, batch.mask_BT)  # on every unit of its turn, so that the mean over them is the turn's own
    if batch.context.step < method.value_warmup:
        loss, metrics = common.total({"value": critic_BT}, batch, method.aggregation)
    else:
        wild_BT = turn_sums((ratio_BT > method.ratio_max).double(), batch.turn_BT, batch.mask_BT) > 0
        objective_BT = guarded_clip(ratio_BT, common.advantage(batch), wild_BT, method.eps_lo, method.eps_hi)
        loss, metrics = common.policy_loss(method, objective_BT, ratio_BT, log_ratio_BT, out, batch, value=critic_BT)
    return loss, metrics | {name: x_BT.sum() / batch.totals.turns for name, x_BT in seen.items()}


def credit(batch: Batch, gamma: float, lam: float, source: str = "auto", proper_time_limits: bool = False) -> Tensor:
    """GAE on the clock of turns, whitened over them: the advantage of a turn (B, T) on each of its units.

    The value of a turn is the one before its first unit, so that of the last token of its prompt. source: as in common.unit_rewards.

    Args:
      proper_time_limits: a turn that was cut off gets the advantage 0 before whitening; otherwise the episode ended there.
    """
    start_BT = turn_starts(batch.turn_BT, batch.mask_BT)
    turns = replace(batch, mask_BT=start_BT.to(batch.mask_BT.dtype))
    clock = EpisodeClock.of(start_BT, batch.episode_B)
    reward_NL, known_N = common.unit_rewards(turns, clock, source)
    if proper_time_limits:
        cut_NL = clock.at_end(batch.bootstrap_B[clock.last_row_N])
        reward_NL = torch.where(cut_NL, clock.pack(batch.stored["value"].double()), reward_NL)
    adv_BT = common.gae_credit(batch, clock, reward_NL, known_N, None, gamma, lam)
    adv_BT = whiten(adv_BT, start_BT * batch.mask_BT)
    return turn_sums(adv_BT, batch.turn_BT, batch.mask_BT).to(batch.mask_BT.dtype)
