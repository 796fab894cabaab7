"""The same picture, a little aside: random shifts of what a policy learns from (DrQ, Kostrikov et al. 2021, arXiv 2004.13649)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fovea.batch import Windows
from fovea.envs.parts import Part


def shift(picture_NHWC: Tensor, by_N2: Tensor) -> Tensor:
    """Every picture moved by whole pixels (down, right); what comes in repeats the edge."""
    N, H, W = picture_NHWC.shape[:3]
    row_NH = (torch.arange(H) - by_N2[:, :1]).clamp(0, H - 1)
    column_NW = (torch.arange(W) - by_N2[:, 1:]).clamp(0, W - 1)
    return picture_NHWC[torch.arange(N)[:, None, None], row_NH[:, :, None], column_NW[:, None, :]]


def shifted(batch: Windows, most: int, parts: Sequence[Part] = ()) -> Windows:
    """The windows with each picture moved by up to `most` pixels on its own; vectors as they are.

    Args:
      parts: of what an observation is made, where it is a row of bytes.
    """
    if not most or (batch.obs.ndim != 5 and not parts):
        return batch
    draws = torch.Generator().manual_seed(batch.key >> 2)
    return replace(batch, obs=moved(batch.obs.flatten(0, 1), most, parts, draws).view_as(batch.obs))


def moved(obs_N: Tensor, most: int, parts: Sequence[Part], draws: torch.Generator | None = None) -> Tensor:
    """Observations (N, H, W, C), or rows (N, bytes) of `parts`, with each picture moved on its own."""

    def by() -> Tensor:
        return torch.randint(-most, most + 1, (len(obs_N), 2), generator=draws)

    if not parts:
        return shift(obs_N, by())
    out, at = obs_N.clone(), 0
    for p in parts:
        here, at = slice(at, at + p.bytes), at + p.bytes
        if p.kind == "uint8" and len(p.shape) == 3:
            out[:, here] = shift(obs_N[:, here].view(-1, *p.shape), by()).flatten(1)
    return out
