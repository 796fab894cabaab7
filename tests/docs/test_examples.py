"""The loop that is the whole idea agrees with the trainer."""

import copy
import importlib.util

import pytest
import torch

import fovea
from fovea import Context, Score
from fovea.methods.grpo import GRPO
from fovea.tasks.worlds import World
from fovea.trainer.update import optimizer_step, prepare
from tests.docs.blocks import ROOT

spec = importlib.util.spec_from_file_location("loop", ROOT / "examples" / "loop.py")
loop = importlib.util.module_from_spec(spec)
spec.loader.exec_module(loop)

LIMIT = 5


@pytest.fixture(scope="module")
def policy(untrained):
    return fovea.load_policy(untrained)


@pytest.fixture(scope="module")
def groups(policy):
    torch.manual_seed(0)
    world = World()
    groups = loop.answer(policy, [world[0], world[1]], group_size=3, limit=LIMIT)
    for group in groups:
        for i, e in enumerate(group.episodes):
            e.score = Score(float(i == 0))
    return groups


def test_answers_are_whole_and_their_log_probs_are_the_trainers(policy, groups):
    batch = loop.collate(groups)
    logp_BT = policy.evaluate(batch, {"logp"})["logp"].detach()
    assert batch.B == 6 and len(batch.prefixes) == 2
    assert ((logp_BT - batch.logp_old_BT) * batch.mask_BT).abs().max() < 1e-4
    for e in (e for g in groups for e in g.episodes):
        tokens = e.segments[0].actions.tolist()
        assert len(tokens) == LIMIT or tokens[-1] in policy.eos_ids
        assert not set(tokens[:-1]) & set(policy.eos_ids)
        assert not set(tokens) & set(policy.banned_ids)


def test_one_step_of_the_loop_is_one_step_of_grpo(policy, groups):
    mine, trainers = copy.deepcopy(policy), copy.deepcopy(policy)

    def descent(policy):
        return torch.optim.SGD(policy.parameters(), lr=1.0)

    norm = loop.learn(mine, groups, descent(mine), LIMIT)
    method = GRPO(beta=0.0)
    batch = prepare(trainers, method, groups, Context(), micro_batch=4)
    found = optimizer_step(trainers, method, batch, descent(trainers), lr=1.0, micro_batch=4, max_grad_norm=1.0, max_tokens=LIMIT)
    assert norm == pytest.approx(found["optim/grad_norm"], rel=1e-4)
    assert norm > 0
    assert any(not torch.equal(a, b) for a, b in zip(mine.parameters(), policy.parameters(), strict=True))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(mine.parameters(), trainers.parameters(), strict=True))


def test_the_verifier_of_each_task_judges(policy, groups):
    given = copy.deepcopy(groups[0])
    loop.judge([given])
    assert all(e.score.ok and e.score.correct is not None for e in given.episodes)
