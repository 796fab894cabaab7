"""What there is: recipes, methods, verifiers and task families, as plain rows for people and programs."""

from __future__ import annotations

from importlib import import_module
from typing import Any

KINDS = ("recipes", "methods", "verifiers", "tasks")


def registry(kind: str) -> list[dict[str, Any]]:
    """Rows ``{"name", "summary", ...}`` of one kind."""
    if kind == "recipes":
        from fovea import recipes

        return [{"name": n, "summary": recipes.summary(n)} for n in recipes.names()]
    if kind == "methods":
        from fovea import methods

        return [_row(n, import_module(where.partition(":")[0])) for n, where in methods.METHODS.items()]
    if kind == "verifiers":
        from fovea.verifiers import VERIFIERS

        return [_row(n, v) for n, v in VERIFIERS.items()]
    from fovea.tasks.worlds import FAMILIES

    return [{"name": f.name, "summary": f.doc} for f in FAMILIES.values()]


def _row(name: str, thing: Any) -> dict[str, Any]:
    doc = (getattr(thing, "__doc__", None) or type(thing).__doc__ or "").strip()
    return {"name": name, "summary": doc.split("\n")[0].rstrip(".")}
