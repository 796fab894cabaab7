"""TD3 — Twin Delayed Deep Deterministic policy gradient (Fujimoto et al. 2018, arXiv 1802.09477).

    a' = clamp(μ'(o') + clamp(σ' ε, ±c), ±1)
    y = R + γ^L (1 − done) min_i Q'_i(o', a')
    critics = Σ_i mean (Q_i(o, a) − y)²
    every d-th update:   policy = −mean Q_1(o, μ(o)),   and the slow copies Q', μ' move by τ

R is the sum of the L rewards of a window, each discounted (L = 1 in the paper). While it explores it takes clamp(μ(o) + σ ε, ±1).

Departures from the paper: none; the recipe decides the network (400-300 in the paper) and the learning rate (1e-3).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fovea.batch import Needs, Windows
from fovea.math.bootstrapped import least, n_step, polyak
from fovea.methods.state import MethodState
from fovea.policies.control import Bounded, Critics
from fovea.types import Context


@dataclass(frozen=True)
class TD3:
    """Hyperparameters, with the paper's defaults; actions lie in [−1, 1].

    Attributes:
      gamma: discount per environment step.
      tau: share by which the slow copies move.
      exploration: σ. smoothing: σ'. clip: c.
      delay: d.
    """

    gamma: float = 0.99
    tau: float = 0.005
    exploration: float = 0.1
    smoothing: float = 0.2
    clip: float = 0.5
    delay: int = 2

    @property
    def needs(self) -> Needs:
        return Needs(data="replay", policy="bounded")

    def explore(self, context: Context) -> float:
        return self.exploration

    def init(self, policy: Bounded, adam: Any) -> MethodState:
        critics = Critics(policy.spaces, policy.network)
        slow = {f"slow_{name}": copy.deepcopy(m).requires_grad_(False) for name, m in (("policy", policy), ("critics", critics))}
        optimizers = {name: adam.build(m) for name, m in (("policy", policy), ("critics", critics))}
        modules = {"policy": policy, "critics": critics, **slow}
        return MethodState(modules, optimizers, counters={"updates": 0}, max_grad_norm=adam.max_grad_norm)

    def update(self, state: MethodState, batch: Windows) -> tuple[MethodState, dict[str, Tensor]]:
        policy, critics, slow_policy, slow = (state.modules[name] for name in ("policy", "critics", "slow_policy", "slow_critics"))
        assert isinstance(policy, Bounded) and isinstance(slow_policy, Bounded)
        obs, after, taken_BA = batch.obs[:, 0], batch.obs[:, -1], batch.actions[:, 0]
        seen, seen_after = policy.senses(obs), policy.senses(after)
        with torch.no_grad():
            noise_BA = (self.smoothing * batch.noise(*taken_BA.shape)).clamp(-self.clip, self.clip)
            action_BA = (slow_policy.from_seen(seen_after) + noise_BA).clamp(-1, 1)
            ret_B, follows_B = n_step(batch.reward_BL, batch.ended_BL, self.gamma)
            target_B = ret_B + follows_B * least(slow(seen_after, action_BA))
        value_NB = critics(seen, taken_BA)
        critic = ((value_NB - target_B) ** 2).mean(1).sum()
        state.descend("critics", critic)
        metrics = {"loss/critic": critic, "value/mean": value_NB.mean(), "value/target": target_B.mean()}
        state.counters["updates"] += 1
        if state.counters["updates"] % self.delay == 0:
            actor = -critics(seen, policy.from_seen(seen))[0].mean()
            state.descend("policy", actor)
            polyak(slow, critics, self.tau)
            polyak(slow_policy, policy, self.tau)
            metrics["loss/actor"] = actor
        return state, {k: x.detach() for k, x in metrics.items()}
