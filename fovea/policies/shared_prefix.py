"""Attention over one packed row [prefix_1 .. prefix_N | answers of prefix 1 | answers of prefix 2 | ...], each prefix computed once.

Two streams: a prefix attends to itself, causally or (`Layout.prefix_lm`) in both directions; an answer attends to its whole prefix and
causally to itself. Layers may cap their scores or see a sliding window only (`Scoring`). The two halves of an answer's attention run as
separate flash calls and are merged by their log-sum-exp, so nothing quadratic in (answers x answers) is formed:

    lse = log(exp(lse_p) + exp(lse_o)),   out = exp(lse_p - lse) out_p + exp(lse_o - lse) out_o.

Backward needs no derivative of the merge: with the merged `out` and `lse`, the weights that a flash backward recomputes, exp(s - lse), are
already the joint softmax, so each half's backward gives its exact share of the gradient (as in ring attention).

Token-major shapes: L packed tokens, H heads, K key-value heads, R = H / K, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from fovea.policies.ops import beside

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
      prefix_lm: a prefix attends to itself in both directions.
      tail: queries are only the last token of each prefix and all answer tokens; keys and values are those of the full layout.
    """

    prefix: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]
    prefix_lm: bool = False
    tail: bool = False

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence: a prefix and one of its answers."""
        return max((p + max(rows, default=0) for p, rows in zip(self.prefix, self.rows)), default=0)

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

    def buckets_beside(self, x: Tensor) -> tuple[Bucket, ...]:
        """`buckets` on the device of `x`, moved there once."""
        held: dict[Any, tuple[Bucket, ...]] = self.__dict__.setdefault("_placed", {})
        if x.device not in held:
            moved = ((b.shape, beside(b.take, x), None if b.valid is None else beside(b.valid, x)) for b in self.buckets)
            held[x.device] = tuple(Bucket(*b) for b in moved)
        return held[x.device]

    def tailed(self) -> Layout:
        return replace(self, tail=True)


class Scoring(NamedTuple):
    """How a layer turns products of queries and keys into scores.

    Attributes:
      scale: factor of the products.
      cap: scores are cap * tanh(score / cap).
      window: a token sees the `window` last tokens up to itself; in a `prefix_lm` layout the prefix sees all of itself even so.
    """

    scale: float
    cap: float | None = None
    window: int | None = None

    def hides(self, layout: Layout) -> bool:
        """Whether the window is short enough to hide anything."""
        return self.window is not None and layout.longest > self.window

    def mask(self, query_at: Tensor, key_at: Tensor) -> Tensor:
        """(queries, keys) 0 or -inf for tokens at these places of one sequence, causal and within the window."""
        behind = query_at[:, None] - key_at
        hidden = (behind < 0) | (behind >= (self.window or len(key_at) + len(query_at)))
        return torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))


def shared_prefix_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    layout: Layout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """The function behind `NAME` in transformers' attention interface; the family's ordinary attention when no `layout` is passed.

    Args:
      query: (1, H, L, D); key, value: (1, K, L, D).
    Returns:
      (1, L, H, D) and no attention weights.
    """
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, softcap=softcap, **kwargs)
    return two_streams(query[0], key[0], value[0], layout, Scoring(scaling, softcap, sliding_window))[None], None


AttentionInterface.register(NAME, shared_prefix_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def two_streams(q_HLD: Tensor, k_KLD: Tensor, v_KLD: Tensor, layout: Layout, scoring: Scoring) -> Tensor:
    """(H, Lq, D) queries, (K, L, D) keys and values -> (Lq, H, D)."""
    return _TwoStreams.apply(q_HLD, k_KLD, v_KLD, layout, scoring)


class _TwoStreams(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout, scoring: Scoring) -> Tensor:
        H, Lq, D = q.shape
        out = q.new_empty(Lq, H, D).transpose(0, 1)
        lse = torch.empty(Lq, H, dtype=torch.promote_types(q.dtype, torch.float32), device=q.device).t()
        R = H // k.shape[0]
        for a, b, part, causal in _prefix_parts(layout, scoring):
            out_p, lse_p = flash(_split(q[:, part], R), _share(k[:, a:b], R), _share(v[:, a:b], R), causal, scoring)
            out[:, part], lse[:, part] = out_p.flatten(0, 1), lse_p.flatten(0, 1)
        answers = slice(layout.head, Lq)
        ky, vy = k[:, layout.prefix_tokens :], v[:, layout.prefix_tokens :]
        for bucket in layout.buckets_beside(q):
            causal = _own(bucket, layout, scoring)
            out_o, lse_o = flash(_block(q[:, answers], bucket), _block(ky, bucket, R), _block(vy, bucket, R), causal, scoring)
            _merge(out[:, answers], lse[:, answers], out_o, lse_o, bucket)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.layout, ctx.scoring = layout, scoring
        return out.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, grad_LHD: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, lse = ctx.saved_tensors
        layout, scoring, grad = ctx.layout, ctx.scoring, grad_LHD.transpose(0, 1)
        R = q.shape[0] // k.shape[0]
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for a, b, part, causal in _prefix_parts(layout, scoring):
            saved = _split(out[:, part], R), _split(lse[:, part], R)
            sides = _split(q[:, part], R), _share(k[:, a:b], R), _share(v[:, a:b], R)
            gq, gk, gv = flash_backward(_split(grad[:, part], R), *sides, *saved, causal, scoring)
            dq[:, part] += gq.flatten(0, 1)
            dk[:, a:b] += gk.sum(1)
            dv[:, a:b] += gv.sum(1)
        answers, keys = slice(layout.head, q.shape[1]), slice(layout.prefix_tokens, k.shape[1])
        for bucket in layout.buckets_beside(q):
            sides = _block(q[:, answers], bucket), _block(k[:, keys], bucket, R), _block(v[:, keys], bucket, R)
            g = _block(grad[:, answers], bucket)
            if bucket.valid is not None:
                g = g * bucket.valid.view(bucket.shape[0], 1, bucket.shape[1], 1)
            saved = _block(out[:, answers], bucket), _block(lse[:, answers], bucket)
            gq, gk, gv = flash_backward(g, *sides, *saved, _own(bucket, layout, scoring), scoring)
            _add(dq[:, answers], gq, bucket)
            _add(dk[:, keys], _fold(gk, R), bucket)
            _add(dv[:, keys], _fold(gv, R), bucket)
        return dq, dk, dv, None, None


def _prefix_parts(layout: Layout, scoring: Scoring) -> list[tuple[int, int, slice, bool | Tensor]]:
    """(key start, key stop, queries, causal or a mask): each prefix on itself, then its answers on the prefix."""
    shift = layout.head - layout.prefix_tokens
    hides = scoring.hides(layout)
    parts = []
    for n, (a, b, c, d) in enumerate(layout.spans):
        at = torch.arange(b - a)
        own: bool | Tensor = not layout.tail and not layout.prefix_lm
        if hides and not layout.prefix_lm:
            own = scoring.mask(at[-1:] if layout.tail else at, at)
        parts.append((a, b, slice(n, n + 1) if layout.tail else slice(a, b), own))
        if d > c:
            answers_at = b - a + torch.cat([torch.arange(t) for t in layout.rows[n]])
            parts.append((a, b, slice(c + shift, d + shift), scoring.mask(answers_at, at) if hides else False))
    return parts


def _own(bucket: Bucket, layout: Layout, scoring: Scoring) -> bool | Tensor:
    """Causal, or the mask of answers on themselves."""
    at = torch.arange(bucket.shape[1])
    return scoring.mask(at, at) if scoring.hides(layout) else True


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


def flash(q: Tensor, k: Tensor, v: Tensor, causal: bool | Tensor, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """(B, H, S, D) attention and its log-sum-exp (B, H, S); a query that sees no key gives 0 and -inf.

    Args:
      causal: whether query i sees keys 0 to i only, or an additive mask (queries, keys).
    """
    masked = isinstance(causal, Tensor)
    if q.device.type in ("cpu", "meta") and scoring.cap is None:
        mask = causal.to(q.dtype) if masked else None
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = attend(q, k, v, 0.0, not masked and causal, attn_mask=mask, scale=scoring.scale)
    else:
        s, _ = _scores(q, k, causal, scoring)
        lse = s.logsumexp(-1)
        out = (s - lse[..., None]).exp().to(v.dtype) @ v
    if masked and (blind := causal.amax(-1) < 0).any():
        blind = beside(blind, out)
        out, lse = out.masked_fill(blind[:, None], 0), lse.masked_fill(blind, float("-inf"))
    return out, lse


def flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool | Tensor, scoring: Scoring
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, given an output and a log-sum-exp that may cover more keys than these."""
    if q.device.type in ("cpu", "meta") and scoring.cap is None:
        masked = isinstance(causal, Tensor)
        mask = causal.to(q.dtype) if masked else None
        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        return backward(grad, q, k, v, out, lse, 0.0, not masked and causal, attn_mask=mask, scale=scoring.scale)
    s, slope = _scores(q, k, causal, scoring)
    p = (s - lse[..., None]).exp()
    delta = (grad.to(p.dtype) * out.to(p.dtype)).sum(-1, keepdim=True)
    ds = p * ((grad @ v.transpose(-1, -2)).to(p.dtype) - delta) * scoring.scale
    ds = (ds if slope is None else ds * slope).to(q.dtype)
    return ds @ k, ds.transpose(-1, -2) @ q, p.to(grad.dtype).transpose(-1, -2) @ grad


def _scores(q: Tensor, k: Tensor, causal: bool | Tensor, scoring: Scoring) -> tuple[Tensor, Tensor | None]:
    """Masked scores, and what the cap multiplies their gradient by (None without one)."""
    s = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * scoring.scale
    slope = None
    if scoring.cap is not None:
        s = (s / scoring.cap).tanh()
        slope, s = 1 - s.square(), s * scoring.cap
    if isinstance(causal, Tensor):
        s = s + causal.to(s)
    elif causal:
        s = s.masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool, device=s.device).triu(1), float("-inf"))
    return s, slope
