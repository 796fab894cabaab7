"""Models that make samples by denoising, as `Recipe.model` names them.

    "denoiser"          a small one (`fovea.policies.denoiser`), made for the data: their source says what is drawn (`canvas`)
    "diffusers:NAME"    Stable Diffusion (`fovea.policies.pipeline`) from a folder or a hub id; needs the extra `diffusers`

A folder that one of them was saved to says in its config.json which it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SMALL, LARGE = "denoiser", "diffusers"


def kind(model: str | Path) -> str:
    """ "denoiser", "diffusers", or "" for every other model."""
    name = str(model).partition(":")[0]
    if name in (SMALL, LARGE):
        return name
    try:
        found = json.loads(Path(model, "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return found["kind"] if isinstance(found, dict) and found.get("kind") in (SMALL, LARGE) else ""


def load(model: str | Path, source: Any = None, seed: int = 0, **options: Any) -> Any:
    """A policy (`fovea.policies.chain.GaussianChain`) from its name or its folder.

    Args:
      source: of the tasks, for which a model by name is made; seed: of its first weights.
      options: dtype, device, gradient_checkpointing; the small model has none.
    Raises:
      ValueError: "denoiser" for a source that does not say what is drawn, or options that it does not have.
    """
    if kind(model) == LARGE:
        from fovea.policies.pipeline import Pipeline

        return Pipeline.load(str(model), **options)
    import torch

    from fovea.policies.denoiser import Denoiser

    asked = {"dtype": "float32", "device": "cpu"}
    if wrong := [f"{k} = {options[k]!r}, expected {v!r}" for k, v in asked.items() if options.get(k, v) != v]:
        raise ValueError(f"model 'denoiser' with {'; '.join(wrong)}")
    if str(model) != SMALL:
        return Denoiser.load(model)
    if not hasattr(source, "canvas"):
        raise ValueError("model 'denoiser' is made for tasks whose source says what is drawn; expected data such as 'spots:400'")
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return Denoiser(source.canvas)
