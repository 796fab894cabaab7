"""The towers' graphs that sampling leaves for the update: same numbers as without, refused after a change, released when unused."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from fovea.bench import ours
from fovea.bench.workload import TASKS_PER_STEP, Cell, build_checkpoint

CELL = Cell(64, 5, 3)
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return build_checkpoint(tmp_path_factory.mktemp("ready") / "model", gain=2.0)


@pytest.fixture
def trainer(checkpoint):
    return ours.Trainer(ours.recipe(checkpoint, CELL, dtype="float64"))


def collected(trainer, step=0):
    """The batch of a rollout; its advantages are made unequal, so that every row has a gradient."""
    batch = trainer.prepare(trainer.collect(ours.tasks(step, CELL.image_tokens)))
    adv_BT = torch.linspace(-1, 1, batch.B, dtype=torch.float64)[:, None].expand_as(batch.mask_BT)
    return replace(batch, adv_BT=adv_BT)


def gradients(policy, batch, size):
    for p in policy.parameters():
        p.grad = None
    for micro in batch.micro_batches(size):
        (policy.evaluate(micro, {"logp"})["logp"] * micro.adv_BT * micro.mask_BT).sum().backward()
    return {name: p.grad for name, p in policy.named_parameters()}


@pytest.mark.parametrize("size", [2, CELL.group_size, TASKS_PER_STEP * CELL.group_size])
def test_gradients_equal_those_of_an_update_that_sees_the_pictures_again(trainer, size):
    policy, batch = trainer.policy, collected(trainer)
    assert len(policy._ready) == TASKS_PER_STEP
    before = policy.counts["vision_encodings"]
    with_graphs = gradients(policy, batch, size)
    if size >= CELL.group_size:
        assert policy.counts["vision_encodings"] == before
    assert len(policy._ready) == 0, "a graph is good for one backward pass"
    without = gradients(policy, batch, size)
    for name, g in without.items():
        assert (g - with_graphs[name]).norm() <= 1e-10 * g.norm().clamp(min=1e-6), name


def test_graphs_are_refused_once_a_weight_of_the_tower_changed(trainer):
    policy, batch = trainer.policy, collected(trainer)
    with torch.no_grad():
        next(iter(policy.model.visual_parameters)).mul_(1.5)
    stale = gradients(policy, batch, CELL.group_size)
    policy.forget()
    for name, g in gradients(policy, batch, CELL.group_size).items():
        assert torch.equal(g, stale[name]), name


def test_what_no_update_used_is_released_with_the_next_look_at_other_weights(trainer):
    policy = trainer.policy
    batch = collected(trainer)
    held = weakref.ref(next(iter(policy._ready._found.values())).tokens)
    first = batch.rows((batch.prefix_B == 1).nonzero()[:, 0])
    trainer.update(first)
    assert len(policy._ready) == TASKS_PER_STEP - 1 and held() is not None
    with torch.no_grad():
        policy.evaluate(first, {"logp"})
    gc.collect()
    assert len(policy._ready) == 0 and held() is None


def test_only_a_rollout_for_training_leaves_graphs_and_only_within_the_limit(trainer):
    policy, tasks = trainer.policy, ours.tasks(0, CELL.image_tokens)
    prefix = [policy.encode(t.prompt, t.images) for t in tasks]
    policy.prefill(prefix, [[()]] * len(prefix), 1)
    assert len(policy._ready) == 0
    policy._ready.limit = 1
    with policy.update_follows():
        _, closed = policy.prefill(prefix, [[()]] * len(prefix), 1)
    assert len(policy._ready) == 0 and policy._ready.nbytes == 0
    policy._ready.limit = 1 << 30
    with policy.update_follows():
        _, opened = policy.prefill(prefix, [[()]] * len(prefix), 1)
    size = policy._ready.nbytes // len(prefix)
    assert len(policy._ready) == len(prefix)
    torch.testing.assert_close(opened, closed, rtol=0, atol=1e-10)
    policy._ready.limit = 5 * size // 2
    with policy.update_follows():
        policy.prefill(prefix, [[()]] * len(prefix), 1)
    assert len(policy._ready) == 2 and policy._ready.full


def test_streams_without_gradient_use_what_is_ready(trainer):
    policy, batch = trainer.policy, collected(trainer)
    before = policy.counts["vision_encodings"]
    with torch.no_grad():
        logp = policy.evaluate(batch, {"logp"})["logp"]
    assert policy.counts["vision_encodings"] == before and len(policy._ready) == TASKS_PER_STEP
    torch.testing.assert_close((logp * batch.mask_BT).float(), batch.logp_old_BT, rtol=0, atol=1e-5)


def test_a_frozen_tower_and_checkpointing_leave_none(checkpoint):
    for changes in ({"freeze": ("tower", "projector")}, {"gradient_checkpointing": True}):
        trainer = ours.Trainer(ours.recipe(checkpoint, CELL, **changes))
        trainer.collect(ours.tasks(0, CELL.image_tokens))
        assert len(trainer.policy._ready) == 0
