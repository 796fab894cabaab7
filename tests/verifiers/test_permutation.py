"""Orders are read strictly and paid as the card of Visual Jigsaw says; every number here was worked out by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fovea.types import Context, Episode, Group, Task, Turn, user
from fovea.verifiers import build
from fovea.verifiers.permutation import parse_permutation, repeats

GOLD = (8, 4, 6, 1, 9, 2, 5, 3, 7)


def score(said, gold=GOLD, text="<think>so</think><answer>{}</answer>", **params):
    task = Task("t", "test", user("Order.", images=0), answer=gold)
    written = said if isinstance(said, str) else ", ".join(map(str, said))
    episode = Episode("e", task, turns=[Turn(text.format(written))])
    return build("permutation", params).score(Group(task, [episode]), Context())[0]


def swapped(order, i, j):
    order = list(order)
    order[i], order[j] = order[j], order[i]
    return order


def test_the_right_order_pays_in_full_and_one_swap_pays_for_seven_of_nine():
    right, near = score(GOLD), score(swapped(GOLD, 7, 8))
    assert (right.value, right.parts["accuracy"], right.correct) == (pytest.approx(1.2), 1.0, True)
    assert near.parts["accuracy"] == pytest.approx(0.2 * 7 / 9) and near.value == pytest.approx(0.3555556) and near.correct is False


@pytest.mark.parametrize(
    "said",
    [[1] * 9, [8, 4, 6, 1, 9, 2, 5, 30, 70], [8, 4, 6, 1, 9, 2, 5, 3], [*GOLD, 1], [0, *GOLD[:7], 7], "8, 4, 6, 1, 9, 2, 5, 3, seven", "x"],
)
def test_what_is_no_order_earns_its_form_alone(said):
    result = score(said)
    assert (result.value, result.parts["accuracy"], result.parts["valid"]) == (pytest.approx(0.2), 0.0, 0.0) and result.correct is False


@pytest.mark.parametrize(
    "text", ["{}", "<answer>{}</answer>", "<think>a</think><answer>{0}</answer><answer>{0}</answer>", "<answer>{}</answer><think>a</think>"]
)
def test_another_form_earns_nothing_and_still_counts_as_right(text):
    result = score(GOLD, text=text)
    assert result.value == 0.0 and result.correct is True


def test_a_derangement_earns_the_form_and_nothing_else():
    assert score(np.roll(GOLD, 1).tolist()).value == pytest.approx(0.2)


def test_a_random_order_is_worth_a_fifth_of_a_ninth_on_average():
    rng = np.random.default_rng(0)
    draws = [score(rng.permutation(9) + 1, format=0.0).parts["accuracy"] for _ in range(1500)]
    assert np.mean(draws) == pytest.approx(0.2 / 9, abs=0.003)


def test_no_order_is_right_in_all_places_but_one():
    placed = {sum(a == b for a, b in zip(p, range(5))) for p in itertools.permutations(range(5))}
    assert 4 not in placed and placed == {0, 1, 2, 3, 5}


@pytest.mark.parametrize(("rule", "worth"), [("code", 0.0), ("paper", 0.1)])
def test_half_of_four_places_is_worth_what_the_rule_says(rule, worth):
    assert score([1, 2, 4, 3], gold=[1, 2, 3, 4], rule=rule).parts["accuracy"] == pytest.approx(worth)


def test_the_binary_form_pays_for_the_right_order_alone():
    assert score(GOLD, graded=False).value == pytest.approx(1.2)
    assert score(swapped(GOLD, 0, 1), graded=False).value == pytest.approx(0.2)


def test_boxed_and_bare_answers_are_read_where_they_are_asked_for():
    boxed = {"tags": ("think", "boxed")}
    assert score(GOLD, text="<think>so</think> \\boxed{{{}}}", **boxed).value == pytest.approx(1.2)
    assert score(GOLD, text="<think>so \\boxed{{{}}}</think>", **boxed).value == 0.0
    assert score(GOLD, text="{}", tags=()).value == 1.0
    assert score("8 4 6 1 9 2 5 3 7", text="<answer>{}</answer>", tags=("answer",)).value == pytest.approx(1.2)


def test_a_line_said_four_times_costs_half():
    line, gold = "we look at the tile in the corner again", ", ".join(map(str, GOLD))

    def text(times):
        return "<think>" + f"\n\n{line.upper()}\n{line}" * (times // 2) + f"\n</think><answer>{gold}</answer>"

    assert score(GOLD, text=text(4)).value == pytest.approx(0.7)
    assert score(GOLD, text=text(2)).value == pytest.approx(1.2)
    assert not repeats("one two three\n" * 9) and not repeats(f"{line}\nbut then\n" * 9)


def test_gold_that_is_no_order_is_a_failure_and_the_rule_is_one_of_two():
    assert not score(GOLD, gold=[1, 1, 2]).ok and "no order" in score(GOLD, gold=[1, 1, 2]).reason
    with pytest.raises(ValueError, match="rule is 'other'"):
        build("permutation", {"rule": "other"})


@settings(max_examples=100, deadline=None)
@given(st.permutations(range(1, 10)), st.permutations(range(1, 10)))
def test_the_pay_counts_the_places_that_are_right(gold, said):
    placed = sum(a == b for a, b in zip(gold, said))
    assert score(said, gold=gold).parts["accuracy"] == pytest.approx(1.0 if placed == 9 else 0.2 * placed / 9)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60) | st.lists(st.floats() | st.integers() | st.none(), max_size=6))
def test_any_answer_is_an_order_or_none(value):
    order = parse_permutation(value)
    assert order is None or sorted(order) == list(range(1, len(order) + 1))
