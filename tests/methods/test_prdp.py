"""PRDP and DDPO by hand: the card's numbers, what cancels, what the clip holds, and where the regression ends."""

import dataclasses
import math

import pytest
import torch

from fovea.batch import Streams, collate
from fovea.math.differences import difference_loss, pairs
from fovea.methods.ddpo import DDPO
from fovea.methods.prdp import PRDP
from fovea.types import Episode, Group, Prefix, Score, Segment, Task

torch.set_num_threads(1)
ORDER = ((0, 1), (1, 0))


def chains(scores, old, prompt=0, dims=1):
    """One group of chains: scores (B,), recorded log-probabilities (B, T)."""
    task = Task(f"p{prompt}", "toy", ())
    episodes = []
    for i, (score, row) in enumerate(zip(scores, old, strict=True)):
        n = len(row)
        streams = torch.tensor(row, dtype=torch.float64)
        zeros = torch.zeros(n, dtype=torch.long)
        prefix = Prefix(f"p{prompt}", data=prompt)
        row = Segment(prefix, torch.zeros(n, dims, dtype=torch.float64), torch.ones(n, dtype=torch.bool), streams, zeros, zeros)
        episodes.append(Episode(f"{prompt}/{i}", task, segments=[row], score=Score(float(score))))
    return Group(task, episodes)


def found(method, groups, logp, ref):
    """(loss, gradient on the log-probabilities, metrics)."""
    batch = collate(groups, dtype=torch.float64)
    batch.stored = Streams({"reference/logp": torch.tensor(ref, dtype=torch.float64)}, "before")
    batch.adv_BT = method.credit(batch)
    batch.totals = batch.count(16)
    logp = torch.tensor(logp, dtype=torch.float64, requires_grad=True)
    loss, metrics = method.loss(Streams({"logp": logp}), batch)
    (grad,) = torch.autograd.grad(loss, logp)
    return loss.item(), grad, metrics


LISTED = {"old": [[-1.1, -1.2], [-0.9, -1.0]], "logp": [[-1.0, -1.2], [-0.9, -1.1]]}


def test_at_the_reference_the_loss_is_the_squared_reward_difference():
    at = [[-1.0, -2.0], [-3.0, -4.0]]
    assert found(PRDP(beta=2, eps=0), [chains((1.0, 0.5), at)], at, at)[0] == pytest.approx(0.0625)


def test_the_sum_over_steps_meets_its_target():
    zeros, gains = [[0.0] * 3] * 2, [[0.1, -0.05, 0.2], [0.0, 0.1, -0.1]]
    method = PRDP(beta=1, eps=0, time_reduce="sum")
    assert found(method, [chains((0.25, 0.0), zeros)], gains, zeros)[0] == pytest.approx(0, abs=1e-15)
    mean = dataclasses.replace(method, time_reduce="mean")
    assert found(mean, [chains((0.25, 0.0), zeros)], gains, zeros)[0] == pytest.approx((0.25 / 3 - 0.25) ** 2)


@pytest.mark.parametrize(("beta", "eps", "loss", "clipped"), [(2, 0.05, 0.04, 1), (2, 0, 0.0225, 0), (20, 0.05, 0.005625, 0)])
def test_the_listing(beta, eps, loss, clipped):
    at = [chains((1.0, 0.5), LISTED["old"])]
    value, grad, metrics = found(PRDP(beta=beta, eps=eps), at, LISTED["logp"], LISTED["old"])
    assert value == pytest.approx(loss) and float(metrics["policy/clip_frac"]) == clipped
    moved = torch.tensor([[True, False], [False, True]])  # those two steps left the range; the others, inside it, may still move
    assert (grad[moved] == 0).all() == bool(clipped) and (grad[~moved] != 0).all()


@pytest.mark.parametrize(("eps", "loss"), [(0, 0.065), (10.0, 0.065), (0.05, 0.1915625)])
def test_three_chains_without_the_tie(eps, loss):
    zeros = [[0.0, 0.0]] * 3
    logp = [[0.1, 0.3], [0.0, 0.0], [-0.2, 0.0]]
    assert found(PRDP(beta=1, eps=eps), [chains((1.0, 0.5, 0.5), zeros)], logp, zeros)[0] == pytest.approx(loss)


def test_order_and_offsets_of_a_prompt_change_nothing():
    ref = [[-1.0, -1.0]] * 4
    old, logp = [[-1.0, -1.1], [-0.9, -1.0]], [[-0.8, -1.2], [-1.0, -1.1]]
    method = PRDP(beta=1, eps=0.05)

    def loss(first, second, offset):
        def row(x, at):
            return [x[i] for i in ORDER[at]]

        groups = [
            chains(row((1.0, 0.2), first), row(old, first)),
            chains([s + offset for s in row((0.7, 0.1), second)], row(old, second), 1),
        ]
        return found(method, groups, row(logp, first) + row(logp, second), ref)[0]

    assert loss(0, 0, 0.0) == pytest.approx(loss(1, 0, 0.0)) == pytest.approx(loss(0, 1, 1000.0))


def test_without_pairs_the_loss_is_zero():
    logp = [[0.3, 0.1], [0.0, -0.1]]
    value, grad, _ = found(PRDP(beta=1e-3, eps=0), [chains((0.5, 0.5), [[0.0, 0.0]] * 2)], logp, [[0.0, 0.0]] * 2)
    assert value == 0 and (grad == 0).all()
    one = torch.tensor([0.3], requires_grad=True)
    loss, _ = difference_loss(one, one, torch.tensor([1.0]), torch.tensor([0]), 1.0)
    loss.backward()
    assert loss.item() == 0 and one.grad.item() == 0


def test_ties_draw_chains_together_and_not_to_zero():
    logp, zeros = [[0.4], [0.2]], [[0.0]] * 2
    value, grad, _ = found(PRDP(beta=1, eps=0, ties=True), [chains((0.5, 0.5), zeros)], logp, zeros)
    assert value == pytest.approx(0.04) and grad[:, 0].tolist() == pytest.approx([0.4, -0.4])
    assert pairs(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0, 0, 0]), ties=True).sum() == 3


def test_the_loss_is_the_mean_over_prompts_however_they_are_split():
    zeros = [[0.0]] * 2
    both = [chains((1.0, 0.0), zeros), chains((2.0, 0.0), zeros, 1)]
    method = PRDP(beta=1, eps=0)
    assert found(method, both, zeros * 2, zeros * 2)[0] == pytest.approx((1 + 4) / 2)
    assert method.needs.unit == "group"


def test_a_mean_over_dimensions_divides_every_step():
    zeros, logp = [[0.0]] * 2, [[0.8], [0.0]]
    at = [chains((0.2, 0.0), zeros, dims=4)]
    assert found(PRDP(beta=1, eps=0), at, logp, zeros)[0] == pytest.approx(0)
    assert found(PRDP(beta=1, eps=0, dim_reduce="sum"), at, logp, zeros)[0] == pytest.approx(0.36)


def test_the_regression_ends_at_the_tilted_reference():
    ref = torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15], dtype=torch.float64)
    reward = torch.tensor([1.0, 0.0, -0.5, 2.0, 0.3], dtype=torch.float64)
    logits = ref.log().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=100, tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        gain = logits.log_softmax(0) - ref.log()
        loss, _ = difference_loss(gain, gain, reward, torch.zeros(5, dtype=torch.long), beta=0.5)
        loss.backward()
        return loss

    optimizer.step(closure)
    want = ref * (reward / 0.5).exp()
    assert torch.allclose(logits.softmax(0), want / want.sum(), atol=1e-3)


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"eps": -1.0}, {"time_reduce": "max"}, {"dim_reduce": "none"}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PRDP(**wrong)


# -- DDPO -----------------------------------------------------------------------------------------------------------------------


def credit(method, groups):
    batch = collate(groups, dtype=torch.float64)
    return method.credit(batch)[:, 0].tolist()


def test_a_prompt_seen_often_enough_has_its_own_statistics():
    groups = [chains((1.0, 3.0), [[0.0]] * 2), chains((10.0, 30.0), [[0.0]] * 2, 1)]
    own = credit(DDPO(min_count=2, std_eps=0), groups)
    assert own == pytest.approx([-1, 1, -1, 1])
    mean, std = 11.0, math.sqrt((100 + 64 + 1 + 361) / 4)
    assert credit(DDPO(min_count=3, std_eps=0), groups) == pytest.approx([(r - mean) / std for r in (1, 3, 10, 30)])


def test_two_groups_of_one_prompt_share_its_statistics():
    groups = [chains((0.0, 1.0), [[0.0]] * 2), chains((2.0, 3.0), [[0.0]] * 2)]
    assert credit(DDPO(min_count=4, std_eps=0), groups) == pytest.approx([(r - 1.5) / math.sqrt(1.25) for r in range(4)])


def test_advantages_are_clipped_and_a_single_chain_has_none():
    one_high = [chains((0.0,) * 99 + (1.0,), [[0.0]] * 100)]
    assert max(credit(DDPO(), one_high)) == 5.0 < max(credit(DDPO(adv_max=0), one_high))
    assert credit(DDPO(), [chains((3.0,), [[0.0]])]) == [0.0]


def test_the_ratio_is_that_of_the_mean_over_dimensions():
    zeros = [[0.0]] * 2
    _, inside, _ = found(DDPO(min_count=2), [chains((1.0, 0.0), zeros, dims=4)], [[3.9e-4], [0.0]], zeros)
    _, outside, metrics = found(DDPO(min_count=2), [chains((1.0, 0.0), zeros, dims=4)], [[4.1e-4], [0.0]], zeros)
    assert inside[0, 0] < 0 and outside[0, 0] == 0 and float(metrics["policy/clip_high_frac"]) == 0.5
