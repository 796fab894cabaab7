import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fovea.math import advantages as adv


def t(*x):
    return torch.tensor(x, dtype=torch.float64)


def one_group(score):
    return score, torch.zeros(len(score), dtype=torch.long), torch.ones(len(score), dtype=torch.bool)


def close(got, want, tol=5e-5):
    assert torch.allclose(got.double(), torch.as_tensor(want, dtype=torch.float64), rtol=0, atol=tol), (got, want)


def test_worked_numbers_of_the_group_estimators():
    one_right = one_group(t(1, 0, 0, 0))
    close(adv.grpo(*one_right, ddof=1, eps=0), [1.5, -0.5, -0.5, -0.5])
    close(adv.grpo(*one_right, ddof=0, eps=0), [math.sqrt(3), *[-1 / math.sqrt(3)] * 3])
    close(adv.group_center(*one_right), [0.75, -0.25, -0.25, -0.25])
    close(adv.rloo(*one_right), [1, -1 / 3, -1 / 3, -1 / 3])
    close(adv.rloo(*one_group(t(1, 0, 0, 1))), [2 / 3, -2 / 3, -2 / 3, 2 / 3])
    close(adv.grpo(*one_group(t(1, 0, 0, 0, 0, 0, 0, 0))), [2.4749, *[-0.3536] * 7])


def test_worked_numbers_of_reinforce_pp_baseline():
    score, group, ok = t(1, 0, 1, 1), torch.tensor([0, 0, 1, 1]), torch.ones(4, dtype=torch.bool)
    centred = adv.group_center(score, group, ok)
    close(centred, [0.5, -0.5, 0, 0])
    mask = torch.ones(4, 1)
    close(adv.whiten(centred[:, None], mask, ddof=0)[:, 0], [1.4142, -1.4142, 0, 0])
    close(adv.whiten(centred[:, None], mask, ddof=1)[:, 0], [1.2247, -1.2247, 0, 0])


def test_eps_is_added_to_the_std():
    close(adv.grpo(*one_group(t(1, 0, 0, 0)), ddof=1, eps=0.5), [0.75, -0.25, -0.25, -0.25])
    close(adv.batch_std(*one_group(t(1, 0, 0, 0)), ddof=1, eps=0.5), [0.75, -0.25, -0.25, -0.25])


def test_batch_std_uses_one_scale_for_every_group():
    score, group, ok = t(1, 0, 5, 3), torch.tensor([7, 7, 2, 2]), torch.ones(4, dtype=torch.bool)
    scale = score.std()
    close(adv.batch_std(score, group, ok, eps=0), [0.5 / scale, -0.5 / scale, 1 / scale, -1 / scale])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.1, 1 / 3, -7.3, 1e6 + 0.1])
@pytest.mark.parametrize("size", [2, 3, 5, 7, 8])
def test_equal_scores_give_exactly_zero(dtype, value, size):
    group = one_group(torch.full((size,), value, dtype=dtype))
    for estimate in (adv.grpo, adv.batch_std, adv.group_center, adv.rloo):
        assert (estimate(*group) == 0).all(), estimate.__name__
    greedy = torch.arange(size) == 0
    assert (adv.remax(*group, greedy) == 0).all()


def test_unscored_episodes_leave_the_baseline_and_a_group_of_one_gets_zero():
    nan = float("nan")
    score = t(1, 0, nan, 5, nan, nan)
    group = torch.tensor([0, 0, 0, 1, 1, 2])
    ok = score.isfinite()
    close(adv.group_center(score, group, ok), [0.5, -0.5, 0, 0, 0, 0])
    close(adv.rloo(score, group, ok), [1, -1, 0, 0, 0, 0])
    for estimate in (adv.grpo, adv.batch_std):
        got = estimate(score, group, ok)
        assert got.isfinite().all() and (got[2:] == 0).all() and got[0] > 0


def test_scores_marked_not_ok_are_ignored_even_when_finite():
    score, group = t(1, 0, 100), torch.zeros(3, dtype=torch.long)
    close(adv.group_center(score, group, torch.tensor([True, True, False])), [0.5, -0.5, 0])


def test_remax_subtracts_the_greedy_score():
    score = t(1, 0, 0.25, 1, float("nan"), 3)
    group = torch.tensor([0, 0, 0, 1, 1, 2])
    greedy = torch.tensor([False, False, True, False, True, False])
    close(adv.remax(score, group, score.isfinite(), greedy), [0.75, -0.25, 0, 0, 0, 0])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-5, 5), st.booleans()), min_size=1, max_size=14), st.integers(0, 1))
def test_group_estimators_match_plain_loops(rows, ddof):
    group = [g for g, _, _ in rows]
    score = [s for _, s, _ in rows]
    ok = [o for _, _, o in rows]
    tensors = (t(*score), torch.tensor(group), torch.tensor(ok))
    everyone = [s for s, o in zip(score, ok) if o]
    mean_all = sum(everyone) / max(1, len(everyone))
    std_all = math.sqrt(sum((s - mean_all) ** 2 for s in everyone) / max(1, len(everyone) - ddof)) if len(everyone) > 1 else 0.0
    want = {"center": [], "grpo": [], "batch": [], "rloo": []}
    for i in range(len(rows)):
        mates = [score[j] for j in range(len(rows)) if group[j] == group[i] and ok[j]]
        if not ok[i] or len(mates) < 2:
            for v in want.values():
                v.append(0.0)
            continue
        mean = sum(mates) / len(mates)
        std = math.sqrt(sum((m - mean) ** 2 for m in mates) / max(1, len(mates) - ddof))
        want["center"].append(score[i] - mean)
        want["grpo"].append((score[i] - mean) / (std + 1e-2))
        want["batch"].append((score[i] - mean) / (std_all + 1e-2))
        want["rloo"].append(score[i] - (sum(mates) - score[i]) / (len(mates) - 1))
    close(adv.group_center(*tensors), want["center"], 1e-9)
    close(adv.grpo(*tensors, ddof=ddof, eps=1e-2), want["grpo"], 1e-7)
    close(adv.batch_std(*tensors, ddof=ddof, eps=1e-2), want["batch"], 1e-7)
    close(adv.rloo(*tensors), want["rloo"], 1e-9)


def test_order_of_episodes_changes_nothing():
    g = torch.Generator().manual_seed(0)
    score, group, ok = torch.rand(20, generator=g), torch.randint(4, (20,), generator=g), torch.rand(20, generator=g) > 0.2
    order = torch.randperm(20, generator=g)
    for estimate in (adv.grpo, adv.batch_std, adv.group_center, adv.rloo):
        close(estimate(score, group, ok)[order], estimate(score[order], group[order], ok[order]), 1e-9)


def test_returns_to_go_by_hand():
    reward, mask = t(1, 9, 2, 4)[None], t(1, 0, 1, 1)[None]
    close(adv.returns_to_go(reward, mask, gamma=0.5), [[1 + 0.5 * (2 + 0.5 * 4), 0, 4, 4]])
    close(adv.returns_to_go(reward, mask), [[7, 0, 6, 4]])


def test_gae_by_hand():
    reward, value, mask = t(0, 1)[None], t(0.5, 0.25)[None], torch.ones(1, 2)
    # terminated: delta_1 = 1 - 0.25, delta_0 = 0.9 * 0.25 - 0.5
    last, first = 0.75, 0.9 * 0.25 - 0.5 + 0.9 * 0.8 * 0.75
    close(adv.gae(reward, value, mask, None, 0.9, 0.8), [[first, last]], 1e-12)
    # cut: the tail is worth 2
    last = 1 + 0.9 * 2 - 0.25
    close(adv.gae(reward, value, mask, t(2), 0.9, 0.8), [[0.9 * 0.25 - 0.5 + 0.9 * 0.8 * last, last]], 1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
def test_gae_and_returns_skip_masked_units_like_a_plain_loop(seed, gamma, lam):
    g = torch.Generator().manual_seed(seed)
    N, T = 3, 7
    reward, value = torch.randn(N, T, generator=g, dtype=torch.float64), torch.randn(N, T, generator=g, dtype=torch.float64)
    mask, tail = (torch.rand(N, T, generator=g) > 0.4).double(), torch.randn(N, generator=g, dtype=torch.float64)
    want, want_ret = torch.zeros(N, T, dtype=torch.float64), torch.zeros(N, T, dtype=torch.float64)
    for n in range(N):
        units = [i for i in range(T) if mask[n, i]]
        r, v = [float(reward[n, i]) for i in units], [float(value[n, i]) for i in units] + [float(tail[n])]
        for k, i in enumerate(units):
            for j in range(k, len(units)):
                want[n, i] += (gamma * lam) ** (j - k) * (r[j] + gamma * v[j + 1] - v[j])
                want_ret[n, i] += gamma ** (j - k) * r[j]
    close(adv.gae(reward, value, mask, tail, gamma, lam), want, 1e-9)
    close(adv.returns_to_go(reward, mask, gamma), want_ret, 1e-9)


def test_gae_with_lambda_one_is_the_monte_carlo_advantage():
    g = torch.Generator().manual_seed(0)
    reward, value = torch.randn(2, 6, generator=g, dtype=torch.float64), torch.randn(2, 6, generator=g, dtype=torch.float64)
    mask = torch.ones(2, 6)
    close(adv.gae(reward, value, mask, None, 0.9, 1.0), adv.returns_to_go(reward, mask, 0.9) - value, 1e-10)


def test_whiten_ignores_masked_units_even_nan():
    x = torch.tensor([[1.0, float("nan"), 3.0], [5.0, float("inf"), 7.0]])
    mask = torch.tensor([[1.0, 0, 1], [1, 0, 1]])
    got = adv.whiten(x, mask)
    chosen = got[mask > 0]
    assert (got[mask == 0] == 0).all()
    close(chosen.mean(), 0.0, 1e-6)
    close(chosen.std(), 1.0, 1e-6)


def test_no_warning_reaches_the_user():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adv.grpo(*one_group(t(1, 0)))
