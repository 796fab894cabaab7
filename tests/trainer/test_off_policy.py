"""Recipes of simulators through the front door: collected, learned from, evaluated, interrupted."""

import json
import math
import os
import signal
import subprocess
import sys

import pytest
import torch

import fovea
from fovea import recipes
from fovea.envs.pixels import Reach
from fovea.policies.control import Flow, Latents, Network
from fovea.recipe import Recipe
from fovea.rollout.vector import VectorEngine
from fovea.tasks.gym import Gym
from fovea.trainer import checkpoint as ckpt
from fovea.trainer.off_policy import spare
from fovea.trainer.replay import Replay, ReplayError
from tests.trainer.test_resume import ROOT, outcome

SMALL = dict(
    network=Network(width=8, normalise=True),
    max_rows=2,
    horizon=8,
    steps=9,
    replay=Replay(size=60, start=20, batch=8, length=2),
    updates_per_rollout=3,
    checkpoint_every=3,
    eval_tasks=2,
    eval_every=4,
    threads=1,
    seed=3,
)
PPO = {**SMALL, "method__reward": "steps"}
REMEMBERS = {
    **SMALL,
    "network": Latents(width=6, stochastic=2, channels=2),
    "data": Gym("fovea/PointMass-v0", {"limit": 6}),
    "method__imagine": 3,
}
CASES = {"repo-mbrl": REMEMBERS, "sac": SMALL, "td3": SMALL, "dqn": {**SMALL, "method__every": 4}, "ppo_control": PPO}
KILL = """
import os, signal, sys
import fovea
from fovea.trainer.replay import ReplayBuffer
from tests.trainer.test_off_policy import SMALL

out, step = sys.argv[1], int(sys.argv[2])
add, calls, writes = ReplayBuffer.add, [], []

def dying(self, groups):
    calls.append(0)
    if len(calls) == step:
        write, self._write = self._write, lambda: os.kill(os.getpid(), signal.SIGKILL) if writes else (writes.append(0), write())
    add(self, groups)

ReplayBuffer.add = dying
fovea.train("sac", out=out, quiet=True, **SMALL)
"""


class Gone(BaseException):
    """Ends a run without letting it save anything."""


def gone_at(last):
    def on_step(step, metrics):
        if step == last:
            raise Gone

    return on_step


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_was_interrupted_ends_with_the_same_numbers(name, tmp_path):
    fovea.train(name, out=tmp_path / "whole", quiet=True, **CASES[name])
    for stop in (2, 5, 9):
        fovea.train(name, out=tmp_path / "parts", quiet=True, on_step=lambda step, _, stop=stop: step == stop, **CASES[name])
    whole, parts = outcome(tmp_path / "whole"), outcome(tmp_path / "parts")
    assert parts == whole and whole[0] == 9
    steps = [row for row in whole[2] if "length/tokens" in row]
    assert len(steps) == 9 and all(row["length/tokens"] == 16 for row in steps)
    assert {"eval/return", "eval/return_low", "eval/n"} <= set(whole[2][0])
    if name != "ppo_control":
        assert [("loss/critic" in row) for row in steps] == [False] + [True] * 8, "nothing is learned from before the first 20 steps"


@pytest.mark.parametrize("step", [8])
def test_a_run_killed_while_it_appends_to_the_replay_ends_with_the_same_numbers(step, tmp_path):
    fovea.train("sac", out=tmp_path / "whole", quiet=True, **SMALL)
    command = [sys.executable, "-c", KILL, str(tmp_path / "killed"), str(step)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len((tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()) == step, "the step before was the last"
    fovea.train("sac", out=tmp_path / "killed", quiet=True, **SMALL)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_evaluation_does_not_disturb_the_episodes_that_go_on(tmp_path):
    runs = [fovea.train("dqn", out=tmp_path / str(n), quiet=True, **{**CASES["dqn"], "eval_every": n}) for n in (0, 1)]
    often = ("reward/mean", "loss/critic", "replay/frames")
    assert [[row.get(k) for k in often] for row in runs[0].metrics] == [[row.get(k) for k in often] for row in runs[1].metrics]
    assert [p.tolist() for p in runs[0].policy.parameters()] == [p.tolist() for p in runs[1].policy.parameters()]


def test_the_newest_checkpoint_can_always_be_gone_on_from_however_short_the_episodes(tmp_path):
    data = Gym(Reach, {"size": 8, "square": 4, "limit": 1})
    changes = {**CASES["dqn"], "data": data, "replay": Replay(size=40, start=8, batch=4), "eval_tasks": 0, "steps": 6}
    recipe = fovea.api.resolve("dqn", **changes)
    assert spare(recipe) == 4 * 17
    whole = fovea.train(recipe, out=tmp_path / "whole", quiet=True)
    assert whole.metrics[-1]["replay/frames"] == 40
    with pytest.raises(Gone):
        fovea.train(recipe, out=tmp_path / "parts", quiet=True, on_step=gone_at(5))
    assert outcome(tmp_path / "parts")[0] == 3, "two steps are on disk that the checkpoint does not know of"
    fovea.train(recipe, out=tmp_path / "parts", quiet=True)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_simulators_are_closed_with_what_they_are_for(tmp_path, monkeypatch):
    made, closed, init = [], [], VectorEngine.__init__
    monkeypatch.setattr(VectorEngine, "__init__", lambda self, *a, **k: init(self, *a, **k) or made.append(self))
    monkeypatch.setattr(VectorEngine, "close", lambda self: closed.append(self))
    run = fovea.train("sac", out=tmp_path, quiet=True, **{**SMALL, "steps": 0})
    assert len(made) == 2 and set(closed) == set(made)
    fovea.evaluate(run.policy, recipes.get("sac"), tasks=1)
    assert len(made) == 3 and set(closed) == set(made)


def test_a_finished_run_is_loaded_and_evaluated_again(tmp_path):
    run = fovea.train("sac", out=tmp_path / "r", quiet=True, **SMALL)
    policy = fovea.load_policy(tmp_path / "r")
    result = fovea.evaluate(policy, "gym:Pendulum-v1", tasks=2)
    assert result.unit == "return" and result.mean == pytest.approx(run.after)
    low, high = result.metrics()["eval/return_low"], result.metrics()["eval/return_high"]
    assert low <= run.after <= high and run.after < 0
    again = fovea.train("sac", out=tmp_path / "again", quiet=True, **{**SMALL, "model": str(ckpt.latest(run.path / "checkpoints").model)})
    assert again.before == pytest.approx(run.after), "a run may start from the network of another"


def test_a_fork_takes_the_weights_over_and_fills_a_replay_of_its_own(tmp_path, capsys):
    fovea.train("sac", out=tmp_path / "a", quiet=True, **SMALL)
    fovea.train("sac", out=tmp_path / "b", fork=f"{tmp_path / 'a'}@6", **{**SMALL, "learning_rate": 1e-2, "steps": 8})
    assert "the data begin anew" in capsys.readouterr().out
    assert outcome(tmp_path / "b")[0] == 8
    with pytest.raises(ValueError, match=r"network = .*width.*16.* here"):
        fovea.train("sac", out=tmp_path / "c", fork=f"{tmp_path / 'a'}@6", quiet=True, **{**SMALL, "network": Network(width=16)})


def test_a_replay_that_is_gone_is_named(tmp_path):
    fovea.train("sac", out=tmp_path / "r", quiet=True, on_step=lambda step, _: step == 4, **SMALL)
    for file in (tmp_path / "r" / "replay").iterdir():
        file.unlink()
    with pytest.raises(ReplayError, match=r"found 0 frames in lane 0, expected the .* that the checkpoint knows"):
        fovea.train("sac", out=tmp_path / "r", quiet=True, **SMALL)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("sac", {"data": "gym:CartPole-v1"}, "'squashed' takes continuous actions, the simulator has discrete ones; .*dqn or ppo"),
        (
            "dqn",
            {"data": "gym:Pendulum-v1"},
            "'values' takes discrete actions, the simulator has continuous ones; .*sac, td3, repo-mbrl or ppo",
        ),
        ("sac", {"data": "worlds"}, r"model = 'network' without a simulator; expected data='gym:ID', found 'worlds'"),
        ("grpo", {"data": "gym:CartPole-v1"}, "model = 'tiny' cannot act in a simulator; expected model='network'"),
        ("grpo", {"horizon": 4}, "horizon = 4 without a simulator"),
        ("sac", {"horizon": 0}, "horizon = 0, expected at least 1, because SAC learns from a replay"),
        ("sac", {"data": "gym:"}, "found no environment, expected gym:ID such as gym:CartPole-v1"),
        ("sac", {"data": "gym:Pendulun-v1"}, "gym:Pendulun-v1: .*Pendulun"),
        ("sac", {"network": Flow(width=8)}, "network = Flow.*expected one of kind 'squashed'"),
        ("sft", {"data": "gym:CartPole-v1", "model": "network"}, "method = SFT.*expected data='demos:ROBOT' with supervised"),
        ("dpo", {"data": "gym:CartPole-v1", "model": "network"}, "method = DPO.*expected data='demos:ROBOT'"),
        ("sac", {"dtype": "bfloat16"}, "with a simulator: dtype = 'bfloat16', expected 'float32'"),
        ("sac", {"replay__size": 4}, "has .* frames, a lane keeps .*; raise --replay.size"),
        ("sac", {"replay__length": 300, "replay__start": 4}, "no window of 300 units in .* frames"),
    ],
)
def test_what_does_not_go_together_is_named(name, changes, says, tmp_path):
    base = {k: v for k, v in SMALL.items() if name in ("sac", "dqn")}
    if "replay__size" in changes:
        base["replay"] = Replay(start=0)
    with pytest.raises(ValueError, match=says):
        fovea.train(name, out=tmp_path / "r", quiet=True, **{**base, **changes})


def test_nothing_that_is_not_finite_is_learned_on(tmp_path):
    with pytest.raises(fovea.trainer.update.TrainingDiverged, match=r"step \d: .*nan.*; last good checkpoint: step-00000"):
        fovea.train("sac", out=tmp_path, quiet=True, **{**SMALL, "learning_rate": 1e30, "steps": 9})


def test_whole_episodes_of_a_simulator_train_group_methods(tmp_path):
    changes = {"horizon": 0, "tasks_per_step": 2, "group_size": 3, "steps": 2, "method": "grpo", "eval_tasks": 2, "threads": 1}
    run = fovea.train("ppo_control", out=tmp_path, quiet=True, **changes)
    assert run.metrics[-1]["length/episodes"] == 6 and math.isfinite(run.after)


def test_the_recipe_says_all_that_decides_a_simulator():
    data = [Gym("CartPole-v1"), Gym("CartPole-v1", stack=2), Gym("CartPole-v1", {"sutton_barto_reward": True})]
    assert len({Recipe(model="network", data=d).fingerprint() for d in data}) == 3
    assert json.dumps(Recipe(data=data[2]).to_json()["data"]) == (
        '{"type": "Gym", "make": "CartPole-v1", "kwargs": {"sutton_barto_reward": true}, "stack": 1, "around": [], '
        '"split": "train", "seed": 0}'
    )


def test_training_and_held_out_starts_differ():
    train, held = Gym("CartPole-v1"), Gym("CartPole-v1").heldout()
    assert {train[i].meta["seed"] for i in range(200)}.isdisjoint(held[i].meta["seed"] for i in range(200))
    assert torch.tensor([held[i].meta["seed"] for i in range(3)]).max() < 2**31
