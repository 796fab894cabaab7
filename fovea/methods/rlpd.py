"""Soft actor-critic with prior data (RLPD, Ball et al. 2023, arXiv 2302.02948): what HIL-SERL and RLIF learn with.

    y = r + γ (1 − done) min_{i ∈ M} Q'_i(o', a'),   a' ~ π(·|o'),   M a random few of the critics
    critics = mean (Q_i(o, a) − y)²,  layers normalised, every update
    policy = mean [α log π(ã|o) − mean_i Q_i(o, ã)],   temperature as in SAC,   every n-th update

Unlike SAC's, the target counts no entropy. Half of each batch may be demonstrations (`replay.share`).
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fovea.batch import Windows
from fovea.math.bootstrapped import dual_loss, least, n_step, polyak
from fovea.methods.state import MethodState
from fovea.policies.control import Critics, Squashed


class Hyperparameters(Protocol):
    """What a method that learns so says of it.

    Attributes:
      gamma: discount per environment step. tau: share by which the slow critics move after each update.
      temperature: α to begin with. entropy: h of the target entropy −h dim(A) in nats, grippers counted.
      critics: how many. subset: how many of them, drawn for each batch, make a target; 0 takes all.
      actor_every: n, updates of the critics for one of policy and temperature.
    """

    @property
    def gamma(self) -> float: ...
    @property
    def tau(self) -> float: ...
    @property
    def temperature(self) -> float: ...
    @property
    def entropy(self) -> float: ...
    @property
    def critics(self) -> int: ...
    @property
    def subset(self) -> int: ...
    @property
    def actor_every(self) -> int: ...


def init(h: Hyperparameters, policy: Squashed, adam: Any) -> MethodState:
    """Critics of the policy's continuous actions, their slow copy, and an optimizer for each part."""
    critics = Critics(replace(policy.spaces, actions=policy.draws), policy.network, h.critics, norm=True)
    log_alpha = nn.Parameter(torch.tensor(math.log(h.temperature)))
    trained = {
        "policy": nn.ModuleList([policy.trunk, policy.head]),
        "critics": critics,
        "temperature": nn.ParameterList([log_alpha]),
    }
    return MethodState(
        {"policy": policy, "critics": critics, "slow": copy.deepcopy(critics).requires_grad_(False)},
        {name: adam.build(module) for name, module in trained.items()},
        {"temperature": log_alpha},
        {"updates": 0},
        max_grad_norm=adam.max_grad_norm,
    )


def update(h: Hyperparameters, state: MethodState, batch: Windows) -> dict[str, Tensor]:
    """One update of the critics, and where it is due one of policy and temperature; the metrics."""
    policy, critics, slow = (state.modules[name] for name in ("policy", "critics", "slow"))
    assert isinstance(policy, Squashed)
    obs, after = batch.obs[:, 0], batch.obs[:, -1]
    noise_2BA = batch.noise(2, len(obs), policy.draws)
    with torch.no_grad():
        action_BA, _ = policy.sample(after, noise_2BA[0])
        ret_B, follows_B = n_step(batch.reward_BL, batch.ended_BL, h.gamma)
        target_B = ret_B + follows_B * least(slow(policy.senses(after), action_BA), drawn(h, batch))
    seen = policy.senses(obs)
    value_NB = critics(seen, batch.actions[:, 0, : policy.draws])
    critic = ((value_NB - target_B) ** 2).mean()
    state.descend("critics", critic)
    polyak(slow, critics, h.tau)
    metrics = {"loss/critic": critic, "value/mean": value_NB.mean(), "value/target": target_B.mean()}
    state.counters["updates"] += 1
    if state.counters["updates"] % h.actor_every == 0:
        log_alpha = state.duals["temperature"]
        alpha = log_alpha.detach().exp()
        action_BA, logp_B = policy.sample(obs, noise_2BA[1])
        actor = (alpha * logp_B - critics(seen, action_BA).mean(0)).mean()
        state.descend("policy", actor)
        state.descend("temperature", dual_loss(log_alpha, -logp_B - target_entropy(h, policy)))
        metrics |= {"loss/actor": actor, "policy/entropy": -logp_B.mean(), "policy/temperature": alpha}
    return {k: x.detach() for k, x in metrics.items()}


def target_entropy(h: Hyperparameters, policy: Squashed) -> float:
    """−h dim(A) in nats; the commands of grippers count, although the Gaussian does not have them."""
    return -h.entropy * policy.spaces.actions


def drawn(h: Hyperparameters, batch: Windows) -> Tensor | None:
    """The critics that make the target of this batch."""
    if not h.subset or h.subset >= h.critics:
        return None
    return torch.randperm(h.critics, generator=torch.Generator().manual_seed(batch.key >> 3))[: h.subset]
