"""A policy that acts on the latents of a world model (RSSM, Hafner et al. 2019, arXiv 1811.04551) and remembers them from step to step.

    b' = GRU(elu(W [s; a]), b)      p(s' | b')      q(s' | b', e(o'))      standard deviations softplus(·) + 0.1

b is the belief, s the random state; what is read of both is [b; s], F numbers. `reward` and the actor are read by whoever trains; the
critic and a decoder (`Decoder`) stand beside. Sizes come from `fovea.policies.control.Latents`: belief and hidden layers `width`, random
state `stochastic`, convolutions (kernel 4, stride 2) of `channels`, twice that, and so on, until fewer than 6 pixels are left.
Convolutions are products with patches: the memory of a picture is read once, and most of the time goes into the product.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fovea.math.latent import Gaussian
from fovea.math.squash import squashed
from fovea.policies.pixel import Senses, normals

if TYPE_CHECKING:
    from fovea.policies.control import Latents, Spaces

LEAST_STD = 0.1
MEAN = 5.0
"""The actor's mean before tanh stays within ±MEAN."""
ENOUGH = 6
"""Pixels that a convolution needs."""
FIRST = (2, 2)
"""Height and width of a decoder's first map."""


class WorldModel(nn.Module):
    """See the module's docstring; a `fovea.rollout.vector.ArrayPolicy` with a memory: belief, random state, last action."""

    kind = "world-model"

    def __init__(self, spaces: Spaces, network: Latents):
        super().__init__()
        self.spaces, self.network = spaces, network
        width, S, A = network.width, network.stochastic, spaces.actions
        self.senses = Senses(spaces.obs_shape, network.normalise)
        self.encoder, embedding = encoder(spaces.obs_shape, width, network.channels)
        self.dynamics = Dynamics(width, S, A, embedding)
        self.reward = mlp(width + S, width, 3, 1)
        self.actor = mlp(width + S, width, 4, 2 * A)
        self.draws, self.remembers, self.version, self.exploration = S + A, width + S + A, 0, 0.0

    @property
    def features(self) -> int:
        """F, the numbers that are read of a latent."""
        return self.network.width + self.network.stochastic

    def pixels(self, obs: Tensor) -> Tensor:
        """Pictures (..., H, W, C) in [−1, 1], vectors as the senses make them: what is encoded, and what a decoder is to draw."""
        return obs.float() / 127.5 - 1 if self.senses.pictures else self.senses(obs)

    def embed(self, pixels: Tensor) -> Tensor:
        """(..., E)"""
        lead = pixels.shape[: -len(self.spaces.obs_shape)]
        return self.encoder(pixels.flatten(0, len(lead) - 1)).unflatten(0, lead)

    def decide(self, latent_NF: Tensor, noise_NA: Tensor) -> tuple[Tensor, Tensor]:
        """(action_NA, logp_N), differentiable; noise 0 gives the median action."""
        mean_NA, raw_NA = self.actor(latent_NF).chunk(2, -1)
        return squashed(MEAN * torch.tanh(mean_NA / MEAN), (F.softplus(raw_NA) + LEAST_STD).log(), noise_NA)

    def notice(self, memory_EM: Tensor, obs: Tensor, noise_ES: Tensor) -> tuple[Tensor, Tensor]:
        """(belief, random state) after an observation, from those before it and the action between."""
        width, S, A = self.network.width, self.network.stochastic, self.spaces.actions
        belief_ED, state_ES, action_EA = memory_EM.split((width, S, A), -1)
        belief_ED = self.dynamics.follow(belief_ED, state_ES, action_EA)
        mean_ES, std_ES = self.dynamics.posterior(belief_ED, self.embed(self.pixels(obs)))
        return belief_ED, mean_ES + std_ES * noise_ES

    @torch.no_grad()
    def act(self, obs: Tensor, uniform_ED: Tensor, greedy_E: Tensor, memory_EM: Tensor) -> dict[str, Tensor]:
        noise_ED = normals(uniform_ED).float()
        S = self.network.stochastic
        latent = self.notice(memory_EM, obs, noise_ED[:, :S])
        actions, logp = self.decide(torch.cat(latent, -1), noise_ED[:, S:] * ~greedy_E[:, None])
        return {"actions": actions, "logp": logp, "memory": torch.cat([*latent, actions], -1)}

    @torch.no_grad()
    def recall(self, obs: Tensor, actions_BTA: Tensor, noise_BTS: Tensor) -> Tensor:
        """(B, T, F): what is kept of an episode's observations (B, T, ...) when each action leads to the next."""
        memory_BM, out = obs.new_zeros((len(obs), self.remembers), dtype=torch.float32), []
        for t in range(obs.shape[1]):
            latent = self.notice(memory_BM, obs[:, t], noise_BTS[:, t])
            out.append(torch.cat(latent, -1))
            memory_BM = torch.cat([out[-1], actions_BTA[:, t]], -1)
        return torch.stack(out, 1)

    @torch.no_grad()
    def expected_reward(self, latent: Tensor) -> Tensor:
        """The reward that led to each latent (..., F)."""
        return self.reward(latent)[..., 0]

    def save(self, folder: str | Path) -> None:
        """`model.safetensors` and `config.json` into `folder`."""
        from fovea.policies.control import write

        write(folder, self)


class Dynamics(nn.Module):
    """The RSSM: belief D, random state S, actions A, embeddings E. Axis T first: what follows one another is one slice."""

    def __init__(self, D: int, S: int, A: int, E: int):
        super().__init__()
        self.sizes = (D, S, A, E)
        self.enter = nn.Linear(S + A, D)
        self.cell = nn.GRUCell(D, D)
        self.expect = mlp(D, D, 1, 2 * S)
        self.see = nn.Linear(D + E, D)
        self.settle = nn.Linear(D, 2 * S)

    def follow(self, belief_ND: Tensor, state_NS: Tensor, action_NA: Tensor) -> Tensor:
        """The next belief."""
        return self.cell(F.elu(self.enter(torch.cat([state_NS, action_NA], -1))), belief_ND)

    def prior(self, belief: Tensor) -> Gaussian:
        return gaussian(self.expect(belief))

    def posterior(self, belief: Tensor, embedding: Tensor) -> Gaussian:
        return gaussian(self.settle(F.elu(self.see(torch.cat([belief, embedding], -1)))))

    def observe(self, embedding_TBE: Tensor, action_TBA: Tensor, noise_TBS: Tensor) -> tuple[Tensor, Tensor, Gaussian]:
        """(belief_TBD, state_TBS, posterior) after each action and the observation that follows it, from an empty belief.

        What depends on neither belief nor state is computed for all steps at once.
        """
        D, S, A, E = self.sizes
        B = action_TBA.shape[1]
        from_state, from_action = self.enter.weight.split((S, A), 1)
        from_belief, from_embedding = self.see.weight.split((D, E), 1)
        done_T = F.linear(action_TBA, from_action, self.enter.bias).unbind(0)
        seen_T = F.linear(embedding_TBE, from_embedding, self.see.bias).unbind(0)
        belief_BD, state_BS = action_TBA.new_zeros(B, D), action_TBA.new_zeros(B, S)
        beliefs, states, means, stds = [], [], [], []
        from_state_SD, from_belief_DD = from_state.T, from_belief.T
        for done_BD, seen_BD, noise_BS in zip(done_T, seen_T, noise_TBS.unbind(0)):
            belief_BD = self.cell(F.elu(torch.addmm(done_BD, state_BS, from_state_SD)), belief_BD)
            mean_BS, std_BS = gaussian(self.settle(F.elu(torch.addmm(seen_BD, belief_BD, from_belief_DD))))
            state_BS = torch.addcmul(mean_BS, std_BS, noise_BS)
            for kept, x in zip((beliefs, states, means, stds), (belief_BD, state_BS, mean_BS, std_BS)):
                kept.append(x)
        return torch.stack(beliefs), torch.stack(states), (torch.stack(means), torch.stack(stds))


class Decoder(nn.Module):
    """From a latent (..., F) to what `WorldModel.pixels` made of an observation: the encoder's layers the other way round."""

    def __init__(self, policy: WorldModel):
        super().__init__()
        shape, network = policy.spaces.obs_shape, policy.network
        if len(shape) == 1:
            self.net: nn.Module = mlp(policy.features, network.width, 2, shape[0])
            return
        count = len(halved(shape)) - 1
        planes = [shape[2], *(network.channels << i for i in range(count))]
        height, width = FIRST
        layers: list[nn.Module] = [nn.Linear(policy.features, planes[-1] * height * width), nn.Unflatten(-1, (height, width, planes[-1]))]
        for i in range(count, 0, -1):
            kernel = (4, 4) if i > 1 else (shape[0] - 2 * (height - 1), shape[1] - 2 * (width - 1))
            layers += [Unfolded(planes[i], planes[i - 1], kernel), nn.ReLU()]
            height, width = 2 * (height - 1) + kernel[0], 2 * (width - 1) + kernel[1]
        self.net = nn.Sequential(*layers[:-1])

    def forward(self, latent: Tensor) -> Tensor:
        lead = latent.shape[:-1]
        return self.net(latent.flatten(0, -2)).unflatten(0, lead)


class Folded(nn.Linear):
    """A convolution of kernel 4 and stride 2: (N, H, W, C) -> (N, H // 2 − 1, W // 2 − 1, outside)."""

    def __init__(self, inside: int, outside: int):
        super().__init__(16 * inside, outside)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(_Patches.apply(input, (4, 4)).flatten(3))  # type: ignore[union-attr]


class Unfolded(nn.Module):
    """A transposed convolution of stride 2: (N, h, w, C) -> (N, 2 (h − 1) + kernel, 2 (w − 1) + kernel, outside)."""

    def __init__(self, inside: int, outside: int, kernel: tuple[int, int]):
        super().__init__()
        self.kernel, self.outside = kernel, outside
        bound = (4 / (inside * kernel[0] * kernel[1])) ** 0.5  # inputs that meet in a pixel
        self.weight = nn.Parameter(torch.empty(kernel[0] * kernel[1] * outside, inside).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(outside))

    def forward(self, x: Tensor) -> Tensor:
        parts = F.linear(x, self.weight).unflatten(3, (*self.kernel, self.outside))
        return _Overlaid.apply(parts) + self.bias  # type: ignore[operator]


class _Patches(torch.autograd.Function):
    """(N, H, W, C) -> (N, h, w, kernel, kernel, C): every second place in both directions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: tuple[int, int]) -> Tensor:
        ctx.shape = x.shape
        return patches(x, kernel)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return overlaid(grads[0], ctx.shape), None


class _Overlaid(torch.autograd.Function):
    """The other way round: patches are added where they overlap."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor) -> Tensor:
        N, h, w, high, wide, C = parts.shape
        ctx.kernel = (high, wide)
        return overlaid(parts, (N, 2 * (h - 1) + high, 2 * (w - 1) + wide, C))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return patches(grads[0], ctx.kernel)


def patches(x: Tensor, kernel: tuple[int, int]) -> Tensor:
    x = x.contiguous()
    N, H, W, C = x.shape
    h, w = (H - kernel[0]) // 2 + 1, (W - kernel[1]) // 2 + 1
    strides = (H * W * C, 2 * W * C, 2 * C, W * C, C, 1)
    return x.as_strided((N, h, w, *kernel, C), strides).contiguous()


def overlaid(parts: Tensor, shape: Sequence[int]) -> Tensor:
    """The adjoint of `patches`; parts that lie beside one another are added at once."""
    out = parts.new_zeros(tuple(shape))
    _, h, w, high, wide, _ = parts.shape
    run = 2 - wide % 2
    for row in range(high):
        for column in range(0, wide, run):
            target = out[:, row : row + 2 * h - 1 : 2]
            if run == 2:
                target[:, :, column : column + 2 * w].unflatten(2, (w, 2)).add_(parts[:, :, :, row, column : column + 2])
            else:
                target[:, :, column : column + 2 * w - 1 : 2].add_(parts[:, :, :, row, column])
    return out


def gaussian(raw: Tensor) -> Gaussian:
    mean, spread = raw.chunk(2, -1)
    return mean, F.softplus(spread) + LEAST_STD


def mlp(inside: int, width: int, hidden: int, outside: int, between: type[nn.Module] = nn.ELU) -> nn.Sequential:
    """`hidden` layers of `width`, and a linear one."""
    sizes = [inside] + [width] * hidden
    layers = [layer for i, o in itertools.pairwise(sizes) for layer in (nn.Linear(i, o), between())]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outside))


def halved(shape: Sequence[int]) -> list[tuple[int, int]]:
    """(height, width) of a picture and after each convolution."""
    sizes = [(shape[0], shape[1])]
    while min(sizes[-1]) >= ENOUGH:
        sizes.append(((sizes[-1][0] - 4) // 2 + 1, (sizes[-1][1] - 4) // 2 + 1))
    return sizes


def encoder(shape: tuple[int, ...], width: int, channels: int) -> tuple[nn.Sequential, int]:
    """(encoder, E): convolutions for pictures, two layers for vectors."""
    if len(shape) == 1:
        return nn.Sequential(nn.Linear(shape[0], width), nn.ELU(), nn.Linear(width, width), nn.ELU()), width
    sizes = halved(shape)
    planes = [shape[2], *(channels << i for i in range(len(sizes) - 1))]
    layers = [layer for i, o in itertools.pairwise(planes) for layer in (Folded(i, o), nn.ReLU())]
    return nn.Sequential(*layers, nn.Flatten()), planes[-1] * sizes[-1][0] * sizes[-1][1]
