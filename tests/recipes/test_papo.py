"""PAPO and VPPO as recipes: forms, arms, and two real steps each."""

import pytest
import torch

import fovea
from fovea import recipes
from fovea.ledger.claim import arm_recipe
from fovea.ledger.runs import run_key
from fovea.math.perception import MASKED
from fovea.recipes import papo, vppo

torch.set_num_threads(1)


@pytest.mark.parametrize("slug", ["papo", "vppo"])
def test_the_forms_differ_in_size_only(slug):
    tiny, real, warm = (recipes.get(n) for n in (slug, f"{slug}:real", f"{slug}:warm"))
    assert tiny.model == f"{slug}:warm"
    assert type(tiny.method) is type(real.method)
    assert (tiny.method.mask_probability, tiny.method.mask_patch) == (real.method.mask_probability, real.method.mask_patch)
    assert warm.model == "tiny" and warm.method.needs.data == "responses"
    assert (real.tasks_per_step, real.updates_per_rollout, real.sampling.top_p) == (384, 3, 0.99)


def test_the_papers_numbers_stand_in_the_full_size_form():
    method = papo.real.method
    assert (method.gamma, method.beta, method.mask_probability, method.eps_hi, method.dual_clip) == (0.02, 0.01, 0.6, 0.3, 3.0)
    assert papo.real.group_size == 5
    method = vppo.real.method
    assert (method.share, method.alpha_min, method.penalty, method.mask_probability, method.eps_hi) == (0.4, 0.9, 0.06, 0.5, 0.28)
    assert vppo.real.group_size == 8 and vppo.real.dynamic_sampling


@pytest.mark.parametrize("module", [papo, vppo])
def test_every_arm_is_a_run_of_its_own(module):
    tiny, claim = module.tiny.replace(model="tiny"), module.CLAIM
    assert len({run_key(tiny, claim, arm, 0) for arm in claim.arms}) == len(claim.arms)


def test_arms_without_the_term_still_read_the_same_and_controls_do_what_they_say():
    arms = {a: arm_recipe(papo.tiny, c).method for a, c in papo.CLAIM.arms.items()}
    assert arms["grpo"].gamma == 0 and arms["sees_all"].mask_probability == 0
    assert arms["overdriven"].gamma >= 10 * arms["papo"].gamma
    assert arm_recipe(vppo.tiny, vppo.CLAIM.arms["bottom"]).method.keep == "bottom"


@pytest.mark.parametrize("name", ["papo", "vppo"])
def test_two_steps_of_training_read_every_answer_with_a_masked_picture(name, tmp_path):
    recipe = recipes.get(name).replace(model="tiny", steps=2, tasks_per_step=3, group_size=3, eval_tasks=0, dynamic_sampling=False)
    run = fovea.train(recipe, out=tmp_path / "run", quiet=True)
    assert len(run.metrics) == 2
    assert all(m["perception/kl"] > 0 for m in run.metrics)
    assert MASKED in recipe.method.needs.before
