import math

import pytest
import torch

from fovea.methods.grpo import GRPO
from fovea.trainer import checkpoint
from fovea.trainer.update import Adam, TrainingDiverged, evaluate_all, minibatches, optimizer_step, prepare, trainable
from fovea.types import Context, Episode, Group, Prefix, Score, Segment
from tests.trainer.tabular import Numbers, Tabular


def episode(task, name, tokens, score, policy, role="sample"):
    ids = torch.tensor(tokens)
    logp = torch.log_softmax(policy.logits_TV.detach(), -1)[torch.arange(len(ids)), ids]
    ones = torch.ones(len(ids), dtype=torch.bool)
    zeros = torch.zeros(len(ids), dtype=torch.long)
    segment = Segment(Prefix(task.id), ids, ones, logp, zeros, zeros)
    verdict = Score(score) if score == score else Score.failed("broken")
    return Episode(id=f"{task.id}/{name}", task=task, role=role, segments=[segment], score=verdict)


def groups(policy, scores):
    """One group per row of scores; answers have one to three tokens."""
    tasks = Numbers()
    return [
        Group(tasks[g], [episode(tasks[g], i, [(g + i) % 5, i % 5, 2][: 1 + i % 3], s, policy) for i, s in enumerate(row)])
        for g, row in enumerate(scores)
    ]


SCORES = [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [0.0, 0.5, 1.0]]


def stepped(micro_batch, parts=1):
    policy = Tabular(dtype=torch.float64)
    optimizer = Adam(0.1).build(policy)
    for step in range(5):
        batch = prepare(policy, GRPO(beta=0.0), groups(policy, SCORES), Context(step, 5), micro_batch)
        for part in minibatches(batch, parts, 1, seed=0, step=step):
            metrics = optimizer_step(
                policy, GRPO(beta=0.0), part, optimizer, lr=0.1, micro_batch=micro_batch, max_grad_norm=1.0, max_tokens=3
            )
    return policy.logits_TV.detach(), metrics


@pytest.mark.parametrize("micro_batch", [1, 2, 5, 7])
def test_micro_batch_changes_neither_weights_nor_metrics(micro_batch):
    (whole, metrics), (split, others) = stepped(100), stepped(micro_batch)
    assert torch.allclose(whole, split, rtol=0, atol=1e-12)
    assert metrics.keys() == others.keys()
    assert all(math.isclose(metrics[k], others[k], rel_tol=1e-6, abs_tol=1e-9) for k in metrics)


def test_training_moves_towards_the_rewarded_tokens():
    policy = Tabular()
    rows = groups(policy, [[1.0, 0.0]])
    good, bad = (e.segments[0].actions[0] for e in rows[0].episodes)
    before = policy.logits_TV.detach().clone()
    batch = prepare(policy, GRPO(beta=0.0), rows, Context(), 8)
    optimizer_step(policy, GRPO(beta=0.0), batch, Adam(0.1).build(policy), lr=0.1, micro_batch=8, max_grad_norm=1.0, max_tokens=3)
    change = policy.logits_TV.detach() - before
    assert change[0, good] > 0 > change[0, bad]


def test_a_loss_that_is_not_finite_stops_before_the_weights_change():
    policy = Tabular()
    rows = groups(policy, [[1.0, 0.0]])
    batch = prepare(policy, GRPO(beta=0.0), rows, Context(), 8)
    batch.adv_BT[0, 0] = math.inf
    before = policy.logits_TV.detach().clone()
    with pytest.raises(TrainingDiverged, match="expected finite"):
        optimizer_step(policy, GRPO(beta=0.0), batch, Adam(0.1).build(policy), lr=0.1, micro_batch=8, max_grad_norm=1.0, max_tokens=3)
    assert torch.equal(policy.logits_TV, before)


def test_unscored_episodes_leave_their_group_and_lonely_groups_are_dropped():
    nan = math.nan
    kept = trainable(groups(Tabular(), [[1.0, 0.0, nan], [1.0, nan, nan], [nan, nan, nan]]), group_size=3)
    assert [len(g.episodes) for g in kept] == [2]
    assert len(trainable(groups(Tabular(), [[1.0], [nan]]), group_size=1)) == 1


def test_minibatches_deal_every_group_once_per_epoch_and_keep_it_whole():
    policy = Tabular()
    batch = prepare(policy, GRPO(beta=0.0), groups(policy, SCORES), Context(), 100)
    parts = minibatches(batch, 3, 2, seed=1, step=4)
    assert len(parts) == 6
    for epoch in (parts[:3], parts[3:]):
        dealt = [set(p.group_B.tolist()) for p in epoch]
        assert set.union(*dealt) == {0, 1, 2, 3} and sum(map(len, dealt)) == 4
        assert sum(p.B for p in epoch) == batch.B
    again = minibatches(batch, 3, 2, seed=1, step=4)
    assert all(torch.equal(a.episode_B, b.episode_B) for a, b in zip(parts, again, strict=True))


def test_streams_before_credit_do_not_depend_on_micro_batch():
    policy = Tabular()
    batch = prepare(policy, GRPO(beta=0.0), groups(policy, SCORES), Context(), 100)
    with torch.no_grad():
        whole = evaluate_all(policy, batch, frozenset({"logp", "entropy"}), 100)
        split = evaluate_all(policy, batch, frozenset({"logp", "entropy"}), 2)
    held = batch.mask_BT > 0
    assert all(torch.equal(whole[k][held], split[k][held]) for k in whole)
    assert torch.allclose(whole["logp"][held], batch.logp_old_BT[held], atol=1e-6)


def test_learning_rate_schedule_by_hand():
    linear = Adam(1.0, warmup_steps=2, schedule="linear", total_steps=6)
    assert [linear.lr_at(s) for s in range(6)] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert Adam(1.0, schedule="cosine", total_steps=4).lr_at(2) == pytest.approx(0.5)
    assert Adam(0.3).lr_at(10**6) == 0.3


def test_bf16_weights_keep_updates_that_are_smaller_than_their_precision(tmp_path):
    policy = Tabular(dtype=torch.bfloat16)
    with torch.no_grad():
        policy.logits_TV.fill_(1.0)
    optimizer = Adam(1e-4).build(policy)

    def step(policy, optimizer, n):
        for _ in range(n):
            optimizer.zero_grad()
            policy.logits_TV.sum().backward()
            optimizer.step()

    step(policy, optimizer, 15)
    assert torch.equal(policy.logits_TV, torch.ones_like(policy.logits_TV)), "15 steps of 1e-4 are below half a bf16 unit at 1"
    saved = checkpoint.save(tmp_path, 20, policy, optimizer, {})
    step(policy, optimizer, 25)
    assert float(policy.logits_TV[0, 0].detach()) == pytest.approx(1 - 40e-4, abs=2e-3)

    other = Tabular(dtype=torch.bfloat16)
    other.load(saved.model)
    resumed = Adam(1e-4).build(other)
    checkpoint.load_optimizer(saved, resumed)
    step(other, resumed, 25)
    assert torch.equal(other.logits_TV, policy.logits_TV)
