"""What methods share that learn a world model and, inside it, an actor and a critic (Dreamer, Hafner et al. 2020, arXiv 1912.01603).

A window of L units has L latents: each action and the observation that it led to. The first observation is not looked at; belief and state
are zero there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fovea.batch import Windows
from fovea.math.latent import Gaussian, lambda_returns
from fovea.math.values import value_loss
from fovea.methods.state import MethodState
from fovea.policies.world_model import Decoder, WorldModel, mlp


class Imagining(Protocol):
    """The fields of a method that imagines; see `fovea.methods.repo_mbrl.RePo`."""

    @property
    def gamma(self) -> float: ...

    @property
    def lam(self) -> float: ...

    @property
    def imagine(self) -> int: ...

    @property
    def entropy(self) -> float: ...

    @property
    def actor_rate(self) -> float: ...


@dataclass(frozen=True)
class Seen:
    """What the world model makes of a batch.

    Attributes:
      belief_TBD, latent_TBF: after each unit. q, p: posterior and prior of the random state there.
      pixels: (T, B, ...) what was observed there, as a decoder is to draw it.
      reward_TB: what each unit was paid.
      noise_M: standard normal numbers that are still to be used.
    """

    belief_TBD: Tensor
    latent_TBF: Tensor
    q: Gaussian
    p: Gaussian
    pixels: Tensor
    reward_TB: Tensor
    noise_M: Tensor

    @property
    def fixed_q(self) -> Gaussian:
        return self.q[0].detach(), self.q[1].detach()


def check_imagined(method: Imagining) -> None:
    """
    Raises:
      ValueError: fewer than three steps, of which the start and the last have no return; a discount that is no share.
    """
    name = type(method).__name__
    if method.imagine < 3:
        raise ValueError(f"{name}.imagine is {method.imagine}, expected at least 3: a start, a step that is paid, one that gives its value")
    if not (0 <= method.gamma <= 1 and 0 <= method.lam <= 1):
        raise ValueError(f"{name}.gamma is {method.gamma}, {name}.lam is {method.lam}, expected two shares")


def begin(method: Imagining, policy: WorldModel, adam: Any, decoder: bool, with_model: bool) -> MethodState:
    """Modules and optimizers: "model" (encoder, dynamics, reward), "actor", "critic", and a decoder with an optimizer of its own unless
    it is learned `with_model`."""
    modules: dict[str, nn.Module] = {"policy": policy, "critic": mlp(policy.features, policy.network.width, 3, 1)}
    if decoder:
        modules["decoder"] = Decoder(policy)
    model = nn.ModuleList([policy.encoder, policy.dynamics, policy.reward, *([modules["decoder"]] if with_model else [])])
    trained: dict[str, nn.Module] = {"model": model, "actor": policy.actor, "critic": modules["critic"]}
    if decoder and not with_model:
        trained["decoder"] = modules["decoder"]
    optimizers = {name: adam.build(module) for name, module in trained.items()}
    rates = {"actor": method.actor_rate, "critic": method.actor_rate}
    return MethodState(modules, optimizers, rates=rates, max_grad_norm=adam.max_grad_norm)


def see(method: Imagining, policy: WorldModel, batch: Windows) -> Seen:
    """Filter the windows; the noise of the whole update is drawn here."""
    action_TBA, pixels = batch.actions.transpose(0, 1), policy.pixels(batch.obs[:, 1:].transpose(0, 1))
    T, B, A = action_TBA.shape
    S, N = policy.network.stochastic, T * B
    own = N * S
    noise_M = batch.noise(own + (method.imagine - 1) * N * (A + S))
    belief_TBD, state_TBS, q = policy.dynamics.observe(policy.embed(pixels), action_TBA, noise_M[:own].view(T, B, S))
    latent_TBF = torch.cat([belief_TBD, state_TBS], -1)
    return Seen(belief_TBD, latent_TBF, q, policy.dynamics.prior(belief_TBD), pixels, batch.reward_BL.T, noise_M[own:])


def reward_loss(policy: WorldModel, seen: Seen) -> Tensor:
    """−log N(r; r̂, 1) less its constant, mean over units."""
    return value_loss(policy.reward(seen.latent_TBF)[..., 0], seen.reward_TB).mean()


def drawing_loss(decoder: nn.Module, latent_TBF: Tensor, pixels: Tensor) -> Tensor:
    """−log N(o; ô, 1) less its constant, summed over the numbers of an observation, mean over observations."""
    return value_loss(decoder(latent_TBF), pixels).flatten(2).sum(-1).mean()


def behave(method: Imagining, state: MethodState, seen: Seen) -> dict[str, Tensor]:
    """Improve actor and critic in `imagine` − 1 imagined steps from every latent, of which the last only gives its value.

        J_actor  = −mean R_k − η H[π],      R_k = r̂_k + γ [(1 − λ) v_{k+1} + λ R_{k+1}]
        J_critic = mean ½ [v_k − sg(R_k)]²

    Gradients of the actor flow through the dynamics; what the policy reads is cut off from them.
    """
    policy, critic = state.modules["policy"], state.modules["critic"]
    assert isinstance(policy, WorldModel)
    D, S, A, _ = policy.dynamics.sizes
    latent_NF = seen.latent_TBF.detach().flatten(0, 1)
    noise_HNM = seen.noise_M.view(method.imagine - 1, len(latent_NF), A + S)
    latents, logps = [], []
    for noise_NM in noise_HNM.unbind(0):
        action_NA, logp_N = policy.decide(latent_NF.detach(), noise_NM[:, :A])
        belief_ND = policy.dynamics.follow(latent_NF[:, :D], latent_NF[:, D:], action_NA)
        mean_NS, std_NS = policy.dynamics.prior(belief_ND)
        latent_NF = torch.cat([belief_ND, torch.addcmul(mean_NS, std_NS, noise_NM[:, A:])], -1)
        latents.append(latent_NF)
        logps.append(logp_N)
    latent_HNF = torch.stack(latents)
    value_HN, reward_HN = critic(latent_HNF)[..., 0], policy.reward(latent_HNF[:-1])[..., 0]
    ret_KN = lambda_returns(reward_HN, value_HN[1:], method.gamma, method.lam)
    entropy = -torch.stack(logps).mean()
    actor = -ret_KN.mean() - method.entropy * entropy
    critic_loss = value_loss(value_HN[:-1], ret_KN.detach()).mean()
    state.descend("actor", actor, again=True)
    state.descend("critic", critic_loss)
    return {"loss/actor": actor, "loss/critic": critic_loss, "value/mean": value_HN.mean(), "policy/entropy": entropy}
