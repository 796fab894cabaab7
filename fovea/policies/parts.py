"""Networks for observations of several parts: pictures of cameras, what is felt, and words (`fovea.envs.parts`), side by side.

As in HIL-SERL (arXiv 2410.21845): convolutions for each camera; what is felt through a linear layer, normalised, tanh.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fovea.envs.parts import Part, unpack
from fovea.policies.flow_vla import TOLD, VOCABULARY, numbered
from fovea.policies.pixel import Senses, trunk


def is_picture(part: Part) -> bool:
    return part.kind == "uint8" and len(part.shape) == 3


class PartSenses(nn.Module):
    """uint8 (..., N) -> one row of numbers (..., F): pictures within ±0.5, channels first; the rest as it is."""

    def __init__(self, parts: Sequence[Part]):
        super().__init__()
        self.parts, self.normalise = tuple(parts), False

    def forward(self, obs: Tensor) -> Tensor:
        seen = unpack(self.parts, obs)
        lead = obs.shape[:-1]
        rows = [(seen[p.name].float() / 255 - 0.5).movedim(-1, -3) if is_picture(p) else seen[p.name].float() for p in self.parts]
        return torch.cat([row.reshape(*lead, -1) for row in rows], -1)

    def observe(self, obs: Tensor) -> None:
        """Nothing is normalised by what was seen."""

    def renew(self) -> None: ...


class PartTrunk(nn.Module):
    """(N, F), as `PartSenses` makes it -> (N, width).

    Args:
      pictures_only: what is felt and told is passed over.
    """

    def __init__(self, parts: Sequence[Part], width: int, pictures_only: bool = False):
        super().__init__()
        self.parts = tuple(parts)
        felt = [] if pictures_only else [p for p in parts if p.kind == "float32"]
        told = not pictures_only and any(p.name == TOLD for p in parts)
        self.eyes = nn.ModuleDict({p.name: trunk(p.shape, width, nn.ReLU) for p in parts if is_picture(p)})
        self.feelings = nn.ModuleDict(
            {p.name: nn.Sequential(nn.Linear(math.prod(p.shape), width), nn.LayerNorm(width), nn.Tanh()) for p in felt}
        )
        self.words = nn.EmbeddingBag(VOCABULARY, width, mode="sum", padding_idx=0) if told else None
        inputs = width * (len(self.eyes) + len(self.feelings) + told)
        self.join = nn.Sequential(nn.Linear(inputs, width), nn.ReLU())

    def forward(self, seen_NF: Tensor) -> Tensor:
        out, at = [], 0
        for p in self.parts:
            size = math.prod(p.shape)
            x, at = seen_NF[:, at : at + size], at + size
            if p.name in self.eyes:
                height, wide, channels = p.shape
                out.append(self.eyes[p.name](x.reshape(-1, channels, height, wide)))
            elif p.name in self.feelings:
                out.append(self.feelings[p.name](x))
            elif p.name == TOLD and self.words is not None:
                said = x.to(torch.uint8).numpy()
                out.append(self.words(torch.tensor([numbered(bytes(row)) for row in said])))
        return self.join(torch.cat(out, -1))


def senses_of(obs_shape: tuple[int, ...], parts: Sequence[Part] = (), normalise: bool = False) -> Senses | PartSenses:
    """What makes numbers of size about 1 of observations."""
    return PartSenses(parts) if parts else Senses(obs_shape, normalise)


def trunk_of(obs_shape: tuple[int, ...], width: int, parts: Sequence[Part] = (), pictures_only: bool = False) -> nn.Module:
    """What makes features of those numbers."""
    return PartTrunk(parts, width, pictures_only) if parts else trunk(obs_shape, width, nn.ReLU)
