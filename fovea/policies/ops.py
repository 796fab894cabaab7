"""Norm, rotary embedding and gated MLP with fused backwards, shared by the direct text and vision loops."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def beside(x: Tensor, other: Tensor) -> Tensor:
    """`x` on the device of `other`; as it is where either has a shape and no data (`fovea.trace`), because indices are read there."""
    return x if x.is_meta or other.is_meta or x.device == other.device else x.to(other.device)


def norm(module: Any, x: Tensor) -> Tensor:
    """A family's LayerNorm or RMSNorm; RMSNorm in full precision with a fused backward."""
    if x.dtype in (torch.float32, torch.float64) and (rms := rms_parts(module)) is not None:
        return _RMSNorm.apply(x, *rms)
    return module(x)


def rms_parts(module: Any) -> tuple[Tensor, float] | None:
    """(weight, eps) of an RMSNorm; Gemma's stores the weight's distance from one. None for another norm."""
    if hasattr(module, "variance_epsilon"):
        return module.weight, module.variance_epsilon
    if type(module).__name__ in ("GemmaRMSNorm", "Gemma2RMSNorm"):
        return 1 + module.weight, module.eps
    return None


def rotate(x_LHD: Tensor, cos_LD: Tensor, sin_LD: Tensor) -> Tensor:
    """Rotary embedding: x cos + (-x₂, x₁) sin, for `cos` and `sin` whose two halves are equal."""
    return _Rotate.apply(x_LHD, cos_LD[:, None], sin_LD[:, None])


def mlp(module: Any, x_LC: Tensor) -> Tensor:
    """A family's MLP; one of plain linear layers gated by SiLU keeps two of its four intermediate results and makes the others again."""
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not (all(type(p) is nn.Linear for p in parts) and type(module.act_fn).__name__ in ("SiLU", "SiLUActivation")):
        return module(x_LC)
    return _GatedMLP.apply(x_LC, *(t for p in parts for t in (p.weight, p.bias)))  # pyright: ignore[reportOptionalMemberAccess]


class _RMSNorm(torch.autograd.Function):
    """y = w x̂ with x̂ = r x, r = 1 / rms(x).

    Backward: dx = r (g w - x̂ mean(g w x̂)). LayerNorm's kernel, told that the mean is 0, subtracts r mean(g w) besides; it is added back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rstd = (torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_() / x.shape[-1] + eps).rsqrt_()
        ctx.save_for_backward(x, weight, rstd)
        return (x * rstd).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, rstd = ctx.saved_tensors
        grad, C = grad.contiguous(), x.shape[-1]
        dx, dw, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x.contiguous(), [C], torch.zeros_like(rstd), rstd, weight, None, [True, ctx.needs_input_grad[1], False]
        )
        return dx.add_((grad @ weight)[..., None] * (rstd / C)), dw, None


class _GatedMLP(torch.autograd.Function):
    """y = W_d (silu(W_g x) * W_u x), with biases where there are any."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w_g: Tensor, b_g: Any, w_u: Tensor, b_u: Any, w_d: Tensor, b_d: Any) -> Tensor:
        gate, up = F.linear(x, w_g, b_g), F.linear(x, w_u, b_u)
        ctx.save_for_backward(x, gate, up, w_g, w_u, w_d)
        return F.linear(F.silu(gate).mul_(up), w_d, b_d)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, gate, up, w_g, w_u, w_d = ctx.saved_tensors
        needed = ctx.needs_input_grad
        opened = F.silu(gate)
        d_wd = grad.t() @ (opened * up) if needed[5] else None
        d_mixed = grad @ w_d
        d_up = opened.mul_(d_mixed)
        d_gate = torch.ops.aten.silu_backward(d_mixed.mul_(up), gate)
        dx = (d_gate @ w_g).addmm_(d_up, w_u) if needed[0] else None
        weights = [d.t() @ x if n else None for d, n in ((d_gate, needed[1]), (d_up, needed[3]))]
        biases = [d.sum(0) if n else None for d, n in ((d_gate, needed[2]), (d_up, needed[4]), (grad, needed[6]))]
        return dx, weights[0], biases[0], weights[1], biases[1], d_wd, biases[2]


class _Rotate(torch.autograd.Function):
    """The backward of a rotation is the rotation by the opposite angle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, -sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out
