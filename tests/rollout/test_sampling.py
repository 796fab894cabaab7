import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fovea.rollout.sampling import BLOCK, Sampling, address, block_sums, inverse_cdf, numbered, sample, truncate, uniforms


def draws(n, *place):
    return uniforms([address(*place)] * n, range(n))


def test_a_name_that_comes_again_has_its_number():
    assert numbered(["a", "b", "a", "a"]) == ["a", "b", "a#1", "a#2"]


def test_splitmix64_matches_the_published_reference_outputs():
    # the first outputs of SplitMix64 for seed 1234567, as given with its reference implementation
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    got = uniforms([1234567] * 5, range(5))
    assert got.tolist() == [(z >> 11) * 2.0**-53 for z in expected]


def test_uniforms_are_uniform_and_independent_between_neighbouring_addresses():
    n = 20000
    u, v = draws(n, 0, 1, "a", 0, 0), draws(n, 0, 1, "a", 1, 0)
    for x in (u, v):
        counts = torch.histc(x.float(), 20, 0, 1)
        assert ((counts - n / 20) ** 2 / (n / 20)).sum() < 43.8  # chi-square, 19 degrees of freedom, p = .001
    assert abs(np.corrcoef(u, v)[0, 1]) < 4 / math.sqrt(n)
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 4 / math.sqrt(n)


def test_addresses_do_not_run_together():
    assert len({address("a", "bc"), address("ab", "c"), address("abc"), address(1, 2), address(12), address("1", 2)}) == 6


@given(st.integers(1, 5), st.integers(0, 6))
@settings(max_examples=20, deadline=None)
def test_a_row_does_not_depend_on_its_neighbours(rows, at):
    generator = torch.Generator().manual_seed(rows)
    logits = torch.randn(rows + at, 700, generator=generator)
    u = draws(rows + at, "x")
    alone = [sample(logits[r : r + 1], u[r : r + 1], Sampling(top_p=0.9)) for r in range(rows + at)]
    together = sample(logits, u, Sampling(top_p=0.9))
    for k in range(3):
        assert torch.equal(torch.cat([a[k] for a in alone]), together[k])


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.5), Sampling(top_k=3), Sampling(top_p=0.7), Sampling(top_k=4, top_p=0.8)]
)
def test_frequencies_follow_the_behaviour_distribution(sampling):
    n, V = 30000, 7
    logits = torch.tensor([1.0, 0.5, 0.0, 2.0, -1.0, 1.5, 3.0])
    banned = (6,)
    token, old, behaviour = sample(logits.expand(n, V), draws(n, "freq"), sampling, banned)
    open_logits = logits.clone()
    open_logits[6] = -torch.inf
    p = torch.softmax(open_logits / sampling.temperature, 0)
    order = p.argsort(descending=True)
    kept, mass = [], 0.0
    head = order[: sampling.top_k or V]
    for v in head.tolist():
        if mass >= sampling.top_p * float(p[head].sum()) or p[v] == 0:
            break
        kept.append(v)
        mass += float(p[v])
    q = torch.zeros(V)
    q[kept] = p[kept] / mass
    counts = torch.bincount(token, minlength=V).float()
    assert counts[q == 0].sum() == 0
    chi2 = ((counts - n * q) ** 2 / (n * q))[q > 0].sum()
    assert chi2 < {2: 13.8, 3: 16.3, 4: 18.5, 5: 20.6, 1: 10.9, 0: 1e-9}[len(kept) - 1]
    assert torch.allclose(old, p.log()[token], atol=1e-6)
    assert torch.allclose(behaviour, q.log()[token], atol=1e-6)


def test_hand_worked_top_p():
    # p = .5 .3 .2: top_p = .6 keeps .5 and .3, so the behaviour probability of the second token is .375
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    token, old, behaviour = sample(logits, torch.tensor([0.7], dtype=torch.float64), Sampling(top_p=0.6))
    assert token.tolist() == [1]
    assert old.exp().item() == pytest.approx(0.3) and behaviour.exp().item() == pytest.approx(0.375)


def test_greedy_takes_the_largest_and_reports_its_logp_at_temperature_one():
    logits = torch.tensor([[0.0, math.log(2.0), 9.0]])
    token, old, behaviour = sample(logits, torch.tensor([0.99], dtype=torch.float64), Sampling(temperature=0), banned=(2,))
    assert token.tolist() == [1] and old.item() == pytest.approx(math.log(2 / 3)) and behaviour.item() == 0


def test_held_ids_cannot_be_drawn_and_keep_their_probability_in_logp_old():
    logits = torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0]])
    u = torch.tensor([0.1, 0.1], dtype=torch.float64)
    token, old, behaviour = sample(logits, u, Sampling(), held_R=torch.tensor([True, False]), held=(0,))
    assert token.tolist() == [1, 0]
    assert old.exp().tolist() == pytest.approx([0.25, 0.75])
    assert behaviour.exp().tolist() == pytest.approx([1.0, 0.75])


@given(st.integers(1, 3 * BLOCK + 7), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_two_level_inverse_cdf_equals_a_plain_cumulative_sum(V, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand(4, V, generator=generator) * (torch.rand(4, V, generator=generator) < 0.7)
    weight[:, -1] = 1.0
    u = torch.rand(4, dtype=torch.float64, generator=generator)
    token, total = inverse_cdf(weight, u)
    cumulative = weight.double().cumsum(1)
    assert torch.equal(token, torch.searchsorted(cumulative, (u * cumulative[:, -1])[:, None], right=True)[:, 0])
    assert torch.allclose(total, cumulative[:, -1])
    assert torch.allclose(block_sums(weight).sum(1), total)


def test_the_largest_uniform_never_draws_an_impossible_token():
    weight = torch.rand(64, 5000)
    weight[:, 4000:] = 0
    token, _ = inverse_cdf(weight, torch.full((64,), 1 - 2.0**-53, dtype=torch.float64))
    assert (token < 4000).all()


def test_a_big_vocabulary_keeps_its_rare_tokens():
    # a float32 cumulative sum over 150,000 equal weights drifts by whole tokens
    V = 150_000
    u = (torch.arange(200, dtype=torch.float64) + 0.5) * 749 / V
    token, old, _ = sample(torch.zeros(200, V), u, Sampling())
    assert token.tolist() == [int(x * V) for x in u.tolist()]
    assert torch.allclose(old, torch.full((200,), -math.log(V)))


@given(
    st.integers(2, 3000), st.integers(0, 40), st.sampled_from([1.0, 0.99, 0.9, 0.3]), st.sampled_from([0.1, 1.0, 6.0]), st.integers(0, 99)
)
@settings(max_examples=60, deadline=None)
def test_truncation_equals_a_stable_sort(V, top_k, top_p, spread, seed):
    # rounded to bfloat16, weights tie
    weight = (torch.randn(3, V, generator=torch.Generator().manual_seed(seed)) * spread).exp().bfloat16().float()
    got = truncate(weight, top_k, top_p)
    for r in range(3):
        order = sorted(range(V), key=lambda v: (-weight[r, v].item(), v))[: top_k or V]
        head = weight[r, order].double()
        before = (head.cumsum(0) - head).tolist()
        kept = order if top_p == 1 else [v for v, b in zip(order, before, strict=True) if b < top_p * float(head.sum())]
        expected = torch.zeros(V)
        expected[kept] = weight[r, kept]
        differ = int((got[r] != expected).sum())
        assert differ <= (1 if top_p < 1 else 0)  # a sum that lands on the border may round either way


def test_ties_are_cut_by_id():
    assert truncate(torch.ones(1, 4), 2, 1.0).tolist() == [[1, 1, 0, 0]]


def test_diverged_logits_are_named():
    logits = torch.zeros(3, 4)
    logits[1] = torch.nan
    with pytest.raises(FloatingPointError, match="row 1"):
        sample(logits, torch.zeros(3, dtype=torch.float64), Sampling())


@pytest.mark.parametrize("bad", [{"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"max_new_tokens": 0}, {"stop": "abc"}, {"stop": ("",)}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sampling(**bad)
