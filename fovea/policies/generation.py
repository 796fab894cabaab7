"""Decoding with every decoder that `decoder.run` knows: a prompt's keys and values are shared by its rows, weights fused per rollout.

A cohort is what was prefilled together: N prompts of P (padded) tokens and R rows, prompt by prompt. Linear layers run over the rows
of all cohorts at once; attention runs per cohort over (N, G) slots, G the largest number of rows that a prompt has left. K key-value
heads, r query heads on each, D head size.

Inside a head, fused queries and keys keep the two coordinates of each rotation plane side by side, so that a rotary embedding is one
complex product; dot products do not notice the order. Norm weights and the softmax scale are folded into what follows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fovea.policies.decoder import norms_of, scoring_of
from fovea.policies.head import capped
from fovea.policies.lora import weight_of
from fovea.policies.ops import beside, rms_parts
from fovea.policies.shared_prefix import Scoring


class LayerWeights(NamedTuple):
    """(inputs, outputs) matrices, so that a few rows times a matrix is a plain row-major product; biases and norms where there are any."""

    qkv: Tensor
    qkv_bias: Tensor | None
    qk_norm: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    attended: Tensor | None
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None
    mixed: Tensor | None
    scoring: Scoring


class Weights(NamedTuple):
    """Fused copies of the decoder's weights, valid until the next optimizer step."""

    layers: tuple[LayerWeights, ...]
    embed: nn.Module
    act: nn.Module
    norm: Tensor
    head: Tensor
    cap: float | None
    eps: float
    kv_heads: int
    head_size: int


@torch.no_grad()
def fuse(text: Any, head: Tensor, cap: float | None = None) -> Weights:
    """Stack the query, key and value projections, and the gate and up projections, of each layer; `cap` is that of the logits."""
    first = text.layers[0].self_attn
    D, (_, eps) = first.head_dim, _rms(text.norm)
    layers = []
    for layer in text.layers:
        a, m, norms, scoring = layer.self_attn, layer.mlp, norms_of(layer), scoring_of(layer.self_attn)
        normed = hasattr(a, "q_norm")
        scale = 1 if normed else scoring.scale
        weights = [_planes(weight_of(a.q_proj), D) * scale, _planes(weight_of(a.k_proj), D), weight_of(a.v_proj)]
        bias = qk_norm = None
        if a.q_proj.bias is not None:
            bias = torch.cat([_planes(a.q_proj.bias, D) * scale, _planes(a.k_proj.bias, D), a.v_proj.bias])
        if normed:
            H, K = a.q_proj.out_features // D, a.k_proj.out_features // D
            q_norm, k_norm = _planes(_rms(a.q_norm)[0], D) * scoring.scale, _planes(_rms(a.k_norm)[0], D)
            qk_norm = torch.stack([q_norm] * H + [k_norm] * K) * D**0.5
        layers.append(
            LayerWeights(
                qkv=_folded(norms.attention, torch.cat(weights)),
                qkv_bias=bias,
                qk_norm=qk_norm,
                out=weight_of(a.o_proj).t().contiguous(),
                out_bias=a.o_proj.bias,
                attended=_rooted(norms.attended),
                gate_up=_folded(norms.mlp, torch.cat([weight_of(m.gate_proj), weight_of(m.up_proj)])),
                gate_up_bias=None if m.gate_proj.bias is None else torch.cat([m.gate_proj.bias, m.up_proj.bias]),
                down=weight_of(m.down_proj).t().contiguous(),
                down_bias=m.down_proj.bias,
                mixed=_rooted(norms.mixed),
                scoring=scoring,
            )
        )
    norm = _rms(text.norm)[0] * len(text.norm.weight) ** 0.5
    K = first.k_proj.out_features // D
    return Weights(tuple(layers), text.embed_tokens, text.layers[0].mlp.act_fn, norm, head.detach(), cap, eps, K, D)


def _folded(norm: Any, weight_OI: Tensor) -> Tensor:
    """(O, I) -> (I, O) with the preceding norm's weight, and the √I that `_unit` leaves out."""
    return (weight_OI * _scaled(norm)).t().contiguous()


def _rooted(norm: Any) -> Tensor | None:
    return None if norm is None else _scaled(norm)


def _scaled(norm: Any) -> Tensor:
    """A norm's weight with the √C that `_unit` leaves out."""
    return _rms(norm)[0] * len(norm.weight) ** 0.5


def _rms(norm: Any) -> tuple[Tensor, float]:
    parts = rms_parts(norm)
    if parts is None:
        raise ValueError(f"decode: found a {type(norm).__name__}; expected RMS norms in the decoder")
    return parts


def _planes(x: Tensor, D: int) -> Tensor:
    """Rows of each head from (first halves, second halves) to pairs side by side."""
    return x.unflatten(0, (-1, 2, D // 2)).transpose(1, 2).flatten(0, 2)


def pair(x: Tensor) -> Tensor:
    """(..., D) keys in the order that fused queries expect."""
    return x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


class Cohort:
    """Rows that were prefilled together, with their caches.

    Args:
      prefix_k: per layer (N, K, D, P), paired and ready for the matrix product; prefix_v: per layer (N, K, P, D).
      prompt_N: length of each prompt. This and the other books (owner_R, length_R) lie on the CPU, so that reading them waits for nothing.
      owner_R: prompt of each row, ascending.
      suffix: (2, layers, R, K, room, D) keys and values of each row's own tokens.
      length_R: tokens held in each row's suffix.
      turn: (R, room, D / 2) complex rotations of the suffix positions.
    """

    def __init__(
        self,
        prefix_k: list[Tensor],
        prefix_v: list[Tensor],
        prompt_N: Tensor,
        owner_R: Tensor,
        suffix: Tensor,
        length_R: Tensor,
        turn: Tensor,
    ):
        self.prefix_k, self.prefix_v, self.prompt_N = prefix_k, prefix_v, prompt_N
        self.owner_R, self.length_R, self.turn = owner_R, length_R, turn
        self._place(suffix, int(length_R.max()) if len(length_R) else 0)

    @property
    def R(self) -> int:
        return len(self.owner_R)

    def keep(self, index_R: Tensor | Sequence[int]) -> None:
        """Drop every row that is not in `index_R` (ascending), and the prompts that no row uses any more."""
        index = torch.as_tensor(index_R, dtype=torch.long, device="cpu")
        if len(index) == self.R:
            return
        slots = self._slots()[index]
        suffix = torch.stack([self.keys.transpose(-1, -2), self.values]).transpose(3, 4).flatten(2, 3)[:, :, slots]
        self.length_R, self.turn = self.length_R[index], self.turn[index]
        prompts, self.owner_R = self.owner_R[index].unique(return_inverse=True)
        if len(prompts) < len(self.prefix_k[0]):
            self.prefix_k, self.prefix_v = [x[prompts] for x in self.prefix_k], [x[prompts] for x in self.prefix_v]
            self.prompt_N = self.prompt_N[prompts]
        self._place(suffix, suffix.shape[-2])

    def _slots(self) -> Tensor:
        count_N = torch.bincount(self.owner_R, minlength=self.N)
        first_N = count_N.cumsum(0) - count_N
        return self.owner_R * self.G + torch.arange(self.R) - first_N[self.owner_R]

    def _place(self, suffix: Tensor, used: int) -> None:
        """Lay the rows' caches out in (N, G) slots: `values` (layers, N, K, G, room, D), `keys` (..., D, room) ready for their product."""
        self.N, P = len(self.prefix_k[0]), self.prefix_k[0].shape[-1]
        beyond = torch.arange(P) >= self.prompt_N[:, None]
        self.prefix_mask = suffix.new_zeros(beyond.shape).masked_fill_(beside(beyond, suffix), float("-inf")) if beyond.any() else None
        count_N = torch.bincount(self.owner_R, minlength=self.N)
        self.G = int(count_N.max()) if self.R else 0
        self.slot_R = None if bool((count_N == self.G).all()) else beside(self._slots(), suffix)
        self.level = bool((self.length_R == self.length_R[:1]).all())
        _, layers, _, K, room, D = suffix.shape
        self.room = room
        self.keys = suffix.new_zeros(layers, self.N, K, self.G, D, room)
        self.values = suffix.new_zeros(layers, self.N, K, self.G, room, D)
        if used:
            n, g = self._slots() // max(1, self.G), self._slots() % max(1, self.G)
            held_k, held_v = suffix[..., :used, :].permute(0, 2, 1, 3, 4, 5)
            self.keys[:, n, :, g, :, :used], self.values[:, n, :, g, :used] = held_k.transpose(-1, -2), held_v

    def begin(self) -> Tensor:
        """(R, 1, D / 2) rotation of the position that the next token takes; checks that there is room for it."""
        held = int(self.length_R.max()) if self.R else 0
        if held >= self.room:
            raise ValueError(
                f"decode: a row holds {held} tokens and the cohort was prefilled with room for no more; prefill with a larger `room`"
            )
        self.used = held + 1
        self.masks: dict[int | None, Tensor | None] = {}
        if self.level:
            return self.turn[:, held, None]
        rows = torch.arange(self.R)
        self.n, self.g = self._slots() // self.G, self._slots() % self.G
        return self.turn[rows, self.length_R, None]

    def _mask(self, window: int | None) -> Tensor | None:
        """(N, 1, G, 1, P + used) 0 or -inf over prefix and suffix, None when nothing is masked; made once per token and kind of layer."""
        if window not in self.masks:
            self.masks[window] = self._make_mask(window)
        return self.masks[window]

    def _make_mask(self, window: int | None) -> Tensor | None:
        prompt_R = self.prompt_N[self.owner_R]
        at_R = prompt_R + self.length_R
        reach = window if window is not None and int(at_R.max()) >= window else None
        if self.prefix_mask is None and self.level and reach is None:
            return None
        P, like = self.prefix_k[0].shape[-1], self.values
        mask = like.new_zeros(self.N, self.G, P + self.used)
        if self.prefix_mask is not None:
            mask[..., :P] = self.prefix_mask[:, None]
        if not self.level:
            beyond = beside(torch.arange(self.used) > self.length_R[:, None], like)
            mask.view(self.N * self.G, -1)[self._slots(), P:] = like.new_zeros(beyond.shape).masked_fill_(beyond, float("-inf"))
        if reach is not None:
            place_R = torch.cat([torch.arange(P).expand(self.R, -1), prompt_R[:, None] + torch.arange(self.used)], 1)
            left = place_R <= (at_R - reach)[:, None]
            mask.view(self.N * self.G, -1)[self._slots()] += like.new_zeros(left.shape).masked_fill_(beside(left, like), float("-inf"))
        return mask[:, None, :, None]

    def attend(self, layer: int, scoring: Scoring, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(R, K * r, D) scaled queries and (R, K, D) new keys and values -> (R, K * r * D)."""
        keys, values = self.keys[layer], self.values[layer]
        if self.level:
            keys[..., self.used - 1], values[..., self.used - 1, :] = self._to_slots(k), self._to_slots(v)
        else:
            keys[self.n, :, self.g, :, self.length_R], values[self.n, :, self.g, self.length_R] = k, v
        prefix_k, prefix_v = self.prefix_k[layer], self.prefix_v[layer]
        P = prefix_k.shape[-1]
        q = self._to_slots(q.unflatten(1, (k.shape[1], -1))).contiguous()
        on_prefix = (q.flatten(2, 3) @ prefix_k).unflatten(2, (self.G, -1))
        on_suffix = q @ keys[..., : self.used]
        scores = capped(torch.cat([on_prefix, on_suffix], -1), scoring.cap)
        if (mask := self._mask(scoring.window)) is not None:
            scores += mask
        weights = torch.softmax(scores, -1)
        out = (weights[..., :P].flatten(2, 3) @ prefix_v).unflatten(2, (self.G, -1))
        out += weights[..., P:] @ values[:, :, :, : self.used]
        out = out.transpose(1, 2).reshape(self.N * self.G, -1)
        return out if self.slot_R is None else out[self.slot_R]

    def end(self) -> None:
        self.length_R = self.length_R + 1

    def _to_slots(self, x_RK: Tensor) -> Tensor:
        """(R, K, ...) -> (N, K, G, ...), unused slots zero."""
        if self.slot_R is not None:
            x_RK = x_RK.new_zeros(self.N * self.G, *x_RK.shape[1:]).index_copy_(0, self.slot_R, x_RK)
        return x_RK.unflatten(0, (self.N, self.G)).transpose(1, 2)


@torch.no_grad()
def step(weights: Weights, cohorts: Sequence[Cohort], tokens: Sequence[Tensor]) -> list[Tensor]:
    """Append one token to every row of every cohort; returns the logits (R, V) of the next one, in float32."""
    sizes = [c.R for c in cohorts]
    K, D, eps = weights.kv_heads, weights.head_size, weights.eps
    x = weights.embed(torch.cat(list(tokens)))
    turn = torch.cat([c.begin() for c in cohorts])
    for i, w in enumerate(weights.layers):
        h = _unit(x, eps)
        qkv = _linear(h, w.qkv, w.qkv_bias).unflatten(-1, (-1, D))
        qk, v = qkv[:, :-K], qkv[:, -K:]
        if w.qk_norm is not None:
            qk = _unit(qk, eps) * w.qk_norm
        qk = _turned(qk, turn)
        sides = zip(cohorts, qk[:, :-K].split(sizes), qk[:, -K:].split(sizes), v.split(sizes))
        o = [c.attend(i, w.scoring, *qkv_c) for c, *qkv_c in sides]
        x = _added(x, o[0] if len(o) == 1 else torch.cat(o), w.out, w.out_bias, w.attended, eps)
        gate, up = _linear(_unit(x, eps), w.gate_up, w.gate_up_bias).chunk(2, -1)
        x = _added(x, weights.act(gate).mul_(up), w.down, w.down_bias, w.mixed, eps)
    for c in cohorts:
        c.end()
    return list(capped(F.linear(_unit(x, eps) * weights.norm, weights.head).float(), weights.cap).split(sizes))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight if bias is None else torch.addmm(bias, x, weight)


def _added(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, norm: Tensor | None, eps: float) -> Tensor:
    """x plus the product of y, normalised where the family does so."""
    if bias is None and norm is None:
        return torch.addmm(x, y, weight)
    z = _linear(y, weight, bias)
    return x + (z if norm is None else _unit(z, eps) * norm)


def _unit(x: Tensor, eps: float) -> Tensor:
    """x / √(Σ x² + C eps): RMSNorm without its weight and without √C."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return x * length.square_().add_(x.shape[-1] * eps).rsqrt_().to(x.dtype)


def _turned(x_RHD: Tensor, turn: Tensor) -> Tensor:
    """Rotate each pair of coordinates."""
    pairs = x_RHD.to(turn.dtype.to_real()).unflatten(-1, (-1, 2))
    return torch.view_as_real(torch.view_as_complex(pairs) * turn).flatten(-2).to(x_RHD.dtype)
