"""`fovea serve` as a process of its own, over HTTP: same tokens, same learning, killed without loss, closed cleanly."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
import torch
from safetensors.torch import load_file

import fovea
from fovea.policies.hf_vlm import HFVLM
from fovea.rollout.engine import Engine
from fovea.rollout.remote import Remote, RemoteEngine
from fovea.rollout.sampling import Sampling
from fovea.types import Observation, Task, user
from tests.policies.tiny_checkpoints import build, picture

TOKEN = "only for this test"


class Process:
    """A server that can be killed and started again on the same port."""

    def __init__(self, checkpoint):
        self.checkpoint, self.port = checkpoint, 0
        self.start()

    def start(self):
        command = [sys.executable, "-m", "fovea.cli", "serve", str(self.checkpoint), "--port", str(self.port)]
        environment = {**os.environ, "FOVEA_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
        self.popen = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        self.url = self.popen.stdout.readline().split()[-1]
        self.port = int(self.url.rpartition(":")[2])

    def end(self, number):
        self.popen.send_signal(number)
        self.popen.wait(60)
        return self.popen.stdout.read()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return build(tmp_path_factory.mktemp("vlm"), "qwen2_5_vl", scale=3.0)


@pytest.fixture(scope="module")
def process(checkpoint):
    process = Process(checkpoint)
    yield process
    process.popen.kill()
    process.popen.wait()


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("FOVEA_TOKEN", TOKEN)


@pytest.fixture(scope="module")
def policy(checkpoint):
    return HFVLM.load(checkpoint)


def tasks(n):
    return [Task(id=f"t{i}", source="toy", prompt=user("How many?" * (i + 1)), images=(picture(i, 56 + 28 * i),)) for i in range(n)]


async def chat(task, policy, env):
    action = await policy.act(Observation(messages=task.prompt, images=task.images))
    await policy.act(Observation(messages=user(f"and {len(action.token_ids)} more", 0), append=True))


def tokens(groups):
    for e in (e for g in groups for e in g.episodes):
        assert not e.error, e.error
    return [[s.actions.tolist() for s in e.segments] for g in groups for e in g.episodes]


def request(process, path, payload=None, token=TOKEN):
    body = None if payload is None else json.dumps(payload).encode()
    headers = {"Authorization": f"Bearer {token}"}
    with urllib.request.urlopen(urllib.request.Request(process.url + path, body, headers), timeout=60) as reply:
        return json.load(reply)


@pytest.mark.parametrize("protocol", ["openai", "sglang"])
def test_same_seeds_same_tokens_as_the_local_engine(process, policy, protocol):
    sampling = Sampling(max_new_tokens=8, temperature=0.9, top_k=40)
    local = Engine(policy, program=chat).rollout(tasks(3), 3, sampling)
    remote = RemoteEngine(policy, Remote(process.url, protocol), program=chat).rollout(tasks(3), 3, sampling)
    assert tokens(remote) == tokens(local)
    for a, b in zip((e for g in remote for e in g.episodes), (e for g in local for e in g.episodes), strict=True):
        assert torch.allclose(a.segments[0].logp_behaviour, b.segments[0].logp_behaviour, atol=1e-4)


def letters(answer, task):
    """A reward that differs between the answers of a random model."""
    return (sum(map(ord, answer)) % 7) / 7


def test_three_steps_of_grpo_are_those_of_the_local_engine(process, checkpoint, tmp_path):
    small = dict(
        model=str(checkpoint),
        data="worlds:count,colour",
        reward=letters,
        tasks_per_step=2,
        group_size=3,
        steps=3,
        sampling__max_new_tokens=6,
        eval_tasks=2,
        freeze=("tower",),
        learning_rate=1e-3,
    )
    local = fovea.train("grpo", out=tmp_path / "local", quiet=True, **small)
    remote = fovea.train("grpo", out=tmp_path / "remote", quiet=True, engine=process.url, **small)
    assert len(remote.metrics) == len(local.metrics)
    for a, b in zip(remote.metrics, local.metrics, strict=True):
        shared = {k for k in a.keys() & b.keys() if not k.startswith(("time/", "speed/", "memory/"))}
        assert {"reward/mean", "optim/grad_norm"} <= shared or "eval/accuracy" in shared
        for k in shared:
            assert a[k] == pytest.approx(b[k], rel=1e-3, abs=1e-5, nan_ok=True), k
    steps = [row for row in remote.metrics if "mismatch/mean_nats" in row]
    assert len(steps) == 3 and local.metrics[-1]["optim/grad_norm"] > 0
    assert all(row["mismatch/max_nats"] < 1e-4 and row["mismatch/ess"] > 0.9999 and row["policy/staleness"] == 0 for row in steps)
    first = load_file(checkpoint / "model.safetensors")
    ends = [load_file(next((tmp_path / k / "checkpoints").glob("step-000003")) / "model/model.safetensors") for k in ("local", "remote")]
    moved = sum(float((ends[0][k] - first[k]).square().sum()) for k in first) ** 0.5
    apart = sum(float((ends[0][k] - ends[1][k]).square().sum()) for k in first) ** 0.5
    assert moved > 0.1 and apart < 1e-3 * moved


def test_wrong_requests_are_explained_and_health_needs_no_token(process):
    assert request(process, "/health", token="")["status"] == "ok"
    for path, payload, given, message in [
        ("/v1/models", None, "wrong", "the token is missing or wrong"),
        ("/v1/completions", {"prompt": "hi", "stream": True}, TOKEN, "stream = True is not spoken here"),
        ("/v1/completions", {"prompt": [1, 10**6]}, TOKEN, "outside the vocabulary"),
        ("/update_weights_from_disk", [], TOKEN, "expected a JSON object"),
        ("/nowhere", {}, TOKEN, "no route POST /nowhere"),
    ]:
        with pytest.raises(urllib.error.HTTPError) as e:
            request(process, path, payload, given)
        assert message in json.load(e.value)["error"]["message"]
    missing = request(process, "/update_weights_from_disk", {"model_path": "no/such/folder"})
    assert missing["success"] is False and "no such folder" in missing["message"]


def test_a_server_killed_in_the_middle_costs_no_episode(process, policy):
    sampling, questions = Sampling(max_new_tokens=24), tasks(5)
    expected = tokens(Engine(policy).rollout(questions, 4, sampling))
    engine = RemoteEngine(policy, Remote(process.url, patience_s=120), max_rows=4)
    found = []
    thread = threading.Thread(target=lambda: found.append(engine.rollout(questions, 4, sampling)))
    thread.start()
    while engine.counts["requests"] < 3:
        time.sleep(0.002)
    process.end(signal.SIGKILL)
    assert thread.is_alive(), "the rollout was over before the server was killed"
    process.start()
    thread.join(120)
    groups = found[0]
    assert tokens(groups) == expected
    assert sum(len(g.episodes) for g in groups) == 20 and engine.counts["errors"] == 0
    assert engine.counts["resent"] >= 1 and engine.counts["updates"] == 2


def test_a_server_started_again_between_rollouts_gets_the_weights_before_it_is_asked(process, checkpoint):
    mine, sampling = HFVLM.load(checkpoint), Sampling(max_new_tokens=8)
    with torch.no_grad():
        for p in mine.parameters():
            p.mul_(1.1)  # as trained: not what the server starts with
    expected = tokens(Engine(mine).rollout(tasks(2), 3, sampling))
    engine = RemoteEngine(mine, Remote(process.url, patience_s=120))
    assert tokens(engine.rollout(tasks(2), 3, sampling)) == expected
    process.end(signal.SIGKILL)
    process.start()
    assert tokens(engine.rollout(tasks(2), 3, sampling)) == expected
    assert engine.counts["updates"] == 2 and engine.counts["stale"] == 0


def test_ctrl_c_closes_it_cleanly(process):
    assert process.end(signal.SIGINT).endswith("stopped\n")
    assert process.popen.returncode == 0
