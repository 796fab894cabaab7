"""VLM-R1's rewards of form, with the numbers that its paper and code give."""

import time

import pytest
import torch

from fovea.types import Context, Episode, Group, Segment, Task, Turn, user
from fovea.verifiers import build


def score(name, text, answer="4", tokens=0, verifier="exact", **params):
    task = Task("t", "test", user("?", images=0), answer=answer, verifier=verifier)
    n = torch.zeros(tokens)
    segment = Segment(None, n.long(), n.bool() | True, n, n.long(), n.long())
    episode = Episode("e", task, segments=[segment], turns=[Turn(text)])
    return build(name, params).score(Group(task, [episode]), Context())[0]


@pytest.mark.parametrize(
    ("said", "tokens", "expected"),
    [("4", 0, 1.0), ("4", 512, 0.75), ("4", 1024, 0.5), ("4", 5000, 0.5), ("5", 0, -0.5), ("5", 512, -0.25), ("5", 1024, 0.0)],
)
def test_cosine_length_by_hand(said, tokens, expected):
    assert score("cosine_length", f"<answer>{said}</answer>", tokens=tokens).value == pytest.approx(expected)


def test_the_released_code_takes_every_answer_for_right():
    assert score("cosine_length", "<answer>5</answer>", tokens=512, blind=True).value == pytest.approx(0.75)


def test_cosine_length_as_the_tasks_own_verifier_takes_exact_and_never_asks_itself():
    assert score("cosine_length", "<answer>5</answer>", tokens=0, answer="5", verifier="cosine_length").value == 1.0
    assert score("cosine_length", "<answer>6</answer>", tokens=0, answer="5", verifier="cosine_length").value == -0.5
    parts = {"length": (1.0, "cosine_length", {"unit": "words"})}
    task = Task("t", "test", user("?", images=0), answer="5", verifier="weighted", params={"parts": parts})
    found = build("weighted", {"parts": parts}).score(Group(task, [Episode("e", task, turns=[Turn("5")])]), Context())[0]
    assert "which asks it again" in found.reason


def test_cosine_length_asks_the_tasks_own_verifier():
    box = {"answer": [0, 0, 10, 10], "tokens": 1024}
    assert score("cosine_length", "[0, 0, 10, 6]", verifier="box_iou", **box).value == 0.5
    assert score("cosine_length", "[0, 0, 10, 4]", verifier="box_iou", **box).value == 0.0
    assert "no number" in score("cosine_length", "5", answer="cat", verifier="number").reason
    with pytest.raises(ValueError, match="longest is 0; expected at least 1"):
        build("cosine_length", {"longest": 0})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "a"}, {"bbox_2d": [1, 2, 3, 4], "label": "a"}]', -1 / 2),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "a"}, {"bbox_2d": [1, 2, 3, 4], "label": "b"}]', 0.0),
        ("a 1 2 3 4; a 1 2 3 4; a 1 2 3 4; b 1 2 3 4", -1 / 2),
        ("one two three four five six", 0.0),
        ("so it is as it is so it is as it is", -1 / 7),  # seven runs of six words, the last is the first
        ("it is it is it is it is it is", -3 / 5),  # five runs, two of them different
        ("short", 0.0),
        ("", 0.0),
    ],
)
def test_repetition_by_hand(text, expected):
    assert score("repetition", text).value == pytest.approx(expected)


HOLDS = r"\{[^{}]{0,400}\[\s?\d{1,5}(?:,\s?\d{1,5}){3}\]"


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ('<think>a</think>\n<answer>{"bbox_2d": [1, 2, 30, 4]}</answer>', True),
        ('so <think>a</think><answer>```json\n{"bbox_2d": [1,2,3,4]}\n```</answer>', True),
        ('<answer>{"bbox_2d": [1, 2, 3, 4]}</answer>', False),
        ("<think>[1, 2, 3, 4]</think><answer>here</answer>", False),
        ('<think>a</think><answer>{"bbox_2d": [1.5, 2, 3, 4]}</answer>', False),
    ],
)
def test_what_the_last_tag_must_hold(text, good):
    assert score("format", text, holds=HOLDS).value == good


def test_a_wrong_expression_is_named():
    with pytest.raises(ValueError, match=r"holds is '\('"):
        build("format", {"holds": "("})


@pytest.mark.parametrize("piece", ["{", "[", "{[1,", "1", "{[1, 2, 3, ", "a "])
def test_long_nonsense_is_read_quickly(piece):
    text = f"<think>a</think><answer>{piece * (100_000 // len(piece))}</answer>"
    begin = time.process_time()
    score("format", text, holds=HOLDS)
    score("repetition", text)
    assert time.process_time() - begin < 2
