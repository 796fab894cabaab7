"""DART as recipes: forms, arms, and real steps of the tiny model at the desk."""

import dataclasses

import pytest

import fovea
from fovea import recipes
from fovea.api import build_sources, corrected
from fovea.envs.desk import JOBS
from fovea.envs.resolve import environment
from fovea.ledger.claim import arm_recipe
from fovea.ledger.runs import run_key
from fovea.methods.dart import DART, SCRIPT
from fovea.recipes import dart
from fovea.rollout.services import Services
from fovea.tasks.curation import Curation


def test_the_forms_differ_in_size_only():
    tiny, real, warm, script = (recipes.get(n) for n in ("dart", "dart:real", "dart:warm", "dart:script"))
    assert tiny.method == real.method == DART() and script.method == DART(**SCRIPT)
    assert (tiny.curation, tiny.group_size) == (real.curation, real.group_size) == (dart.CURATION, 8)
    assert tiny.model == "dart:warm" and warm.model == "tiny" and warm.method.needs.data == "responses"
    assert [environment(r.environment)().slips for r in (tiny, real, warm, script)] == [0.0, 0.0, 0.15, 0.0]
    assert {t.source for t in build_sources(warm)[0]} == set(dart.SEEN.split(",")) < set(JOBS)
    assert dataclasses.replace(tiny.services, workers=4, rounding="") == real.services


def test_the_papers_numbers_stand_in_the_full_size_form():
    real, m = dart.real, dart.real.method
    assert (m.eps_lo, m.eps_hi, m.beta, m.behaviour_cap, m.quantile, m.ddof) == (0.2, 0.28, 0.1, 1.0, 0.2, 1)
    assert (real.learning_rate, real.max_rows, real.services.newest, real.curation.easy) == (1e-6, 180, 2, 0.6)
    s = dart.script
    assert (s.method.eps_lo, s.method.dual_clip, s.method.ratio, s.learning_rate, s.sampling.top_k) == (0.1, 10.0, "sequence", 1e-7, 200)


def test_every_arm_is_a_run_of_its_own_and_its_method_knows_of_the_mismatch_or_not():
    tiny, claim = dart.tiny.replace(model="tiny"), dart.CLAIM
    assert len({run_key(tiny, claim, arm, 0) for arm in claim.arms}) == len(claim.arms)
    arms = {a: corrected(arm_recipe(tiny, c)) for a, c in claim.arms.items()}
    blind = {a for a, r in arms.items() if r.method.behaviour == "none"}
    assert blind == {"uniform", "rollouts", "turns", "steps", "no_weights"}
    assert {a for a, r in arms.items() if not r.curation.pool} == {"uniform", "rollouts", "turns", "steps", "no_pool", "random"}


@pytest.mark.parametrize("arm", ["dart", "uniform"])
def test_two_steps_at_the_desk(arm, tmp_path):
    recipe = arm_recipe(dart.tiny, dart.CLAIM.arms[arm]).replace(model="tiny", data="desk:mark,close,each=2", steps=2, eval_tasks=0)
    recipe = recipe.replace(tasks_per_step=2, group_size=3, max_rows=6, sampling__max_new_tokens=16)
    run = fovea.train(recipe, out=tmp_path / "run", quiet=True)
    assert [r["step"] for r in run.metrics] == [1, 2]
    assert run.metrics[0]["mismatch/max_nats"] > 0  # eight bits
    assert all(r["length/mean_turns"] == 4.0 for r in run.metrics)  # no tiny model says finished() by chance
    if arm == "dart":  # nothing succeeds by itself, so every group has a demonstration
        assert all(r["adv/std"] > 0 for r in run.metrics)


def test_the_defaults_change_nothing():
    assert fovea.Recipe().services == Services() and fovea.Recipe().curation == Curation()
