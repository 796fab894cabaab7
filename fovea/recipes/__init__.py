"""One file per system, named by its slug: `tiny` runs on a laptop, `real` on a GPU. This index is the registry."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fovea.recipe import Recipe

RECIPES = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "remax", "reinforce_pp", "ppo", "sft", "dpo")


def names() -> list[str]:
    """Every name that `get` takes: a slug for the laptop form, ``slug:real`` for the full-size one."""
    return [n for slug in RECIPES for n in ([slug, f"{slug}:real"] if hasattr(_module(slug), "real") else [slug])]


def get(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
      ValueError: no such recipe; the message holds the nearest and all names.
    """
    slug, _, size = name.partition(":")
    if slug not in RECIPES or size not in ("", "tiny", "real") or not hasattr(_module(slug), size or "tiny"):
        near = difflib.get_close_matches(name, names(), n=1)
        raise ValueError(f"no recipe {name!r}{f', did you mean {near[0]!r}?' if near else ''}; there are: {', '.join(names())}")
    return getattr(_module(slug), size or "tiny")


def summary(name: str) -> str:
    """The first line of a recipe's file, with its size."""
    slug, _, size = name.partition(":")
    first = (_module(slug).__doc__ or "").strip().split("\n")[0].rstrip(".")
    return first + (" (full size)" if size == "real" else "")


def _module(slug: str):
    return import_module(f"fovea.recipes.{slug}")
