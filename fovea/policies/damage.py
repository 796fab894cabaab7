"""Checkpoints that cannot be read: what other libraries stumble over becomes one message that names the folder and, if found, the file."""

from __future__ import annotations

import contextlib
import json
import math
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open

PACKAGE = str(Path(__file__).resolve().parents[1])
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@contextlib.contextmanager
def named(folder: Path) -> Iterator[None]:
    """
    Raises:
      ValueError: in place of whatever else is raised inside. Our own messages, missing packages and too little memory stay as they are.
    """
    try:
        yield
    except (ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as e:
        odd = first_odd(folder)
        ours = isinstance(e, ValueError | OSError) and traceback.extract_tb(e.__traceback__)[-1].filename.startswith(PACKAGE)
        if (ours and not odd) or "can't allocate memory" in str(e):
            raise
        found = odd or f"{type(e).__name__}: {' '.join(str(e).split())[:400]}"
        raise ValueError(f"{folder}: found {found}; expected a checkpoint as save_pretrained writes it (truncated, or altered?)") from e


def check_size(folder: Path, build: Callable[[], torch.nn.Module]) -> None:
    """Refuse settings that ask for far more than the weights hold, as those do that lack their sizes, before memory is taken for it.

    Raises:
      ValueError: with both numbers of parameters.
    """
    with torch.device("meta"):
        asked = sum(p.numel() for p in build().parameters())
    held = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            held += sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
    if held and asked > 2 * held:
        raise ValueError(
            f"{folder}/config.json: found sizes of a model with {asked:,} parameters; expected those of the {held:,} that the weights hold "
            "(are fields missing?)"
        )


def first_odd(folder: Path) -> str:
    """The first file of a checkpoint that is wrong on its own, and why; "" where none is."""
    for file in sorted(folder.glob("*.json")):
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as e:
            return f"{file.name}, which is no JSON ({e})"
    weights = sorted(folder.glob("*.safetensors"))
    for file in weights:
        try:
            with safe_open(file, "pt") as opened:
                opened.keys()
        except Exception as e:
            return f"{file.name}, which is no safetensors file ({e})"
    pickled = [f.name for pattern in PICKLED for f in sorted(folder.glob(pattern))]
    return f"weights only in {pickled[0]}, which may hold code and is never opened" if pickled and not weights else ""
