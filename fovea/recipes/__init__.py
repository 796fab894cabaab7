"""One file per system, named by its slug: `tiny` runs on a laptop, `real` on a GPU, `CLAIM` says what should come out.

A file may hold further recipes, such as `warm`, whose result another recipe starts from (`fovea.starts`).
"""

from __future__ import annotations

import difflib
import pkgutil
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from fovea.methods import METHODS
from fovea.systems import load, module_name

if TYPE_CHECKING:
    from fovea.recipe import Recipe


@cache
def slugs() -> tuple[str, ...]:
    """The slug of every file here: methods in their order, then by name; a published system's as the registry writes it."""
    written = {module_name(s.slug): s.slug for s in load()}
    found = sorted(m.name for m in pkgutil.iter_modules(__path__))
    return tuple(written.get(m, m) for m in (*(m for m in METHODS if m in found), *(m for m in found if m not in METHODS)))


def names() -> list[str]:
    """Every name that `get` takes: a slug for the laptop form, ``slug:real`` for the full-size one, ``slug:NAME`` for another one there."""
    return [n for slug in slugs() for n in (slug, *(f"{slug}:{size}" for size in _sizes(slug) if size != "tiny"))]


def get(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
      ValueError: no such recipe; the message holds the nearest and all names.
    """
    slug, _, size = name.partition(":")
    if slug not in slugs() or (size or "tiny") not in _sizes(slug):
        near = difflib.get_close_matches(name, names(), n=1)
        raise ValueError(f"no recipe {name!r}{f', did you mean {near[0]!r}?' if near else ''}; there are: {', '.join(names())}")
    return getattr(_module(slug), size or "tiny")


def summary(name: str) -> str:
    """The first line of a recipe's file, with its size."""
    slug, _, size = name.partition(":")
    first = (_module(slug).__doc__ or "").strip().split("\n")[0].rstrip(".")
    return first + {"": "", "real": " (full size)"}.get(size, f" ({size})")


def _sizes(slug: str) -> list[str]:
    """The names of the recipes in a file, as they stand there."""
    from fovea.recipe import Recipe

    return [name for name, thing in vars(_module(slug)).items() if isinstance(thing, Recipe)]


def _module(slug: str):
    return import_module(f"fovea.recipes.{module_name(slug)}")
