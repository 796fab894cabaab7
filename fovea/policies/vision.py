"""The vision tower: every image encoded once, windows and images of equal length in one attention call.

transformers' towers split by `cu_seqlens` in a Python loop unless the attention's name says flash; ours does and takes the boundaries whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from fovea.policies.processor import Picture

NAME = "fovea_flash_segments"


class Features(NamedTuple):
    """What one image gives to the language model: (S, C) tokens, and (S, C) additions to the first decoder layers (DeepStack)."""

    tokens: Tensor
    deep: tuple[Tensor, ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self.tokens, *self.deep))


def segment_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, cu_seq_lens_q: Tensor, **kwargs
) -> tuple[Tensor, None]:
    """Full attention within each segment of a packed (1, H, S, D) row; segments of one length share a call. Returns (1, S, H, D)."""
    groups = _groups(tuple(cu_seq_lens_q.diff().tolist()))
    if len(groups) == 1:
        ((length, _),) = groups
        blocks = [x[0].unflatten(1, (-1, length)).transpose(0, 1) for x in (query, key, value)]
        return F.scaled_dot_product_attention(*blocks, scale=scaling).transpose(1, 2).flatten(0, 1)[None], None
    parts = []
    for length, index in groups:
        blocks = [x[0].index_select(1, index).unflatten(1, (-1, length)).transpose(0, 1) for x in (query, key, value)]
        parts.append(F.scaled_dot_product_attention(*blocks, scale=scaling).transpose(1, 2).flatten(0, 1))
    back = torch.cat([index for _, index in groups]).argsort()
    return torch.cat(parts).index_select(0, back)[None], None


AttentionInterface.register(NAME, segment_attention)


@lru_cache(maxsize=256)
def _groups(lengths: tuple[int, ...]) -> tuple[tuple[int, Tensor], ...]:
    """For each distinct segment length, the packed indices of its segments."""
    starts = torch.tensor([0, *lengths]).cumsum(0)
    lengths_S = torch.tensor(lengths)
    return tuple((n, (starts[:-1][lengths_S == n][:, None] + torch.arange(n)).flatten()) for n in sorted(set(lengths)))


def embed_patches(patch_embed: nn.Module, patches: Tensor) -> Tensor:
    """The patch convolution as one matrix product; a still image repeats its frame, so the kernel's frames are summed first."""
    proj: Any = patch_embed.proj
    weight = proj.weight.sum(2).flatten(1)
    return F.linear(patches.to(weight.dtype), weight, proj.bias)


def install(visual: Any) -> None:
    """Give a tower our attention and patch embedding; its weights and their names stay as they are."""
    visual.config._attn_implementation = NAME
    visual.patch_embed.forward = partial(embed_patches, visual.patch_embed)


def encode(visual: Any, pictures: Sequence[Picture]) -> list[Features]:
    """Features of each picture, all in one pass through the tower."""
    grids = torch.tensor([p.grid for p in pictures])
    pixels = torch.cat([p.patches for p in pictures])
    out = visual(pixels, grid_thw=grids)
    tokens = out.pooler_output.split([p.tokens for p in pictures])
    deep = [x.split([p.tokens for p in pictures]) for x in getattr(out, "deepstack_features", None) or ()]
    return [Features(t, tuple(d[i] for d in deep)) for i, t in enumerate(tokens)]
