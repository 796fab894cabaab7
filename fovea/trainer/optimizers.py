"""Kinds of AdamW that need less memory on the device: 8-bit or paged moments by bitsandbytes, moments in host memory.

Chosen by `Recipe.optimizer` and `Recipe.offload`; the plain kinds are in `fovea.trainer.update`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from fovea.trainer.update import MasterAdamW

BITSANDBYTES = {"adamw_8bit": "AdamW8bit", "paged_adamw": "PagedAdamW32bit", "paged_adamw_8bit": "PagedAdamW8bit"}


def build(kind: str, offload: bool, trained: Sequence[nn.Parameter], **options: Any) -> torch.optim.Optimizer:
    """An optimizer over `trained`; 16-bit weights get float32 masters, as everywhere.

    Args:
      kind: "adamw" or a key of `BITSANDBYTES`.
      offload: keep moments and masters in host memory.
      options: lr, betas, weight_decay.
    Raises:
      ImportError: bitsandbytes is not installed.
      ValueError: paged moments without a GPU, or moments that are both offloaded and bitsandbytes' own.
    """
    if kind == "adamw":
        return OffloadedAdamW(trained, **options)
    if offload:
        raise ValueError(f"optimizer {kind!r} with offload of the optimizer: expected 'adamw' (paged kinds move by themselves)")
    if kind.startswith("paged") and not all(p.is_cuda for p in trained):
        raise ValueError(f"optimizer {kind!r} pages GPU memory and the weights are on {trained[0].device}; expected device 'cuda'")
    owner: Any = getattr(_bitsandbytes(kind).optim, BITSANDBYTES[kind])
    if any(p.dtype in (torch.bfloat16, torch.float16) for p in trained):
        owner = type(f"Master{owner.__name__}", (_Masters, owner), {})
    return owner(trained, **options)


class OffloadedAdamW(MasterAdamW):
    """AdamW whose moments and master weights wait in host memory; each parameter's visit the device for its own update.

    The arithmetic is done where the weights are and by the kernels that AdamW uses there, so the numbers are AdamW's.
    """

    def __init__(self, params: Sequence[nn.Parameter], **options: Any):
        low = list(params)
        torch.optim.AdamW.__init__(self, [_host(_precise(p.detach())).requires_grad_() for p in low], **options)
        self.low = low

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        (group,) = self.param_groups
        for low, master in zip(self.low, self.masters, strict=True):
            if low.grad is None:
                continue
            state = self.state[master]
            if not state:
                state.update(step=torch.tensor(0.0), exp_avg=_host(torch.zeros_like(master)), exp_avg_sq=_host(torch.zeros_like(master)))
            homes = master, state["exp_avg"], state["exp_avg_sq"]
            weight, first, second = (x.to(low.device) for x in homes)
            adamw(
                [weight],
                [low.grad.to(weight.dtype)],
                [first],
                [second],
                [],
                [state["step"]],
                foreach=False,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            for home, x in zip(homes, (weight, first, second)):
                home.copy_(x)
            low.copy_(weight)


class _Masters:
    """Before an optimizer class: it updates float32 copies, which are then written to the 16-bit weights."""

    def __init__(self, params: Sequence[nn.Parameter], **options: Any):
        self.low = list(params)
        super().__init__([p.detach().float().clone().requires_grad_() for p in self.low], **options)  # pyright: ignore[reportCallIssue]

    masters = MasterAdamW.masters
    zero_grad = MasterAdamW.zero_grad

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for low, master in zip(self.low, self.masters, strict=True):
            master.grad = None if low.grad is None else low.grad.float()
        super().step(closure)  # pyright: ignore[reportAttributeAccessIssue]
        for low, master in zip(self.low, self.masters, strict=True):
            master.grad = None
            low.data.copy_(master)


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32), copy=True)


def _host(x: Tensor) -> Tensor:
    x = x.cpu()
    return x.pin_memory() if torch.cuda.is_available() else x


def _bitsandbytes(kind: str) -> Any:
    try:
        import bitsandbytes
    except ImportError as e:
        raise ImportError(f"optimizer {kind!r} needs bitsandbytes ({e}); install it with: pip install 'fovea-rl[gpu]'") from e
    return bitsandbytes
