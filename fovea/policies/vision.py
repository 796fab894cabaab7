"""Pictures through the vision tower, every one once: a function for each way in which families hand pictures to `get_image_features`.

`packed` (Qwen) puts the patches of all pictures in one row, windows and images of equal length in one attention call. There are two ways
that give the same features: the family's own forward with `segment_attention` in transformers' attention interface (towers split by
`cu_seqlens` in a Python loop unless the attention's name says flash; ours does, and takes the boundaries whole), and a shorter loop over
the same modules with fused norms and rotations. The others cut a picture into square tiles, which their own forward takes as a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.vision_utils import (
    get_vision_attention_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from fovea.policies.ops import beside, mlp, norm, rotate
from fovea.policies.processor import Picture

NAME = "fovea_flash_segments"
READY = 96 << 20
"""Bytes that graphs made while sampling may hold until the update."""


class Features(NamedTuple):
    """What one image gives to the language model: (S, C) tokens, and (S, C) additions to the first decoder layers (DeepStack)."""

    tokens: Tensor
    deep: tuple[Tensor, ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self.tokens, *self.deep))

    def detached(self) -> Features:
        return Features(self.tokens.detach(), tuple(x.detach() for x in self.deep))


class Ready:
    """Features with the graphs that made them, from sampling for the update at the same weights; each is good for one backward pass.

    Args:
      limit: bytes that all graphs may hold. `full` as soon as one more like the last would not fit, so that a large tower makes at most
        one in vain.
    """

    def __init__(self, limit: int = READY):
        self.limit = limit
        self.clear(None)

    def clear(self, stamp: Any) -> None:
        """Forget all; what comes is made with the weights of `stamp`."""
        self.stamp, self.nbytes, self.full = stamp, 0, False
        self._found: dict[str, Features] = {}

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def make(self, key: str, encode: Callable[[], Features]) -> Features:
        """The picture's features without their graph, which is kept if it fits."""
        if key not in self._found:
            held: dict[int, int] = {}

            def note(x: Tensor) -> Tensor:
                storage = x.untyped_storage()
                held[storage._cdata] = 0 if x.is_leaf and x.requires_grad else storage.nbytes()
                return x

            with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
                features = encode()
            size = sum(held.values())
            self.full = self.nbytes + 2 * size > self.limit
            if self.nbytes + size > self.limit:
                return features.detached()
            self.nbytes += size
            self._found[key] = features
        return self._found[key].detached()

    def take(self, key: str) -> Features | None:
        return self._found.pop(key, None)


class Plan(NamedTuple):
    """What a tower needs to know about the grids of a call, weights aside. S patches in all.

    Attributes:
      cos, sin: (S, D) rotations of the patch positions, in the tower's order.
      images, windows: lengths of the segments that attend within themselves, in full and in windowed layers.
      order: (S / unit,) merged tokens in the tower's order, None where it keeps the image order.
      taps, tap_weights: (S, n) cells of the learned position table and their interpolation weights, None without one.
    """

    cos: Tensor
    sin: Tensor
    images: tuple[int, ...]
    windows: tuple[int, ...]
    order: Tensor | None
    taps: Tensor | None
    tap_weights: Tensor | None


def install(visual: Any) -> None:
    """Give a tower of packed patches our attention and patch embedding; its weights and their names stay as they are."""
    visual.config._attn_implementation = NAME
    visual.patch_embed.forward = partial(embed_patches, visual.patch_embed)


def packed(vlm: Any, pictures: Sequence[Picture], direct: bool) -> list[Features]:
    """Features of each picture, all patches in one row; `direct` takes the shorter loop."""
    visual = vlm.model.visual
    patches = beside(_one_width(pictures), visual.patch_embed.proj.weight)
    grids = tuple(p.grid for p in pictures)
    if direct:
        merged, deep = _run(visual, patches, _plan_of(visual, grids))
    else:
        out = visual(patches, grid_thw=beside(torch.tensor(grids), patches))
        merged, deep = out.pooler_output, getattr(out, "deepstack_features", None) or ()
    tokens = [x.split([p.tokens for p in pictures]) for x in (merged, *deep)]
    return [Features(first, tuple(rest)) for first, *rest in zip(*tokens)]


def tiles(vlm: Any, pictures: Sequence[Picture], direct: bool) -> list[Features]:
    """Features of each picture, the (T, C, H, W) tiles of all pictures as one batch."""
    return _in_batches(vlm, pictures, lambda batch, pixels: {"pixel_values": pixels})


def sample_tiles(vlm: Any, pictures: Sequence[Picture], direct: bool) -> list[Features]:
    """As `tiles`, for families that want them as the tiles of one sample."""
    return _in_batches(vlm, pictures, lambda batch, pixels: {"pixel_values": pixels[None]})


def any_resolution(vlm: Any, pictures: Sequence[Picture], direct: bool) -> list[Features]:
    """As `tiles`, where the model joins a picture's tiles to one grid of the picture's (height, width) and cuts off the padding.

    A picture of one tile stands in a prompt with several pictures, which are not cut; the family says so by the number of pictures. The
    frames of a clip are tiles too, pooled.
    """

    def arguments(batch: Sequence[Picture], pixels: Tensor) -> dict[str, Any]:
        counts = [1] * len(batch) if len(pixels) > len(batch) else [max(2, len(batch))]
        return {"pixel_values": pixels, "image_sizes": torch.tensor([p.size for p in batch]), "batch_num_images": torch.tensor(counts)}

    stills = [p for p in pictures if p.seconds is None]
    found = {p.key: features for p, features in zip(stills, _in_batches(vlm, stills, arguments))}
    for clip in (p for p in pictures if p.seconds is not None):
        out = vlm.model.get_video_features(beside(clip.pixels.to(vlm.dtype)[None], vlm.lm_head.weight), return_dict=True)
        found[clip.key] = Features(out.pooler_output[0])
    return [found[p.key] for p in pictures]


def _in_batches(vlm: Any, pictures: Sequence[Picture], arguments: Callable[[Sequence[Picture], Tensor], dict[str, Any]]) -> list[Features]:
    """Pictures whose tiles are of one size, cut or not, go through the family's `get_image_features` together."""
    groups: dict[Any, list[tuple[Picture, Tensor]]] = {}
    for p in pictures:
        pixels = p.pixels.to(vlm.dtype)
        groups.setdefault((len(pixels) > 1, pixels.shape[1:]), []).append((p, pixels))
    found: dict[str, Features] = {}
    for group in groups.values():
        batch = [p for p, _ in group]
        pixels = beside(torch.cat([x for _, x in group]), vlm.lm_head.weight)
        out = vlm.model.get_image_features(**arguments(batch, pixels), return_dict=True)
        tokens = torch.cat([x.flatten(0, -2) for x in out.pooler_output])
        if len(tokens) != (expected := sum(p.tokens for p in batch)):
            raise ValueError(
                f"{vlm.config.model_type}: found {len(tokens)} features for {len(batch)} pictures, expected {expected} as the processor "
                "counts them; a likely cause is a processor_config.json or preprocessor_config.json of another checkpoint"
            )
        found |= {p.key: Features(x) for p, x in zip(batch, tokens.split([p.tokens for p in batch]), strict=True)}
    return [found[p.key] for p in pictures]


def embed_patches(patch_embed: nn.Module, patches: Tensor) -> Tensor:
    """The patch convolution as one matrix product; patches of one frame stand for as many equal ones, so the kernel's frames are summed."""
    proj: Any = patch_embed.proj
    whole = patches.shape[1] == proj.weight[0].numel()
    return F.linear(patches.to(proj.weight.dtype), (proj.weight if whole else proj.weight.sum(2)).flatten(1), proj.bias)


def _one_width(pictures: Sequence[Picture]) -> Tensor:
    """All patches in one row; beside clips, the one frame of an image is repeated as often as a clip's patch has frames."""
    pixels = [p.pixels for p in pictures]
    widest = max(x.shape[1] for x in pixels)
    wide = [x.unflatten(1, (p.patches.shape[1], 1, -1)).expand(-1, -1, widest // x.shape[1], -1) for p, x in zip(pictures, pixels)]
    return torch.cat([x.flatten(1) for x in wide])


def _run(visual: Any, patches: Tensor, plan: Plan) -> tuple[Tensor, list[Tensor]]:
    """Merged tokens in image order and the DeepStack additions."""
    x = embed_patches(visual.patch_embed, patches)
    if plan.taps is not None and plan.tap_weights is not None:
        x = x + (visual.pos_embed(plan.taps) * plan.tap_weights[..., None].to(x.dtype)).sum(1)
    if plan.order is not None:
        x = _reorder(x, plan.order)
    full = getattr(visual, "fullatt_block_indexes", range(len(visual.blocks)))
    taken = list(getattr(visual, "deepstack_visual_indexes", ()))
    precise = torch.promote_types(x.dtype, torch.float32)
    cos, sin = plan.cos.to(precise), plan.sin.to(precise)
    deep = []
    for i, block in enumerate(visual.blocks):
        attn = block.attn
        qkv = attn.qkv(norm(block.norm1, x)).unflatten(-1, (3, attn.num_heads, -1))
        qk, v = qkv.split((2, 1), 1)
        q, k = rotate(qk.flatten(1, 2).to(precise), cos, sin).to(x.dtype).chunk(2, 1)
        o = attend_segments(q, k, v[:, 0], plan.images if i in full else plan.windows, attn.scaling)
        x = x + attn.proj(o.flatten(1))
        x = x + mlp(block.mlp, norm(block.norm2, x))
        if i in taken:
            deep.append(visual.deepstack_merger_list[taken.index(i)](x))
    merged = _merge(visual.merger, x)
    return merged if plan.order is None else merged[plan.order.argsort()], deep


def _merge(merger: Any, x: Tensor) -> Tensor:
    if hasattr(merger, "ln_q"):
        return merger.mlp(norm(merger.ln_q, x).view(-1, merger.hidden_size))
    return merger(x)


def _reorder(x_SC: Tensor, order: Tensor) -> Tensor:
    """Patches moved in units that later merge into one token."""
    return x_SC.unflatten(0, (len(order), -1)).index_select(0, order).flatten(0, 1)


def _plan_of(visual: Any, grids: tuple[tuple[int, int, int], ...]) -> Plan:
    plans: dict[Any, Plan] = visual.__dict__.setdefault("_fovea_plans", {})
    if grids not in plans:
        if len(plans) >= 256:
            plans.clear()
        plans[grids] = _make_plan(visual, beside(torch.tensor(grids), visual.patch_embed.proj.weight))
    return plans[grids]


def _make_plan(visual: Any, grids: Tensor) -> Plan:
    merge = visual.spatial_merge_size
    cos, sin = visual.rotary_pos_emb(grids, get_vision_position_ids(grids, merge))
    boundaries, _ = get_vision_attention_seqlens(grids, visual.config)
    images = windows = tuple(boundaries.diff().tolist())
    order = taps = tap_weights = None
    if hasattr(visual, "window_size"):
        order, edges = get_vision_window_index(grids, merge, visual.window_size, visual.patch_size)
        windows, order = tuple(edges.diff().tolist()), beside(order, cos)
        cos, sin = _reorder(cos, order), _reorder(sin, order)
    if hasattr(visual, "pos_embed"):
        side, mode = visual.num_grid_per_side, visual.interpolation_mode
        corners = visual.interpolation_align_corners
        taps, tap_weights = get_vision_interpolation_indices_and_weights(grids, side, mode, corners, merge)
    return Plan(cos, sin, images, windows, order, taps, tap_weights)


def segment_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, cu_seq_lens_q: Tensor, **kwargs
) -> tuple[Tensor, None]:
    """The function behind `NAME` in transformers' attention interface: (1, H, S, D) packed segments -> (1, S, H, D)."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return attend_segments(q, k, v, tuple(cu_seq_lens_q.diff().tolist()), scaling)[None], None


AttentionInterface.register(NAME, segment_attention)


def attend_segments(q_SHD: Tensor, k_SHD: Tensor, v_SHD: Tensor, lengths: tuple[int, ...], scale: float) -> Tensor:
    """Full attention within each of the consecutive segments; segments of one length share a call. Returns (S, H, D)."""
    groups = _groups(lengths)
    if len(groups) == 1:
        return _attend(q_SHD, k_SHD, v_SHD, lengths[0], scale)
    parts = []
    for length, index in groups:
        index = beside(index, q_SHD)
        q, k, v = (x.index_select(0, index) for x in (q_SHD, k_SHD, v_SHD))
        parts.append(_attend(q, k, v, length, scale))
    back = beside(torch.cat([index for _, index in groups]).argsort(), q_SHD)
    return torch.cat(parts).index_select(0, back)


def _attend(q: Tensor, k: Tensor, v: Tensor, length: int, scale: float) -> Tensor:
    q, k, v = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(0, 1)


@lru_cache(maxsize=256)
def _groups(lengths: tuple[int, ...]) -> tuple[tuple[int, Tensor], ...]:
    """For each distinct segment length, the packed indices of its segments."""
    length_S = torch.tensor(lengths)
    start_S = length_S.cumsum(0) - length_S
    return tuple((n, (start_S[length_S == n][:, None] + torch.arange(n)).flatten()) for n in sorted(set(lengths)))
