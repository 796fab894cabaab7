"""VL-DAC as recipes: forms, arms, and real steps of the tiny model in a game of several turns."""

import dataclasses

import pytest
import torch

import fovea
from fovea import recipes
from fovea.api import build_policy
from fovea.batch import Critic
from fovea.envs.cards import Cards
from fovea.ledger.claim import arm_recipe
from fovea.ledger.runs import run_key
from fovea.policies.hf_vlm import HFVLM
from fovea.recipes import vl_dac, vl_dac_horizon, vl_dac_miniwob
from fovea.rollout.engine import Engine
from fovea.rollout.sampling import Sampling
from fovea.tasks.resolve import pair
from fovea.trainer.update import Adam, optimizer_step, prepare
from fovea.types import Context, Score
from tests.methods.test_vl_dac import TASK

torch.set_num_threads(1)


def test_the_forms_differ_in_size_only():
    tiny, real, warm = (recipes.get(n) for n in ("vl-dac", "vl-dac:real", "vl-dac:warm"))
    assert dataclasses.replace(tiny.method, critic=real.method.critic) == real.method
    assert tiny.model == "vl-dac:warm" and warm.model == "tiny" and warm.method.needs.data == "responses"
    assert (tiny.group_size, tiny.epochs_per_rollout, tiny.updates_per_rollout) == (real.group_size, 2, 2)


def test_the_papers_numbers_stand_in_the_full_size_form():
    real, method = vl_dac.real, vl_dac.real.method
    assert (method.value_coef, method.beta, method.value_warmup, method.critic) == (0.15, 0.05, 2, (3072, 2048))
    assert (method.gamma, method.lam, method.eps_lo, method.eps_hi, method.ratio_max) == (1.0, 1.0, 0.1, 0.1, 10.0)
    assert (real.learning_rate, real.schedule, real.lora.rank, real.lora.alpha, real.sampling.top_p) == (5e-5, "cosine", 16, 32.0, 1.0)


def test_the_form_for_web_pages_differs_in_its_pages_and_in_size_only():
    tiny, real, warm = (recipes.get(f"vl_dac_miniwob{n}") for n in ("", ":real", ":warm"))
    assert dataclasses.replace(tiny.method, critic=real.method.critic) == real.method == vl_dac.real.method
    assert (tiny.data, real.data, warm.data) == (vl_dac_miniwob.DATA,) * 3 and tiny.model == "vl_dac_miniwob:warm"
    assert all(r.environment.startswith(vl_dac_miniwob.PAGES) for r in (tiny, real, warm)) and warm.environment.startswith(tiny.environment)
    train, held = pair(tiny.data)
    assert [t.source for t in (train[i] for i in range(6))] == [*vl_dac_miniwob.TASKS, "click-test-2"]
    assert vl_dac_miniwob.CLAIM.tasks == 1000 and len({held[i].meta["seed"] for i in range(1000)}) == 200


@pytest.mark.parametrize("module", [vl_dac, vl_dac_horizon, vl_dac_miniwob])
def test_every_arm_is_a_run_of_its_own_on_as_many_episodes(module):
    tiny, claim = module.tiny.replace(model="tiny"), module.CLAIM
    assert len({run_key(tiny, claim, arm, 0) for arm in claim.arms}) == len(claim.arms)
    arms = {a: arm_recipe(tiny, c) for a, c in claim.arms.items()}
    assert {r.tasks_per_step * r.group_size for r in arms.values()} == {tiny.tasks_per_step}


def test_rl4vlms_arms_differ_from_vl_dac_in_the_ratio_alone():
    ours = vars(vl_dac.tiny.method)
    for weight, arm in ((0.0, "rl4vlm_0"), (1.0, "rl4vlm_1")):
        theirs = vars(arm_recipe(vl_dac.tiny, vl_dac.CLAIM.arms[arm]).method)
        assert theirs["thought_weight"] == weight
        assert {k: theirs[k] for k in theirs if k in ours} == {k: ours[k] for k in ours if k in theirs}


@pytest.fixture(scope="module")
def policy():
    return build_policy(vl_dac.tiny.replace(model="tiny"))


def demonstrated(policy, **more):
    """A group of one demonstrated game of four turns."""
    engine = Engine(policy, environment=lambda: Cards("ezpoints"), **more)
    task = dataclasses.replace(TASK, id="g", meta={"start": {"cards": [2, 10]}}, verifier="return")
    (group,) = engine.rollout([task], 0, Sampling(max_new_tokens=20), Context(), members=("gold",))
    return group


def test_values_leave_the_model_alone_and_the_warm_up_moves_no_weight_of_it(policy):
    group = demonstrated(policy)
    group.episodes[0].role, group.episodes[0].score = "sample", Score(10.0)
    method = vl_dac.tiny.method
    body = {n: p for n, p in policy.named_parameters() if not n.startswith("value.")}
    head = {n: p for n, p in policy.named_parameters() if n.startswith("value.")}
    assert body and len(head) == 4
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    optimizer = Adam(1e-3, weight_decay=0.1).build(policy)
    for step, moves in ((0, False), (1, False), (2, True)):
        batch = prepare(policy, method, [group], Context(step=step), 8)
        assert batch.count(99).turns == len(group.episodes[0].turns) == 4
        optimizer_step(policy, method, batch, optimizer, lr=1e-3, micro_batch=2, max_grad_norm=1.0, max_tokens=20)
        assert all(torch.equal(p, before[n]) for n, p in body.items()) is not moves, step
    assert all(not torch.equal(p, before[n]) for n, p in head.items())
    seen = policy.evaluate(batch, frozenset({"value"}))["value"]
    seen.sum().backward()
    assert all(p.grad is None for p in body.values()) and all(p.grad.abs().sum() > 0 for p in head.values())


def test_the_action_behind_a_thought_is_marked(policy):
    (gold,) = demonstrated(policy, program=vl_dac.ActionMarked()).episodes
    for turn, segment in zip(gold.turns, gold.segments, strict=True):
        thought, marked = (policy.decode_text(segment.actions[segment.extras["action"] == x].tolist()) for x in (0, 1))
        assert marked.startswith("<answer>") and thought.endswith("</think>") and thought + marked == turn.text
    (gold,) = demonstrated(policy, program=vl_dac.ActionMarked("never said")).episodes
    assert all(s.extras["action"].tolist() == [0.0] * (len(s) - 4) + [1.0] * 4 for s in gold.segments)


def test_a_value_head_starts_at_zero_from_its_seed_and_is_kept(policy, tmp_path):
    one, same, other = (HFVLM.load("tiny", value_head=True, critic=Critic((8,)), seed=s).model.value.state_dict() for s in (1, 1, 2))
    assert (one["2.weight"] == 0).all() and torch.equal(one["0.weight"], same["0.weight"])
    assert not torch.equal(one["0.weight"], other["0.weight"])
    policy.save(tmp_path)
    again = HFVLM.load(tmp_path, value_head=True, critic=vl_dac.tiny.method.needs.critic, seed=3)
    assert all(torch.equal(x, again.model.value.state_dict()[n]) for n, x in policy.model.value.state_dict().items())


@pytest.mark.parametrize("arm", ["vl_dac", "rl4vlm_02"])
def test_a_step_of_warm_up_and_one_behind_it(arm, tmp_path):
    recipe = arm_recipe(vl_dac.tiny, vl_dac.CLAIM.arms[arm]).replace(model="tiny", steps=2, tasks_per_step=2, eval_tasks=0)
    recipe = recipe.replace(method__value_warmup=1, sampling__max_new_tokens=8, updates_per_rollout=1, epochs_per_rollout=1)
    first, second = fovea.train(recipe, out=tmp_path / "run", quiet=True).metrics
    assert "policy/clip_frac" not in first and second["policy/clip_frac"] >= 0
