import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fovea.ledger import stats

NAN = math.nan


def test_interquartile_mean_by_hand():
    assert stats.iqm(np.array([9.0, 1, 2, 3, 4, 5, 6, 100])) == (3 + 4 + 5 + 6) / 4
    assert stats.iqm(np.array([1.0, 2, 9])) == 4  # a quarter of three, rounded down, is none
    assert list(stats.iqm(np.array([[0.0, 4], [1, 5], [2, 6], [50, 60]]), axis=0)) == [1.5, 5.5]


def test_the_mean_stands_for_few_seeds_and_the_iqm_for_many():
    few, many = np.array([0.0] * 8 + [9]), np.array([0.0] * 9 + [9])
    assert stats.centre(few) == 1
    assert stats.centre(many) == 0


def test_effect_by_hand():
    a, b = np.array([[1.0, 1, 0, 0], [1, 1, 1, 0]]), np.array([[1.0, 0, 0, 0], [0, 0, 1, 0]])
    assert list(stats.per_seed(a)) == [0.5, 0.75]
    assert stats.effect(a, b) == pytest.approx((0.25 + 0.5) / 2)


def test_tasks_without_a_value_do_not_count():
    lengths = np.array([[10.0, NAN, 20], [NAN, NAN, 40]])
    assert list(stats.per_seed(lengths)) == [15, 40]
    assert math.isnan(stats.per_seed(np.full((1, 2), NAN))[0])


@pytest.mark.parametrize(("p", "df", "t"), [(0.975, 1, 12.7062), (0.975, 4, 2.7764), (0.975, 5, 2.5706), (0.95, 9, 1.8331), (0.5, 3, 0)])
def test_student_quantiles_of_the_printed_table(p, df, t):
    assert stats.student_quantile(p, df) == pytest.approx(t, abs=1e-4)


def test_the_tail_of_five_seeds_by_hand():
    z = math.sqrt(5 / 4) * 2.77645  # 3.10416
    assert stats.expanded_tail(5) == pytest.approx(0.5 * math.erfc(z / math.sqrt(2)), rel=1e-3)
    assert stats.expanded_tail(5) == pytest.approx(0.00095, abs=2e-5)
    assert stats.expanded_tail(1) == pytest.approx(0.025)
    assert stats.expanded_tail(10_000) == pytest.approx(0.025, rel=1e-2)


def test_the_interval_is_a_function_of_the_values():
    rng = np.random.default_rng(0)
    a, b = rng.random((5, 30)), rng.random((5, 30))
    assert stats.interval(a, b, draws=500) == stats.interval(a, b, draws=500)
    low, high = stats.interval(a, b, draws=500)
    assert low < stats.effect(a, b) < high
    back = stats.interval(b, a, draws=500)
    assert back == pytest.approx((-high, -low))


def test_pairing_by_task_removes_what_tasks_have_in_common():
    hard_I = np.linspace(0, 1, 50)
    a, b = np.tile(hard_I + 0.1, (5, 1)), np.tile(hard_I, (5, 1))
    low, high = stats.interval(a, b, draws=500)
    assert (low, high) == pytest.approx((0.1, 0.1))


def test_seeds_and_tasks_both_widen_the_interval():
    rng = np.random.default_rng(1)
    zero = np.zeros((5, 40))
    seeds, tasks = np.repeat(rng.normal(size=(5, 1)), 40, 1), np.repeat(rng.normal(size=(1, 40)), 5, 0)
    width = [high - low for low, high in (stats.interval(x, zero, draws=1000) for x in (zero, seeds, tasks, seeds + tasks))]
    assert width[0] == 0 < width[2] < width[1] < width[3]


def test_one_number_per_run_and_one_seed():
    a, b = np.array([[1.0], [2], [3]]), np.array([[0.0], [0], [0]])
    low, high = stats.interval(a, b, draws=2000)
    assert (low, high) == (1, 3)  # the ends of three seeds
    assert stats.interval(a[:1], b[:1], draws=50) == (1, 1)  # nothing to draw from


def test_an_arm_without_values_has_no_interval():
    a = np.full((2, 3), NAN)
    assert all(map(math.isnan, stats.interval(a, np.ones((2, 3)), draws=50)))


def test_arms_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"found shapes \(2, 3\) and \(2, 4\)"):
        stats.interval(np.ones((2, 3)), np.ones((2, 4)))


def coverage(seeds, tasks, trials):
    """Share of intervals over synthetic comparisons that hold the true effect, 0.1: seeds, tasks and answers all vary."""
    rng, hit = np.random.default_rng(0), 0
    for i in range(trials):
        gap_SI = 0.1 + 0.05 * rng.normal(size=(seeds, 1)) + (tasks > 1) * rng.normal(size=(1, tasks)) * 0.1
        gap_SI = gap_SI + (tasks > 1) * 0.3 * rng.normal(size=(seeds, tasks))
        shared_SI = rng.normal(size=(1, tasks)) + rng.normal(size=(seeds, 1))
        low, high = stats.interval(shared_SI + gap_SI, shared_SI, draws=600, seed=i)
        hit += low <= 0.1 <= high
    return hit / trials


@pytest.mark.parametrize(("seeds", "tasks", "least", "most"), [(5, 1, 0.88, 0.97), (10, 1, 0.91, 0.99), (5, 60, 0.93, 1.0)])
def test_intervals_cover_the_truth_about_as_often_as_they_say(seeds, tasks, least, most):
    """A plain percentile interval over five seeds holds it in some 83 of 100."""
    assert least <= coverage(seeds, tasks, trials=200 if tasks == 1 else 50) <= most


# -- verdicts -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (0.20, 0.10, 0.30, "reproduced"),
        (0.10, 0.001, 0.20, "reproduced"),  # exactly the margin
        (0.0999, 0.05, 0.15, "weaker"),
        (0.30, 0.0, 0.60, "not reproduced"),  # an interval that touches zero shows no difference
        (0.30, -0.01, 0.61, "not reproduced"),
        (-0.20, -0.30, -0.10, "not reproduced"),
        (NAN, 0.1, 0.3, "not reproduced"),
        (0.2, NAN, NAN, "not reproduced"),
    ],
)
def test_verdicts_of_better(value, low, high, expected):
    assert stats.verdict(value, low, high, margin=0.10) == expected


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (0.00, -0.04, 0.04, "reproduced"),
        (-0.02, -0.0499, 0.01, "reproduced"),
        (-0.02, -0.05, 0.01, "weaker"),  # exactly the margin: not excluded
        (0.10, -0.06, 0.26, "weaker"),
        (-0.05, -0.10, 0.00, "not reproduced"),
        (-0.20, -0.30, -0.10, "not reproduced"),
    ],
)
def test_verdicts_of_as_good_as(value, low, high, expected):
    assert stats.verdict(value, low, high, margin=0.05, test="as good as") == expected


@pytest.mark.parametrize("test", ["better", "as good as"])
def test_a_control_that_fails_spoils_any_claim(test):
    assert stats.verdict(0.5, 0.4, 0.6, 0.1, test, behaves=True) == "reproduced"
    assert stats.verdict(0.5, 0.4, 0.6, 0.1, test, behaves=False) == "not reproduced"


def test_a_control_must_be_shown_to_stay_below_its_margin():
    assert stats.control_behaves(high=0.049, margin=0.05)
    assert not stats.control_behaves(high=0.05, margin=0.05)
    assert not stats.control_behaves(high=NAN, margin=0.05)


VERDICTS = ("not reproduced", "weaker", "reproduced")


@settings(max_examples=200, deadline=None)
@given(
    st.floats(-1, 1),
    st.floats(0, 0.5),
    st.floats(0, 0.5),
    st.floats(0.01, 0.5),
    st.floats(0, 0.5),
    st.sampled_from(["better", "as good as"]),
)
def test_more_effect_or_less_margin_never_spoils_a_verdict_of_better(value, below, above, margin, more, test):
    def rank(v, m):
        return VERDICTS.index(stats.verdict(v, v - below, v + above, m, test))

    assert rank(value + more, margin) >= rank(value, margin)
    if test == "better":
        assert rank(value, margin + more) <= rank(value, margin)
    else:
        assert rank(value, margin + more) >= rank(value, margin)
