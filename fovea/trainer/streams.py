"""The global generators of Python, NumPy and torch.

Fovea itself draws from none of them: its draws are addressed by (seed, step, task, ...). A user's reward, environment or callback may, so
a run seeds them once and checkpoints hold their states.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

States = dict[str, Tensor]


def seed(seed: int, rank: int = 0) -> None:
    """Start every generator from an address."""
    words = np.random.SeedSequence([seed, rank]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002 - user code that draws from the global generator is what this is for
    torch.manual_seed(int(words[2]))


def capture() -> States:
    """The state of every generator."""
    version, words, gauss = random.getstate()
    _, keys, at, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    nan = float("nan")
    out = {
        "python": torch.tensor([version, *words]),
        "python.gauss": torch.tensor(nan if gauss is None else gauss, dtype=torch.float64),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy.at": torch.tensor([int(at), int(has_gauss)]),
        "numpy.gauss": torch.tensor(float(cached), dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        out |= {f"cuda.{i}": x for i, x in enumerate(torch.cuda.get_rng_state_all())}
    return out


def restore(states: Mapping[str, Tensor]) -> None:
    """Put captured states back; those of devices that are not here are left out."""
    version, *words = states["python"].tolist()
    gauss = float(states["python.gauss"])
    random.setstate((version, tuple(words), None if gauss != gauss else gauss))
    at, has_gauss = states["numpy.at"].tolist()
    keys = states["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, at, has_gauss, float(states["numpy.gauss"])))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    for i in range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0):
        if f"cuda.{i}" in states:
            torch.cuda.set_rng_state(states[f"cuda.{i}"], i)
