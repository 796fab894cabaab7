"""Runs of the tiny model that are interrupted in every way and must end with the same numbers."""

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import fovea
from fovea.recipe import Recipe
from fovea.trainer import checkpoint as ckpt
from fovea.trainer.session import Interrupted
from fovea.trainer.update import TrainingDiverged

SMALL = dict(
    data="worlds:count,colour",
    tasks_per_step=3,
    group_size=3,
    steps=4,
    sampling__max_new_tokens=6,
    checkpoint_every=1,
    eval_tasks=4,
    eval_every=2,
    threads=1,
    seed=3,
)
ROOT = Path(__file__).resolve().parents[2]
TIMES = ("time/", "speed/", "memory/")


def outcome(folder: Path):
    """Everything of a finished run that must not depend on how often it was interrupted."""
    last = ckpt.latest(folder / "checkpoints")
    assert last is not None
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    numbers = [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in rows]
    files = {k: v for k, v in last.state["files"].items() if k.endswith(".safetensors")}
    return last.step, files, numbers


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    fovea.train("grpo", out=folder, quiet=True, **SMALL)
    return outcome(folder)


def test_a_run_stopped_by_a_callback_goes_on_to_the_same_end(straight, tmp_path):
    fovea.train("grpo", out=tmp_path, quiet=True, on_step=lambda step, metrics: step == 2, **SMALL)
    assert outcome(tmp_path)[0] == 2
    fovea.train("grpo", out=tmp_path, quiet=True, **SMALL)
    assert outcome(tmp_path) == straight


def test_a_finished_run_is_not_trained_again(straight, tmp_path):
    fovea.train("grpo", out=tmp_path, quiet=True, **SMALL)
    calls = []
    run = fovea.train("grpo", out=tmp_path, quiet=True, on_step=lambda *a: calls.append(a), **SMALL)
    assert not calls and outcome(tmp_path) == straight and run.after == run.metrics[-1]["eval/accuracy"]


@pytest.fixture(scope="module")
def runner():
    """``runner(out, **how)``: the small run in a child that is killed as `how` says (tests/trainer/killed.py)."""
    command = [sys.executable, "-m", "tests.trainer.killed"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ask(out, **how):
            print(json.dumps({"out": str(out), "changes": SMALL, **how}), file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


@pytest.fixture(scope="module")
def alone(runner, tmp_path_factory):
    """A run that was left alone: its seconds, and the CPU seconds of each phase."""
    found = runner(tmp_path_factory.mktemp("alone"))
    assert not found["killed"] and min(found["spent"].values()) > 0
    return found


def test_killed_in_every_phase_it_ends_with_the_same_numbers(straight, runner, alone, tmp_path):
    draw, killed = random.Random(0), Counter()
    for phase in ("start", "evaluate", "save", "step", "evaluate", "start", "save"):
        killed[phase] += runner(tmp_path, phase=phase, cpu_s=draw.random() * 0.3 * alone["spent"][phase])["killed"]
    assert set(killed) == {"start", "evaluate", "save", "step"} and min(killed.values()) > 0, killed
    assert not runner(tmp_path)["killed"]
    assert outcome(tmp_path) == straight


def test_killed_from_outside_at_random_moments_it_ends_with_the_same_numbers(straight, runner, alone, tmp_path):
    draw = random.Random(0)
    kills = [runner(tmp_path, after=draw.random() * 0.6 * alone["seconds"])["killed"] for _ in range(3)]
    assert any(kills)
    assert not runner(tmp_path)["killed"]
    assert outcome(tmp_path) == straight


def test_ctrl_c_saves_and_says_how_to_go_on(straight, tmp_path):
    def press(step, metrics):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="The same command goes on"):
        fovea.train("grpo", out=tmp_path, quiet=True, on_step=press, **SMALL)
    assert ckpt.latest(tmp_path / "checkpoints").step == 2
    fovea.train("grpo", out=tmp_path, quiet=True, **SMALL)
    assert outcome(tmp_path) == straight


def test_another_recipe_is_refused_by_name(tmp_path):
    fovea.train("grpo", out=tmp_path, quiet=True, **{**SMALL, "steps": 1})
    with pytest.raises(ckpt.CheckpointError, match=r"group_size: 3 then, 4 now"):
        fovea.train("grpo", out=tmp_path, quiet=True, **{**SMALL, "group_size": 4})
    with pytest.raises(FileExistsError, match="already holds a run"):
        fovea.train("grpo", out=tmp_path, quiet=True, resume="never", **SMALL)


def test_a_run_saved_before_a_field_existed_goes_on_where_the_field_has_its_default(straight, tmp_path, monkeypatch):
    whole = Recipe.to_json
    with monkeypatch.context() as m:
        m.setattr(Recipe, "to_json", lambda self: {k: v for k, v in whole(self).items() if k != "weight_decay"})
        fovea.train("grpo", out=tmp_path, quiet=True, on_step=lambda step, metrics: step == 2, **SMALL)
    with pytest.raises(ckpt.CheckpointError, match=r"weight_decay: 0.0 then, 0.1 now"):
        fovea.train("grpo", out=tmp_path, quiet=True, weight_decay=0.1, **SMALL)
    fovea.train("grpo", out=tmp_path, quiet=True, **SMALL)
    assert outcome(tmp_path) == straight


def test_a_finished_run_can_be_prolonged(straight, tmp_path):
    fovea.train("grpo", out=tmp_path, quiet=True, **{**SMALL, "steps": 2})
    fovea.train("grpo", out=tmp_path, quiet=True, **SMALL)
    step, files, _ = outcome(tmp_path)
    assert (step, files) == straight[:2]


def test_a_verifier_that_returns_huge_values_stops_with_step_tasks_and_checkpoint(tmp_path):
    def huge(answer, task):
        return 1e38 * len(answer)

    with pytest.raises(TrainingDiverged, match=r"step 1: .*Tasks: count/train.*last good checkpoint: step-000000"):
        fovea.train("grpo", out=tmp_path, quiet=True, reward=huge, **{**SMALL, "method__scale": "none"})
