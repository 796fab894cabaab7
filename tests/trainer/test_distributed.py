"""Two real processes (gloo, CPU) against one: the same parameters, the same numbers, and no process left waiting."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fovea import api
from fovea.support import FAMILIES
from fovea.trainer import checkpoint as ckpt
from fovea.trainer import distributed, exchange, wire
from fovea.types import Episode, Observation, Places, Prefix, Score, Segment, Task, Turn, user
from tests.policies.tiny_checkpoints import build, picture
from tests.trainer import worker

ROOT = Path(__file__).resolve().parents[2]

SAME = {
    "grpo": {"method__beta": 0.05},
    "minibatches": {"updates_per_rollout": 3, "epochs_per_rollout": 2, "dynamic_sampling": True, "steps": 3},
    "ppo": {"method": "ppo", "eval_tasks": 3, "eval_every": 1, "steps": 3},
    "frozen": {"freeze": ["tower", "projector"], "group_size": 2, "tasks_per_step": 3},
    "sft": {"method": "sft", "steps": 3},
    "visurf": {"method": "visurf", "sampling__max_new_tokens": 24, "updates_per_rollout": 2, "steps": 3},
    "dpo": {"method": "dpo", "steps": 3},
    "lora": {"lora__rank": 4, "lora__where": "both", "method__beta": 0.05},
    "fsdp": {"parallel": "fsdp", "method__beta": 0.05},
    "fsdp-ppo": {"parallel": "fsdp", "method": "ppo", "eval_tasks": 3, "eval_every": 1, "steps": 3},
    "fsdp-lora": {"parallel": "fsdp", "lora__rank": 4, "method__beta": 0.05, "steps": 3},
    "fsdp-tower": {"parallel": "fsdp", "lora__rank": 4, "lora__where": "tower", "weight_decay": 0.1, "steps": 3},
    "fsdp-both": {"parallel": "fsdp", "lora__rank": 4, "lora__where": "both", "method__beta": 0.05, "steps": 3},
    "fsdp-text": {"parallel": "fsdp", "data": "text", "weight_decay": 0.1, "steps": 3},
    "fsdp-papo": {"parallel": "fsdp", "method": "papo", "method__masked_gradient": True, "steps": 3},
    "fsdp-dpo": {"parallel": "fsdp", "method": "dpo", "steps": 3},
    "fsdp-frozen": {"parallel": "fsdp", "freeze": ["tower", "projector"], "group_size": 2, "tasks_per_step": 3, "updates_per_rollout": 2},
}
FAMILY = "qwen2_5_vl"
OTHERS = {f"fsdp-{family}": family for family in FAMILIES if family != FAMILY}
SAME |= {key: {"parallel": "fsdp", "steps": 2, "tasks_per_step": 3, "group_size": 2, "weight_decay": 0.1} for key in OTHERS}
MOVED = {"data": {}, "fsdp": {"parallel": "fsdp"}, "lora": {"parallel": "fsdp", "lora__rank": 4, "lora__where": "both"}}
"""Runs that begin on one number of processes and end on another."""

ENDINGS = {
    "one is asked to stop while it generates": {"event": "SIGTERM", "rank": 1, "call": 20},
    "the first is asked to stop": {"event": "SIGINT", "rank": 0, "call": 10},
    "a loss is not finite": {"event": "huge", "call": 20},
    "one fails": {"broken_on": 1},
    "one fails in its update": {"broken_loss": 1},
    "one is killed": {"event": "SIGKILL", "rank": 1, "call": 20},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """A tiny checkpoint of each family."""
    folder = tmp_path_factory.mktemp("models")
    small = {"scale": 2.0, "hidden": 32, "vision_hidden": 32}
    return {name: str(build(folder / name, name, layers=2 if name == FAMILY else 3, **small)) for name in (FAMILY, *OTHERS.values())}


def one(job: dict):
    """The run of a job in this process."""
    torch.set_num_threads(1)
    trained = worker.run({**job, "changes": {k: v for k, v in job["changes"].items() if k != "parallel"}})
    return worker.weights(trained.policy), trained.metrics


def start(jobs: list[dict], folder: Path) -> list[subprocess.Popen]:
    """Two processes that run the jobs."""
    for job in jobs:
        Path(job["out"]).mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "tests.trainer.worker", str(folder / "jobs.json")]
    return [subprocess.Popen(command, env={**shared, "RANK": str(rank)}, cwd=ROOT) for rank in range(2)]


@pytest.fixture(scope="module")
def two(models, tmp_path_factory):
    """Folders of what two processes left of every job, and how they ended."""
    folder = tmp_path_factory.mktemp("two")
    model = models[FAMILY]
    jobs = {n: {"out": str(folder / n), "changes": {"model": models[OTHERS.get(n, FAMILY)], **changes}} for n, changes in SAME.items()}
    for name, changes in MOVED.items():
        forth, back = ({"out": str(folder / f"{way}-{name}"), "changes": {"model": model, **changes}} for way in ("forth", "back"))
        one({**forth, "event": {"stop": 2}})
        jobs |= {f"forth-{name}": forth, f"back-{name}": {**back, "event": {"stop": 3}}}
    for name, event in ENDINGS.items():
        changes = {"parallel": "fsdp"} if "broken_loss" in event else {}
        jobs[name] = {"out": str(folder / name), "changes": {"model": model, **changes}, "event": event}
    processes = start(list(jobs.values()), folder)
    try:
        codes = [p.wait(timeout=900) for p in processes]
    finally:
        for p in processes:
            p.kill()
    return jobs, codes


def left(job: dict, rank: int) -> dict[str, torch.Tensor]:
    out = Path(job["out"])
    error = out / f"error-{rank}.txt"
    assert not error.exists(), error.read_text()
    return load_file(out / f"weights-{rank}.safetensors")


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return math.sqrt(sum(float(((a[k] - b[k]) ** 2).sum()) for k in a))


def counted(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "speed/", "memory/"))} for row in rows]


def marked(name: str):
    sharded = name.startswith("fsdp")
    return pytest.param(name, marks=pytest.mark.support("fsdp2", family=OTHERS.get(name, FAMILY))) if sharded else name


@pytest.mark.parametrize("name", [marked(name) for name in SAME])
def test_two_processes_give_the_parameters_and_the_metrics_of_one(two, tmp_path, name):
    job = two[0][name]
    expected, rows = one({**job, "out": str(tmp_path)})
    assert all(row["optim/grad_norm"] > 0 and row["optim/learning_rate"] > 0 for row in rows if row["step"])
    for rank in range(2):
        assert distance(left(job, rank), expected) < 1e-10
    for found, row in zip(json.loads((Path(job["out"]) / "metrics-0.json").read_text()), rows, strict=True):
        assert ("time/wait_s" in found) == bool(found["step"]) and "time/wait_s" not in row
        for key, x in counted([row])[0].items():
            assert math.isclose(found[key], x, rel_tol=1e-5, abs_tol=1e-7) or (math.isnan(x) and math.isnan(found[key])), key


@pytest.mark.parametrize("name", MOVED)
def test_a_run_goes_on_with_another_number_of_processes(two, tmp_path, name):
    forth, back = two[0][f"forth-{name}"], two[0][f"back-{name}"]
    expected, _ = one({**forth, "out": str(tmp_path)})
    assert distance(left(forth, 0), expected) < 1e-10
    assert distance(one({**back, "event": {}})[0], expected) < 1e-10


def test_only_the_first_process_writes(two):
    out = Path(two[0]["grpo"]["out"])
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert len((out / "command.txt").read_text().splitlines()) == 1
    assert json.loads((out / "metrics-1.json").read_text()) == json.loads((out / "metrics-0.json").read_text())
    groups = [json.loads(line) for line in (out / "rollouts" / "step-000005.jsonl").read_text().splitlines()]
    assert all("adv" in s for g in groups for e in g["episodes"] for s in e["segments"])


def said(two, name: str) -> list[str]:
    return [(Path(two[0][name]["out"]) / f"error-{rank}.txt").read_text() for rank in range(2)]


@pytest.mark.parametrize("name", ["one is asked to stop while it generates", "the first is asked to stop"])
def test_a_request_to_stop_reaches_all_and_the_state_is_saved(two, name):
    messages = said(two, name)
    assert messages[0] == messages[1]
    assert messages[0].startswith("Interrupted: stopped after step")
    last = ckpt.latest(Path(two[0][name]["out"]) / "checkpoints")
    assert last is not None and f"stopped after step {last.step};" in messages[0]


def test_a_loss_that_is_not_finite_stops_all_with_the_same_message(two):
    messages = said(two, "a loss is not finite")
    assert messages[0] == messages[1]
    assert messages[0].startswith("TrainingDiverged: step")


def test_a_process_that_fails_ends_the_others_with_its_message(two):
    other, own = said(two, "one fails")
    assert own == "OSError: the disk is gone"
    assert other.startswith("ProcessLost: process 0 of 2 has lost contact") and "process 1 of 2: OSError: the disk is gone" in other


def test_a_process_that_fails_in_its_update_ends_the_others_with_its_message(two):
    other, own = said(two, "one fails in its update")
    assert own == "ArithmeticError: the abacus is broken"
    assert other.startswith("ProcessLost: process 0 of 2 has lost contact") and "process 1 of 2: ArithmeticError: the abacus" in other


def test_a_process_that_is_killed_ends_the_others(two):
    jobs, codes = two
    assert codes == [0, -signal.SIGKILL]
    assert (Path(jobs["one is killed"]["out"]) / "error-0.txt").read_text().startswith("ProcessLost")


@pytest.mark.slow
def test_torchrun_and_the_command_line(models, tmp_path):
    """Started by torchrun, stopped by a signal to torchrun: the state is saved, nothing is left running."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fovea", "train", "grpo"]
    fields = f"--model {models[FAMILY]} --data worlds:count --steps 100000 --tasks-per-step 2 --group-size 2 --eval-tasks 0"
    options = [*fields.split(), "--sampling.max-new-tokens", "4", "--checkpoint-every", "1000", "--out", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, *options], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    metrics = tmp_path / "run" / "metrics.jsonl"
    ends = time.monotonic() + 900  # a busy machine takes minutes to start three interpreters
    while time.monotonic() < ends and process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 2):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    last = ckpt.latest(tmp_path / "run" / "checkpoints")
    assert last is not None, output
    assert last.step == json.loads(metrics.read_text().splitlines()[-1])["step"] > 2, output
    assert f"stopped after step {last.step}; saved to" in output


# -- parts --------------------------------------------------------------------------------------------------------------------


def test_what_travels_comes_back_equal():
    segment = Segment(
        prefix=Prefix("key", None, 7),
        actions=torch.arange(3),
        mask=torch.tensor([True, False, True]),
        logp_old=torch.tensor([-0.1, 0.0, -math.inf]),
        turn=torch.zeros(3, dtype=torch.long),
        version=torch.ones(3, dtype=torch.long),
        extras={"obs": torch.ones(3, 2, dtype=torch.bfloat16)},
    )
    shown = Observation(messages=user("look"), images=(picture(3, 20, 10),))
    task = Task("t", "s", user("hi", 0))
    score = Score(math.nan, {"x": 0.1}, correct=True, places=Places(np.ones((1, 4)), ("cat",), np.array([True]), image=1))
    episode = Episode("0/t/1", task, segments=[segment], turns=[Turn("a", shown), Turn("b")], score=score)
    sent = exchange._to_send(episode)
    back = wire.unpack(wire.pack([sent, {("k", 1): [None, 2.5]}]))
    found = back[0]
    assert back[1] == {("k", 1): [None, 2.5]}
    assert (found.id, found.role, found.turns[0].text) == (episode.id, episode.role, "a")
    assert math.isnan(found.score.value) and found.score.parts == {"x": 0.1} and found.score.correct is True
    places = found.score.places
    assert (places.at.tolist(), places.labels, places.hits.tolist(), places.image) == ([[1.0] * 4], ("cat",), [True], 1)
    for name in ("actions", "mask", "logp_old", "turn", "version"):
        assert torch.equal(getattr(found.segments[0], name), getattr(segment, name))
    assert found.segments[0].extras["obs"].dtype == torch.bfloat16 and found.segments[0].logp_behaviour is None
    assert found.turns[0].observation.images[0].tobytes() == shown.images[0].tobytes()
    with pytest.raises(TypeError, match="a set cannot be sent"):
        wire.pack({1})


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE = 'two' .* expected a number"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE = 2 but MASTER_ADDR, MASTER_PORT not set .*torchrun"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "RANK = '2' with WORLD_SIZE = 2; expected .* 0 to 1"),
    ],
)
def test_an_environment_that_makes_no_team_is_named(environment, message):
    with pytest.raises(ValueError, match=message):
        distributed._place(environment)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks_per_step": 1}, "tasks_per_step = 1 over 2 processes"),
        ({"engine": "http://127.0.0.1:1"}, "with 2 processes; expected engine='local'"),
    ],
)
def test_recipes_that_two_processes_cannot_train_are_refused(changes, message):
    api.check_team(api.resolve("grpo", **changes), 1)
    with pytest.raises(ValueError, match=message):
        api.check_team(api.resolve("grpo", **changes), 2)


def test_fields_that_need_whole_weights_are_named():
    assert api.whole_only(api.resolve("grpo")) == ""
    assert api.whole_only(api.resolve("grpo", optimizer="adamw_8bit")) == "optimizer = 'adamw_8bit'"
    assert api.whole_only(api.resolve("grpo", offload=("activations",))) == "offload = ('activations',)"
    assert api.whole_only(api.resolve("grpo", lora__rank=4, lora__nf4=True)) == "lora.nf4 = True"


def test_devices_are_shared_out_one_gpu_each():
    assert distributed._own_device("cpu", {"RANK": "1"}) == "cpu"
    with pytest.raises(ValueError, match=r"'cuda:1' with several processes; expected 'cpu', or 'cuda'"):
        distributed._own_device("cuda:1", {"RANK": "1"})
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="process 1 of this machine found 0 GPUs"):
            distributed._own_device("cuda", {"RANK": "3", "LOCAL_RANK": "1"})


def test_tasks_that_come_twice_are_named_as_the_engine_names_them():
    task = Task("t", "s", user("hi", 0))
    assert [t.id for t in exchange._named_apart([task, task, task])] == ["t", "t#1", "t#2"]


class Store:
    """What a process may find in the store: nothing, a reason, or no store any more."""

    def __init__(self, reason=False, gone=False):
        self.reason, self.gone = reason, gone

    def check(self, keys):
        if self.gone:
            raise RuntimeError("connection lost")
        return self.reason


@pytest.mark.parametrize("told", [{"reason": True}, {"gone": True}])
def test_the_watch_takes_exchanges_down_once_another_process_has_left_a_reason(told):
    store, aborted = Store(), threading.Event()
    watch = distributed._Watch(store, aborted.set, every_s=0.01, grace_s=0.01)
    assert not aborted.wait(0.1)
    vars(store).update(told)
    assert aborted.wait(5) and watch.close()


def test_the_watch_leaves_a_process_alone_that_ends_by_itself():
    store, aborted = Store(reason=True), threading.Event()
    watch = distributed._Watch(store, aborted.set, every_s=0.01, grace_s=60)
    time.sleep(0.05)
    assert not watch.close()
    watch.join(5)
    assert not watch.is_alive() and not aborted.is_set()


def test_a_process_that_was_freed_by_its_watch_has_lost_the_others(monkeypatch):
    """Whatever error the broken exchange caused there, the reason of the one that failed is told."""
    ended = []
    monkeypatch.setattr(distributed, "_abort", lambda: ended.append("aborted"))
    team = distributed.Team(0, 2, "cpu", FullStore())
    team._watch = SimpleNamespace(close=lambda: True)
    with pytest.raises(distributed.ProcessLost, match=r"process 0 of 2 has lost contact.*process 1 of 2: OSError: gone"), team:
        raise FloatingPointError("garbage from a broken exchange")
    assert ended == ["aborted"]


def test_weights_of_several_types_in_one_unit_are_refused():
    unit = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).bfloat16())
    with pytest.raises(ValueError, match=r"weights of a Sequential are bfloat16 and float32 .*dtype 'float32', or parallel='data'"):
        distributed._one_kind(unit)
    unit[1].requires_grad_(False)
    distributed._one_kind(unit)


class FullStore:
    def wait(self, keys, timeout): ...

    def get(self, key):
        return b"process 1 of 2: OSError: gone"


def test_a_single_process_is_a_team_of_one():
    team = distributed.Team.join()
    with team:
        assert (team.rank, team.size, team.main, team.sharded) == (0, 1, True, False)
        assert team.gather(lambda: "x") == ["x"] and team.add({"a": 2.0}) == {"a": 2.0} and team.any(False) is False
