"""Log-probability and entropy straight from hidden states: logits exist for one block of rows at a time, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fovea.policies.ops import beside

BLOCK = 1 << 24
"""Logits per block (64 MB in float32)."""


def logp_and_entropy(
    hidden_SC: Tensor,
    weight_VC: Tensor,
    source_M: Tensor,
    token_M: Tensor,
    banned: Tensor,
    temperature: float,
    entropy: bool,
    cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """(M,) log-probability of each token and (M,) entropy in nats of the distribution that it was drawn from.

    Args:
      hidden_SC: hidden states after the final norm.
      weight_VC: rows of the language-model head.
      source_M: which hidden state predicts unit m; several units may share one (the first tokens of a prompt's answers).
      token_M: the token chosen at unit m.
      banned: ids that can never be chosen.
      temperature: divides the logits.
      entropy: whether the entropy is wanted; zeros otherwise.
      cap: logits are cap * tanh(logit / cap), before the temperature.
    """
    order = source_M.argsort(stable=True)
    out = _Head.apply(hidden_SC, weight_VC, source_M[order], token_M[order], banned, temperature, entropy, cap)
    inverse = order.argsort()
    return out[0][inverse], out[1][inverse]


class _Head(torch.autograd.Function):
    """Units sorted by source, so that a block of hidden states owns a contiguous run of units."""

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        w: Tensor,
        source: Tensor,
        token: Tensor,
        banned: Tensor,
        temperature: float,
        entropy: bool,
        cap: float | None,
    ):
        dtype = torch.promote_types(h.dtype, torch.float32)
        logp, ent = h.new_zeros(len(source), dtype=dtype), h.new_zeros(len(source), dtype=dtype)
        ctx.save_for_backward(h, w, source, token, banned)
        ctx.temperature, ctx.entropy, ctx.cap = temperature, entropy, cap
        for rows, units in _blocks(h, w, source):
            z = _logits(h[rows], w, banned, temperature, cap)
            lse = z.logsumexp(-1)
            at = source[units] - rows.start
            logp[units] = z[at, token[units]] - lse[at]
            if entropy:
                ent[units] = (lse - _expected(z, lse[:, None]))[at]
        return logp, ent

    @staticmethod
    def backward(ctx: Any, grad_logp: Tensor, grad_ent: Tensor):  # type: ignore[override]
        h, w, source, token, banned = ctx.saved_tensors
        dh, dw = torch.zeros_like(h), torch.zeros_like(w) if ctx.needs_input_grad[1] else None
        for rows, units in _blocks(h, w, source):
            z = _logits(h[rows], w, banned, ctx.temperature, ctx.cap)
            slope = _slope(z, ctx.temperature, ctx.cap)
            lse = z.logsumexp(-1, keepdim=True)
            at = source[units] - rows.start
            g = z.new_zeros(len(z)).index_add_(0, at, grad_logp[units])[:, None]
            p = (z - lse).exp_()
            if ctx.entropy:
                # d entropy / d z = -p (z - E[z]); a banned id has p = 0 and z = -inf.
                e = z.new_zeros(len(z)).index_add_(0, at, grad_ent[units])[:, None]
                finite = z.masked_fill(z == float("-inf"), 0)
                dz = -p * (g + e * (finite - (p * finite).sum(-1, keepdim=True)))
            else:
                dz = p.mul_(-g)
            dz.index_put_((at, token[units]), grad_logp[units], accumulate=True)
            dz = dz.div_(ctx.temperature)
            dz = (dz if slope is None else dz.mul_(slope)).to(h.dtype)
            dh[rows] = dz @ w
            if dw is not None:
                dw.addmm_(dz.t(), h[rows])
        return dh, dw, *[None] * 6


def _blocks(h: Tensor, w: Tensor, source: Tensor) -> list[tuple[slice, slice]]:
    step = max(1, BLOCK // len(w))
    starts = list(range(0, len(h), step))
    edges = torch.searchsorted(source, beside(torch.tensor([*starts, len(h)]), source)).tolist()
    return [(slice(a, min(a + step, len(h))), slice(edges[i], edges[i + 1])) for i, a in enumerate(starts)]


def _logits(h: Tensor, w: Tensor, banned: Tensor, temperature: float, cap: float | None) -> Tensor:
    z = capped((h @ w.t()).to(torch.promote_types(h.dtype, torch.float32)), cap)
    return z.div_(temperature).index_fill_(-1, banned, float("-inf"))


def capped(z: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(z / cap), in place."""
    return z if cap is None else z.div_(cap).tanh_().mul_(cap)


def _slope(z: Tensor, temperature: float, cap: float | None) -> Tensor | None:
    """What the cap multiplies the logits' gradient by; zero for banned ids."""
    if cap is None:
        return None
    return (1 - (z * (temperature / cap)).square_()).masked_fill_(z == float("-inf"), 0)


def _expected(z: Tensor, lse: Tensor) -> Tensor:
    """E[z] under the softmax, a banned id counting nothing."""
    return ((z - lse).exp() * z.masked_fill(z == float("-inf"), 0)).sum(-1)
