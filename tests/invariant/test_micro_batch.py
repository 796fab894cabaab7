"""`micro_batch` may change memory, never results: float64 parameters after five AdamW steps agree to 1e-12 for every method."""

from dataclasses import replace

import pytest
import torch

from fovea.batch import Streams, collate
from fovea.methods import get
from fovea.trainer.update import Adam, evaluate_all, evaluate_with_gradient, optimizer_step
from tests.methods.toy import CREDITED, Toy, gold, pairs, rollout

VARIANTS = {
    "grpo": [
        {},
        {"beta": 0.1, "kl": "k1", "kl_in": "reward", "scale": "batch", "aggregation": "token-mean", "dual_clip": 3.0},
        {"part_weights": (("format", 0.2), ("answer", 1.0)), "kl": "k3+", "entropy_coef": 0.01, "behaviour": "sequence", "delta": 2.0},
    ],
    "dapo": [{"filter_cut": True, "overlong_max": 10, "overlong_cache": 4, "behaviour": "token"}],
    "dr_grpo": [{}, {"aggregation": "seq-mean-token-sum-norm", "behaviour": "sequence-mask", "behaviour_cap": 3.0}],
    "gspo": [{}, {"eps_lo": 0.2, "eps_hi": 0.2, "beta": 0.04}],
    "rloo": [{}, {"clip": True, "beta": 0.05}],
    "remax": [{}, {"clip": True, "beta": 0.05}],
    "reinforce_pp": [{}, {"baseline": True, "gamma": 0.9}, {"kl": "k2", "kl_in": "loss", "reward": "steps"}],
    "ppo": [{}, {"gamma": 0.99, "beta": 0.05, "entropy_coef": 0.01, "reward": "steps", "dual_clip": 0.0, "value_clip": 0.0}],
    "papo": [{"gamma": 0.3, "eta": 0.1, "top": 0.5}, {"gamma": 0.2, "eta_masked": 0.1, "masked_gradient": True, "beta": 0.0}],
    "vppo": [{}, {"keep": "bottom", "share": 0.5, "beta": 0.05, "penalty": 0.0}],
    "visurf": [{}, {"smoothing": False, "clip_label": False, "thinking": ("format", 0.5)}],
    "vision-sr1": [{}, {"mode": "multi", "beta": 0.1}, {"mode": "additive", "kl": "k1", "kl_in": "reward"}],
    "dpo": [{}, {"label_smoothing": 0.1, "nll_coef": 0.2}],
    "prdp": [{"beta": 0.5, "eps": 0.05}, {"beta": 0.5, "eps": 0.0, "time_reduce": "sum", "ties": True}],
}
CASES = [(name, options) for name in CREDITED for options in VARIANTS.get(name, [{}])]


def groups_for(method, policy, step):
    if method.needs.data == "pairs":
        return pairs(policy, seed=step)
    if method.needs.data == "responses":
        return gold(policy, seed=step)
    groups = rollout(policy, seed=step, off_policy=0.15, segments=2, rewards=True, cuts=True)
    for group in groups if "gold" in method.needs.members else ():
        group.episodes[0].role = "gold"
    return groups


def trained(method, micro_batch, continuous=False):
    policy = Toy(continuous=continuous).set_reference()
    optimizer = Adam(0.05).build(policy)
    history = []
    for step in range(5):
        batch = collate(groups_for(method, policy, step), dtype=torch.float64)
        with torch.no_grad():
            batch.stored = Streams(evaluate_all(policy, batch, method.needs.before, micro_batch, views=method.needs.views), "before")
            batch.adv_BT = method.credit(batch)
        history.append(optimizer_step(policy, method, batch, optimizer, lr=0.05, micro_batch=micro_batch, max_grad_norm=1.0, max_tokens=10))
    return torch.cat([p.detach().flatten() for p in policy.parameters()]), history


@pytest.mark.parametrize("name, options, continuous", [(*c, False) for c in CASES] + [(name, {}, True) for name in CREDITED])
def test_any_micro_batching_gives_the_same_parameters_and_metrics(name, options, continuous):
    method = get(name)(**options)
    whole, history = trained(method, 10_000, continuous)
    start = torch.cat([p.detach().flatten() for p in Toy(continuous=continuous).parameters()])
    assert (whole - start).abs().max() > 0.05
    for micro_batch in (2, 7):
        split, others = trained(method, micro_batch, continuous)
        assert (split - whole).abs().max() < 1e-12, micro_batch
        for a, b in zip(history, others, strict=True):
            assert a.keys() == b.keys()
            for k in a:
                assert a[k] == pytest.approx(b[k], rel=1e-9, abs=1e-9), (k, micro_batch)


@pytest.mark.parametrize("name, options", CASES)
def test_order_of_rows_and_padding_change_nothing(name, options):
    method = get(name)(**options)
    policy = Toy().set_reference()
    batch = collate(groups_for(method, policy, 0), dtype=torch.float64)
    with torch.no_grad():
        batch.stored = Streams(evaluate_all(policy, batch, method.needs.before, 8, views=method.needs.views), "before")
        batch.adv_BT = method.credit(batch)
    batch.totals = batch.count(10)

    def gradient(rows):
        policy.zero_grad()
        loss, _ = method.loss(Streams(evaluate_with_gradient(policy, rows, method.needs.loss, method.needs.views)), rows)
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])

    loss, grad = gradient(batch)
    shuffled = batch.rows(torch.randperm(batch.B, generator=torch.Generator().manual_seed(1)))
    loss_shuffled, grad_shuffled = gradient(shuffled)
    assert loss == pytest.approx(loss_shuffled, abs=1e-12) and torch.allclose(grad, grad_shuffled, rtol=0, atol=1e-12)

    masked = batch.mask_BT == 0
    spoiled = replace(
        batch,
        adv_BT=batch.adv_BT.masked_fill(masked, 1e6),
        logp_old_BT=batch.logp_old_BT.masked_fill(masked, float("-inf")),
        logp_behaviour_BT=batch.logp_behaviour_BT.masked_fill(masked, float("nan")),
    )
    loss_spoiled, grad_spoiled = gradient(spoiled)
    assert loss == pytest.approx(loss_spoiled, abs=1e-12) and torch.allclose(grad, grad_spoiled, rtol=0, atol=1e-12)
