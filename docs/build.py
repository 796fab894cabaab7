"""Builds the documentation site: the pages of docs/, and pages made from the code, checked and rendered by Zensical.

    python docs/build.py                 write site/; a dead link, a missing anchor or a page outside the menu is an error
    python docs/build.py --lenient       tell of them and build all the same

Pages are collected in build/site/ first. There, links to files outside docs/ lead to copies of them, and the generated part of a page gives
way to pages of its own where there are such. Nothing is fetched, neither while building nor by a reader.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from posixpath import normpath, relpath

sys.path.insert(0, str(Path(__file__).parent))

from pages import made as made_pages
from pages import replaced

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
FENCE = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"^<!-- .*? -->$", re.MULTILINE)

NAV: dict[str, Sequence[str]] = {
    "Start": ("index.md", "start.md", "overview.md", "files/examples/loop.md"),
    "Nouns": tuple(f"nouns/{n}.md" for n in "task source environment verifier policy program segment method trainer recipe".split()),
    "How to": (
        "data.md",
        "pictures.md",
        "verifiers.md",
        "sandbox.md",
        "your-method.md",
        "environments.md",
        "models.md",
        "remote.md",
        "processes.md",
        "services.md",
        "ray.md",
        "memory.md",
        "view.md",
        "reliability.md",
        "share.md",
    ),
    "Methods": ("methods.md", "methods/*"),
    "Evidence": ("ledger.md", "systems.md", "papers.md"),
    "Reference": ("recipes.md", "metrics.md", "api.md", "engine.md", "reference/*"),
    "Help": ("troubleshooting.md", "design.md", "contributing.md", "changes.md"),
}
"""Parts of the menu and their pages; its title there is its first heading, or in SHORT."""

ELSEWHERE = {"README.md": "overview.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}
"""Files outside docs/ that are pages of the site."""

SHORT = {
    "index.md": "Start",
    "overview.md": "Figures, comparison, limits",
    "files/examples/loop.md": "The idea in one file",
    "data.md": "Your data",
    "verifiers.md": "Your verifier",
    "environments.md": "Your environment or tool",
    "models.md": "Your model",
    "remote.md": "Your engine: servers",
    "processes.md": "Your cluster: processes, GPUs",
    "share.md": "Share and evaluate",
    "engine.md": "The engine",
}
"""Titles in the menu that differ from the first heading."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="folder of the site (default: site)")
    parser.add_argument("--lenient", action="store_true", help="tell of dead links and pages outside the menu, and build all the same")
    args = parser.parse_args(argv)
    stage = ROOT / "build" / "site"
    shutil.rmtree(stage, ignore_errors=True)
    problems = collect(ROOT, stage)
    status, said = render(stage, args.out.resolve(), strict=not args.lenient)
    print("\n".join([*problems, said]).strip())
    print(f"{args.out}/index.html" if not status else "not built")
    return int(not args.lenient and bool(status or problems))


def collect(root: Path, stage: Path) -> list[str]:
    """Write every page and file of the site to `stage`/pages and its settings beside; returns what is wrong with the menu."""
    pages = stage / "pages"
    made = {str(f.relative_to(root / "docs")): f.read_text(encoding="utf-8") for f in sorted((root / "docs").rglob("*.md"))}
    made = {page: replaced(page, text) for page, text in made.items()} | made_pages(root)
    made |= {page: rerooted((root / name).read_text(encoding="utf-8")) for name, page in ELSEWHERE.items()}
    while todo := [(page, text) for page, text in made.items() if not (pages / page).exists()]:
        for page, text in todo:
            write(pages / page, staged(text, page, root, made, pages))
    for folder in ("images", "assets"):
        shutil.copytree(root / "docs" / folder, pages / folder)
    menu, problems = navigation(made)
    (stage / "mkdocs.yml").write_text(json.dumps(settings(menu), indent=1, ensure_ascii=False), encoding="utf-8")
    return problems


def rerooted(text: str) -> str:
    """A page of the repository's root as if it stood in docs/."""
    return outside_code(text, lambda part: LINK.sub(lambda m: m[0] if re.match(r"http|#", m[0]) else relpath(m[0], "docs"), part))


def staged(text: str, page: str, root: Path, made: dict[str, str], pages: Path) -> str:
    """`text` with comments left out and links that lead out of docs/ turned to copies, which are added to `made` or written to `pages`."""

    def turned(match: re.Match[str]) -> str:
        target, _, anchor = match[0].partition("#")
        there = normpath(f"docs/{Path(page).parent.as_posix()}/{target}")
        if not target or target.startswith("http") or there.startswith("docs/") or not (root / there).is_file():
            return match[0]
        if there in ELSEWHERE:
            copy = ELSEWHERE[there]
        elif there.endswith(".py"):
            copy = f"files/{there.removesuffix('.py')}.md"
            made.setdefault(copy, f"# {Path(there).name}\n\n```python\n{(root / there).read_text(encoding='utf-8')}```\n")
        else:
            copy = f"files/{there}"
            write(pages / copy, (root / there).read_text(encoding="utf-8"))
        return relpath(copy, Path(page).parent.as_posix()) + (f"#{anchor}" if anchor else "")

    return outside_code(text, lambda part: COMMENT.sub("", LINK.sub(turned, part)))


def outside_code(text: str, change) -> str:
    """`text` with `change` applied to everything but its code blocks."""
    return "".join(part if part.startswith("```") else change(part) for part in FENCE.split(text))


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def navigation(made: Mapping[str, str]) -> tuple[list[dict[str, list[dict[str, str]]]], list[str]]:
    """The menu, and what is wrong with it. Pages it does not name are put under "More"."""
    titles = {page: re.search(r"^# (.+)$", text, re.MULTILINE) for page, text in made.items()}
    parts = {title: [p for name in part for p in (fnmatch.filter(made, name) if "*" in name else [name])] for title, part in NAV.items()}
    named = [page for part in parts.values() for page in part]
    more = [page for page in made if page not in named]
    problems = [f"docs/build.py, NAV: {page} is no page of the site" for page in named if page not in made]
    problems += [f"docs/{page} is in no part of the menu; add it to NAV in docs/build.py" for page in more if not page.startswith("files/")]
    problems += [f"docs/{page} has no heading of the first level" for page, title in titles.items() if title is None]

    def entries(part: Sequence[str]) -> list[dict[str, str]]:
        return [{SHORT.get(page) or (t[1].strip() if (t := titles[page]) else page): page} for page in part if page in made]

    menu = [{title: entries(part)} for title, part in parts.items()]
    shown = [page for page in more if not page.startswith("files/")]
    return menu + ([{"More": entries(shown)}] if shown else []), problems


def settings(menu: list) -> dict:
    """The settings of Zensical, in the words of mkdocs.yml."""

    def palette(scheme: str, icon: str, other: str) -> dict:
        return {
            "media": f"(prefers-color-scheme: {'light' if scheme == 'default' else 'dark'})",
            "scheme": scheme,
            "toggle": {"icon": f"lucide/{icon}", "name": f"Switch to {other} mode"},
        }

    return {
        "site_name": "Fovea",
        "site_description": "Reinforcement learning of models that see",
        "docs_dir": "pages",
        "site_dir": "out",
        "use_directory_urls": False,
        "nav": menu,
        "theme": {
            "name": "material",
            "language": "en",
            "font": False,
            "logo": "assets/logo.svg",
            "favicon": "assets/logo.svg",
            "palette": [palette("default", "moon", "dark"), palette("slate", "sun", "light")],
            "features": [
                "navigation.tabs",
                "navigation.indexes",
                "navigation.top",
                "navigation.footer",
                "content.code.copy",
                "search.highlight",
                "toc.follow",
            ],
        },
        "extra": {"generator": False},
        "extra_css": ["assets/site.css"],
        "plugins": [{"search": {}}, {"offline": {}}],
        "markdown_extensions": [
            "admonition",
            "attr_list",
            "md_in_html",
            "tables",
            {"toc": {"permalink": True, "toc_depth": 3}},
            {"pymdownx.highlight": {"anchor_linenums": False}},
            "pymdownx.superfences",
            "pymdownx.details",
        ],
    }


def render(stage: Path, out: Path, strict: bool = True) -> tuple[int, str]:
    """Run Zensical on `stage` and move what it wrote to `out`; its exit status and, where something is wrong, its words."""
    command = [sys.executable, "-m", "zensical", "build", "-f", "mkdocs.yml", *(["--strict"] if strict else [])]
    ran = subprocess.run(command, cwd=stage, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1", "TERM": "dumb"})
    said = re.sub(r"\x1b\[[\d;]*m", "", ran.stdout + ran.stderr).partition("Traceback")[0]
    if ran.returncode == 0:
        for page in (stage / "out").rglob("*.html"):  # the offline search of Zensical asks a server for this script
            depth = "../" * (len(page.relative_to(stage / "out").parts) - 1)
            text = page.read_text(encoding="utf-8")
            page.write_text(text.replace("https://unpkg.com/iframe-worker/shim", f"{depth}assets/worker.js"), encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(stage / "out", out)
    return ran.returncode, said.strip()


if __name__ == "__main__":
    sys.exit(main())
