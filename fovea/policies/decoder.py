"""The text decoder of every family as one loop over its layers' own modules, for packed rows that share prefixes.

It computes what the family's forward computes, with three savings: the last layer's queries and MLP run only where an output is read,
norms and rotations have fused backwards, and keys and values can be kept for decoding. `shared_prefix.two_streams` does the attention.
What differs between families is read from the modules: norms per head, norms after a block, biases, capped scores, sliding windows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fovea.policies.ops import beside, mlp, norm, rotate
from fovea.policies.shared_prefix import Layout, Scoring, two_streams

LAYERS = {
    "Qwen2VLDecoderLayer",
    "Qwen2_5_VLDecoderLayer",
    "Qwen3VLTextDecoderLayer",
    "LlamaDecoderLayer",
    "MistralDecoderLayer",
    "Qwen2DecoderLayer",
    "Qwen3DecoderLayer",
    "GemmaDecoderLayer",
    "Gemma2DecoderLayer",
}
"""Decoder layers of transformers that fit the loop: norm, attention, norm, gated MLP, with rotary embeddings of whole heads."""


class Norms(NamedTuple):
    """A layer's norms: before and after the attention, before and after the MLP; None where there is none."""

    attention: nn.Module
    attended: nn.Module | None
    mlp: nn.Module
    mixed: nn.Module | None


def run(
    text: Any,
    x_LC: Tensor,
    positions: Tensor,
    layout: Layout,
    deep: tuple[Tensor, Sequence[Tensor]] | None = None,
    keep: list | None = None,
) -> Tensor:
    """Hidden states (after the final norm) of the last token of each prefix and of all answer tokens: (N + answers, C).

    Args:
      text: the family's text model (`embed_tokens`, `layers`, `norm`, `rotary_emb`).
      x_LC: embedded packed row.
      positions: as its `rotary_emb` takes them: (1, L), or (3, 1, L) for M-RoPE.
      deep: packed indices (S,) of the visual tokens and what to add to them after each of the first layers (n, S, C) (DeepStack).
      keep: a list that receives each layer's (keys, values), both (K, L, D).
    """
    cos, sin = (t[0] for t in text.rotary_emb(x_LC, positions))
    tail, needed = layout.tailed(), beside(layout.needed, x_LC)
    last = len(text.layers) - 1
    for i, layer in enumerate(text.layers):
        x_LC, kv = through(layer, _layer, x_LC, cos, sin, layout if i < last else tail, None if i < last else needed, keep is not None)
        if keep is not None:
            keep.append(kv)
        if deep is not None and i < len(deep[1]):
            x_LC = _deepened(x_LC, deep[0], deep[1][i], needed if i == last else None)
    return norm(text.norm, x_LC)


def _layer(
    layer: Any, x_LC: Tensor, cos: Tensor, sin: Tensor, layout: Layout, needed: Tensor | None, keep: bool
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """One layer: its output at the `needed` tokens (None: at all) and, to `keep`, the keys and values of all, (K, L, D)."""
    attn, norms = layer.self_attn, norms_of(layer)
    h = norm(norms.attention, x_LC)
    k = rotate(heads(attn.k_proj(h), attn, "k_norm"), cos, sin)
    v = heads(attn.v_proj(h), attn)
    if needed is not None:
        h, x_LC, cos, sin = (t.index_select(0, needed) for t in (h, x_LC, cos, sin))
    q = rotate(heads(attn.q_proj(h), attn, "q_norm"), cos, sin)
    o = two_streams(q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), layout, scoring_of(attn))
    x_LC = x_LC + _after(norms.attended, attn.o_proj(o.flatten(1)))
    x_LC = x_LC + _after(norms.mixed, mlp(layer.mlp, norm(norms.mlp, x_LC)))
    return x_LC, (k.transpose(0, 1), v.transpose(0, 1)) if keep else None


def _deepened(x_LC: Tensor, at_S: Tensor, deep_SC: Tensor, needed: Tensor | None) -> Tensor:
    """The additions to visual tokens; of a layer that was run at the (rising) `needed` tokens only, to those among them."""
    if needed is not None:
        shown = torch.isin(at_S, needed)
        at_S, deep_SC = torch.searchsorted(needed, at_S[shown]), deep_SC[shown]
    return x_LC.index_add(0, at_S, deep_SC)


def through(layer: Any, work: Callable[..., Any], *args: Any) -> Any:
    """`work(layer, *args)`, as the layer's forward where its weights are sharded: they are put together for it, and for its backward."""
    return layer.as_forward(work, *args) if sharded(layer) else work(layer, *args)


def sharded(layer: Any) -> bool:
    return hasattr(layer, "as_forward")


def heads(x_LC: Tensor, attn: Any, name: str = "") -> Tensor:
    """(L, heads * D) -> (L, heads, D), normalised per head where the family does so."""
    x = x_LC.unflatten(-1, (-1, attn.head_dim))
    return norm(getattr(attn, name), x) if hasattr(attn, name) else x


def norms_of(layer: Any) -> Norms:
    """Where a layer keeps its norms: Gemma 2 calls by `post_attention_layernorm` what others do before the MLP."""
    if hasattr(layer, "pre_feedforward_layernorm"):
        return Norms(
            layer.input_layernorm, layer.post_attention_layernorm, layer.pre_feedforward_layernorm, layer.post_feedforward_layernorm
        )
    return Norms(layer.input_layernorm, None, layer.post_attention_layernorm, None)


def scoring_of(attn: Any) -> Scoring:
    """A layer's scale, cap and window; Mistral has one window for all layers, in its config."""
    window = getattr(attn, "sliding_window", None)
    if type(attn).__name__ == "MistralAttention":
        window = attn.config.sliding_window
    return Scoring(attn.scaling, getattr(attn, "attn_logit_softcapping", None), window)


def check(text: Any) -> None:
    """Refuse a text model with a layer that this loop does not know."""
    if unknown := {type(layer).__name__ for layer in getattr(text, "layers", [text])} - LAYERS:
        raise ValueError(
            f"text model {text.config.model_type!r}: found {', '.join(sorted(unknown))}; expected decoder layers among "
            f"{', '.join(sorted(LAYERS))} (mixtures of experts and hybrid decoders do not fit the shared-prefix loop)"
        )


def _after(module: nn.Module | None, x: Tensor) -> Tensor:
    return x if module is None else norm(module, x)
