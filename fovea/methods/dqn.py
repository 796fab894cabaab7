"""DQN — Deep Q-Network (Mnih et al. 2015), with the double estimate (van Hasselt et al. 2016, arXiv 1509.06461).

    y = R + γ^L (1 − done) Q'(o', argmax_a Q(o', a))
    loss = mean huber(Q(o, a) − y),   huber(x) = ½ x² up to |x| = 1, |x| − ½ beyond

R is the sum of the L rewards of a window, each discounted (L = 1 in the papers). Q' is a copy that every n-th update replaces, or moves by
τ. While it explores it takes an action drawn evenly with probability ε, which falls linearly over a part of the run.

Departures from the papers: none; rewards are clipped and episodes end at a lost life only if the environment says so.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import huber_loss

from fovea.batch import Needs, Windows
from fovea.math.bootstrapped import double_q, n_step, polyak
from fovea.methods.state import MethodState
from fovea.policies.control import Values
from fovea.types import Context


@dataclass(frozen=True)
class DQN:
    """Hyperparameters.

    Attributes:
      gamma: discount per environment step, 0.99 in the papers.
      double: the next action is chosen by Q and valued by Q'; without it Q' does both.
      every: n, updates between those that move Q'. tau: share by which it moves; 1 replaces it (the papers).
      first_epsilon, last_epsilon: ε at the beginning and in the end. decay: the part of the run over which it falls.
    """

    gamma: float = 0.99
    double: bool = True
    every: int = 1_000
    tau: float = 1.0
    first_epsilon: float = 1.0
    last_epsilon: float = 0.05
    decay: float = 0.2

    @property
    def needs(self) -> Needs:
        return Needs(data="replay", policy="values")

    def explore(self, context: Context) -> float:
        fallen = min(1.0, context.progress / self.decay) if self.decay else 1.0
        return self.first_epsilon + fallen * (self.last_epsilon - self.first_epsilon)

    def init(self, policy: Values, adam: Any) -> MethodState:
        modules: dict[str, nn.Module] = {"policy": policy, "slow": copy.deepcopy(policy).requires_grad_(False)}
        return MethodState(modules, {"policy": adam.build(policy)}, counters={"updates": 0}, max_grad_norm=adam.max_grad_norm)

    def update(self, state: MethodState, batch: Windows) -> tuple[MethodState, dict[str, Tensor]]:
        policy, slow = state.modules["policy"], state.modules["slow"]
        assert isinstance(policy, Values) and isinstance(slow, Values)
        with torch.no_grad():
            seen_after = policy.senses(batch.obs[:, -1])
            slow_BA = slow.from_seen(seen_after)
            ret_B, follows_B = n_step(batch.reward_BL, batch.ended_BL, self.gamma)
            target_B = ret_B + follows_B * double_q(policy.from_seen(seen_after) if self.double else slow_BA, slow_BA)
        value_B = policy(batch.obs[:, 0]).gather(1, batch.actions[:, :1])[:, 0]
        loss = huber_loss(value_B, target_B)
        state.descend("policy", loss)
        state.counters["updates"] += 1
        if state.counters["updates"] % self.every == 0:
            polyak(slow, policy, self.tau)
        return state, {"loss/critic": loss.detach(), "value/mean": value_B.detach().mean(), "value/target": target_B.mean()}
