"""PRDP as a recipe: forms, arms, real steps, and what its parts say of wrong input."""

import pytest
import torch

import fovea
from fovea import api, recipes
from fovea.ledger.claim import arm_recipe
from fovea.ledger.runs import run_key
from fovea.recipes.prdp import CLAIM, real, tiny, warm
from fovea.tasks.spots import Spots

torch.set_num_threads(1)
SMALL = {"model": "denoiser", "data": "spots:4", "steps": 2, "tasks_per_step": 3, "group_size": 4, "epochs_per_rollout": 2}


def test_the_forms_differ_in_size_only():
    assert {recipes.get(n).name for n in ("prdp", "prdp:real", "prdp:warm")} == {tiny.name, real.name, warm.name}
    assert tiny.model == "prdp:warm" and type(tiny.method) is type(real.method)
    same = ("time_reduce", "dim_reduce", "ties")
    assert all(getattr(tiny.method, f) == getattr(real.method, f) for f in same)
    assert (real.method.beta, real.method.eps, real.tasks_per_step, real.group_size, real.learning_rate) == (3e-6, 1e-4, 64, 8, 7e-6)
    assert real.weight_decay == 1e-4 and real.max_grad_norm == 1.0 and real.updates_per_rollout * real.epochs_per_rollout == 1


def test_every_arm_is_a_run_of_its_own_and_takes_as_many_samples():
    made = {arm: arm_recipe(tiny.replace(model="denoiser"), c) for arm, c in CLAIM.arms.items()}
    assert len({run_key(tiny.replace(model="denoiser"), CLAIM, arm, 0) for arm in made}) == len(made)
    drawn = {
        a: (r.steps * r.tasks_per_step * r.group_size, r.steps * r.updates_per_rollout * r.epochs_per_rollout) for a, r in made.items()
    }
    assert {v for a, v in drawn.items() if a != "start"} == {(12800, 1000)}


@pytest.mark.parametrize("method", ["prdp", "ddpo"])
def test_two_steps_through_the_ordinary_run_go_on_where_they_stopped(method, tmp_path):
    recipe = tiny.replace(**SMALL, method=tiny.method if method == "prdp" else method, eval_tasks=4)
    whole = fovea.train(recipe, out=tmp_path / "whole", quiet=True)
    fovea.train(recipe.replace(steps=1), out=tmp_path / "half", quiet=True)
    rest = fovea.train(recipe, out=tmp_path / "half", quiet=True)
    weights = [dict(run.policy.named_parameters()) for run in (whole, rest)]
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])
    assert not torch.equal(weights[0]["leave.weight"], torch.zeros_like(weights[0]["leave.weight"]))
    assert "reward/nearness" in whole.metrics[-1] and api.load_policy(tmp_path / "whole").steps == whole.policy.steps
    assert (tmp_path / "whole" / "report.html").is_file()
    assert "eval/return" in whole.metrics[-1] and "eval/accuracy" not in whole.metrics[-1], "a sample is not right or wrong"


def test_given_points_pretrain_the_denoiser(tmp_path):
    recipe = warm.replace(data="spots:4", steps=120, tasks_per_step=32, checkpoint_every=1000)
    run = fovea.train(recipe, out=tmp_path / "warm", quiet=True)
    tried = fovea.train(tiny.replace(**{**SMALL, "steps": 0}), out=tmp_path / "start", quiet=True)
    near = [fovea.evaluate(r.policy, tiny.replace(data="spots:4"), tasks=40, temperature=1.0) for r in (tried, run)]
    before, after = (sum(e.score.parts["nearness"] for g in n.groups for e in g.episodes) / 40 for n in near)
    assert after > before + 0.1 and run.metrics[-1]["policy/nll"] < run.metrics[0]["policy/nll"]


def test_a_field_that_means_nothing_to_a_denoiser_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'denoiser' makes samples by denoising, where freeze has no meaning"):
        fovea.train(tiny.replace(**SMALL, freeze=("tower",)), out=tmp_path, quiet=True)
    with pytest.raises(ValueError, match=r"made for tasks whose source says what is drawn; expected data such as 'spots:400'"):
        fovea.train(tiny.replace(**{**SMALL, "data": "worlds"}), out=tmp_path, quiet=True)


def test_prompts_differ_in_reward_and_are_the_same_for_every_seed():
    one, two = (Spots.named("4", "train", seed) for seed in (0, 1))
    by_prompt = [
        {t.prompt[0]["content"][-1]["text"]: (t.answer, t.meta["bias"]) for t in map(s.__getitem__, range(30))} for s in (one, two)
    ]
    assert by_prompt[0] == by_prompt[1] and len({b for _, b in by_prompt[0].values()}) == 4
    assert [t.prompt[0]["content"][-1]["text"] for t in map(one.heldout().__getitem__, range(5))] == [f"spot {i}" for i in (0, 1, 2, 3, 0)]
    with pytest.raises(ValueError, match=r"'spots:none'; expected the number of prompts"):
        Spots.named("none", "train", 0)
