import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fovea
from fovea import api, cli
from fovea.policies import tiny_vlm
from fovea.policies.tiny_vlm import build


def small(recipe):
    """The recipe with the least work that still passes through every part."""
    return recipe.replace(
        steps=min(1, recipe.steps),
        tasks_per_step=min(2, recipe.tasks_per_step),
        group_size=min(2, recipe.group_size),
        eval_tasks=min(2, recipe.eval_tasks),
        sampling=replace(recipe.sampling, max_new_tokens=min(4, recipe.sampling.max_new_tokens)),
        dynamic_sampling=False,
    )


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """A checkpoint of the tiny architecture with random weights: its answers to one question differ."""
    folder = tmp_path_factory.mktemp("untrained")
    tokenizer = build.build_tokenizer(["How many red shapes are there? <answer>4</answer>"] * 3)
    build.save(build.build_model(tokenizer, 0), tokenizer, folder, torch.bfloat16)
    return folder


@pytest.fixture
def workplace(tmp_path, monkeypatch, untrained):
    """An empty folder to work in, where commands and `fovea.train` do little work and a full-size model is the tiny one.

    The tiny model is the shipped one, or an untrained one of the same architecture where it is not there.
    """
    base = tiny_vlm.BASE_DIR if (tiny_vlm.BASE_DIR / "config.json").is_file() else untrained
    monkeypatch.setattr(tiny_vlm, "BASE_DIR", Path(base))
    resolve, typed, heldout = api.resolve, cli.resolve, api.heldout_tasks
    monkeypatch.setattr(api, "resolve", lambda *a, **k: small(resolve(*a, **k)))
    monkeypatch.setattr(cli, "resolve", lambda *a, **k: small(typed(*a, **k)))
    monkeypatch.setattr(api, "heldout_tasks", lambda source, count: heldout(source, min(2, count)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "Qwen2.5-VL-3B-Instruct").symlink_to(base)
    return tmp_path


@pytest.fixture(scope="session")
def demo_run():
    """Where the first ``make demo`` left its run, for the pages after it."""
    return []


@pytest.fixture
def demo(workplace, demo_run, tmp_path_factory):
    """Does what ``make demo`` does after the set-up."""

    def run():
        if not demo_run:
            kept = tmp_path_factory.mktemp("demo") / "demo"
            fovea.train("grpo", out=kept, quiet=True)
            demo_run.append(kept)
        shutil.copytree(demo_run[0], workplace / "runs" / "demo", dirs_exist_ok=True)

    return run
