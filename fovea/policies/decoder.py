"""The text decoder of the Qwen-VL families as one loop over its layers' own modules, for packed rows that share prefixes.

It computes what the family's forward computes, with three savings: the last layer's queries and MLP run only where an output is read,
norms and rotations have fused backwards, and keys and values can be kept for decoding. `shared_prefix.two_streams` does the attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fovea.policies.ops import norm, rotate
from fovea.policies.shared_prefix import Layout, two_streams


def run(
    text: Any,
    x_LC: Tensor,
    positions_3L: Tensor,
    layout: Layout,
    deep: tuple[Tensor, Sequence[Tensor]] | None = None,
    keep: list | None = None,
) -> Tensor:
    """Hidden states (after the final norm) of the last token of each prefix and of all answer tokens: (N + answers, C).

    Args:
      text: the family's text model (`embed_tokens`, `layers`, `norm`, `rotary_emb`).
      x_LC: embedded packed row.
      positions_3L: M-RoPE positions.
      deep: packed indices (S,) of the visual tokens and what to add to them after each of the first layers (n, S, C) (DeepStack).
      keep: a list that receives each layer's (keys, values), both (K, L, D).
    """
    cos, sin = (t[0] for t in text.rotary_emb(x_LC, positions_3L[:, None]))
    tail, needed = layout.tailed(), layout.needed
    last = len(text.layers) - 1
    for i, layer in enumerate(text.layers):
        attn = layer.self_attn
        h = norm(layer.input_layernorm, x_LC)
        k = rotate(heads(attn.k_proj(h), attn, "k_norm"), cos, sin)
        v = heads(attn.v_proj(h), attn)
        if keep is not None:
            keep.append((k.transpose(0, 1), v.transpose(0, 1)))
        if i < last:
            q = rotate(heads(attn.q_proj(h), attn, "q_norm"), cos, sin)
            o = two_streams(*(t.transpose(0, 1) for t in (q, k, v)), layout, attn.scaling)
        else:
            q = rotate(heads(attn.q_proj(h.index_select(0, needed)), attn, "q_norm"), cos[needed], sin[needed])
            o = two_streams(*(t.transpose(0, 1) for t in (q, k, v)), tail, attn.scaling)
            x_LC = x_LC.index_select(0, needed)
        x_LC = x_LC + attn.o_proj(o.flatten(1))
        x_LC = x_LC + layer.mlp(norm(layer.post_attention_layernorm, x_LC))
        if deep is not None and i < len(deep[1]):
            x_LC = x_LC.index_add(0, deep[0], deep[1][i])
    return norm(text.norm, x_LC)


def heads(x_LC: Tensor, attn: Any, name: str = "") -> Tensor:
    """(L, heads * D) -> (L, heads, D), normalised per head where the family does so."""
    x = x_LC.unflatten(-1, (-1, attn.head_dim))
    return norm(getattr(attn, name), x) if hasattr(attn, name) else x


def supports(text: Any) -> bool:
    """Whether this loop knows the text model's layers."""
    known = {"Qwen2VLDecoderLayer", "Qwen2_5_VLDecoderLayer", "Qwen3VLTextDecoderLayer"}
    return all(type(layer).__name__ in known and _unwindowed(layer.self_attn) for layer in text.layers)


def _unwindowed(attn: nn.Module) -> bool:
    return getattr(attn, "sliding_window", None) is None
