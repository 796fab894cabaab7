"""SAC — Soft Actor-Critic (Haarnoja et al. 2018, arXiv 1812.05905), with twin critics and a learned temperature.

    y = R + γ^L (1 − done) [min_i Q'_i(o', a') − α log π(a'|o')],   a' ~ π(·|o')
    critics = Σ_i mean (Q_i(o, a) − y)²
    policy = mean [α log π(ã|o) − min_i Q_i(o, ã)],   ã ~ π(·|o)
    temperature = α mean [−log π(ã|o) − H̄],   H̄ = −h dim(A)

R is the sum of the L rewards of a window, each discounted (L = 1 in the paper). Q' are slow copies of the critics; log α is learned.

Departures from the paper: none with L = 1; the targets of longer windows are not corrected for the change of the policy.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fovea.batch import Needs, Windows
from fovea.math.bootstrapped import dual_loss, least, n_step, polyak
from fovea.methods.state import MethodState
from fovea.policies.control import Critics, Squashed


@dataclass(frozen=True)
class SAC:
    """Hyperparameters.

    Attributes:
      gamma: discount per environment step, 0.99 in the paper.
      tau: share by which the slow critics move after each update, 0.005 in the paper.
      temperature: α to begin with.
      entropy: h of the target entropy in nats, 1 in the paper.
      critics: how many; 2 in the paper.
    """

    gamma: float = 0.99
    tau: float = 0.005
    temperature: float = 1.0
    entropy: float = 1.0
    critics: int = 2

    @property
    def needs(self) -> Needs:
        return Needs(data="replay", policy="squashed")

    def init(self, policy: Squashed, adam: Any) -> MethodState:
        critics = Critics(policy.spaces, policy.network, self.critics)
        log_alpha = nn.Parameter(torch.tensor(math.log(self.temperature)))
        trained = {"policy": policy, "critics": critics, "temperature": nn.ParameterList([log_alpha])}
        return MethodState(
            {"policy": policy, "critics": critics, "slow": copy.deepcopy(critics).requires_grad_(False)},
            {name: adam.build(module) for name, module in trained.items()},
            {"temperature": log_alpha},
            max_grad_norm=adam.max_grad_norm,
        )

    def update(self, state: MethodState, batch: Windows) -> tuple[MethodState, dict[str, Tensor]]:
        policy, critics, slow = (state.modules[name] for name in ("policy", "critics", "slow"))
        assert isinstance(policy, Squashed)
        seen, seen_after = policy.senses(batch.obs[:, 0]), policy.senses(batch.obs[:, -1])
        noise_2BA = batch.noise(2, len(seen), policy.draws)
        log_alpha = state.duals["temperature"]
        alpha = log_alpha.detach().exp()
        with torch.no_grad():
            action_BA, logp_B = policy.sample_seen(seen_after, noise_2BA[0])
            ret_B, follows_B = n_step(batch.reward_BL, batch.ended_BL, self.gamma)
            target_B = ret_B + follows_B * (least(slow(seen_after, action_BA)) - alpha * logp_B)
        value_NB = critics(seen, batch.actions[:, 0])
        critic = ((value_NB - target_B) ** 2).mean(1).sum()
        state.descend("critics", critic)
        action_BA, logp_B = policy.sample_seen(seen, noise_2BA[1])
        actor = (alpha * logp_B - least(critics(seen, action_BA))).mean()
        state.descend("policy", actor)
        state.descend("temperature", dual_loss(log_alpha, -logp_B + self.entropy * policy.draws))
        polyak(slow, critics, self.tau)
        metrics = {"loss/critic": critic, "loss/actor": actor, "value/mean": value_NB.mean(), "value/target": target_B.mean()}
        return state, {k: x.detach() for k, x in {**metrics, "policy/entropy": -logp_B.mean(), "policy/temperature": alpha}.items()}
