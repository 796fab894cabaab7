import math

import pytest
import torch

from fovea.batch import collate
from fovea.policies.flow import FlowPolicy
from fovea.rollout.denoise import DenoiseEngine
from fovea.rollout.sampling import Sampling
from fovea.types import Context, Task

TASKS = [Task(id=f"t{i}", source="points", prompt=(), answer=(0.5 * i, -1.0)) for i in range(3)]


def condition(task):
    return torch.tensor(task.answer)


def policy():
    torch.manual_seed(0)
    flow = FlowPolicy(2, 2)
    torch.nn.init.normal_(flow.velocity.weight)
    return flow


def chains(groups):
    return torch.stack([e.segments[0].actions for g in groups for e in g.episodes])


def test_one_unit_per_denoising_step_and_logp_equals_the_trainers():
    flow = policy()
    batch = collate(DenoiseEngine(flow, condition).rollout(TASKS, 4))
    assert batch.actions_BT.shape == (12, 6, 2) and batch.extras["x"].shape == (12, 6, 2) and (batch.turn_BT == 0).all()
    assert torch.equal(batch.extras["x"][:, 1:], batch.actions_BT[:, :-1])
    assert torch.allclose(flow.evaluate(batch, frozenset({"logp"}))["logp"], batch.logp_old_BT, atol=1e-5)


def test_rows_per_forward_change_nothing():
    assert torch.allclose(
        chains(DenoiseEngine(policy(), condition, max_rows=5).rollout(TASKS, 4)),
        chains(DenoiseEngine(policy(), condition).rollout(TASKS, 4)),
        atol=1e-5,
    )


def test_chains_differ_within_a_group_and_between_steps():
    engine = DenoiseEngine(policy(), condition)
    a, b = chains(engine.rollout(TASKS[:1], 3)), chains(engine.rollout(TASKS[:1], 3, context=Context(step=1)))
    assert len({tuple(x.flatten().tolist()) for x in torch.cat([a, b])}) == 6


def test_a_greedy_chain_follows_the_mean():
    flow = policy()
    batch_logp = DenoiseEngine(flow, condition).rollout(TASKS, 1, Sampling(temperature=0))[0].episodes[0].segments[0].logp_old
    assert batch_logp.tolist() == pytest.approx([-2 * math.log(0.3) - math.log(2 * math.pi)] * 6, abs=1e-5)


def test_without_velocity_the_chain_is_a_random_walk():
    flow = FlowPolicy(1, 2, steps=4, sigma=0.5)
    x = chains(DenoiseEngine(flow, condition).rollout(TASKS[:1], 4000))[:, -1, 0]
    drift = flow.velocity.bias.detach().item()
    assert x.mean() - drift == pytest.approx(0, abs=0.08) and x.var() == pytest.approx(1 + 4 * 0.25, abs=0.15)
