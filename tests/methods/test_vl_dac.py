"""VL-DAC and RL4VLM: values and advantages by turn, ratios by token or by turn, by hand."""

import dataclasses
import math

import pytest
import torch

from fovea.batch import Streams, collate
from fovea.checks import check_method
from fovea.math.clock import turn_starts, turn_sums
from fovea.methods.rl4vlm import RL4VLM
from fovea.methods.rloo import RLOO
from fovea.methods.vl_dac import VLDAC
from fovea.trainer.update import evaluate_all
from fovea.types import Context, Episode, Group, Prefix, Score, Segment, Task, user
from tests.methods.toy import T_MAX, Toy, rollout

LATER = Context(step=5, total_steps=10)  # behind the warm-up
PLAIN = {"beta": 0.0, "value_coef": 0.0}
TASK = Task("t", "toy", user("?"))


def row(turns, rewards, bootstrap=False, action=None, prompt=0):
    """A row whose turns have so many units each."""
    turn = torch.tensor([k for k, n in enumerate(turns) for _ in range(n)])
    n = len(turn)
    extras = {} if action is None else {"action": torch.tensor(action, dtype=torch.float64)}
    return Segment(
        Prefix(f"p{prompt}", data=prompt), torch.zeros(n, dtype=torch.long), torch.ones(n, dtype=torch.bool),
        torch.zeros(n, dtype=torch.float64), turn, torch.zeros(n, dtype=torch.long), reward=rewards, bootstrap=bootstrap, extras=extras,
    )  # fmt: skip


def batch_of(*episodes, context=LATER, score=0.0):
    made = [Episode(f"t/{i}", TASK, segments=list(rows), score=Score(score)) for i, rows in enumerate(episodes)]
    return collate([Group(TASK, made)], context, dtype=torch.float64)


def credited(method, batch, value_BT=None, reference_BT=None):
    stored = {"value": torch.zeros_like(batch.mask_BT) if value_BT is None else torch.tensor(value_BT, dtype=torch.float64)}
    if reference_BT is not None:
        stored["reference/logp"] = torch.tensor(reference_BT, dtype=torch.float64)
    batch.stored = Streams(stored, "before")
    batch.adv_BT = method.credit(batch)
    batch.totals = batch.count(T_MAX)
    return batch


def loss_of(method, batch, ratio_BT, value_BT=None):
    """(loss, metrics, gradient on log-probabilities, gradient on values); the sampled log-probabilities are 0."""
    logp = torch.tensor(ratio_BT, dtype=torch.float64).log().requires_grad_()
    value = torch.zeros_like(logp) if value_BT is None else torch.tensor(value_BT, dtype=torch.float64)
    value.requires_grad_()
    loss, metrics = method.loss(Streams({"logp": logp, "value": value}), batch)
    loss.backward()
    return loss.item(), metrics, torch.zeros_like(logp) if logp.grad is None else logp.grad, value.grad


# -- turns ----------------------------------------------------------------------------------------------------------------------


def test_turns_begin_at_their_first_chosen_unit_and_are_summed_over_the_chosen_ones():
    turn = torch.tensor([[0, 0, 1, 1, 1], [0, 2, 2, 0, 0]])
    mask = torch.tensor([[0.0, 1, 0, 1, 1], [1, 1, 1, 0, 0]])
    assert turn_starts(turn, mask).tolist() == [[False, True, False, True, False], [True, True, False, False, False]]
    x = torch.tensor([[9.0, 1, 9, 2, 3], [4, 5, 6, 9, math.nan]])
    assert turn_sums(x, turn, mask).tolist() == [[0, 1, 0, 5, 5], [4, 11, 11, 0, 0]]


# -- credit ---------------------------------------------------------------------------------------------------------------------

CARD = VLDAC(gamma=0.9, lam=0.95)
LAYOUTS = {
    "a row each": ([row([2], [0.0]), row([3], [1.0], prompt=1)], [[0.5, 7, 7], [0.5, 7, 7]]),
    "one row": ([row([2, 3], [0.0, 1.0])], [[0.5, 7, 0.5, 7, 7]]),
}


@pytest.mark.parametrize("rows, values", LAYOUTS.values(), ids=LAYOUTS)
def test_gae_is_over_turns_however_they_lie_in_rows(rows, values):
    """R = [0, 1], V = [.5, .5], the end, γ = .9, λ = .95 → A = [.3775, .5], R̂ = [.8775, 1]; whitened (±.06125 around .43875)."""
    batch = credited(CARD, batch_of(rows), values)
    start = turn_starts(batch.turn_BT, batch.mask_BT)
    assert batch.stored["ret"][start].tolist() == pytest.approx([0.8775, 1.0])
    low = -1 / math.sqrt(2)
    assert batch.adv_BT[batch.mask_BT > 0].tolist() == pytest.approx([low] * 2 + [-low] * 3, abs=1e-5)
    assert batch.count(9).turns == 2


def test_values_behind_the_first_token_of_a_reply_are_not_read():
    rows = [row([2, 3], [0.0, 1.0])]
    one, other = (credited(CARD, batch_of(rows), [[0.5, x, 0.5, x, -x]]) for x in (7.0, 1e6))
    assert torch.equal(one.adv_BT, other.adv_BT) and torch.equal(one.stored["ret"], other.stored["ret"])
    for value in ([[0.5, 3.0, 0.1, 3.0, 3.0]],):
        *_, on_value = loss_of(VLDAC(beta=0.0), one, [[1.0] * 5], value)
        assert on_value[0].tolist() == pytest.approx([0.15 * (0.5 - 0.8775) / 2, 0, 0.15 * (0.1 - 1.0) / 2, 0, 0])


def test_advantages_are_whitened_over_turns_not_over_tokens():
    lengthy = credited(VLDAC(), batch_of([row([9], [1.0])], [row([1], [0.0])], [row([1], [-1.0])]))
    assert lengthy.adv_BT[:, 0].tolist() == pytest.approx([1, 0, -1])
    assert (lengthy.adv_BT[0] == lengthy.adv_BT[0, 0]).all()


def test_a_cut_turn_ends_the_episode_or_teaches_nothing():
    def targets(method):
        batch = credited(method, batch_of([row([1], [0.0]), row([1], [1.0], bootstrap=True)], [row([1], [3.0])]), [[0.5], [0.4], [0.0]])
        return batch.stored["ret"][:, 0].tolist()

    end = 1.0 - 0.4
    assert targets(CARD) == pytest.approx([0.9 * 0.4 - 0.5 + 0.855 * end + 0.5, 1.0, 3.0])
    assert targets(dataclasses.replace(CARD, proper_time_limits=True)) == pytest.approx([0.9 * 0.4, 0.4, 3.0])


def test_without_environment_rewards_the_score_is_paid_at_the_last_turn():
    batch = credited(VLDAC(gamma=0.5, lam=1.0), batch_of([row([2, 2], [0.0, 0.0])], score=4.0))
    assert batch.stored["ret"][0].tolist() == [2.0, 0, 4.0, 0]


# -- loss -----------------------------------------------------------------------------------------------------------------------


def with_advantage(batch, adv):
    batch.adv_BT = torch.full_like(batch.mask_BT, adv)
    return batch


@pytest.mark.parametrize("adv, want", [(1.0, -(1 + 1.1 + 0.8) / 3), (-1.0, (1 + 1.3 + 0.9) / 3)])
def test_the_ratio_is_clipped_token_by_token(adv, want):
    method = VLDAC(**PLAIN)
    batch = with_advantage(credited(method, batch_of([row([3], [1.0])], [row([1], [0.0])])), adv)
    batch.totals = dataclasses.replace(batch.totals, turns=1.0)
    batch = batch.rows(torch.tensor([0]))
    loss, _, grad, _ = loss_of(method, batch, [[1.0, 1.3, 0.8]])
    assert loss == pytest.approx(want)
    moves = [1, 0, 0.8] if adv > 0 else [1, 1.3, 0]
    assert grad[0].tolist() == pytest.approx([-adv * r / 3 for r in moves])


def test_turns_weigh_alike_however_long_they_are_and_wherever_they_stand():
    method = VLDAC(**PLAIN)
    one = with_advantage(credited(method, batch_of([row([1, 4], [0.0, 1.0])], [row([2], [1.0])])), 1.0)
    *_, grad, _ = loss_of(method, one, [[1.0] * 5, [1.0] * 5])
    third = 1 / 3
    assert grad.tolist() == [pytest.approx([-third, *[-third / 4] * 4]), pytest.approx([-third / 2, -third / 2, 0, 0, 0])]


def test_a_turn_with_a_huge_ratio_keeps_the_clipped_term_alone():
    method = VLDAC(**PLAIN)
    batch = with_advantage(credited(method, batch_of([row([2, 1], [0.0, 1.0])])), -1.0)
    *_, free, _ = loss_of(method, batch, [[9.9, 1.0, 1.2]])
    *_, guarded, _ = loss_of(method, batch, [[10.1, 1.0, 1.2]])
    assert free[0].tolist() == pytest.approx([9.9 / 4, 1 / 4, 1.2 / 2])
    assert guarded[0].tolist() == pytest.approx([0, 1 / 4, 1.2 / 2])


def test_kl_is_k3_to_the_reference_or_to_the_weights_that_sampled():
    rows = [row([1], [1.0])], [row([1], [0.0])]
    for method, reference in ((VLDAC(value_coef=0.0, beta=1.0), [[0.1], [0.0]]), (VLDAC(value_coef=0.0, beta=1.0, kl_to="old"), None)):
        batch = credited(method, batch_of(*rows), reference_BT=reference)
        _, metrics, _, _ = loss_of(method, batch, [[1.0], [1.0]] if reference else [[math.exp(-0.1)], [1.0]])
        assert metrics["loss/kl"].item() == pytest.approx(0.00517 / 2, abs=2e-6)
    assert "reference/logp" not in VLDAC(kl_to="old").needs.before and "reference/logp" in VLDAC().needs.before


def test_the_warm_up_trains_the_value_alone():
    early = batch_of([row([2], [0.0]), row([2], [1.0])], context=Context(step=1))
    method = VLDAC()
    batch = credited(method, early, [[0.5, 0.0], [0.5, 0.0]], [[0.0] * 2] * 2)
    loss, metrics, on_logp, on_value = loss_of(method, batch, [[3.0, 1.0], [0.2, 1.0]], [[0.5, 0.0], [0.5, 0.0]])
    ret = batch.stored["ret"][:, 0]
    assert loss == pytest.approx(0.15 * float(((0.5 - ret) ** 2).mean() / 2))
    assert (on_logp == 0).all() and (on_value[:, 0] != 0).all() and metrics.keys() >= {"loss/value", "value/error"}
    batch.context = Context(step=2)
    assert (loss_of(method, batch, [[1.0] * 2] * 2)[2] != 0).all()


# -- RL4VLM ---------------------------------------------------------------------------------------------------------------------

ACTION = [0.0, 0.0, 1.0]


def turn_ratio(weight, thoughts, action, adv=1.0):
    """RL4VLM's loss and gradient on one turn of two thought tokens and one of action."""
    method = RL4VLM(thought_weight=weight, value_coef=0.0)
    batch = with_advantage(credited(method, batch_of([row([3], [1.0], action=ACTION)])), adv)
    return loss_of(method, batch, [[*thoughts, action]])


def test_a_thought_counts_less_in_the_log_probability_of_a_turn():
    """Thought −4, action −1, λ = .5: the log-ratio is −3."""
    loss, _, grad, _ = turn_ratio(0.5, [math.exp(-2), math.exp(-2)], math.exp(-1), adv=-1.0)
    assert loss == pytest.approx(0.9) and (grad == 0).all()
    loss, _, grad, _ = turn_ratio(0.5, [math.exp(-2), math.exp(-2)], math.exp(-1))
    assert loss == pytest.approx(-math.exp(-3))
    assert grad[0].tolist() == pytest.approx([-0.5 * math.exp(-3)] * 2 + [-math.exp(-3)])


def test_thoughts_get_no_gradient_at_weight_0_and_that_of_actions_at_1():
    assert turn_ratio(0.0, [1.05, 0.9], 1.0)[2][0].tolist() == pytest.approx([0, 0, -1])
    ones = turn_ratio(1.0, [1.02, 1.0], 1.0)[2][0]
    assert (ones == ones[0]).all() and ones[0] != 0
    method = VLDAC(**PLAIN)
    batch = with_advantage(credited(method, batch_of([row([3], [1.0])])), 1.0)
    alike = loss_of(method, batch, [[1.0] * 3])[2][0]
    assert (alike == alike[0]).all() and alike[0] != 0


def test_long_thoughts_leave_the_clip_range_of_a_turn_but_not_of_a_token():
    n = 32
    for method, clipped in ((RL4VLM(thought_weight=1.0, value_coef=0.0), True), (VLDAC(**PLAIN), False)):
        batch = with_advantage(credited(method, batch_of([row([n], [1.0], action=[0.0] * n)])), 1.0)
        _, metrics, grad, _ = loss_of(method, batch, [[1.01] * n])
        assert bool((grad == 0).all()) is clipped and bool(metrics["policy/clip_frac"] > 0) is clipped


def test_rl4vlm_needs_marks():
    batch = credited(RL4VLM(), batch_of([row([2], [1.0])]))
    with pytest.raises(ValueError, match=r"no row has the mark 'action'.*expected an episode program"):
        loss_of(RL4VLM(), batch, [[1.0, 1.0]])


# -- LOOP -----------------------------------------------------------------------------------------------------------------------


def test_loop_is_rloo_with_the_clipped_ratio_on_the_return_of_whole_episodes():
    def adv(*returns):
        task = [Episode(f"t/{i}", TASK, segments=[row([2], [0.0]), row([1], [r])], score=Score(r)) for i, r in enumerate(returns)]
        batch = collate([Group(TASK, task)], dtype=torch.float64)
        return RLOO(clip=True).credit(batch)[batch.mask_BT > 0].tolist()

    assert adv(1.0, 0.0) == [1, 1, 1, -1, -1, -1]
    assert adv(0.3, 0.3, 0.3) == [0] * 9


# -- invariants -----------------------------------------------------------------------------------------------------------------

METHODS = [VLDAC(beta=0.1), VLDAC(kl_to="old", value_clip=0.1), RL4VLM(), RL4VLM(thought_weight=0.2, beta=0.1, value_warmup=2)]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_contract_holds(method):
    assert check_method(method)


@pytest.mark.parametrize("step", [0, 5])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_micro_batches_change_nothing(method, step):
    policy = Toy().set_reference()
    groups = rollout(policy, segments=3, rewards=True, cuts=True, off_policy=0.2, greedy=False)
    batch = collate(groups, Context(step=step, total_steps=9), dtype=torch.float64)
    with torch.no_grad():
        batch.stored = Streams(evaluate_all(policy, batch, method.needs.before, 100), "before")
        batch.adv_BT = method.credit(batch)
    batch.totals = batch.count(T_MAX)

    def gradients(size):
        policy.zero_grad()
        for micro in batch.micro_batches(size):
            method.loss(Streams(policy.evaluate(micro, method.needs.loss)), micro)[0].backward()
        return [p.grad for p in (policy.weight_DV, policy.value_D) if p.grad is not None]

    whole = gradients(1000)
    assert whole and all(x.abs().max() > 0 for x in whole)
    for size in (1, 4):
        assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-13) for a, b in zip(whole, gradients(size), strict=True))
