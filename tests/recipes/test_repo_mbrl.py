"""The recipe of RePo: sizes apart the same at both scales, arms that differ by what they claim, two real steps of a small twin."""

import dataclasses
import math

import pytest

import fovea
from fovea import recipes
from fovea.ledger.claim import arm_recipe, read
from fovea.ledger.probes import Memory
from fovea.methods.dreamer import Dreamer
from fovea.policies.control import Latents
from fovea.tasks.gym import Gym
from fovea.trainer.replay import Replay

SMALL = dict(
    network=Latents(width=6, stochastic=2, channels=2),
    method__imagine=3,
    max_rows=2,
    horizon=6,
    replay=Replay(size=200, start=12, batch=4, length=4),
    updates_per_rollout=2,
    steps=3,
    eval_tasks=0,
    threads=1,
)


def test_tiny_and_real_differ_by_size_and_by_how_soon_the_constraint_bites():
    tiny, real = recipes.get("repo-mbrl"), recipes.get("repo-mbrl:real")
    differing = {f.name for f in dataclasses.fields(tiny.method) if getattr(tiny.method, f.name) != getattr(real.method, f.name)}
    assert differing <= {"bound", "beta", "dual_rate", "draw"}
    m, rate = real.method, real.learning_rate
    assert (m.bound, m.beta, m.balance, m.gamma, m.lam, m.imagine, m.entropy) == (3.0, 1e-5, 5.0, 0.99, 0.95, 15, 3e-4)
    assert (rate, m.actor_rate * rate, m.dual_rate * rate, real.max_grad_norm) == pytest.approx((3e-4, 8e-5, 1e-4, 100.0))
    assert real.network == Latents(width=200, stochastic=30, channels=32) and (real.replay.batch, real.replay.length) == (50, 49)
    assert real.horizon * real.max_rows == 500 and real.updates_per_rollout == 100 and real.steps * real.horizon == 500_000


def test_the_arms_differ_by_what_they_are_called():
    tiny, claim, _ = read("repo-mbrl")
    arms = {a: arm_recipe(tiny, changes) for a, changes in claim.arms.items()}
    assert arms["repo"] == tiny and isinstance(arms["dreamer"].method, Dreamer)
    for shared in ("gamma", "lam", "imagine", "entropy", "actor_rate"):
        assert getattr(arms["dreamer"].method, shared) == getattr(tiny.method, shared)
    assert arms["dreamer"].replace(method=tiny.method) == tiny
    assert arms["unbounded"].method.beta == 0 and arms["unbounded"].replace(method=tiny.method) == tiny
    assert arms["unpaid"].replace(data=tiny.data) == tiny and arms["unpaid"].data.kwargs == {"paid": 0.0}


def test_two_steps_of_each_arm_and_what_its_latents_are_asked(tmp_path):
    tiny, claim, _ = read("repo-mbrl")
    asked = dataclasses.replace(claim.examine, episodes=4, steps=5)
    for arm in ("repo", "dreamer", "unbounded"):
        run = fovea.train(arm_recipe(tiny, claim.arms[arm]).replace(**SMALL), out=tmp_path / arm, quiet=True)
        assert math.isfinite(run.metrics[-1]["loss/actor"]) and ("model/beta" in run.metrics[-1]) == (arm == "repo")
        found = asked(run.policy, tiny)
        assert set(found) == {"agent", "background", "reward_error", "reward_error/elsewhere"} and all(map(math.isfinite, found.values()))
        assert found["reward_error"] != found["reward_error/elsewhere"] and asked(run.policy, tiny) == found


def test_a_small_twin_of_the_full_size_takes_the_same_way(tmp_path):
    pytest.importorskip("dm_control")
    real = recipes.get("repo-mbrl:real")
    run = fovea.train(real.replace(**{**SMALL, "max_rows": 1, "data": Gym("dmc/walker-walk-v0", {"size": 32})}), out=tmp_path, quiet=True)
    assert len(run.metrics) == 3 and math.isfinite(run.metrics[-1]["loss/drawing"])


def test_a_simulator_that_tells_nothing_cannot_be_asked():
    recipe = recipes.get("repo-mbrl").replace(data="gym:Pendulum-v1")
    with pytest.raises(ValueError, match=r"gym:Pendulum-v1 tells no truth; expected info\['truth'\]"):
        Memory(episodes=2, steps=2)(None, recipe)
    with pytest.raises(ValueError, match="an episode ended after 2 steps; expected at least 5"):
        Memory(episodes=2, steps=5)(None, recipe.replace(data=Gym("fovea/PointMass-v0", {"limit": 2})))
