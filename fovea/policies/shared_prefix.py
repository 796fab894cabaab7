"""Attention over one packed row [prefix_1 .. prefix_N | answers of prefix 1 | answers of prefix 2 | ...], each prefix computed once.

Two streams: a prefix attends to itself causally; an answer attends to its whole prefix and causally to itself. The two halves of an
answer's attention run as separate flash calls and are merged by their log-sum-exp, so nothing quadratic in (answers x answers) is formed:

    lse = log(exp(lse_p) + exp(lse_o)),   out = exp(lse_p - lse) out_p + exp(lse_o - lse) out_o.

Backward needs no derivative of the merge: with the merged `out` and `lse`, the weights that a flash backward recomputes, exp(s - lse), are
already the joint softmax, so each half's backward gives its exact share of the gradient (as in ring attention).

Token-major shapes: L packed tokens, H heads, K key-value heads, R = H / K, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "fovea_shared_prefix"


class Bucket(NamedTuple):
    """Answers of similar length, padded to a (rows, longest) block.

    Attributes:
      shape: (rows, longest).
      take: (rows * longest,) packed index of each cell; padding repeats the row's last token, whose log-sum-exp covers every key.
      valid: cells that are not padding, or None when all are.
    """

    shape: tuple[int, int]
    take: Tensor
    valid: Tensor | None


@dataclass(frozen=True)
class Layout:
    """Where everything lies in the packed row.

    Attributes:
      prefix: length of each prefix.
      rows: for each prefix, the lengths of its answers (zero is allowed).
      tail: queries are only the last token of each prefix and all answer tokens; keys and values are those of the full layout.
    """

    prefix: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]
    tail: bool = False

    @cached_property
    def prefix_tokens(self) -> int:
        return sum(self.prefix)

    @cached_property
    def row_tokens(self) -> int:
        return sum(map(sum, self.rows))

    @cached_property
    def head(self) -> int:
        """Number of prefix queries: where the answers begin among the queries."""
        return len(self.prefix) if self.tail else self.prefix_tokens

    @cached_property
    def spans(self) -> tuple[tuple[int, int, int, int], ...]:
        """(start, stop) of each prefix and (start, stop) of its answers, both counted in the keys of the packed row."""
        spans, at, row = [], 0, self.prefix_tokens
        for length, rows in zip(self.prefix, self.rows):
            spans.append((at, at + length, row, row + sum(rows)))
            at, row = at + length, row + sum(rows)
        return tuple(spans)

    @cached_property
    def last(self) -> Tensor:
        """(N,) index of the last token of each prefix."""
        return torch.tensor(self.prefix).cumsum(0) - 1

    @cached_property
    def needed(self) -> Tensor:
        """Packed index of the tokens that a `tail` layout queries."""
        return torch.cat([self.last, torch.arange(self.prefix_tokens, self.prefix_tokens + self.row_tokens)])

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """Answers grouped by length within a factor of two; indices count from the first answer token."""
        lengths = [t for rows in self.rows for t in rows]
        starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
        groups: dict[int, list[int]] = {}
        for b, t in enumerate(lengths):
            if t:
                groups.setdefault((t - 1).bit_length(), []).append(b)
        buckets = []
        for members in groups.values():
            T = max(lengths[b] for b in members)
            start_B, length_B = torch.tensor([[starts[b], lengths[b]] for b in members]).unbind(1)
            cell_T = torch.arange(T)
            take = start_B[:, None] + torch.minimum(cell_T, length_B[:, None] - 1)
            valid = cell_T < length_B[:, None]
            buckets.append(Bucket((len(members), T), take.flatten(), None if valid.all() else valid.flatten()))
        return tuple(buckets)

    def tailed(self) -> Layout:
        return Layout(self.prefix, self.rows, tail=True)


def shared_prefix_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    layout: Layout | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """The function behind `NAME` in transformers' attention interface; an ordinary SDPA call when no `layout` is passed.

    Args:
      query: (1, H, L, D); key, value: (1, K, L, D).
    Returns:
      (1, L, H, D) and no attention weights.
    """
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return two_streams(query[0], key[0], value[0], layout, scaling)[None], None


AttentionInterface.register(NAME, shared_prefix_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def two_streams(q_HLD: Tensor, k_KLD: Tensor, v_KLD: Tensor, layout: Layout, scale: float) -> Tensor:
    """(H, Lq, D) queries, (K, L, D) keys and values -> (Lq, H, D)."""
    return _TwoStreams.apply(q_HLD, k_KLD, v_KLD, layout, scale)


class _TwoStreams(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> Tensor:
        H, Lq, D = q.shape
        out = q.new_empty(Lq, H, D).transpose(0, 1)
        lse = torch.empty(Lq, H, dtype=torch.promote_types(q.dtype, torch.float32), device=q.device).t()
        R = H // k.shape[0]
        for a, b, part, causal in _prefix_parts(layout):
            out_p, lse_p = flash(_split(q[:, part], R), _share(k[:, a:b], R), _share(v[:, a:b], R), causal, scale)
            out[:, part], lse[:, part] = out_p.flatten(0, 1), lse_p.flatten(0, 1)
        answers = slice(layout.head, Lq)
        ky, vy = k[:, layout.prefix_tokens :], v[:, layout.prefix_tokens :]
        for bucket in layout.buckets:
            out_o, lse_o = flash(_block(q[:, answers], bucket), _block(ky, bucket, R), _block(vy, bucket, R), True, scale)
            _merge(out[:, answers], lse[:, answers], out_o, lse_o, bucket)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.layout, ctx.scale = layout, scale
        return out.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, grad_LHD: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, lse = ctx.saved_tensors
        layout, scale, grad = ctx.layout, ctx.scale, grad_LHD.transpose(0, 1)
        R = q.shape[0] // k.shape[0]
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for a, b, part, causal in _prefix_parts(layout):
            saved = _split(out[:, part], R), _split(lse[:, part], R)
            sides = _split(q[:, part], R), _share(k[:, a:b], R), _share(v[:, a:b], R)
            gq, gk, gv = flash_backward(_split(grad[:, part], R), *sides, *saved, causal, scale)
            dq[:, part] += gq.flatten(0, 1)
            dk[:, a:b] += gk.sum(1)
            dv[:, a:b] += gv.sum(1)
        answers, keys = slice(layout.head, q.shape[1]), slice(layout.prefix_tokens, k.shape[1])
        for bucket in layout.buckets:
            sides = _block(q[:, answers], bucket), _block(k[:, keys], bucket, R), _block(v[:, keys], bucket, R)
            g = _block(grad[:, answers], bucket)
            if bucket.valid is not None:
                g = g * bucket.valid.view(bucket.shape[0], 1, bucket.shape[1], 1)
            gq, gk, gv = flash_backward(g, *sides, _block(out[:, answers], bucket), _block(lse[:, answers], bucket), True, scale)
            _add(dq[:, answers], gq, bucket)
            _add(dk[:, keys], _fold(gk, R), bucket)
            _add(dv[:, keys], _fold(gv, R), bucket)
        return dq, dk, dv, None, None


def _prefix_parts(layout: Layout) -> list[tuple[int, int, slice, bool]]:
    """(key start, key stop, queries, causal): each prefix on itself, then its answers on the prefix."""
    shift = layout.head - layout.prefix_tokens
    parts = []
    for n, (a, b, c, d) in enumerate(layout.spans):
        parts.append((a, b, slice(n, n + 1) if layout.tail else slice(a, b), not layout.tail))
        if d > c:
            parts.append((a, b, slice(c + shift, d + shift), False))
    return parts


def _split(x_HS: Tensor, R: int) -> Tensor:
    """(H, S, ...) -> (K, R, S, ...): the R query heads that read one key-value head side by side."""
    return x_HS.unflatten(0, (-1, R))


def _share(x_KSD: Tensor, R: int) -> Tensor:
    """(K, S, D) -> (K, R, S, D) without a copy."""
    return x_KSD[:, None].expand(-1, R, -1, -1)


def _block(x_HS: Tensor, bucket: Bucket, repeat: int = 1) -> Tensor:
    """(H, S, ...) -> (rows, H * repeat, longest, ...)."""
    x = x_HS.index_select(1, bucket.take).unflatten(1, bucket.shape).transpose(0, 1)
    return x if repeat == 1 else x.repeat_interleave(repeat, 1)


def _fold(x_BHTD: Tensor, R: int) -> Tensor:
    """(rows, H, T, D) -> (rows, K, T, D), summed over the heads that share a key."""
    return x_BHTD.unflatten(1, (-1, R)).sum(2)


def _add(into_HSD: Tensor, x_BHTD: Tensor, bucket: Bucket) -> None:
    x, take = x_BHTD.transpose(0, 1).flatten(1, 2), bucket.take
    if bucket.valid is not None:
        # A padded key repeats a real one but only padded queries see it, so its gradient is zero.
        x, take = x[:, bucket.valid], take[bucket.valid]
    into_HSD.index_add_(1, take, x.contiguous())


def _merge(out_HSD: Tensor, lse_HS: Tensor, out_BHTD: Tensor, lse_BHT: Tensor, bucket: Bucket) -> None:
    """Fold the answers' attention on themselves into their attention on the prefix, in place."""
    own, lse_own, take = out_BHTD.transpose(0, 1).flatten(1, 2), lse_BHT.transpose(0, 1).flatten(1, 2), bucket.take
    if bucket.valid is not None:
        own, lse_own, take = own[:, bucket.valid], lse_own[:, bucket.valid], take[bucket.valid]
    before, lse_before = out_HSD.index_select(1, take), lse_HS.index_select(1, take)
    share = torch.sigmoid(lse_own - lse_before)[..., None].to(own.dtype)
    out_HSD.index_copy_(1, take, torch.lerp(before, own, share))
    lse_HS.index_copy_(1, take, torch.logaddexp(lse_before, lse_own))


def flash(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """(B, H, S, D) attention and its log-sum-exp (B, H, S)."""
    if q.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
    s = _scores(q, k, causal, scale)
    lse = s.logsumexp(-1)
    return (s - lse[..., None]).exp().to(v.dtype) @ v, lse


def flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, given an output and a log-sum-exp that may cover more keys than these."""
    if q.device.type == "cpu":
        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        return backward(grad, q, k, v, out, lse, 0.0, causal, scale=scale)
    p = (_scores(q, k, causal, scale) - lse[..., None]).exp()
    delta = (grad.to(p.dtype) * out.to(p.dtype)).sum(-1, keepdim=True)
    ds = (p * ((grad @ v.transpose(-1, -2)).to(p.dtype) - delta) * scale).to(q.dtype)
    return ds @ k, ds.transpose(-1, -2) @ q, p.to(grad.dtype).transpose(-1, -2) @ grad


def _scores(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
    s = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * scale
    if causal:
        s = s.masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool, device=s.device).triu(1), float("-inf"))
    return s
