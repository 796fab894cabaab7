"""Models that recipes make: "SLUG:NAME" is the model that the recipe NAME in the file of SLUG trains, made once and then found again.

    model="vlm-r1:warm"      in a recipe, on the command line, in an arm of a claim

    CACHE/starts/SLUG-NAME-KEY/model     the weights; CACHE is $FOVEA_CACHE, else $XDG_CACHE_HOME/fovea, else ~/.cache/fovea
    CACHE/starts/SLUG-NAME-KEY/run       the run that made them

KEY hashes the recipe, the model that it starts from, and the code of its file (claims and comments aside), of its tasks and of its
environment, so a changed start is made anew.
"""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fovea.systems import module_name

if TYPE_CHECKING:
    from fovea.recipe import Recipe

TEAM = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells its processes; a start is made by one of them alone."""
WAIT_S = 0.5
PACKAGE = Path(__file__).parent
ROOMS = ("fovea.tasks", "fovea.envs")
"""Where the code of tasks is."""


def recipe(model: str | Path) -> Recipe | None:
    """The recipe behind "SLUG:NAME"; None for every other model.

    Raises:
      ValueError: the slug of a recipe file that has no such recipe.
    """
    from fovea import recipes

    slug, colon, _ = str(model).partition(":")
    return recipes.get(str(model)) if colon and slug in recipes.slugs() else None


def root(model: str) -> str:
    """The model at the bottom: the one from which the first of the recipes starts."""
    return model if (made_by := recipe(model)) is None else root(made_by.model)


def folder(model: str) -> Path:
    """The checkpoint folder of "SLUG:NAME", trained first if it is not there yet; another process that trains it is waited for.

    Raises:
      ValueError: not the name of a start.
      RuntimeError: its training failed; the same call goes on where it stopped.
    """
    place = home() / "starts" / f"{model.replace(':', '-')}-{key(model)}"
    while not (place / "model").is_dir():
        if not _made(model, place):
            time.sleep(WAIT_S)
    return place / "model"


def key(model: str) -> str:
    """Ten hexadecimal digits over all that decides a start, the code of methods and policies excepted."""
    from fovea.envs.resolve import ENVIRONMENTS
    from fovea.ledger.claim import digest, settings
    from fovea.ledger.runs import weights
    from fovea.tasks.resolve import SOURCES

    made_by = recipe(model)
    if made_by is None:
        raise ValueError(f"model {model!r} is not made by a recipe; expected SLUG:NAME of a recipe in fovea/recipes")
    named = SOURCES.get(_name(made_by.data), ""), getattr(ENVIRONMENTS.get(_name(made_by.environment)), "where", "")
    modules = [f"fovea.recipes.{module_name(_name(model))}", *(where.partition(":")[0] for where in named if where)]
    code = hashlib.sha256(code_of(modules).encode()).hexdigest()
    under = weights(made_by.model) if recipe(made_by.model) is None else key(made_by.model)
    return digest([settings(made_by), made_by.seed, under, code])[:10]


def _name(given: object) -> str:
    """The NAME of "NAME:what"."""
    return str(given).partition(":")[0]


def code_of(modules: Sequence[str]) -> str:
    """What modules of this package say, and those of tasks and environments that they import; their first docstring and CLAIM left out."""
    found: dict[str, str] = {}
    left = list(modules)
    while left:
        name = left.pop()
        place = PACKAGE.parent.joinpath(*name.split("."))
        file = next((f for f in (place.with_suffix(".py"), place / "__init__.py") if f.is_file()), None)
        if name in found or file is None:
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        tree.body = [n for n in tree.body if not (isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "CLAIM")]
        tree.body = tree.body[ast.get_docstring(tree) is not None :]
        found[name] = ast.dump(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith(ROOMS):
                left += [str(node.module), *(f"{node.module}.{a.name}" for a in node.names)]
    return "".join(found[name] for name in sorted(found))


def home() -> Path:
    """The folder of what is made once and found again."""
    cache = os.environ.get("FOVEA_CACHE")
    return Path(cache) if cache else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fovea"


def _made(model: str, place: Path) -> bool:
    """Train in a process of its own, so that no thread count, generator or process group of this one matters; False: somebody else does."""
    from fovea.trainer import lock

    try:
        with lock.held(place):
            if not (place / "model").is_dir():
                print(f"fovea: {model} is trained first, once, and kept in {place}", file=sys.stderr)
                env = {k: v for k, v in os.environ.items() if k not in TEAM}
                # standard error by its number: that of a notebook has none
                done = subprocess.run([sys.executable, "-m", "fovea.starts", model, str(place)], stdout=2, env=env)
                if done.returncode:
                    raise RuntimeError(f"{model}: training it ended with status {done.returncode}; its run is {place / 'run'}")
    except lock.InUse:
        return False
    return True


def main(model: str, place: Path) -> None:
    """Train the start `model` and leave its weights in ``place/model``."""
    from fovea import api

    made_by = recipe(model)
    assert made_by is not None, model
    # one thread unless the recipe says otherwise, so that the same machine always makes the same weights
    run = api.train(made_by.replace(threads=made_by.threads or 1, keep=1), out=place / "run")
    aside = place / "model.part"
    shutil.rmtree(aside, ignore_errors=True)
    run.policy.save(aside)
    shutil.rmtree(place / "run" / "checkpoints")
    aside.replace(place / "model")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
