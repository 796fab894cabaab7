"""Norm and rotary embedding with fused backwards, shared by the direct text and vision loops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
