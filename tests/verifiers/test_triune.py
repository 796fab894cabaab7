"""V-Triune's rewards (arXiv 2505.18129): thresholds that rise, boxes, counted tags, weighted means; numbers worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fovea.math.boxes import same
from fovea.types import Context, Episode, Group, Task, Turn, user
from fovea.verifiers import build
from fovea.verifiers.core import With, staged
from fovea.verifiers.detection import DYNAMIC, Pairs, iou_first, label_first, parse_detections

STEPS = (1, 10, 11, 25, 26, 99)


def score(verifier, text, gold, step=0, total=100, **params):
    task = Task("t", "test", user("Where?", images=0), answer=gold, verifier=verifier, params=params)
    return build(verifier, params).score(Group(task, [Episode("e", task, turns=[Turn(text)])]), Context(step, total))[0]


def boxed(*items):
    return "<answer>" + ", ".join(f"{label} {' '.join(map(str, box))}" for label, box in items) + "</answer>"


def gold(*items):
    return [{"label": label, "bbox_2d": list(box)} for label, box in items]


def test_the_threshold_rises_at_a_tenth_and_a_quarter_of_the_run():
    assert [staged(DYNAMIC, Context(step, 100).progress) for step in STEPS] == [0.85, 0.85, 0.95, 0.95, 0.99, 0.99]
    assert staged(0.5, 0.9) == 0.5


@pytest.mark.parametrize(
    ("graded", "paid"), [("reached", [0.96, 0.96, 0.96, 0.96, 0.0, 0.0]), (False, [1, 1, 1, 1, 0, 0]), (True, [0.96] * 6)]
)
def test_one_box_is_paid_by_the_threshold_of_the_moment(graded, paid):
    params = {"threshold": DYNAMIC, "graded": graded}
    found = [score("box_iou", "<answer>0 0 100 96</answer>", [0, 0, 100, 100], step, **params) for step in STEPS]
    assert [s.value for s in found] == pytest.approx(paid)
    assert [s.correct for s in found] == [True] * 4 + [False] * 2


@pytest.mark.parametrize("bad", [[], "high", [[0.5, 0.9], [0.2, 0.5]], [0.5, 0.9], None])
def test_stages_that_do_not_rise_are_refused(bad):
    with pytest.raises(ValueError, match="expected a number, or pairs"):
        build("box_iou", {"threshold": bad})


A, B = ("cat", (0, 0, 10, 10)), ("cat", (50, 0, 60, 10))
NEAR_A, NEAR_B, FALSE = ("cat", (0, 0, 10, 8)), ("cat", (50, 0, 60, 6)), ("cat", (80, 80, 90, 90))  # IoU .8, .6, 0


@pytest.mark.parametrize(
    ("said", "completeness", "worth"),
    [((NEAR_A, NEAR_B, FALSE), 0.0, 0.42), ((NEAR_A, NEAR_B, FALSE), 0.3, 0.444), ((NEAR_A,), 0.0, 0.24), ((A, B), 0.3, 1.0)],
)
def test_boxes_paired_by_label_first(said, completeness, worth):
    found = score("boxes", boxed(*said), gold(A, B), threshold=0.5, completeness=completeness)
    assert found.value == pytest.approx(worth)


@pytest.mark.parametrize(("extra", "factor"), [(0, 1.0), (1, 0.6), (2, 0.36), (3, 0.216)])
def test_every_box_too_many_costs_two_fifths(extra, factor):
    assert score("boxes", boxed(A, B, *[FALSE] * extra), gold(A, B), threshold=0.5).value == pytest.approx(factor)


def test_the_threshold_of_lists_rises_too_and_average_takes_the_mean_of_eleven():
    values = [score("boxes", boxed(("cat", (0, 0, 100, 96))), gold(("cat", (0, 0, 100, 100))), step).value for step in STEPS]
    assert values == pytest.approx([0.96, 0.96, 0.96, 0.96, 0.0, 0.0])
    average = score("boxes", boxed(("cat", (0, 0, 100, 96))), gold(("cat", (0, 0, 100, 100))), threshold="average")
    assert average.value == pytest.approx(0.96 * 10 / 11)


def test_ratios_weigh_matchings_and_average_precision():
    both = {"iou_max_label_first": 1.0, "map50": 3.0, "map": 0.0}
    assert score("boxes", boxed(NEAR_A), gold(A), threshold=0.5, ratios=both).value == pytest.approx((0.8 + 3 * 1.0) / 4)
    assert score("boxes", boxed(NEAR_A), gold(A), ratios={"map75": 1.0}).value == pytest.approx(1.0)
    for bad in ({"ap": 1.0}, {"map": 0.0}):
        with pytest.raises(ValueError, match="boxes: ratios"):
            build("boxes", {"ratios": bad})


def test_pairing_by_overlap_takes_the_best_pair_and_drops_two_labels():
    found, true = (parse_detections([{"bbox_2d": [0, 0, 1, 1], "label": n} for n in labels]) for labels in (("cat", "cat"), ("cat", "dog")))
    pairs = Pairs(found, true, (np.array([[0.6, 0.9], [0.55, 0.7]]),), same(found.names, true.names))
    assert iou_first(pairs, 0.5) == [(1, 0)]  # (0, 1) is best, of two labels, and takes both away
    assert label_first(pairs, 0.5) == [(0, 0)]
    assert label_first(pairs, 0.65) == []


def test_what_cannot_be_read_earns_nothing_and_parts_are_named():
    bad = score("boxes", "<answer>somewhere</answer>", gold(A))
    assert (bad.value, bad.parts["format"]) == (0.0, 0.0)
    good = score("boxes", boxed(NEAR_A, FALSE), gold(A, B), threshold=0.5)
    assert good.parts["recall_50"] == good.parts["precision_75"] == 0.5 and good.parts["recall_95"] == 0.0 and good.parts["iou"] == 0.4
    assert score("boxes", "<answer>None</answer>", []).value == 1.0 and score("boxes", boxed(A), []).value == 0.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.tuples(*[st.integers(0, 9)] * 2)), max_size=4))
def test_rewards_lie_between_nothing_and_one(items):
    said = boxed(*((label, (x, y, x + 3, y + 3)) for label, (x, y) in items)) if items else "<answer>None</answer>"
    for completeness in (0.0, 1.0):
        assert (
            0 <= score("boxes", said, gold(("a", (0, 0, 4, 4)), ("b", (5, 5, 9, 9))), completeness=completeness, threshold=0.5).value <= 1
        )


@pytest.mark.parametrize(
    ("text", "worth"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        ("<answer>b</answer>", 0.5),
        ("<think>a<think></think><answer>b</answer>", 0.75),
        ("plain", 0.0),
    ],
)
def test_tags_are_counted(text, worth):
    assert score("format", text, "b", counted=True).value == worth


def test_a_sample_brings_its_own_weights():
    def combined(accuracy, format):
        fixed = {
            "parts": {"accuracy": (accuracy[0], lambda a, t: accuracy[1]), "format": (format[0], lambda a, t: format[1])},
            "mean": True,
        }
        return score("weighted", "<answer>x</answer>", "x", **fixed).value

    assert combined((1.0, 0.8), (0.1, 1.0)) == pytest.approx(0.8182, abs=5e-5)
    assert combined((1.0, 0.5), (0.5, 1.0)) == pytest.approx(0.6667, abs=5e-5)
    assert combined((0.0, 0.9), (0.1, 1.0)) == 1.0
    with pytest.raises(ValueError, match="sum to 0"):
        combined((0.0, 1.0), (0.0, 1.0))


def test_an_arm_changes_one_parameter_of_the_tasks_own_verifier():
    task = Task("t", "test", user("?", images=0), answer=[0, 0, 10, 10], verifier="box_iou", params={"threshold": 0.9})
    episode = Episode("e", task, turns=[Turn("<answer>0 0 10 8</answer>")])
    assert With({"threshold": 0.5}).score(Group(task, [episode]), Context())[0].value == 1.0
    parts = {"accuracy": (1.0, "box_iou", {"threshold": 0.9}), "format": (1.0, "format", {"tags": ["answer"]})}
    inside = Task("t", "test", user("?", images=0), answer=[0, 0, 10, 10], verifier="weighted", params={"parts": parts, "mean": True})
    assert build("weighted", inside.params).score(Group(inside, [episode]), Context())[0].value == 0.5
    assert With({"threshold": 0.5}, part="accuracy").score(Group(inside, [episode]), Context())[0].value == 1.0
