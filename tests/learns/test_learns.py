"""The method files as they are train a vision-language model, a pixel policy and a denoiser; with shuffled rewards they do not."""

import pytest
import torch

from fovea.methods import get
from fovea.policies.flow import FlowPolicy
from fovea.policies.hf_vlm import HFVLM
from tests.learns import problems
from tests.policies.tiny_checkpoints import build

PG = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "remax", "reinforce_pp", "ppo")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "control"), [("grpo", False), ("ppo", False), ("grpo", True)])
def test_a_vision_language_model_learns_to_look(tmp_path, name, control):
    method = get(name)(beta=0.0)
    policy = HFVLM.load(build(tmp_path, "qwen2_5_vl", scale=1.0, layers=2), value_head=name == "ppo")
    before = problems.parity_level(policy)
    problems.train(policy, method, problems.parity_collect(policy), steps=40, lr=3e-3, control=control)
    after = problems.parity_level(policy)
    assert abs(before - 0.5) < 0.1
    assert abs(after - 0.5) < 0.15 if control else after > 0.8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name", "control"),
    [("categorical", "ppo", False), ("categorical", "grpo", False), ("gaussian", "ppo", False), ("categorical", "ppo", True)],
)
def test_a_pixel_policy_learns_to_reach(kind, name, control):
    policy = problems.reach_policy(kind)
    if name == "ppo":
        method, collect, steps, parts = (
            get("ppo")(gamma=0.95, value_clip=0.0, entropy_coef=0.01),
            problems.reach_collect(policy, 32, 1),
            25,
            4,
        )
    else:
        method, collect, steps, parts = get(name)(beta=0.0), problems.reach_collect(policy, 8, 8), 30, 2
    before = problems.reach_level(policy)
    problems.train(policy, method, collect, steps, lr=1e-3, control=control, parts=parts, epochs=parts)
    after = problems.reach_level(policy)
    assert after < before + 0.15 if control else after > 0.85


@pytest.mark.parametrize(("name", "control"), [*((name, False) for name in PG), ("grpo", True)])
def test_a_denoiser_learns_its_targets(name, control):
    torch.manual_seed(0)
    policy, method = FlowPolicy(2, 2), get(name)()
    before = problems.point_level(policy)
    problems.train(policy, method, problems.point_collect(policy, method.needs.members), 28, 3e-3, control, parts=2, epochs=2)
    after = problems.point_level(policy)
    assert after > 0.8 * before if control else after < 0.5 * before
