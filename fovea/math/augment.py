"""The same picture, a little aside: random shifts of what a policy learns from (DrQ, Kostrikov et al. 2021, arXiv 2004.13649)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fovea.batch import Windows


def shift(picture_NHWC: Tensor, by_N2: Tensor) -> Tensor:
    """Every picture moved by whole pixels (down, right); what comes in repeats the edge."""
    N, H, W = picture_NHWC.shape[:3]
    row_NH = (torch.arange(H) - by_N2[:, :1]).clamp(0, H - 1)
    column_NW = (torch.arange(W) - by_N2[:, 1:]).clamp(0, W - 1)
    return picture_NHWC[torch.arange(N)[:, None, None], row_NH[:, :, None], column_NW[:, None, :]]


def shifted(batch: Windows, most: int) -> Windows:
    """The windows of pictures with each frame moved by up to `most` pixels on its own; vectors as they are."""
    if not most or batch.obs.ndim != 5:
        return batch
    frames = batch.obs.flatten(0, 1)
    by_N2 = torch.randint(-most, most + 1, (len(frames), 2), generator=torch.Generator().manual_seed(batch.key >> 2))
    return replace(batch, obs=shift(frames, by_N2).view_as(batch.obs))
