"""Rewards of thoughts that point at places, with the card's numbers."""

import re

import pytest

from fovea.types import Context, Episode, Group, Observation, Task, Turn
from fovea.verifiers import VERIFIERS, build
from fovea.verifiers.grounded import action_accuracy, crops, distinct, follows_turns, point_accuracy, text_accuracy, transcript
from fovea.verifiers.parse import called_point, cited_points

BOX = [0, 740, 70, 800]


def judged(name, *texts, answer="left", observations=(), **params):
    task = Task("t", "s", (), answer=answer)
    turns = [Turn(t, o) for t, o in zip(texts, [Observation(), *observations, *[Observation()] * len(texts)])]
    (score,) = VERIFIERS[name](**params).score(Group(task, [Episode("e", task, turns=turns)]), Context())
    return score


def played(text, seen="observation", **params):
    """The score of a transcript whose observations the environment says."""
    said = re.split(f"(<{seen}>(?:</{seen}>)?)", text)
    shown = [Observation(({"role": "user", "content": o},), append=True) for o in said[1::2]]
    return judged("grounded_turns", *said[::2], observations=shown, seen=seen, **params)


@pytest.mark.parametrize(
    ("text", "score", "correct"),
    [
        ("<think>there, at (3, 4)</think> <answer>left</answer>", 1.0, True),
        ("<think>there</think><answer>left</answer>", 0.5, True),
        ("<think>at (3, 4)</think><answer>right</answer>", 0.5, False),
        ("<think>at (3, 4)</think><answer>left</answer> and more", 0.5, True),
        ("<think>at (3, 4)</think><answer>A. LEFT\n</answer>", 1.0, True),
        ("<think>at (3.5, 4)</think><answer>left</answer>", 0.5, True),
        ("<think>at (3, 4)</think><answer> </answer>", 0.0, False),
        ("(3, 4) left", 0.0, False),
    ],
)
def test_one_turn(text, score, correct):
    found = judged("grounded", text)
    assert (found.value, found.correct) == (score, correct)


def test_what_need_not_point_is_paid_for_its_form_and_two_points_may_be_wanted():
    bare, once = "<think>there</think><answer>left</answer>", "<think>(3, 4) and again (3,4)</think><answer>left</answer>"
    assert judged("grounded", bare, points=0).value == 1.0
    assert judged("grounded", once, points=2).value == 0.5 and judged("grounded", once).parts["cited"] == 1


@pytest.mark.parametrize(
    ("said", "score"),
    [("(70, 740)", 1.0), ("(71, 740)", 0.5), ("(70, 740, 1)", 0.0), ("70, 740", 0.0), ("[70, 740]", 0.0), ("(1.5, 790)", 0.0)],
)
def test_a_point_is_a_pair_of_whole_numbers_inside_the_box_or_on_its_edge(said, score):
    assert judged("grounded", f"<think>(1, 2)</think><answer>{said}</answer>", answer=BOX, kind="point").value == score


@pytest.mark.parametrize(
    ("said", "gold", "accuracy"),
    [
        ("click [12]", "click [7]", 0.5),
        ("click [7]", "click [7]", 1.0),
        ("type [7] [red]", "type [7] [blue]", 1.0),
        ("type [7] [red]", "click [7]", 0.5),
        ("click 7", "click [7]", 0.0),
        ("scroll [down]", "scroll [down]", 1.0),
        ("scroll [up]", "scroll [down]", 0.0),
        ("go_back", "go_back", 1.0),
        ("stop [no]", "stop [yes]", 1.0),
        ("stop and click [7]", "click [7]", 0.0),
        ("wait", "click [7]", 0.0),
    ],
)
def test_web_actions(said, gold, accuracy):
    assert action_accuracy(said, gold) == accuracy


def test_answers_lose_their_label_and_their_case():
    assert text_accuracy(" b) Left of it", "LEFT OF IT") == 1.0 and text_accuracy("A left", "left") == 0.0
    assert point_accuracy("(0, 800)", BOX) == 1.0


def looked(*calls, end="<think>so</think><answer>left</answer>", close="</observation>"):
    """A transcript with these calls."""
    return "".join(f"<think>a</think><tool_call>{c}</tool_call><observation>{close}" for c in calls) + end


NAMED = '{"name": "crop", "arguments": {"coordinate": [10, 10]}}'


@pytest.mark.parametrize(
    ("text", "form", "reward"),
    [
        (looked(NAMED, "[100, 100]", "[300, 50]"), 1.4, 1.16),
        (looked("[100, 100]", "[105, 104]"), 1.0, 1.0),
        (looked("[10, 10]", close=""), 0.0, 0.6),
        (looked("[10.5, 10]"), 0.0, 0.6),
        (looked("look at 10 10"), 0.0, 0.6),
        (looked("[10, 10, 10]"), 0.0, 0.6),
        (looked(), 1.0, 1.0),
        (looked() + " and more", 0.0, 0.6),
        (looked(end="<think>so</think><think>left</think><answer>left</answer>"), 0.0, 0.6),
        (looked(end="<think>so</think><answer>right</answer>"), 1.0, 0.4),
        ("<answer>left</answer>", 0.0, 0.6),
        ("left", 0.0, 0.0),
        ("", 0.0, 0.0),
        (looked("[10, 10]", end=""), 0.0, 0.0),
    ],
)
def test_several_turns(text, form, reward):
    found = played(text)
    assert found.value == pytest.approx(reward) and 0.4 * form == pytest.approx(found.value - 0.6 * found.correct)


def test_the_bonus_counts_crops_that_are_apart_in_the_order_of_the_calls():
    assert distinct([(100, 100), (105, 104), (111, 104), (100, 110)]) == 3 and distinct([]) == 0
    assert distinct([(0, 0), (10, 0)]) == 2 and distinct([(0, 0), (10, 0)], near=10.5) == 1
    text = looked("[1, 1]", "[50, 1]", "[1, 50]", "[50, 50]")
    assert played(text).value == pytest.approx(1.24)  # the most there is: 0.6 + 0.4 · 1.6
    assert played(text, bonus=0.0).value == pytest.approx(1.0)
    assert played(text).parts == {"accuracy": 1.0, "format": 1.0, "crops": 4.0, "distinct": 4.0, "correct": 1.0}


def test_calls_and_observations_may_have_other_tags():
    text = looked("[1, 1]", "[50, 1]").replace("tool_call", "find").replace("observation", "picture")
    assert played(text, "picture", call="find").value == pytest.approx(1.08)
    assert played(text).value == pytest.approx(0.6) and crops(text, "find", "picture") == [(1, 1), (50, 1)]


def test_observations_that_the_policy_writes_itself_are_none():
    forged = looked("[1, 1]", "[50, 1]", "[1, 50]", "[50, 50]")
    found = judged("grounded_turns", forged)
    assert found.value == pytest.approx(0.6) and (found.parts["format"], found.parts["crops"]) == (0.0, 0.0)
    said = [Observation(({"role": "user", "content": "outside"},), append=True)]
    turns = "<think>a</think><tool_call>[900, 1]</tool_call>", "<observation></observation><think>so</think><answer>left</answer>"
    assert judged("grounded_turns", *turns, observations=said).value == pytest.approx(0.6)


def test_an_empty_answer_and_one_of_another_kind_break_the_form():
    assert not follows_turns(looked(end="<think>so</think><answer> </answer>"))
    assert follows_turns(looked(end="<think>so</think><answer>(1, 2)</answer>"), "point")
    assert not follows_turns(looked(end="<think>so</think><answer>left</answer>"), "point")


def test_a_call_that_nobody_answered_is_no_crop():
    assert crops(looked("[1, 2]", "[3, 4]")) == [(1, 2), (3, 4)]
    assert crops("<think>a</think><tool_call>[1, 2]</tool_call>") == crops("<tool_call>[1, 2]<observation></observation>") == []


def test_the_transcript_holds_what_both_said_and_no_question():
    shown = {
        "role": "user",
        "content": [{"type": "text", "text": "<observation>"}, {"type": "image"}, {"type": "text", "text": "</observation>"}],
    }
    begun = {"role": "assistant", "content": "<think>so</think><answer>"}
    task = Task("t", "s", ())
    first = Turn("<think>a</think><tool_call>[1, 2]</tool_call>", Observation(messages=({"role": "user", "content": "Where?"},)))
    last = Turn("<think>so</think><answer>left</answer>", Observation(messages=(shown, begun), append=True))
    assert transcript(Episode("e", task, turns=[first, last])) == looked("[1, 2]").replace("10, 10", "1, 2")


@pytest.mark.parametrize(
    "call", ["", "[1]", "[1, true]", '["1", 2]', "{}", '{"arguments": [1, 2]}', "[1, 2", "[[1, 2]]", "[1, 1e3]", "[" * 9999]
)
def test_calls_that_are_none(call):
    assert called_point(call) is None


def test_points_in_texts():
    assert [p for _, p in cited_points("(1,2) ( 3 , -4 ) (5.0, 6) 7, 8 (9, 10")] == [(1, 2), (3, -4)]
    assert cited_points("(" * 100_000 + " " * 100_000) == []


def test_what_cannot_be_judged_is_named():
    with pytest.raises(ValueError, match="kind is 'words'; expected one of 'text', 'point', 'action'"):
        build("grounded_turns", {"kind": "words"})
    assert "no answer" in judged("grounded", "<answer>left</answer>", answer=None).reason
    assert "not a box" in judged("grounded", "<think>(1, 2)</think><answer>(1, 2)</answer>", kind="point").reason
