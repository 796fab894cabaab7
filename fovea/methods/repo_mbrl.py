"""RePo — Resilient model-based RL by Regularizing Posterior Predictability (Zhu et al. 2023, arXiv 2309.00082).

A world model that draws no picture: its latents z must predict the reward, and no more may flow into them from the observations than the
prior can predict. So what moves unpredictably and is paid nothing, such as a background, stays out.

    model  = mean −log N(r; r̂(z), 1) + β (KL_bal − K)
    KL_bal = α KL(sg(q) ‖ p) + (1 − α) KL(q ‖ sg(p)),   α = n / (1 + n)
    dual   = −log β · (KL_bal − K)
    actor, critic: see `fovea.methods.imagined.behave`

q is the posterior of the random state, p the prior. The reward is that of the action that led to the latent.

Departures from the paper: windows never cross the end of an episode, so no reward is left out at one. The decoder that shows what is kept
has an optimizer of its own; sharing one, as in the published code, lets its gradient scale down that of the model. Greedy actions are the
median of the policy, not the likeliest of 100 samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fovea.batch import Needs, Windows
from fovea.math.bootstrapped import multiplier_loss
from fovea.math.latent import balanced_kl, gaussian_kl
from fovea.methods.imagined import begin, behave, check_imagined, drawing_loss, reward_loss, see
from fovea.methods.state import MethodState
from fovea.policies.world_model import WorldModel


@dataclass(frozen=True)
class RePo:
    """Hyperparameters, with the defaults of the published code; the recipe's learning rate is that of the model.

    Attributes:
      bound: K in nats.
      beta: β to begin with; 0 leaves the constraint out: the prior then follows the posterior, and nothing
        holds that back. dual_rate: learning rate of log β, as a multiple of the recipe's.
      balance: n.
      gamma: discount per environment step. lam: λ.
      imagine: steps of imagination, the start among them.
      entropy: η, weight of the policy's entropy. actor_rate: learning rate of actor and critic, as a multiple of the recipe's.
      draw: train a decoder on the latents, without a gradient to them, to see what is kept.
    """

    bound: float = 3.0
    beta: float = 1e-5
    dual_rate: float = 1 / 3
    balance: float = 5.0
    gamma: float = 0.99
    lam: float = 0.95
    imagine: int = 15
    entropy: float = 3e-4
    actor_rate: float = 4 / 15
    draw: bool = True

    def __post_init__(self) -> None:
        check_imagined(self)
        if self.bound < 0 or self.beta < 0 or self.balance < 0:
            raise ValueError(f"RePo.bound is {self.bound}, .beta is {self.beta}, .balance is {self.balance}, expected 0 or more")

    @property
    def needs(self) -> Needs:
        return Needs(data="replay", policy="world-model")

    def init(self, policy: WorldModel, adam: Any) -> MethodState:
        state = begin(self, policy, adam, self.draw, with_model=False)
        if self.beta:
            log_beta = nn.Parameter(torch.tensor(math.log(self.beta)))
            state.duals["beta"], state.optimizers["beta"] = log_beta, adam.build(nn.ParameterList([log_beta]))
            state.rates["beta"] = self.dual_rate
        return state

    def update(self, state: MethodState, batch: Windows) -> tuple[MethodState, dict[str, Tensor]]:
        policy = state.modules["policy"]
        assert isinstance(policy, WorldModel)
        seen = see(self, policy, batch)
        reward = reward_loss(policy, seen)
        kl = balanced_kl(seen.q, seen.p, self.balance / (1 + self.balance)).mean()
        metrics = {"loss/reward": reward, "model/kl": kl}
        if self.beta:
            log_beta = state.duals["beta"]
            beta = log_beta.detach().exp()
            state.descend("model", reward + beta * (kl - self.bound))
            state.descend("beta", multiplier_loss(log_beta, self.bound - kl))
            metrics["model/beta"] = beta
        else:
            prior = policy.dynamics.prior(seen.belief_TBD.detach())
            state.descend("model", reward + gaussian_kl(seen.fixed_q, prior).mean())
        if self.draw:
            metrics["loss/drawing"] = drawing_loss(state.modules["decoder"], seen.latent_TBF.detach(), seen.pixels)
            state.descend("decoder", metrics["loss/drawing"])
        metrics |= behave(self, state, seen)
        return state, {k: x.detach() for k, x in metrics.items()}
