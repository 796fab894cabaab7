"""Weights on another device than the CPU: every operation finds its tensors in one place, and the numbers are those of the CPU."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fovea.methods.grpo import GRPO
from fovea.methods.ppo import PPO
from fovea.policies.hf_vlm import HFVLM
from fovea.rollout.engine import Engine
from fovea.rollout.sampling import Sampling
from fovea.trainer.update import Adam, optimizer_step, prepare
from fovea.types import Context, Observation, Score, Task, user
from tests.policies.elsewhere import FAR, Far, far_away, move
from tests.policies.tiny_checkpoints import build, picture

SIZES = ((56, 56), (112, 56), (84, 140))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    made = {}

    def get(family):
        if family not in made:
            made[family] = build(tmp_path_factory.mktemp("device") / family, family, scale=2.0, hidden=32, vision_hidden=32, layers=3)
        return made[family]

    return get


async def twice(task, policy, env):
    """A second turn that goes on after the first, and a third with a new picture."""
    await policy.act(Observation(messages=task.prompt, images=task.images))
    await policy.act(Observation(messages=user("and now", 0), append=True))


def tasks():
    shown = [tuple(picture(i + k, *SIZES[(i + k) % 3]) for k in range(n)) for i, n in enumerate((1, 2, 0))]
    return [Task(f"t{i}", "toy", user("How many?" * (i + 1), len(images)), images) for i, images in enumerate(shown)]


def step(policy, method):
    """One rollout and update: the tokens, their log-probabilities, the metrics."""
    optimizer = Adam(1e-3).build(policy)
    groups = Engine(policy, program=twice).rollout(tasks(), 2, Sampling(max_new_tokens=4, top_k=50, min_new_tokens=2))
    for i, e in enumerate(e for g in groups for e in g.episodes):
        assert not e.error, e.error
        e.score = Score(float(i % 3))
    batch = prepare(policy, method, groups, Context(), 2)
    metrics = optimizer_step(policy, method, batch, optimizer, lr=1e-3, micro_batch=2, max_grad_norm=1.0, max_tokens=8)
    actions = [s.actions.tolist() for g in groups for e in g.episodes for s in e.segments]
    return actions, [s.logp_old for g in groups for e in g.episodes for s in e.segments], metrics


def here(x):
    return x.inner if isinstance(x, Far) else x


KINDS = [
    ("qwen2_5_vl", "interface", GRPO(beta=0.05)),
    ("qwen2_5_vl", "direct", PPO()),
    ("qwen3_vl", "direct", GRPO(beta=0.05)),
    ("llava_onevision", "direct", GRPO(beta=0.05)),
    ("smolvlm", "direct", GRPO()),
    ("paligemma", "direct", GRPO()),
]
"""Every way through a tower, and every kind of decoder."""


@pytest.mark.parametrize(("family", "path", "method"), KINDS, ids=[f"{family}-{path}" for family, path, _ in KINDS])
def test_a_step_far_away_is_that_of_the_cpu(checkpoints, family, path, method):
    near, far = (HFVLM.load(checkpoints(family), dtype="float64", value_head=isinstance(method, PPO)) for _ in range(2))
    for policy in (near, far):
        policy.path = path
        policy.set_reference()
    said = near.predict(picture(0, 56), "What?", 3)
    expected = step(near, method)

    def there():
        with far_away():
            for model in (far.model, far.reference):
                move(model)
                model.list_parameters()
            assert far.device.type == FAR
            assert far.predict(picture(0, 56), "What?", 3) == said
            return step(far, method)

    # the device exists in one thread, and where an event loop runs in this one the engine would take another
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(there).result()
    assert found[0] == expected[0]
    assert all(torch.equal(a, b) for a, b in zip(found[1], expected[1], strict=True))
    assert found[2] == pytest.approx(expected[2])
    for (name, a), (_, b) in zip(far.model.named_parameters(), near.model.named_parameters(), strict=True):
        assert isinstance(a.data, Far) or isinstance(a, Far)
        assert torch.allclose(here(a.data if isinstance(a.data, Far) else a), b, atol=1e-12), name
