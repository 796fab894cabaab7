"""Pages of the site that are made from the code: a page for each method, the paper index, the reference.

Each function returns Markdown as of a page in docs/; `made` puts it where it belongs. Nothing here is committed: the sources are the
docstrings, the claims, the rows of the ledger and the registry.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from posixpath import normpath
from typing import Any

import equations
import generate

REFERENCE = {
    "Training, evaluation": ("fovea.api", "fovea.recipe", "fovea.rollout.sampling", "fovea.ledger.claim", "fovea.ledger.measures"),
    "Nouns and contracts": ("fovea.types", "fovea.checks", "fovea.batch"),
    "Tasks": ("fovea.tasks.load", "fovea.tasks.samplers", "fovea.tasks.gates"),
    "Verifiers": ("fovea.verifiers", "fovea.verifiers.core", "fovea.verifiers.answers", "fovea.verifiers.detection"),
    "Rollout": ("fovea.rollout.engine", "fovea.rollout.programs", "fovea.rollout.vector", "fovea.rollout.remote"),
    "Mathematics": tuple("fovea.math." + m for m in "advantages values ratios surrogates kl entropy aggregate rewards boxes clock".split()),
}
"""Page of the reference -> its modules; one that is not there is left out."""


def made(root: Path) -> dict[str, str]:
    """Every page that is made, by its place in the site."""
    out = {f"methods/{name}.md": down(method(root, name)) for name in names()}
    out["papers.md"] = papers(root)
    for title, modules in REFERENCE.items():
        slug = re.sub(r"\W+", "-", title.lower())
        out[f"reference/{slug}.md"] = reference(title, [m for m in modules if importlib.util.find_spec(m)])
    return out


def names() -> list[str]:
    """What has a page: the methods, then every other recipe there is."""
    from fovea import recipes
    from fovea.methods import METHODS

    return [*METHODS, *(slug for slug in recipes.slugs() if slug not in METHODS)]


def place(name: str) -> str:
    """The module whose docstring tells of a method or a recipe."""
    from fovea.methods import METHODS
    from fovea.systems import module_name

    return METHODS[name].partition(":")[0] if name in METHODS else f"fovea.recipes.{module_name(name)}"


def down(text: str) -> str:
    """Relative links of a page in docs/ as of a page one folder below."""
    return re.sub(r"(?<=\]\()(?!https?:|#)([^)\s]+)(?=\))", lambda m: normpath(f"../{m[1]}"), text)


def replaced(page: str, text: str) -> str:
    """A committed page with the parts that have pages of their own on the site replaced by links to them."""
    if page != "methods.md":
        return text
    return generate.fill(text, {"methods": method_table()}, page)


def sentence(text: str) -> str:
    return text.strip()[:1].upper() + text.strip()[1:]


def linked(text: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


# -- methods --------------------------------------------------------------------------------------------------------------------


def method_table() -> str:
    from fovea.methods import METHODS

    rows = [(f"[{told(name)[0]}](methods/{name}.md)", f"`{name}`", generate.CHANGES.get(name, "")) for name in METHODS]
    return generate.table(("method", "name", "what it changes"), rows)


def told(name: str) -> tuple[str, str, str, str]:
    """The docstring of `place`: "GRPO", "Group Relative Policy Optimization (Shao et al. 2024, ...).", the text, the departures."""
    first, _, rest = inspect.cleandoc(importlib.import_module(place(name)).__doc__ or "").partition("\n")
    found = re.match(r"(.+?) — (.+)|(.+?) (\(.+)", first)
    title, lead = (found[1] or found[3], found[2] or found[4]) if found else (name, first)
    text, _, departures = rest.partition("\nDepartures")
    return title, lead, text, departures.partition(":")[2]


def method(root: Path, name: str) -> str:
    """The page of a method, or of a recipe that is about no single method."""
    from fovea import methods, recipes
    from fovea.ledger.claim import claimed

    title, lead, text, departures = told(name)
    out = [f"# {title}", linked(f"{title} {lead}" if lead.startswith("(") else sentence(lead))]
    if text.strip():
        out += ["## What is computed", linked(equations.page(text))]
    if departures.strip():
        out += ["## Departures from the paper", linked(equations.page(sentence(departures)))]
    if name in recipes.slugs():
        out += ["## Run it", f"```bash\nfovea train {name} --out runs/{name}\n```", f"Its settings: `fovea train {name} --dry-run`."]
        if f"{name}:real" in recipes.names():
            out += [f"At full size: `fovea train {name}:real --model CHECKPOINT --dry-run` ([recipes](recipes.md))."]
    if name in methods.METHODS:
        said = generate.evidence(root)[name]
        out += ["## Fields", field_table(name), "## What is shown", f"By tests: {said}." if said else "Written, not yet tested."]
    if name in claimed():
        out += ["## Claim", generate.claim(root, name), "How claims are compared and judged: [the ledger](ledger.md)."]
    file = place(name).replace(".", "/") + ".py"
    source = (root / file).read_text(encoding="utf-8").rstrip()
    out += ["## The file", f'??? note "{file}"\n\n' + "\n".join(f"    {line}".rstrip() for line in f"```python\n{source}\n```".split("\n"))]
    return "\n\n".join(out) + "\n"


def field_table(name: str) -> str:
    from fovea import methods

    cls = methods.get(name)
    said, default = attributes(cls), cls()
    rows = [(f"`{f.name}`", f"`{getattr(default, f.name)!r}`", equations.inline(said.get(f.name, ""))) for f in fields(cls)]
    return generate.table(("field", "default", "meaning"), rows)


def attributes(thing: Any) -> dict[str, str]:
    """Field -> what the "Attributes:" of a docstring say of it; fields that are told of together share their line."""
    text = inspect.cleandoc(thing.__doc__ or "").partition("Attributes:")[2]
    known = {f.name for f in fields(thing)} if is_dataclass(thing) else set()
    out: dict[str, str] = {}
    for names, says in re.findall(r"^ +([\w, ]+): (.+(?:\n {3,}.+)*)", text, re.MULTILINE):
        parts = re.split(r"(?<=[.;]) ([a-z_][\w, ]*): ", " ".join(says.split()))
        for group, what in zip([names, *parts[1::2]], [parts[0], *parts[2::2]], strict=True):
            out |= {n.strip(): what for n in group.split(",") if not known or n.strip() in known}
    return out


# -- papers ---------------------------------------------------------------------------------------------------------------------


def papers(root: Path) -> str:
    """Every paper of the registry and of the methods, the newest first."""
    from fovea.ledger.rows import system_state
    from fovea.methods import METHODS
    from fovea.systems import load

    rows: dict[str, tuple[str, int, str, str]] = {}
    measured = generate.ledger_rows(root)
    for s in load():
        page = f"methods/{s.slug}.md" if s.slug in names() else "systems.md"
        rows[s.paper] = (s.title, s.year, f"[`{s.slug}`]({page})", system_state(s, measured))
    for name in METHODS:
        title, lead, _, _ = told(name)
        full = lead.partition(" (")[0].rstrip(".")
        said = title if lead.startswith("(") or full.lower() == title.lower() else f"{title}: {full}"
        for i in re.findall(r"arXiv (\d{4}\.\d{4,5})", lead)[:1]:
            rows[i] = (said, 2000 + int(i[:2]), f"[`{name}`](methods/{name}.md)", "method")
    newest = sorted(rows.items(), reverse=True)
    table = [(f"[{title}](https://arxiv.org/abs/{i})", year, here, state) for i, (title, year, here, state) in newest]
    head = "Every paper that is implemented or planned here, the newest first. States and effects: [systems](systems.md)."
    return f"# Papers\n\n{head}\n\n{generate.table(('paper', 'year', 'here', 'state'), table)}\n"


# -- reference ------------------------------------------------------------------------------------------------------------------


def reference(title: str, modules: list[str]) -> str:
    out = [f"# {title}"]
    for name in modules:
        module = importlib.import_module(name)
        out += [f"## {name}", described(module)]
        for key in public(module):
            thing = getattr(module, key)
            kind = "class " if inspect.isclass(thing) else ""
            out += [
                f"### {key} {{ #{name}.{key} }}",
                f'<p class="signature"><code>{kind}{signature(key, thing)}</code></p>',
                described(thing),
            ]
            if inspect.isclass(thing):
                out += [method_of(name, key, m, getattr(thing, m)) for m in own_methods(thing)]
    return "\n\n".join(part for part in out if part) + "\n"


def public(module: Any) -> list[str]:
    """Functions and classes that the module's file defines, in its order, with a docstring and without an underscore."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    defined = [
        n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not n.name.startswith("_")
    ]
    return [n for n in dict.fromkeys(defined) if getattr(getattr(module, n), "__doc__", None)]


def own_methods(cls: type) -> list[str]:
    return [
        n for n, f in vars(cls).items() if not n.startswith("_") and callable(getattr(cls, n)) and (inspect.getdoc(getattr(cls, n)) or "")
    ]


def method_of(module: str, cls: str, name: str, thing: Any) -> str:
    text = described(thing)
    return f'<p class="signature" id="{module}.{cls}.{name}"><code>{cls}.{signature(name, thing)}</code></p>\n\n{text}'


def signature(name: str, thing: Any) -> str:
    """ "name(a, b=1)" as HTML; annotations are left out, names carry shapes and the text says the rest."""
    if inspect.isclass(thing) and not is_dataclass(thing) and thing.__init__ is object.__init__:
        return name
    try:
        given = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):
        return name
    short = [p.replace(annotation=p.empty) for p in given if p.name != "self"]
    text = [re.sub(r"<factory>|<class '.*?'>|<function .*?>", "...", str(p)) for p in short]
    shown = ", ".join(t.replace("&", "&amp;").replace("<", "&lt;") for t in text)
    return f"{name}({shown})"


def described(thing: Any) -> str:
    """A docstring as Markdown: its text with formulas, its sections (arguments, attributes, results, errors) as tables."""
    text = inspect.cleandoc(thing.__doc__ or "")
    parts = re.split(r"^(Args|Attributes|Returns|Yields|Raises):\n", text, flags=re.MULTILINE)
    out = [prose(parts[0])]
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        indented = re.match(r"(?:[ ]+.*\n?|\n)*", body)
        held = indented[0] if indented else body
        entries = re.findall(r"^ {2}(\S[^:\n]*): (.+(?:\n {3,}.+)*)", held, re.MULTILINE)
        if title in ("Args", "Attributes", "Raises") and entries:
            rows = [(f"`{n.strip()}`", equations.inline(" ".join(says.split()))) for n, says in entries]
            out += [generate.table(({"Args": "argument", "Attributes": "attribute", "Raises": "raises"}[title], ""), rows)]
        else:
            out += [f"**{title}** {equations.inline(' '.join(held.split()))}"]
        out += [prose(body[len(held) :])]
    return linked("\n\n".join(part for part in out if part.strip()))


def prose(text: str) -> str:
    """Paragraphs of a docstring; indented blocks are formulas where they read as such, else shown as they stand."""
    out = []
    for part in re.split(r"\n\s*\n", text.strip("\n")):
        block = all(line.startswith("  ") for line in part.split("\n")) and not any(map(equations.is_equation, part.split("\n")))
        out.append(f"```text\n{inspect.cleandoc(part)}\n```" if block and part.strip() else equations.page(part))
    return "\n\n".join(out).replace("``", "`")
