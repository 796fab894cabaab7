"""An observation of several parts, such as pictures of two cameras and joint angles, as one row of bytes.

So drivers, replays and checkpoints, which know arrays alone, keep what a robot senses as it is; the policy takes it apart again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Part:
    """One array of an observation. `kind` is "uint8", "float32" or "int64"."""

    name: str
    shape: tuple[int, ...]
    kind: str = "float32"

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.kind).itemsize


def pack(parts: Sequence[Part], values: Mapping[str, Any]) -> np.ndarray:
    """The values of one observation, uint8 (N,).

    Raises:
      ValueError: a value of another shape.
    """
    rows = []
    for p in parts:
        x = np.ascontiguousarray(values[p.name], dtype=p.kind)
        if x.shape != p.shape:
            raise ValueError(f"part {p.name!r}: found an array {x.shape}, expected {p.shape}")
        rows.append(x.reshape(-1).view(np.uint8))
    return np.concatenate(rows)


def unpack(parts: Sequence[Part], obs: Tensor) -> dict[str, Tensor]:
    """uint8 (..., N) -> each part (..., *shape)."""
    import torch

    out, at = {}, 0
    for p in parts:
        # a copy, because numbers of several bytes must lie at a multiple of their size
        row = obs[..., at : at + p.bytes].clone(memory_format=torch.contiguous_format)
        out[p.name] = row.view(getattr(torch, p.kind)).reshape(*obs.shape[:-1], *p.shape)
        at += p.bytes
    return out


def seen_in(obs: Any, parts: Sequence[Part] = ()) -> dict[str, np.ndarray]:
    """Camera -> picture, uint8 (..., H, W, 3), of observations (..., N) made of parts, or that are pictures; else none.

    Channels beyond three are cameras side by side, or a stack: each three are a picture, the last ones the newest.
    """
    x = np.asarray(obs)
    if parts:
        import torch

        found = unpack(parts, torch.from_numpy(x))
        return {p.name: found[p.name].numpy() for p in parts if len(p.shape) == 3 and p.kind == "uint8"}
    if x.dtype != np.uint8 or x.ndim < 3 or x.shape[-1] % 3:
        return {}
    count = x.shape[-1] // 3
    return {"" if count == 1 else str(i + 1): x[..., 3 * i : 3 * i + 3] for i in range(count)}
