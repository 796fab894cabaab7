"""Alignment from a run: its policy and its pictures, what stays bit-equal, going on after an interruption, and what is refused."""

import dataclasses
import math
from typing import Any

import pytest
import torch

import fovea
from fovea import api, recipes, starts
from fovea.ledger.claim import arm_recipe, read
from fovea.ledger.runs import run_recipe
from fovea.policies.control import Latents
from fovea.recipes import repo_mbrl
from fovea.tasks.gym import Gym
from fovea.trainer.replay import Replay, ReplayBuffer
from tests.trainer.test_resume import outcome

SOURCE: dict[str, Any] = dict(
    network=Latents(width=6, stochastic=2, channels=2),
    data=Gym("fovea/PointMass-v0", {"limit": 6}),
    method__imagine=3,
    max_rows=2,
    horizon=6,
    replay=Replay(size=100, start=12, batch=4, length=4),
    updates_per_rollout=1,
    steps=2,
    eval_tasks=0,
    threads=1,
)
SMALL: dict[str, Any] = dict(
    method__width=4,
    method__code=3,
    max_rows=2,
    horizon=6,
    replay=Replay(size=100, start=12, batch=6),
    updates_per_rollout=2,
    steps=5,
    checkpoint_every=2,
    eval_tasks=2,
    threads=1,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return fovea.train("repo-mbrl", out=tmp_path_factory.mktemp("source"), quiet=True, **SOURCE).path


def align(source, out, **changes):
    data = Gym("fovea/PointMass-v0", {"limit": 6, "inverted": True}, around=recipes.get("repo_align").data.around)
    return fovea.train("repo_align", out=out, quiet=True, **{**SMALL, "model": str(source), "data": data, **changes})


def test_the_encoder_of_a_run_is_aligned_with_its_pictures_and_all_else_stays(source, tmp_path):
    before = (source / "replay" / "head.json").read_bytes()
    run = align(source, tmp_path / "run")
    there, here = (p.state_dict() for p in (api.load_policy(source), run.policy))
    assert {k.partition(".")[0] for k in here if not torch.equal(here[k], there[k])} == {"encoder"}
    assert (source / "replay" / "head.json").read_bytes() == before
    known = {"loss/judge", "loss/encoder", "loss/calibration", "align/nats", "align/ratio", "align/dual"}
    assert known <= set(run.metrics[-1]) and all(math.isfinite(run.metrics[-1][name]) for name in known)
    still = align(source, tmp_path / "still", learning_rate=0.0).policy.state_dict()
    assert all(torch.equal(still[k], there[k]) for k in there)
    newest = source / "checkpoints" / "step-000002"
    for given in (newest, newest / "model"):
        assert api.recorded_by(str(given), api.spaces_of(Gym("fovea/PointMass-v0"))).folder == source / "replay"


def test_a_run_that_was_interrupted_ends_with_the_same_numbers(source, tmp_path):
    align(source, tmp_path / "whole")
    for stop in (3, 5):
        align(source, tmp_path / "parts", on_step=lambda step, _, stop=stop: step == stop)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_the_model_that_a_recipe_makes_comes_with_what_was_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(repo_mbrl, "small", recipes.get("repo-mbrl").replace(**SOURCE), raising=False)
    monkeypatch.setattr(starts, "folder", lambda model: tmp_path / "start" / "model")
    starts.main("repo-mbrl:small", tmp_path / "start")
    found = api.recorded_by("repo-mbrl:small", api.spaces_of(Gym("fovea/PointMass-v0")))
    assert found.folder == tmp_path / "start" / "run" / "replay" and len(found) == 28
    assert math.isfinite(align("repo-mbrl:small", tmp_path / "run", steps=2).metrics[-1]["loss/encoder"])


def test_a_buffer_that_is_only_read_gives_what_its_own_run_would_draw(source):
    read_only = ReplayBuffer.left_in(source / "replay")
    assert read_only.layout["lanes"] == 2 and len(read_only) == 28
    windows = read_only.sample(3, key=7, length=2)
    assert windows.obs.shape == (3, 3, 32, 32, 3)
    with pytest.raises(ValueError, match="read-only"):
        read_only.columns["reward"][0, 0] = 1.0


def test_what_does_not_go_together_is_refused(source, tmp_path):
    with pytest.raises(ValueError, match="model = 'network': found no replay of the run that trained it, expected the folder of a run"):
        align("network", tmp_path / "none", network=SOURCE["network"])
    with pytest.raises(ValueError, match="found observations \\(32, 32, 3\\), expected \\(3,\\) as in `data`"):
        align(source, tmp_path / "other", data="gym:Pendulum-v1")
    with pytest.raises(ValueError, match="cannot act in a simulator; expected model='network', a run, or a folder"):
        align(tmp_path / "nowhere", tmp_path / "no")


def test_the_arms_differ_by_what_they_are_called_and_the_real_recipe_by_size():
    tiny, claim, _ = read("repo_align")
    arms = {a: arm_recipe(tiny, changes) for a, changes in claim.arms.items()}
    assert arms["support"] == tiny and arms["as_it_is"] == tiny.replace(learning_rate=0.0)
    assert arms["distribution"].replace(method__match="support") == tiny
    assert arms["pairs_alone"].replace(method__weight=1.0) == tiny
    assert arms["unpaired"].data == dataclasses.replace(tiny.data, around=())
    (stranger,) = arms["strangers"].data.around
    assert (dataclasses.replace(stranger, apart=0),) == tiny.data.around and stranger.apart
    assert run_recipe(tiny, claim, "support", 0, quick=True).model == tiny.model, "without its run there is nothing to align with"
    real = recipes.get("repo_align:real")
    differing = {f.name for f in dataclasses.fields(tiny.method) if getattr(tiny.method, f.name) != getattr(real.method, f.name)}
    assert differing <= {"width", "code", "calibration"} and (real.method.width, real.method.code, real.method.calibration) == (
        256,
        64,
        1.0,
    )
    rates = real.learning_rate, real.method.ratio_rate * real.learning_rate, real.method.dual_rate * real.learning_rate
    assert rates == pytest.approx((3e-4, 5e-5, 5e-3))
    assert real.steps * real.horizon * real.max_rows == 50_000 and (real.replay.batch, real.replay.length) == (50, 49)
    assert real.data.around[0].share * 50_000 == 5_000
