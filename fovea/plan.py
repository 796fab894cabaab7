"""What a recipe would do, before it does it: resolved fields, batch arithmetic, and an estimate of memory."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fovea import starts
from fovea.device import problem
from fovea.policies import control, generators
from fovea.recipe import Recipe
from fovea.types import Task, user

if TYPE_CHECKING:
    from fovea.trace import Memory

T = TypeVar("T")
GiB = 1024**3
CONFIGS = Path(__file__).with_name("configs")
"""Published `config.json` files, without weights, and under "preprocessor" what their pictures need."""
ASSUMED = (1024, 768)
"""Width and height of a picture where the data cannot be read."""
LOOK_AT = 16
"""Tasks whose prompts are measured."""


def arithmetic(recipe: Recipe) -> str:
    """The batch sizes in one sentence."""
    if recipe.horizon:
        return stepwise(recipe)
    episodes = recipe.tasks_per_step * recipe.group_size
    updates = recipe.updates_per_rollout * recipe.epochs_per_rollout
    rows = -(-episodes // recipe.updates_per_rollout)
    return (
        f"{recipe.tasks_per_step} tasks x {recipe.group_size} answers = {episodes} episodes per step, "
        f"{updates} optimizer step{'s' * (updates != 1)} each on {rows} episodes in micro-batches of {min(recipe.micro_batch, rows)} rows; "
        f"at most {recipe.sampling.max_new_tokens} new tokens per turn; {recipe.steps} steps, {recipe.steps * updates} optimizer steps"
        f"{_shares(recipe)}"
    )


def stepwise(recipe: Recipe) -> str:
    """The same, where a training step is so many steps of a simulator."""
    units, steps = recipe.horizon * recipe.max_rows, recipe.steps
    made = f"{recipe.max_rows} environments x {recipe.horizon} steps = {units} environment steps per training step"
    whole = f"{steps} training steps, {steps * units} environment steps"
    if recipe.method.needs.data != "replay":
        updates = recipe.updates_per_rollout * recipe.epochs_per_rollout
        return f"{made}, {updates} optimizer step{'s' * (updates != 1)} each on 1/{recipe.updates_per_rollout} of the pieces; {whole}"
    n, kept = recipe.updates_per_rollout, recipe.replay
    return (
        f"{made}; after {kept.start} random ones {n} update{'s' * (n != 1)} ({n / units:.3g} for each environment step) "
        f"on {kept.batch} windows of {kept.length} unit{'s' * (kept.length != 1)} out of {kept.size} frames; {whole}"
    )


def _shares(recipe: Recipe) -> str:
    """How the tasks of a step are shared out, where torchrun has started several processes."""
    size = int(os.environ.get("WORLD_SIZE") or 1)
    return f"; {size} processes, each with at most {-(-recipe.tasks_per_step // size)} of the tasks" if size > 1 else ""


def plan(recipe: Recipe) -> tuple[str, list[str]]:
    """(text for ``fovea train --dry-run``, what this machine lacks for the run).

    A user's own parts are looked up too, so that a wrong name does not wait for the run.
    """
    from fovea import api
    from fovea.report import sinks

    api.build_scorer(recipe)
    api.own_parts(recipe)
    sources, lacks = _try(lambda: api.build_sources(recipe))
    data = api.described(*sources) if sources else None
    simulator, lacks_simulator = _try(lambda: simulated(recipe, sources[0])) if sources else ([], [])
    lacks += lacks_simulator
    draws = generators.kind(starts.root(recipe.model))
    folder, lacks_model = _try(lambda: checkpoint(recipe.model)) if simulator == [] and not draws else (None, [])
    lacks += lacks_model
    published = CONFIGS / f"{Path(recipe.model).name}.json"
    tasks = assumed() if data is None else []
    if simulator != []:
        counted = simulator or []
    elif draws:
        counted, lacks_draws = _try(lambda: generator(recipe, sources[0] if sources else None))
        lacks += lacks_draws
    elif folder is not None:
        counted = memory(recipe if recipe.model == "tiny" else recipe.replace(model=str(folder)), tasks)
    elif published.is_file():
        with stand_in(published) as place:
            counted = [f"by the published config.json of {published.stem}", *memory(recipe.replace(model=str(place)), tasks)]
    else:
        known = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.json")))
        what = "see below" if lacks_model else "the run takes it from the hub"
        here = f"{recipe.model!r} is no folder of this machine ({what})"
        counted = [f"no estimate: {here}, and its config.json does not come with fovea; those of {known} do"]
    parts = {
        "recipe": [f"{k} = {json.dumps(v)}" for k, v in recipe.to_json().items()],
        "batch": [arithmetic(recipe)],
        "data": data or [],
        "memory": counted or [],
    }
    lacks += _try(lambda: sinks.check(recipe.sinks))[1]
    lacks += [why] if (why := problem(recipe.device)) else []
    return "\n\n".join("\n  ".join([title, *lines]) for title, lines in parts.items() if lines), lacks


def simulated(recipe: Recipe, source: Any) -> list[str]:
    """The network that is made for a simulator; empty where the data are none."""
    from fovea import api

    api.check_simulator(recipe, source)
    if not api.simulated(source):
        return []
    name = recipe.model.removeprefix(control.PI0)
    if name != recipe.model and not Path(name).is_dir():
        from fovea.policies.pi0 import published

        size = f"as published it has {published() / 1e9:.2f} B parameters"
        return [f"{name} is no folder of this machine, the run takes it from the hub; {size}"]
    policy, spaces = api.build_network(recipe, None, source), source.spaces(source.vector(1))
    taken = f"{spaces.actions} actions" if spaces.discrete else f"actions of dimension {spaces.actions} in [-1, 1]"
    weights = sum(p.numel() for p in policy.parameters())
    return [f"a policy of {weights / 1e3:.1f} k parameters, observations {spaces.obs_shape}, {taken}"]


def generator(recipe: Recipe, source: Any) -> list[str]:
    """What is known of a model that makes samples by denoising."""
    from fovea import api

    api.check_generator(recipe)
    root = starts.root(recipe.model)
    if generators.kind(root) == generators.LARGE:
        from fovea.policies import pipeline

        pipeline.parts()
        return [f"{root}: no estimate, its config.json does not come with fovea"]
    policy = generators.load(root, source)
    weights = sum(p.numel() for p in policy.parameters())
    return [f"a denoiser of {weights / 1e3:.1f} k parameters, {policy.steps} steps to a sample of {policy.dim} numbers"]


def _try(look: Callable[[], T]) -> tuple[T | None, list[str]]:
    """What was found, or the error that would end the run."""
    try:
        return look(), []
    except (OSError, ValueError, ImportError) as e:
        return None, [str(e)]


def checkpoint(model: str) -> Path | None:
    """The folder with the weights of `Recipe.model`, its config checked; None for a hub id.

    Raises:
      FileNotFoundError, ValueError: no checkpoint folder, or one of a family that is not known.
    """
    from fovea.policies.hf_vlm import HUB_ID, read_config
    from fovea.policies.tiny_vlm import BASE_DIR
    from fovea.trainer.checkpoint import find

    place = Path(starts.root(model))
    if not place.exists() and HUB_ID.fullmatch(model) and not place.parent.is_dir():
        return None
    run = find(place)
    folder = run.model if run else BASE_DIR if str(place) == "tiny" else place
    read_config(folder)
    return folder


def memory(recipe: Recipe, tasks: Sequence[Task] = ()) -> list[str]:
    """Parameters, and the bytes that a step takes at its peak, by purpose; see `fovea.trace` for what is counted."""
    found, policy, said = estimate(recipe, tasks)
    whole, trained = (sum(p.numel() for p in part) / 1e6 for part in (policy.model.parameters(), policy.parameters()))
    rows = [f"{name:12} {value / GiB:8.3f} GiB" for name, value in vars(found).items()]
    return [
        f"{whole:.1f} M parameters, {trained:.1f} M trained; {said}",
        *rows,
        f"{'total':12} {found.total / GiB:8.3f} GiB at the peak, beside the program (about 0.5 GiB); the largest of the phases counts",
    ]


def estimate(recipe: Recipe, tasks: Sequence[Task] = ()) -> tuple[Memory, Any, str]:
    """(memory, the policy without data, what was assumed): the longest prompt of the first tasks, and answers of `max_new_tokens`.

    Args:
      tasks: stand for the recipe's own where those cannot be had.
    """
    from fovea import trace
    from fovea.api import build_sources, heldout_tasks

    policy = trace.without_data(recipe)
    source = tasks or build_sources(recipe)[0]
    prefix = max((policy.encode(t.prompt, t.images) for t in heldout_tasks(source, LOOK_AT)), key=lambda p: p.length)
    size = int(os.environ.get("WORLD_SIZE") or 1)
    steps = recipe.steps * recipe.tasks_per_step // size
    seen = min(steps, len(source) if hasattr(source, "__len__") and not tasks else 1 << 60)
    found = trace.trace(recipe, policy, prefix, recipe.sampling.max_new_tokens, seen, size)
    which = f"one picture of {ASSUMED[0]} x {ASSUMED[1]} and a short question, assumed" if tasks else f"the longest of the first {LOOK_AT}"
    said = f"prompts of {prefix.length} tokens ({which}), answers of {recipe.sampling.max_new_tokens}"
    kind = "whole weights (parallel=data)" if recipe.parallel != "fsdp" else "a part of the weights (parallel=fsdp)"
    return found, policy, said + (f"; each of {size} processes, with {kind}" if size > 1 else "")


def assumed() -> list[Task]:
    """A task of usual size."""
    from PIL import Image

    return [Task("assumed", "assumed", user("How many people are in the picture? Think first."), (Image.new("RGB", ASSUMED),))]


@contextlib.contextmanager
def stand_in(config: Path) -> Iterator[Path]:
    """A checkpoint folder without weights: a published `config.json` with the tokenizer and template of the tiny model."""
    from fovea.policies.tiny_vlm import BASE_DIR

    own, real = (json.loads(file.read_text(encoding="utf-8")) for file in (BASE_DIR / "config.json", config))
    special = {name: i for name, i in own.items() if name.endswith("_token_id")}
    pictures = {**json.loads((BASE_DIR / "preprocessor_config.json").read_text(encoding="utf-8")), **real.pop("preprocessor")}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
            shutil.copy(BASE_DIR / name, folder)
        (folder / "config.json").write_text(json.dumps(real | special))
        (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
        yield folder
