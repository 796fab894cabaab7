"""Runs the code blocks of a Markdown page as a reader would, in one folder, with small settings.

    python   executed, all blocks of a page in one namespace; a block that begins with ``# name.py`` is also written to that file
    bash     ``fovea ...`` and ``python FILE ...`` are executed, ``make TARGET`` and ``pip install ...`` are looked up
    json     parsed, one value per line or one in all
    text     shown only

``<!-- run: ARGS -->`` before a block appends ARGS to its commands; ``<!-- file: NAME -->`` writes the block to NAME;
``<!-- not run: REASON -->`` shows a block without running it.
"""

import json
import re
import runpy
import shlex
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import fovea.cli

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"(?:^<!-- (run|file|not run): (.*?) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    line: int
    mark: str = ""
    said: str = ""


def blocks_of(text):
    return [Block(m[3], m[4], text.count("\n", 0, m.start(4)) + 1, m[1] or "", m[2] or "") for m in BLOCK.finditer(text)]


def run_page(page, folder, demo):
    """Run every block of `page` in `folder`; `demo()` stands for ``make demo``."""
    names = {"__name__": "page"}
    for block in blocks_of(page.read_text(encoding="utf-8")):
        if block.mark == "not run":
            continue
        if block.mark == "file":
            (folder / block.said).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.said).write_text(block.code, encoding="utf-8")
        run_block(block, page, folder, names, demo)


def run_block(block, page, folder, names, demo):
    if block.language == "python":
        first = re.match(r"# ([\w/]+\.py)\n", block.code)
        if first:
            (folder / first[1]).write_text(block.code, encoding="utf-8")
        exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), names)
    elif block.language == "bash":
        for command in commands(block.code):
            run_command(command + shlex.split(block.said if block.mark == "run" else ""), demo)
    elif block.language == "json":
        try:
            json.loads(block.code)
        except ValueError:
            for line in block.code.splitlines():
                json.loads(line)
    elif block.language != "text":
        raise AssertionError(
            f"{page.name}, line {block.line}: a block in {block.language or 'no language'!r}; expected python, bash, json or text"
        )


def commands(code):
    lines = code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run_command(words, demo):
    if words[0] == "fovea":
        status = fovea.cli.main(words[1:])
        assert status == 0, f"{shlex.join(words)} ended with status {status}; its message is in the captured output"
    elif words[0] == "python":
        before = sys.argv
        sys.argv = words[1:]
        try:
            runpy.run_path(str(ROOT / words[1]), run_name="__main__")
        finally:
            sys.argv = before
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"the Makefile has no target {words[1]}"
        if words[1] == "demo":
            demo()
    elif words[:2] == ["pip", "install"]:
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        extras = [e for word in words for e in (re.findall(r"\[(.*?)\]", word) or [""])[0].split(",") if e]
        assert set(extras) <= set(known), f"{shlex.join(words)}: extras are {', '.join(known)}"
    else:
        raise AssertionError(f"{shlex.join(words)}: expected a command fovea, python, make or pip install")
