"""Activations that wait for the backward pass in host memory instead of on the device; freed host memory given back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

HOST = "cpu"
SMALL = 1 << 20
"""Bytes below which a tensor stays: moving it costs more than it frees."""


def activations(weights: Iterable[Tensor]) -> AbstractContextManager[Any]:
    """While entered, what autograd saves on a device is copied to host memory and fetched back when the backward pass needs it.

    Copies are exact. Weights, of which autograd saves references, stay where they are; so does everything when that is host memory already.
    """
    held = {w.untyped_storage().data_ptr() for w in weights}

    def pack(x: Tensor) -> Tensor | tuple[torch.device, Tensor]:
        if x.device.type == HOST or x.nbytes < SMALL or x.untyped_storage().data_ptr() in held:
            return x
        home = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda)
        return x.device, home.copy_(x, non_blocking=x.is_cuda)

    def unpack(packed: Tensor | tuple[torch.device, Tensor]) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        device, home = packed
        return home.to(device, non_blocking=True)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def return_freed_memory() -> None:
    """Ask the C library for the pages that it keeps of what a rollout has freed; after one, holes are a fifth of a small run's peak."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, others do not
    if trim is not None:
        trim(0)
