"""Decoding for the Qwen-VL text decoders: one prompt's keys and values are shared by all its rows, weights are fused per rollout.

A cohort is what was prefilled together. N prompts of P (padded) tokens, R rows (prefix-major), K key-value heads, r query heads per key-value head,
D head size. Linear layers run over the rows of all cohorts at once; attention runs per cohort: the rows of a prompt meet its prefix in one
matrix product per key-value head, and their own short suffix in another, under one softmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class LayerWeights(NamedTuple):
    qkv: Tensor
    qkv_bias: Tensor | None
    out: Tensor
    gate_up: Tensor
    down: Tensor
    norm: Tensor
    mlp_norm: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    eps: float


class Weights(NamedTuple):
    """Fused copies of the decoder's weights, valid until the next optimizer step."""

    layers: tuple[LayerWeights, ...]
    embed: Tensor
    norm: Tensor
    eps: float
    head: Tensor
    kv_heads: int
    head_size: int


@torch.no_grad()
def fuse(text: Any, head: Tensor) -> Weights:
    """Stack query, key and value projections, and gate and up projections, of each layer."""
    layers = []
    for layer in text.layers:
        a, m = layer.self_attn, layer.mlp
        sides = (a.q_proj, a.k_proj, a.v_proj)
        layers.append(
            LayerWeights(
                qkv=torch.cat([p.weight for p in sides]),
                qkv_bias=torch.cat([p.bias for p in sides]) if a.q_proj.bias is not None else None,
                out=a.o_proj.weight.detach(),
                gate_up=torch.cat([m.gate_proj.weight, m.up_proj.weight]),
                down=m.down_proj.weight.detach(),
                norm=layer.input_layernorm.weight.detach(),
                mlp_norm=layer.post_attention_layernorm.weight.detach(),
                q_norm=a.q_norm.weight.detach() if hasattr(a, "q_norm") else None,
                k_norm=a.k_norm.weight.detach() if hasattr(a, "k_norm") else None,
                eps=layer.input_layernorm.variance_epsilon,
            )
        )
    a = text.layers[0].self_attn
    return Weights(
        tuple(layers),
        text.embed_tokens.weight.detach(),
        text.norm.weight.detach(),
        text.norm.variance_epsilon,
        head.detach(),
        a.k_proj.out_features // a.head_dim,
        a.head_dim,
    )


@dataclass
class Cohort:
    """Rows that were prefilled together, with their caches.

    Attributes:
      prefix_k: per layer (N, K, D, P), ready for the matrix product; prefix_v: per layer (N, K, P, D).
      prefix_mask: (N, 1, 1, P) 0 or -inf, None when all prompts are equally long.
      owner_R: prompt of each row, ascending.
      suffix_k, suffix_v: (layers, R, K, room, D).
      length_R: tokens held in each row's suffix.
      cos, sin: (R, room, D) rotations of the suffix positions.
    """

    prefix_k: list[Tensor]
    prefix_v: list[Tensor]
    prefix_mask: Tensor | None
    owner_R: Tensor
    suffix_k: Tensor
    suffix_v: Tensor
    length_R: Tensor
    cos: Tensor
    sin: Tensor

    def __post_init__(self) -> None:
        self._index()

    @property
    def R(self) -> int:
        return len(self.owner_R)

    def keep(self, index_R: Tensor | Sequence[int]) -> None:
        """Drop every row that is not in `index_R` (ascending), and the prompts that no row uses any more."""
        index = torch.as_tensor(index_R, dtype=torch.long)
        if len(index) == self.R:
            return
        used = int(self.length_R.max()) if self.R else 0
        self.suffix_k, self.suffix_v = (_select(x, index, used) for x in (self.suffix_k, self.suffix_v))
        self.length_R, self.cos, self.sin = self.length_R[index], self.cos[index], self.sin[index]
        prompts, self.owner_R = self.owner_R[index].unique(return_inverse=True)
        if len(prompts) < len(self.prefix_k[0]):
            self.prefix_k, self.prefix_v = [x[prompts] for x in self.prefix_k], [x[prompts] for x in self.prefix_v]
            self.prefix_mask = None if self.prefix_mask is None else self.prefix_mask[prompts]
        self._index()

    def _index(self) -> None:
        N = len(self.prefix_k[0])
        count_N = torch.bincount(self.owner_R, minlength=N)
        self.G = int(count_N.max()) if self.R else 0
        first_N = count_N.cumsum(0) - count_N
        full = bool((count_N == self.G).all())
        self.slot_R = None if full else self.owner_R * self.G + torch.arange(self.R) - first_N[self.owner_R]
        self.rows_R = torch.arange(self.R)
        self.level = bool((self.length_R == self.length_R[:1]).all())

    def begin(self) -> tuple[Tensor, Tensor]:
        """Cosine and sine (R, 1, D) of the position that the next token takes; makes room for it."""
        if self.R and int(self.length_R.max()) >= self.suffix_k.shape[3]:
            raise ValueError(f"decode: a row holds {int(self.length_R.max())} tokens and the cohort was prefilled with room for no more")
        self.used = int(self.length_R.max()) + 1 if self.R else 0
        if self.level:
            t = self.used - 1
            self.suffix_mask = None
            cos, sin = self.cos[:, t, None], self.sin[:, t, None]
        else:
            beyond = torch.arange(self.used) > self.length_R[:, None]
            self.suffix_mask = torch.zeros(beyond.shape, dtype=self.cos.dtype).masked_fill_(beyond, float("-inf"))[:, None, None]
            cos, sin = (x[self.rows_R, self.length_R][:, None] for x in (self.cos, self.sin))
        return cos, sin

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(R, K, r, D) scaled queries and (R, K, D) new keys and values -> (R, K, r, D)."""
        R, K, r, D = q.shape
        suffix_k, suffix_v = self.suffix_k[layer], self.suffix_v[layer]
        if self.level:
            suffix_k[:, :, self.used - 1], suffix_v[:, :, self.used - 1] = k, v
        else:
            suffix_k[self.rows_R, :, self.length_R], suffix_v[self.rows_R, :, self.length_R] = k, v
        prefix_k, prefix_v = self.prefix_k[layer], self.prefix_v[layer]
        N, P = len(prefix_k), prefix_k.shape[-1]
        on_prefix = self._gather(q, N) @ prefix_k
        if self.prefix_mask is not None:
            on_prefix = on_prefix + self.prefix_mask
        on_suffix = q @ suffix_k[:, :, : self.used].transpose(2, 3)
        if self.suffix_mask is not None:
            on_suffix = on_suffix + self.suffix_mask
        weights = torch.softmax(torch.cat([self._scatter(on_prefix, R, r), on_suffix], -1), -1)
        out = self._scatter(self._gather(weights[..., :P], N) @ prefix_v, R, r)
        return out + weights[..., P:] @ suffix_v[:, :, : self.used]

    def end(self) -> None:
        self.length_R = self.length_R + 1

    def _gather(self, x_RKrX: Tensor, N: int) -> Tensor:
        """(R, K, r, X) -> (N, K, G * r, X), unused slots zero."""
        _, K, r, X = x_RKrX.shape
        if self.slot_R is not None:
            x_RKrX = x_RKrX.new_zeros(N * self.G, K, r, X).index_copy_(0, self.slot_R, x_RKrX)
        return x_RKrX.view(N, self.G, K, r, X).transpose(1, 2).reshape(N, K, self.G * r, X)

    def _scatter(self, x_NKGX: Tensor, R: int, r: int) -> Tensor:
        """(N, K, G * r, X) -> (R, K, r, X)."""
        N, K, _, X = x_NKGX.shape
        x = x_NKGX.view(N, K, self.G, r, X).transpose(1, 2).reshape(N * self.G, K, r, X)
        return x if self.slot_R is None else x[self.slot_R]


def _select(cache: Tensor, index: Tensor, used: int) -> Tensor:
    out = cache.new_empty(cache.shape[0], len(index), *cache.shape[2:])
    out[:, :, :, :used] = cache[:, index, :, :used]
    return out


@torch.no_grad()
def step(weights: Weights, cohorts: Sequence[Cohort], tokens: Sequence[Tensor]) -> list[Tensor]:
    """Append one token to every row of every cohort; returns the logits (R, V) of the next one, in float32."""
    sizes = [c.R for c in cohorts]
    K, D = weights.kv_heads, weights.head_size
    x = weights.embed[torch.cat(list(tokens))]
    rotations = [c.begin() for c in cohorts]
    cos, sin = (torch.cat(t) for t in zip(*rotations))
    for i, w in enumerate(weights.layers):
        qkv = F.linear(_rms(x, w.norm, w.eps), w.qkv, w.qkv_bias).unflatten(-1, (-1, D))
        qk, v = qkv[:, :-K], qkv[:, -K:]
        if w.q_norm is not None and w.k_norm is not None:
            qk = torch.cat([_rms(qk[:, :-K], w.q_norm, w.eps), _rms(qk[:, -K:], w.k_norm, w.eps)], 1)
        qk = _rotated(qk, cos, sin)
        q, k = (qk[:, :-K] * D**-0.5).unflatten(1, (K, -1)), qk[:, -K:]
        sides = zip(cohorts, q.split(sizes), k.split(sizes), v.split(sizes))
        o = [c.attend(i, *qkv_c) for c, *qkv_c in sides]
        o = o[0] if len(o) == 1 else torch.cat(o)
        x = x + F.linear(o.reshape(len(x), -1), w.out)
        gate, up = F.linear(_rms(x, w.mlp_norm, w.eps), w.gate_up).chunk(2, -1)
        x = x + F.linear(F.silu(gate) * up, w.down)
    for c in cohorts:
        c.end()
    return list(F.linear(_rms(x, weights.norm, weights.eps), weights.head).float().split(sizes))


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin
