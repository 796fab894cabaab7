"""Runs whose answers and environments are actors of Ray, some of which are killed on the way."""

import itertools
import logging
import os
from contextlib import suppress
from typing import Any

import pytest

import fovea
from fovea.rollout.engine import Engine
from fovea.rollout.rayed import Ray, WorkerFailed
from fovea.rollout.rayed.crew import FarEnvironment
from fovea.trainer import checkpoint as ckpt
from fovea.trainer.asynchronous import Asynchronous
from fovea.types import Score

ray = pytest.importorskip("ray")


class Parity:
    """Right is an episode whose words add up to an odd number."""

    scope = "episode"

    def score(self, group, context):
        values = [sum(map(ord, "".join(t.text for t in e.turns))) % 2 for e in group.episodes]
        return [Score(float(v), correct=bool(v)) for v in values]


RUN: dict[str, Any] = dict(
    data="desk:mark,each=4",
    environment="desk",
    reward=Parity(),
    tasks_per_step=2,
    group_size=3,
    max_rows=6,
    sampling__max_new_tokens=4,
    eval_tasks=0,
    checkpoint_every=1,
    threads=1,
    quiet=True,
    seed=100,
)
PLACES = Ray(workers=2, environments=1, cpus=1, environment_cpus=1)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """One for all runs of this file; that of RAY_ADDRESS, where there is one."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    there = os.environ.get("RAY_ADDRESS")
    for _ in range(2):
        with suppress(Exception):
            asked = {"address": there} if there else {"address": "local", "num_cpus": 3, "object_store_memory": 100 << 20}
            ray.init(**asked, include_dashboard=None if there else False, logging_level=logging.ERROR, log_to_driver=False)
            break
    if not ray.is_initialized():
        pytest.skip("Ray has not started: it gives its processes fifteen seconds, which they do not keep on a machine that is busy")
    yield
    ray.shutdown()


@pytest.fixture
def killed(monkeypatch):
    """At its fifth step the environment's worker is killed, in the middle of that episode, and with it a rollout worker."""
    steps, old = itertools.count(1), FarEnvironment.step

    async def step(self, action):
        if next(steps) == 5:
            ray.kill(self.hand.actor)
            if len(self.crew.workers) > 1:
                ray.kill(self.crew.workers[0].actor)
        return await old(self, action)

    monkeypatch.setattr(FarEnvironment, "step", step)


@pytest.fixture
def seen(monkeypatch):
    """Episodes in the order in which they come back from rollouts."""
    episodes, old = [], Engine.rollout

    def rollout(self, *args, **kwargs):
        groups = old(self, *args, **kwargs)
        episodes.extend(e for g in groups for e in g.episodes)
        return groups

    monkeypatch.setattr(Engine, "rollout", rollout)
    return episodes


def told(episodes):
    return [(e.id, e.score.value, [t.text for t in e.turns], e.error) for e in episodes]


def test_two_workers_of_which_one_is_killed_compute_what_one_process_does(tmp_path, seen, killed):
    here = fovea.train("grpo", out=tmp_path / "here", steps=2, dtype="float64", **RUN)
    calm = told(seen)
    seen.clear()
    there = fovea.train("grpo", out=tmp_path / "there", steps=2, dtype="float64", engine=PLACES, **RUN)
    assert told(seen) == calm and len({e.id for e in seen}) == len(seen) == 12
    mine, theirs = (dict(run.policy.named_parameters()) for run in (here, there))
    assert max(float((mine[n] - theirs[n]).detach().abs().max()) for n in mine) < 1e-6
    assert here.metrics[0]["optim/grad_norm"] > 0
    counts = {k: v for k, v in there.metrics[-1].items() if k.startswith("ray/")}
    assert counts["ray/workers_lost"] == counts["ray/environment_workers_lost"] == 1 and counts["ray/episodes_again"] >= 1


def test_services_on_actors_keep_their_books_when_one_is_killed(tmp_path, monkeypatch, killed):
    trained, old = [], Asynchronous.collect

    def collect(self, *args):
        groups, metrics = old(self, *args)
        trained.extend(e.id for g in groups for e in g.episodes)
        return groups, metrics

    monkeypatch.setattr(Asynchronous, "collect", collect)
    places = Ray(environments=1, cpus=1, environment_cpus=1)
    method = {"model": "tiny", "reward": RUN["reward"], "curation__pool": "", "curation__mixed": False}
    run = fovea.train("dart", out=tmp_path, steps=3, engine=places, **{**RUN, **method})
    assert len(set(trained)) == len(trained) >= 3 * 2 * 2
    last = ckpt.latest(tmp_path / "checkpoints")
    assert last is not None
    state = last.state["collector"]
    settled = sum(n for k, n in state["counts"].items() if k.startswith("groups_"))
    assert state["next"] + len(state["closed"]) == settled  # every group that was dealt and is not open has been counted, once
    assert state["counts"]["groups_trained"] == 6
    shown = run.metrics[-1]
    assert shown["ray/environment_workers_lost"] == 1 and shown["ray/episodes_again"] >= 1 and shown["mismatch/max_nats"] >= 0


def test_what_cannot_be_made_in_a_worker_is_said(tmp_path):
    with pytest.raises(WorkerFailed, match=r"environment = 'desk:nonsense' in a worker: (.|\n)*nonsense"):
        fovea.train("grpo", out=tmp_path, engine=Ray(environments=1), steps=1, **{**RUN, "environment": "desk:nonsense"})
