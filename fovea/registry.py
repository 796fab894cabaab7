"""What there is: recipes, methods, verifiers and task families, as plain rows for people and programs."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

from fovea import systems
from fovea.ledger import rows as ledger

KINDS = ("recipes", "methods", "verifiers", "tasks", "envs", "taxonomy")


def registry(kind: str, tag: str = "") -> list[dict[str, Any]]:
    """Rows ``{"name", "summary", ...}`` of one kind.

    "methods" are our own objectives and recipes, then the published systems with all that the registry knows of them and their state;
    `tag` keeps the systems under one code of the taxonomy. "taxonomy" is the taxonomy itself, with counts.

    Raises:
      ValueError: a code that is not in the taxonomy.
    """
    if kind == "recipes":
        from fovea import recipes

        return [{"name": n, "summary": recipes.summary(n)} for n in recipes.names()]
    if kind == "methods":
        return methods(tag)
    if kind == "taxonomy":
        return systems.tree(systems.load())
    if kind == "verifiers":
        from fovea.verifiers import VERIFIERS

        return [_row(n, v) for n, v in VERIFIERS.items()]
    if kind == "envs":
        return environments()
    from fovea.tasks.worlds import FAMILIES

    return [{"name": f.name, "summary": f.doc} for f in FAMILIES.values()]


def environments() -> list[dict[str, Any]]:
    """Every environment with a name, then the simulators of array policies by namespace; what they need, whether they run here."""
    from fovea.envs.registered import SIMULATORS
    from fovea.envs.resolve import ENVIRONMENTS

    shown = ("summary", "example", "extra")
    return [
        {"name": n, "state": "missing" if (lacks := e.problem()) else "ready", "problem": lacks, "effect": lacks or f"e.g. {e.example}"}
        | {k: getattr(e, k) for k in shown}
        | {"needs": list(e.packages)}
        for n, e in (*ENVIRONMENTS.items(), *((f"gym:{n}", e) for n, e in SIMULATORS.items()))
    ]


def methods(tag: str = "") -> list[dict[str, Any]]:
    """Every objective and recipe of ours and every published system, with its state and what came out of its claim."""
    from fovea import recipes
    from fovea.methods import METHODS

    rows, registered = ledger.read_all(), {s.slug for s in systems.load()}
    own = {n: where.partition(":")[0].replace(".", "/") + ".py" for n, where in METHODS.items() if n not in registered}
    own |= {n: f"fovea/recipes/{n}.py" for n in recipes.slugs() if n not in own and n not in registered}
    found = [] if tag else [_own(name, file, rows.get(name)) for name, file in own.items()]
    for s in systems.tagged(systems.load(), tag) if tag else systems.load():
        shown = {"name": s.slug, "state": ledger.system_state(s, rows), "summary": s.essence, "effect": ledger.outcome(rows.get(s.slug))}
        found.append({**shown, "kind": "system", **dataclasses.asdict(s)})
    return found


def _own(name: str, file: str, row: dict[str, Any] | None) -> dict[str, Any]:
    """The row of an objective or a recipe of ours, read without importing its file (that would load torch)."""
    doc = ast.get_docstring(ast.parse((Path(__file__).parents[1] / file).read_text(encoding="utf-8"))) or ""
    shown = {"name": name, "state": ledger.state(file, row), "summary": doc.split("\n")[0].rstrip("."), "effect": ledger.outcome(row)}
    return {**shown, "kind": "own", "slug": name, "file": file}


def _row(name: str, thing: Any) -> dict[str, Any]:
    doc = (getattr(thing, "__doc__", None) or type(thing).__doc__ or "").strip()
    return {"name": name, "summary": doc.split("\n")[0].rstrip(".")}
