"""The method files as they are train a vision-language model, a pixel policy and a denoiser; with shuffled rewards they do not."""

import pytest
import torch

from fovea.methods import get
from fovea.policies.flow import FlowPolicy
from fovea.policies.hf_vlm import HFVLM
from tests.learns import problems
from tests.policies.tiny_checkpoints import build

PG = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "remax", "reinforce_pp", "ppo")


@pytest.mark.parametrize(("name", "control"), [*((name, False) for name in PG), ("grpo", True)])
def test_a_vision_language_model_learns_to_look(tmp_path, name, control):
    method = get(name)(beta=0.0)
    policy = HFVLM.load(build(tmp_path, "qwen2_5_vl", scale=1.0, layers=2), value_head=name == "ppo")
    before = problems.parity_level(policy)
    collect = problems.parity_collect(policy, method.needs.members)
    problems.train(policy, method, collect, steps=24, lr=3e-3, control=control, parts=2)
    after = problems.parity_level(policy)
    assert abs(before - 0.5) < 0.1
    assert abs(after - 0.5) < 0.15 if control else after > 0.75


@pytest.mark.parametrize(("name", "control"), [*((name, False) for name in PG), ("ppo", True)])
def test_a_categorical_pixel_policy_learns_to_reach(name, control):
    world = problems.SMALL_WORLD
    policy = problems.reach_policy("categorical", world)
    if name == "ppo":
        method, tasks, group_size, parts = get(name)(gamma=0.95, value_clip=0.0, entropy_coef=0.01), 32, 1, 4
    else:
        method, tasks, group_size, parts = get(name)(beta=0.0), 8, 8, 2
    epochs, lr = (1, 5e-3) if name in ("rloo", "remax") else (parts, 3e-3)  # without a ratio a rollout is passed over once
    collect = problems.reach_collect(policy, world, tasks, group_size, method.needs.members)
    before = problems.reach_level(policy, world)
    problems.train(policy, method, collect, 20, lr=lr, control=control, parts=parts, epochs=epochs)
    after = problems.reach_level(policy, world)
    assert before < 0.5
    assert after < before + 0.15 if control else after > 0.75


@pytest.mark.slow
def test_a_gaussian_pixel_policy_learns_to_reach():
    policy, world = problems.reach_policy("gaussian", problems.WORLD), problems.WORLD
    method = get("ppo")(gamma=0.95, value_clip=0.0, entropy_coef=0.01)
    before = problems.reach_level(policy, world)
    problems.train(policy, method, problems.reach_collect(policy, world, 32, 1), 25, lr=1e-3, parts=4, epochs=4)
    assert problems.reach_level(policy, world) > 0.85 > 0.6 > before


@pytest.mark.parametrize(("name", "control"), [*((name, False) for name in PG), ("grpo", True)])
def test_a_denoiser_learns_its_targets(name, control):
    torch.manual_seed(0)
    policy, method = FlowPolicy(2, 2), get(name)()
    before = problems.point_level(policy)
    problems.train(policy, method, problems.point_collect(policy, method.needs.members), 28, 3e-3, control, parts=2, epochs=2)
    after = problems.point_level(policy)
    assert after > 0.8 * before if control else after < 0.5 * before
