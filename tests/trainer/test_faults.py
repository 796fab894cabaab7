"""What can go wrong while a run goes on, and that nothing is lost and nothing is silently wrong; docs/reliability.md names these tests."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import fovea
from benchmarks.reliability.resume import difference, outcome, rows
from fovea import cli
from fovea.bench.flops import Shape
from fovea.bench.workload import build_checkpoint
from fovea.report.run import RunFolder
from fovea.tasks.pictures import DataChanged
from fovea.trainer import checkpoint as ckpt
from fovea.trainer import lock, streams
from fovea.trainer.on_policy import NothingToTrain
from fovea.trainer.session import Interrupted, _Signals
from fovea.trainer.update import TrainingDiverged
from fovea.verifiers import TooManyUnscored
from tests.policies.tiny_checkpoints import picture

ROOT = Path(__file__).resolve().parents[2]
SIZES = dict(hidden=32, layers=1, heads=2, kv_heads=1, head_dim=16, inner=64, v_hidden=32, v_layers=1, v_full_layers=1, v_inner=64)


def reward(answer, task, episode):
    return sum(map(ord, episode.text)) % 5 / 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(build_checkpoint(tmp_path_factory.mktemp("model") / "tiny", Shape(vocab=384, **SIZES)))


@pytest.fixture
def train(model, tmp_path):
    """Train a few steps in `tmp_path / name`."""

    def run(name="run", recipe="grpo", **changes):
        fields = dict(model=model, data="worlds:count", reward=reward, tasks_per_step=2, group_size=2, steps=4, learning_rate=1e-3)
        fields |= dict(sampling__max_new_tokens=4, eval_tasks=2, eval_every=2, checkpoint_every=2, threads=1, quiet=True)
        return fovea.train(recipe, **{"out": tmp_path / name, **fields, **changes})

    return run


@pytest.fixture
def same(train, tmp_path):
    """Assert that a run ended as one that nothing happened to."""

    def check(name="run", **changes):
        train("straight", **changes)
        assert difference(outcome(tmp_path / "straight"), outcome(tmp_path / name)) == ""

    return check


def steps_of(run: Path) -> list[int]:
    return sorted(map(ckpt.step_of, ckpt.written(run / "checkpoints")))


class Once:
    """A reward that does something else from call `at` to call `to`, while `on`."""

    def __init__(self, what, at=9, to=10**9):
        self.what, self.at, self.to, self.calls, self.on = what, at, to, 0, True

    def __call__(self, answer, task, episode):
        self.calls += 1
        return self.what() if self.on and self.at <= self.calls <= self.to else reward(answer, task, episode)


def out_of_order():
    raise RuntimeError("the judge is out of order")


# -- verifiers ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (out_of_order, "RuntimeError: the judge is out of order"),
        (lambda: float("nan"), "returned nan"),
        (lambda: "good", "returned 'good'"),
    ],
    ids=["raises", "nan", "type"],
)
def test_a_verifier_that_fails_ends_the_run_with_its_steps_saved(train, same, tmp_path, what, reason):
    broken = Once(what)  # two answers are judged before training and four in each step
    with pytest.raises(TooManyUnscored, match=re.escape(reason)):
        train(reward=broken, checkpoint_every=100)
    assert steps_of(tmp_path / "run") == [0, 1]
    broken.on = False
    train(reward=broken, checkpoint_every=100)
    same(reward=Once(what, at=10**9), checkpoint_every=100)


def test_a_verifier_that_hangs_costs_its_episode_and_no_more(train, tmp_path):
    release = threading.Event()
    hangs = Once(lambda: release.wait(900), at=9, to=9)  # in step 2, whose groups are not written otherwise
    began = time.monotonic()
    train(reward=hangs, verifier_timeout_s=3.0, max_unscored=0.5)
    release.set()
    assert time.monotonic() - began < 600 and len(rows(tmp_path / "run")) == 5
    assert [r.get("reward/unscored_frac", 0.0) for r in rows(tmp_path / "run")] == [0, 0, 0.25, 0, 0]
    (kept,) = RunFolder(tmp_path / "run").read_groups([tmp_path / "run" / "rollouts" / "step-000002.jsonl"])
    assert [e["score"] is None and "gave no score within" in e["reason"] for e in kept["episodes"]].count(True) == 1


def test_a_math_worker_that_dies_is_replaced_and_the_answer_scored():
    pytest.importorskip("math_verify")
    from fovea.verifiers.mathematics import Pool
    from fovea.verifiers.workers import Died

    pool = Pool(1)
    try:
        assert pool.compare("4", "4", 6, 60)
        worker = pool.free.get()
        pool.free.put(worker)
        os.kill(worker.process.pid, signal.SIGSTOP)  # so that it takes the question and dies over it
        threading.Timer(0.3, worker.process.kill).start()
        assert pool.compare("1/2", "0.5", 6, 60) and not pool.compare("1/2", "0.6", 6, 60)
        pool._ask = lambda *_: (_ for _ in ()).throw(Died("the math worker died (exit status -9)"))
        with pytest.raises(ValueError, match="died"):
            pool.compare("4", "4", 6, 60)
    finally:
        pool.close()


# -- data -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    """A folder of six questions with a picture each."""
    folder = tmp_path / "data"
    folder.mkdir()
    lines = [{"question": f"How many {i}?", "image": f"{i}.png", "answer": str(i)} for i in range(6)]
    for i in range(6):
        picture(i, 56, 56).save(folder / f"{i}.png")
    (folder / "train.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return folder


OTHER = "worlds:colour"  # held-out tasks of their own, so that all six rows train


def stop_at(step):
    return lambda now, metrics: now == step


def test_data_replaced_between_two_commands_is_refused(train, same, table, tmp_path):
    data = str(table / "train.jsonl")
    train(data=data, heldout=OTHER, on_step=stop_at(2))
    before = (table / "train.jsonl").read_text()
    (table / "train.jsonl").write_text(before.replace('"answer": "3"', '"answer": "5"'))
    with pytest.raises(ckpt.CheckpointError, match=r"training data has changed since the run began: found SHA-256 .*--fork .*run@2"):
        train(data=data, heldout=OTHER)
    (table / "train.jsonl").write_text(before)
    kept = (table / "2.png").read_bytes()
    picture(99, 56, 56).save(table / "2.png")
    with pytest.raises(ckpt.CheckpointError, match="has changed"):
        train(data=data, heldout=OTHER)
    (table / "2.png").write_bytes(kept)
    shutil.copytree(table, tmp_path / "elsewhere")  # the same content is the same data
    train(data=data, heldout=OTHER)
    same(data=data, heldout=OTHER)


def test_held_out_data_that_are_replaced_are_refused(train, table):
    data = str(table / "train.jsonl")
    train(heldout=data, on_step=stop_at(2))
    (table / "train.jsonl").write_text((table / "train.jsonl").read_text().replace('"answer": "3"', '"answer": "5"'))
    with pytest.raises(ckpt.CheckpointError, match="held-out data has changed"):
        train(heldout=data)


def test_a_picture_replaced_while_the_run_goes_on_stops_it(train, same, table, tmp_path):
    data, kept = str(table / "train.jsonl"), {f: f.read_bytes() for f in table.glob("*.png")}

    def replace(step, metrics):
        for f in kept if step == 1 else ():
            picture(99, 56, 56).save(f)

    with pytest.raises(DataChanged, match=r"\.png: the image has been replaced since the run began"):
        train(data=data, heldout=OTHER, on_step=replace, eval_tasks=0)
    assert steps_of(tmp_path / "run")[-1] >= 1
    for f, content in kept.items():
        f.write_bytes(content)
    train(data=data, heldout=OTHER, eval_tasks=0)
    same(data=data, heldout=OTHER, eval_tasks=0)


def test_a_table_replaced_while_the_run_goes_on_is_told_and_changes_nothing(train, table, tmp_path, capsys):
    data, text = str(table / "train.jsonl"), (table / "train.jsonl").read_text()

    def replace(step, metrics):
        if step == 1:
            (table / "train.jsonl").write_text(text.replace('"answer": "3"', '"answer": "5"'))

    train("straight", data=data, heldout=OTHER)
    train(data=data, heldout=OTHER, on_step=replace, quiet=False)
    assert capsys.readouterr().out.count("train.jsonl has been replaced since the run began") == 1
    assert difference(outcome(tmp_path / "straight"), outcome(tmp_path / "run")) == ""


# -- numbers --------------------------------------------------------------------------------------------------------------------


def test_a_gradient_that_is_not_a_number_stops_before_the_weights_are_touched(train, tmp_path):
    huge = Once(lambda: 1e37 * huge.calls, at=9)  # no two alike, in whatever order answers are scored
    changes = dict(reward=huge, method__scale="none", eval_tasks=0, checkpoint_every=100)
    with pytest.raises(TrainingDiverged, match=r"step 3: loss .* Weights were not touched"):
        train(**changes)
    last = ckpt.latest(tmp_path / "run" / "checkpoints")
    assert last.step == 2
    run = train("calm", **{**changes, "method__scale": "group", "reward": reward}, fork=f"{tmp_path / 'run'}@2", quiet=False)
    assert [r["step"] for r in run.metrics] == [3, 4]


# -- disk -----------------------------------------------------------------------------------------------------------------------


def test_a_full_disk_ends_the_run_and_the_same_command_goes_on(train, same, tmp_path, monkeypatch):
    write, calls = ckpt.save_file, []

    def full(tensors, file):
        calls.append(file)
        if len(calls) > 5:
            raise OSError(28, "No space left on device")
        write(tensors, file)

    monkeypatch.setattr(ckpt, "save_file", full)
    with pytest.raises(ckpt.CheckpointError, match=r"step-000004 could not be written .*No space left.*newest: step-000002"):
        train()
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    monkeypatch.undo()
    train()
    same()


def test_when_every_checkpoint_is_damaged_nothing_is_begun_anew(train, tmp_path):
    train(steps=2)
    for path in ckpt.written(tmp_path / "run" / "checkpoints"):
        (path / "state.json").write_text("{}")
    before = sorted(p.name for p in (tmp_path / "run").rglob("*"))
    with pytest.raises(ckpt.CheckpointError, match="checkpoints, all damaged; expected a complete one"):
        train(steps=2)
    assert sorted(p.name for p in (tmp_path / "run").rglob("*")) == before


# -- interruptions --------------------------------------------------------------------------------------------------------------


def test_asked_to_stop_while_it_evaluates_a_run_saves_and_evaluates_on_going_on(train, same, tmp_path):
    def press(answer, task, episode):
        if press.armed and "heldout" in task.id and (tmp_path / "run" / "checkpoints" / "step-000000").exists():
            press.armed = False
            os.kill(os.getpid(), signal.SIGTERM)
        return reward(answer, task, episode)

    press.armed = True
    with pytest.raises(Interrupted, match="stopped after step 2"):
        train(reward=press, eval_tasks=3, max_rows=1)
    assert "eval/accuracy" not in rows(tmp_path / "run")[-1]
    heard = []
    train(reward=press, eval_tasks=3, max_rows=1, on_step=lambda step, metrics: heard.append((step, "eval/accuracy" in metrics)))
    assert heard == [(2, True), (3, False), (4, True)]
    press.armed = False
    same(reward=press, eval_tasks=3, max_rows=1)


def test_global_generators_go_on_where_they_were(train):
    def draws(seen):
        return lambda step, metrics: seen.append((random.random(), random.gauss(0, 1), np.random.rand(), float(torch.rand(()))))  # noqa: NPY002

    whole, parts = [], []
    train("whole", on_step=draws(whole), eval_tasks=0)
    train("parts", on_step=draws(parts), eval_tasks=0, steps=3)
    random.seed(99)
    torch.manual_seed(99)
    train("parts", on_step=draws(parts), eval_tasks=0)
    assert whole == parts and len(set(whole)) == 4


def test_generators_are_captured_whole():
    streams.seed(1)
    random.gauss(0, 1)
    np.random.standard_normal()  # noqa: NPY002
    state = streams.capture()

    def draw():
        return random.gauss(0, 1), random.random(), np.random.standard_normal(), np.random.rand(), float(torch.randn(()))  # noqa: NPY002

    first = draw()
    streams.restore(state)
    assert draw() == first
    streams.seed(1, rank=1)
    assert draw() != first


def test_a_run_that_stopped_early_is_done(train, tmp_path):
    train(early_stop=1, reward=lambda answer, task: 0.0, steps=9, eval_every=1)
    calls = []
    train(early_stop=1, reward=lambda answer, task: 0.0, steps=9, eval_every=1, on_step=lambda *a: calls.append(a))
    assert not calls


def test_signals_that_were_ignored_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        stop = threading.Event()
        with _Signals(stop):
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.is_set()
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.is_set()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_closed_console_saves_and_ends(model, tmp_path):
    import pty

    main, side = pty.openpty()
    run = tmp_path / "run"
    options = f"--model {model} --data worlds:count --steps 100000 --tasks-per-step 2 --group-size 2 --eval-tasks 0 --out {run}"
    command = [sys.executable, "-m", "fovea", "train", *options.split(), "--sampling.max-new-tokens", "4", "--checkpoint-every", "99999"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm"}
    wrapped = [
        sys.executable,
        "-c",
        # tests that were started with nohup have SIGHUP ignored, which the run would take over
        "import os, signal, sys, fcntl, termios; signal.signal(signal.SIGHUP, signal.SIG_DFL); "
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])",
    ]
    process = subprocess.Popen(
        [*wrapped, *command], stdin=side, stdout=side, stderr=side, cwd=ROOT, env=environment, start_new_session=True
    )
    os.close(side)
    os.set_blocking(main, False)
    ends = time.monotonic() + 900  # a busy machine takes minutes to start an interpreter
    while time.monotonic() < ends and process.poll() is None and len(rows(run)) < 3:
        try:
            os.read(main, 1 << 16)
        except BlockingIOError:
            time.sleep(0.02)
    os.close(main)
    assert process.wait(timeout=300) == 130
    last = ckpt.latest(run / "checkpoints")
    assert last.step == rows(run)[-1]["step"] >= 3


# -- where a run goes on, and where a new one starts ----------------------------------------------------------------------------


def test_two_processes_cannot_write_one_folder(train, tmp_path):
    with lock.held(tmp_path / "run"), pytest.raises(lock.InUse, match=rf"run is being written by process {os.getpid()}"):
        train()
    train(steps=0)
    assert not (tmp_path / "run" / lock.NAME).exists()


def test_a_command_that_fails_before_it_trains_leaves_no_folder(train, tmp_path):
    with pytest.raises(Exception, match="nowhere"):
        train("a/b", model="nowhere/at-all")
    assert not (tmp_path / "a").exists()


def test_resume_takes_a_run_or_its_newest_checkpoint(train, same, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(ValueError, match='expected "auto", "never", a run folder'):
        train(resume=run, out=None)
    train(on_step=stop_at(2))
    with pytest.raises(ckpt.CheckpointError, match=r"has gone on to step 2.*--fork .*run@0"):
        train(resume=run / "checkpoints" / "step-000000", out=None)
    with pytest.raises(ValueError, match="a run goes on in its own folder"):
        train("other", resume=run)
    train(resume=run / "checkpoints" / "step-000002", out=None, on_step=stop_at(3))
    train(resume=str(run), out=None)
    same()


def test_a_fork_without_changes_repeats_its_parent(train, tmp_path, capsys):
    train()
    train("branch", fork=f"{tmp_path / 'run'}@2", on_step=stop_at(3))
    train("branch", fork=f"{tmp_path / 'run'}@2", quiet=False)  # the same command goes on
    assert "starts from" not in capsys.readouterr().out
    a, b = outcome(tmp_path / "run"), outcome(tmp_path / "branch")
    assert a["tensors"] == b["tensors"] and a["metrics"][3:] == b["metrics"][1:]
    assert b["metrics"][0] == {k: v for k, v in a["metrics"][2].items() if k == "step" or k.startswith("eval/")}
    parent = json.loads((tmp_path / "branch" / "parent.json").read_text())
    assert parent["run"] == str(tmp_path / "run") and parent["step"] == 2 and parent["changed"] == {}


def test_a_fork_says_and_records_what_changed(train, tmp_path, capsys):
    train()
    train("branch", recipe="dapo", fork=str(tmp_path / "run"), learning_rate=1e-4, data="worlds:colour", steps=5, quiet=False)
    said = capsys.readouterr().out
    assert f"starts from step 4 of {tmp_path / 'run'}" in said
    assert "learning_rate: 0.001 there, 0.0001 here" in said and "data: 'worlds:count' there, 'worlds:colour' here" in said
    parent = json.loads((tmp_path / "branch" / "parent.json").read_text())
    assert parent["changed"]["learning_rate"] == {"then": 0.001, "now": 0.0001}
    assert ckpt.latest(tmp_path / "branch" / "checkpoints").state["parent"] == parent


def test_wrong_forks_are_named(train, tmp_path, model):
    train(steps=2)
    run = tmp_path / "run"
    for fork, changes, error, message in (
        (f"{run}@7", {}, ckpt.CheckpointError, "expected a checkpoint of step 7; found steps: 0, 2"),
        (f"{run}@x", {}, ValueError, "step 'x'; expected a number"),
        (f"{tmp_path}/no@2", {}, ValueError, "no run folder .*/no'; expected RUN@STEP"),
        (f"{run}@2", {"model": "tiny"}, ValueError, "model = 'tiny' here, .* expected the same"),
        (f"{run}@2", {"lora__rank": 2}, ValueError, "lora = .* expected the same"),
        (f"{run}@2", {"out": run}, ValueError, "expected another folder"),
        (f"{run}@2", {"resume": str(run)}, ValueError, "expected one of them"),
    ):
        with pytest.raises(error, match=message):
            train("branch", fork=fork, **changes)
    train("other", steps=0)
    with pytest.raises(FileExistsError, match="already holds a run of its own"):
        train("other", fork=f"{run}@2")


def test_weights_that_no_checkpoint_holds_must_be_the_same(train, model, tmp_path):
    base = shutil.copytree(model, tmp_path / "base")
    train(model=str(base), method__beta=0.1, on_step=stop_at(2))
    build_checkpoint(tmp_path / "base", Shape(vocab=384, **SIZES), seed=5)
    with pytest.raises(ckpt.CheckpointError, match="the weights under `model`, which no checkpoint holds, has changed"):
        train(model=str(base), method__beta=0.1)


def test_a_change_of_user_code_is_said(train, tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("def reward(answer, task, episode):\n    return len(episode.text) % 3 / 2\n")
    train(reward=f"{file}:reward", on_step=stop_at(2))
    file.write_text(file.read_text().replace("% 3", "% 2"))
    train(reward=f"{file}:reward", quiet=False)
    assert re.search(r"the code of `reward` was \w+ when step 2 was saved and is \w+ now", capsys.readouterr().out)


def test_nothing_to_train_keeps_the_steps_before(train, tmp_path):
    flat = Once(lambda: 1.0, at=7)
    with pytest.raises(NothingToTrain):
        train(reward=flat, dynamic_sampling=True, max_resample=2, eval_tasks=0, checkpoint_every=100)
    assert steps_of(tmp_path / "run")[-1] >= 1


def test_every_row_of_the_page_names_its_test():
    page = (ROOT / "docs" / "reliability.md").read_text()
    table = page.partition("<!-- faults")[2].partition("<!-- /faults -->")[0].splitlines()[3:]
    for row in filter(None, table):
        file, _, name = row.rstrip(" |`").rpartition("`")[2].partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(), row
    assert len(table) > 20


# -- secrets --------------------------------------------------------------------------------------------------------------------


def test_no_secret_is_written_into_a_run_folder(model, tmp_path, monkeypatch):
    secrets = {"HF_TOKEN": "hf_" + "Zq7" * 10, "WANDB_API_KEY": "wandb-key-0123456789", "DB_PASSWORD": "correct horse battery"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    said = tmp_path / "judge.py"
    said.write_text(
        "import os\n\ndef reward(answer, task, episode):\n    if episode.id.endswith('0'):\n"
        "        raise OSError('401 from http://me:sesame@judge/ with ' + os.environ['HF_TOKEN'])\n    return 0.5\n"
    )
    options = f"--model {model} --data worlds:count --reward {said}:reward --steps 2 --tasks-per-step 2 --group-size 3 --max-unscored 1"
    arguments = ["train", *options.split(), "--name", f"try {secrets['WANDB_API_KEY']}", "--eval-tasks", "2", "--quiet"]
    arguments += ["--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["fovea", *arguments, "--token", "open-sesame-42"])
    assert cli.main(arguments) == 0
    written = b"".join(p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file())
    assert b"401 from http://***@judge/ with ***" in written and b"--token ***" in written
    for value in (*secrets.values(), "sesame"):
        assert value.encode() not in written
