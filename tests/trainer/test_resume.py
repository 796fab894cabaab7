"""Runs of the tiny model that are interrupted in every way and must end with the same numbers."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fovea
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


def test_killed_at_random_moments_it_ends_with_the_same_numbers(straight, tmp_path):
    program = "import sys, json, fovea; fovea.train('grpo', out=sys.argv[1], quiet=True, **json.loads(sys.argv[2]))"
    command = [sys.executable, "-c", program, str(tmp_path), json.dumps(SMALL)]
    draw, kills = random.Random(0), 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    while kills < 3:
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        before = progress(tmp_path)
        while process.poll() is None and progress(tmp_path) == before:
            time.sleep(0.02)
        time.sleep(draw.random() * 0.5)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    subprocess.run(command, env=environment, check=True)
    assert outcome(tmp_path) == straight


def progress(folder: Path) -> int:
    """Lines of metrics so far."""
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


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
