"""The text decoder of every family as one loop over its layers' own modules, for packed rows that share prefixes.

It computes what the family's forward computes, with three savings: the last layer's queries and MLP run only where an output is read,
norms and rotations have fused backwards, and keys and values can be kept for decoding. `shared_prefix.two_streams` does the attention.
What differs between families is read from the modules: norms per head, norms after a block, biases, capped scores, sliding windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from fovea.policies.ops import norm, rotate
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
    tail, needed = layout.tailed(), layout.needed
    last = len(text.layers) - 1
    for i, layer in enumerate(text.layers):
        attn, norms = layer.self_attn, norms_of(layer)
        h = norm(norms.attention, x_LC)
        k = rotate(heads(attn.k_proj(h), attn, "k_norm"), cos, sin)
        v = heads(attn.v_proj(h), attn)
        if keep is not None:
            keep.append((k.transpose(0, 1), v.transpose(0, 1)))
        if i < last:
            q = rotate(heads(attn.q_proj(h), attn, "q_norm"), cos, sin)
            o = two_streams(*(t.transpose(0, 1) for t in (q, k, v)), layout, scoring_of(attn))
        else:
            q = rotate(heads(attn.q_proj(h.index_select(0, needed)), attn, "q_norm"), cos[needed], sin[needed])
            o = two_streams(*(t.transpose(0, 1) for t in (q, k, v)), tail, scoring_of(attn))
            x_LC = x_LC.index_select(0, needed)
        x_LC = x_LC + _after(norms.attended, attn.o_proj(o.flatten(1)))
        x_LC = x_LC + _after(norms.mixed, layer.mlp(norm(norms.mlp, x_LC)))
        if deep is not None and i < len(deep[1]):
            x_LC = x_LC.index_add(0, deep[0], deep[1][i])
    return norm(text.norm, x_LC)


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
