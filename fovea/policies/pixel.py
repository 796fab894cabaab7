"""Actor-critic for observations that are pictures: one small convolutional trunk, a categorical or Gaussian head, and a value head.

Observations are uint8 (..., H, W, C), as Gymnasium gives them, or float (..., D) vectors. Sampling is by inverse CDF of addressed uniform
numbers. Orthogonal initialisation with a small last policy layer follows what PPO implementations commonly do.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fovea.batch import Batch


class PixelPolicy(nn.Module):
    """A policy for vector environments; implements `fovea.batch.Learner` and `fovea.rollout.vector.ArrayPolicy`.

    Args:
      obs_shape: (H, W, C) of pictures or (D,) of vectors.
      actions: number of discrete actions, or dimension A of continuous ones.
      kind: "categorical" or "gaussian" (diagonal, its scale does not depend on the state).
      width: units of the trunk's output.
      log_std: initial log standard deviation of the Gaussian.
      normalise: shift and scale vectors; see `Senses`.
      shared: the value head reads the policy's trunk; otherwise one of its own, so that neither loss moves the other's features.
    """

    def __init__(
        self,
        obs_shape: tuple[int, ...],
        actions: int,
        kind: str = "categorical",
        width: int = 64,
        log_std: float = -0.5,
        normalise: bool = False,
        shared: bool = True,
    ):
        super().__init__()
        if kind not in ("categorical", "gaussian"):
            raise ValueError(f"kind = {kind!r}; expected 'categorical' or 'gaussian'")
        sizes = {"obs_shape": list(obs_shape), "actions": actions, "kind": kind, "width": width, "log_std": log_std}
        self.config = sizes | {"normalise": normalise, "shared": shared}
        self.obs_shape, self.actions, self.kind = tuple(obs_shape), actions, kind
        self.draws = 1 if kind == "categorical" else actions
        self.version = 0
        self.senses = Senses(self.obs_shape, normalise)
        self.trunk = trunk(self.obs_shape, width)
        self.value_trunk = None if shared else trunk(self.obs_shape, width)
        self.head, self.critic = nn.Linear(width, actions), nn.Linear(width, 1)
        self.log_std = nn.Parameter(torch.full((actions,), log_std)) if kind == "gaussian" else None
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.orthogonal_(module.weight, math.sqrt(2))
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.orthogonal_(self.head.weight, 0.01)
        nn.init.orthogonal_(self.critic.weight, 1.0)
        self.reference: list[PixelPolicy] = []  # in a list: not a submodule, so neither trained nor saved

    def features(self, obs: Tensor) -> Tensor:
        return self.trunk(self.senses(obs))

    def value(self, obs: Tensor, features: Tensor) -> Tensor:
        """(...,): the return that is expected, from the features of the policy's trunk where they are shared."""
        return self.critic(features if self.value_trunk is None else self.value_trunk(self.senses(obs)))[..., 0]

    def distribution(self, features: Tensor) -> torch.distributions.Distribution:
        out = self.head(features)
        if self.log_std is None:
            return torch.distributions.Categorical(logits=out)
        return torch.distributions.Independent(torch.distributions.Normal(out, self.log_std.exp().expand_as(out)), 1)

    @torch.no_grad()
    def act(self, obs: Tensor, uniform_ED: Tensor, greedy_E: Tensor) -> dict[str, Tensor]:
        """(E, ...) -> actions (E,) or (E, A) and their logp (E,)."""
        dist = self.distribution(self.features(obs))
        if isinstance(dist, torch.distributions.Categorical):
            drawn = (dist.probs.double().cumsum(1) <= uniform_ED).sum(1).clamp(max=self.actions - 1)
            actions = torch.where(greedy_E, dist.probs.argmax(1), drawn)
        else:
            noise = normals(uniform_ED).to(dist.mean.dtype)
            actions = dist.mean + dist.stddev * noise * ~greedy_E[:, None]
        return {"actions": actions, "logp": dist.log_prob(actions)}

    def evaluate(self, batch: Batch, want: frozenset[str], variant: str = "policy") -> dict[str, Tensor]:
        """See `Learner`; padding is not computed. "next_value" (B,) estimates what follows each row, from `extras["next_obs"]`."""
        if (weights := asked(self, want, variant, "a pixel policy")) is not self:
            return weights.evaluate(batch, want)
        real_BT = batch.mask_BT > 0
        out: dict[str, Tensor] = {}
        if want - {"next_value"}:
            obs = batch.extras["obs"][real_BT]
            features = self.features(obs)
            dist = self.distribution(features)
            if "logp" in want:
                out["logp"] = spread(dist.log_prob(batch.actions_BT[real_BT]), real_BT)
            if "entropy" in want:
                out["entropy"] = spread(dist.entropy(), real_BT)
            if "value" in want:
                out["value"] = spread(self.value(obs, features), real_BT)
        if "next_value" in want:
            after = batch.extras["next_obs"][:, 0]
            out["next_value"] = self.value(after, self.features(after))
        return out

    def set_reference(self) -> None:
        """Freeze a copy of the current weights for variant "reference"."""
        self.reference = []
        self.reference = [copy.deepcopy(self).requires_grad_(False)]

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return super().parameters(recurse)

    def save(self, folder: str | Path) -> None:
        """`model.safetensors` and `config.json` into `folder`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, Path(folder) / "model.safetensors")
        Path(folder, "config.json").write_text(json.dumps(self.config, indent=1))

    @classmethod
    def load(cls, folder: str | Path) -> PixelPolicy:
        config = json.loads(Path(folder, "config.json").read_text())
        policy = cls(**{**config, "obs_shape": tuple(config["obs_shape"])})
        policy.load_state_dict(load_file(Path(folder) / "model.safetensors"))
        return policy


class Senses(nn.Module):
    """Observations as numbers of size about 1: pictures as (..., C, H, W) within ±0.5, vectors as they are or normalised.

    Normalised ones are (o − mean) / std of all that was `observe`d up to the last `renew`, within ±10. So what is seen while collecting is
    what is seen in the updates that follow, and both are kept with the weights.
    """

    LIMIT = 10.0
    mean: Tensor
    scale: Tensor
    count: Tensor
    total: Tensor
    squares: Tensor

    def __init__(self, obs_shape: tuple[int, ...], normalise: bool = False):
        super().__init__()
        self.pictures = len(obs_shape) == 3
        self.normalise = normalise and not self.pictures
        if self.normalise:
            self.register_buffer("mean", torch.zeros(obs_shape))
            self.register_buffer("scale", torch.ones(obs_shape))
            for name in ("count", "total", "squares"):
                self.register_buffer(name, torch.zeros(obs_shape, dtype=torch.float64))

    def forward(self, obs: Tensor) -> Tensor:
        if self.pictures:  # worked in: memory that is new to the process costs more than the arithmetic
            return obs.to(torch.float32, copy=True).div_(255.0).sub_(0.5).movedim(-1, -3)
        x = obs.float()
        return ((x - self.mean) / self.scale).clamp(-self.LIMIT, self.LIMIT) if self.normalise else x

    @torch.no_grad()
    def observe(self, obs_ND: Tensor) -> None:
        """Count observations in; nothing looks different until `renew`."""
        if self.normalise:
            x = obs_ND.double()
            self.count += len(x)
            self.total += x.sum(0)
            self.squares += (x**2).sum(0)

    @torch.no_grad()
    def renew(self) -> None:
        """See by what has been observed so far; before two observations there is nothing to see by."""
        if self.normalise and bool((self.count > 1).all()):
            mean = self.total / self.count
            self.mean.copy_(mean)
            self.scale.copy_((self.squares / self.count - mean**2).clamp(min=0).sqrt().clamp(min=1e-4))


def trunk(obs_shape: tuple[int, ...], width: int, between: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """Convolutions and a linear layer for pictures, two linear layers for vectors.

    Pictures of 64 pixels and more get the three convolutions of DQN (Mnih et al. 2015), smaller ones two that halve them.
    """
    if len(obs_shape) == 1:
        return nn.Sequential(nn.Linear(obs_shape[0], width), between(), nn.Linear(width, width), between())
    height, wide, channels = obs_shape
    if min(height, wide) >= 64:
        convolutions = [nn.Conv2d(channels, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3, 1), nn.ReLU()]
        inside = 64 * (((height - 8) // 4 - 3) // 2 - 1) * (((wide - 8) // 4 - 3) // 2 - 1)
    else:
        convolutions = [nn.Conv2d(channels, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU()]
        inside = 32 * (height // 2 // 2) * (wide // 2 // 2)
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(inside, width), nn.ReLU())


def asked(policy: Any, want: frozenset[str], variant: str, kind: str) -> Any:
    """The policy whose streams are wanted: `policy` itself, or its reference.

    Raises:
      ValueError: an unknown variant or stream.
    """
    if variant != "policy" and (variant != "reference" or not policy.reference):
        raise ValueError(f"variant {variant!r}; expected 'policy', or 'reference' after set_reference()")
    known = ("logp", "entropy", "value", "next_value")
    if unknown := want.difference(known):
        raise ValueError(f"streams {sorted(unknown)} are not known to {kind}; it has {', '.join(known)}")
    return policy if variant == "policy" else policy.reference[0]


def spread(x_N: Tensor, real_BT: Tensor) -> Tensor:
    """Values of the real units -> (B, T), zero elsewhere; differentiable."""
    return x_N.new_zeros(real_BT.shape).masked_scatter(real_BT, x_N)


def normals(uniform: Tensor) -> Tensor:
    """Standard normal numbers by inverse CDF (float64); a uniform of exactly 0 stands for the smallest positive one."""
    return torch.special.ndtri(uniform.clamp(min=2.0**-54))
