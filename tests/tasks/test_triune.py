"""Eight kinds of tasks in one batch, judged each by its own verifier and weights."""

import numpy as np
import pytest

from fovea.checks import check_source
from fovea.report.metrics import group_metrics
from fovea.tasks.triune import KINDS, Triune
from fovea.types import Context, Episode, Group, Turn
from fovea.verifiers import Scorer
from fovea.verifiers.core import With


def said(task, text):
    return Group(task, [Episode("e", task, turns=[Turn(text)])])


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_eight_kinds_are_dealt_in_turn_and_their_gold_answers_are_right(split):
    source = Triune.named("", split, 0)
    check_source(source, 16)
    assert [source[i].source for i in range(8)] == list(KINDS)


@pytest.mark.parametrize("kind", ["maths", "science"])
def test_no_held_out_picture_is_drawn_in_training(kind):
    drawn = [{Triune((kind,), split=split)[i].images[0].tobytes() for i in range(150)} for split in ("train", "heldout")]
    assert not drawn[0] & drawn[1]


def test_the_lever_tips_where_weight_times_arm_is_more():
    answers = [Triune(("science",))[i].answer for i in range(60)]
    assert {"left", "right", "same"} == set(answers)
    task = next(t for i in range(60) for t in [Triune(("science",))[i]] if t.answer != "same")
    dark = np.asarray(task.images[0].convert("L"), float)[:44] < 215
    torque = (dark * (np.arange(64) + 0.5 - 32)).sum()
    assert (torque > 0) == (task.answer == "right")


def test_one_batch_of_eight_verifiers_is_scored_in_the_order_of_its_input():
    source = Triune()
    right = [
        said(source[i], f"<think>x</think><answer>{source[i].meta.get('gold') or source[i].meta['response'][8:-9]}</answer>")
        for i in range(16)
    ]
    wrong = [said(source[i], "<answer>nothing</answer>") for i in range(16)]
    with Scorer() as scorer:
        scorer.score([g for pair in zip(right, wrong) for g in pair], Context())
    for good, bad in zip(right, wrong):
        high, low = good.episodes[0].score, bad.episodes[0].score
        assert high.value == pytest.approx(1.0) and high.correct is not False and set(high.parts) >= {"accuracy", "format"}
        assert low.value == pytest.approx((0.1 if good.task.source in ("grounding", "detection") else 0.05) / 1.1)
    metrics = group_metrics(right)
    assert all(f"accuracy/{kind}" in metrics for kind in KINDS if kind != "detection")


def test_the_iou_that_a_box_must_reach_rises_over_the_run():
    task = Triune(("grounding",))[0]
    x1, y1, x2, y2 = task.answer
    near = f"<answer>{x1} {y1} {x2} {y2 - 4}</answer>"  # IoU between 0.6 and 0.7
    values = []
    for step in (0, 20, 90):
        group = said(task, near)
        with Scorer() as scorer:
            scorer.score([group], Context(step, 100))
        values.append(group.episodes[0].score.parts["accuracy"])
    assert values == [1.0, 1.0, 0.0]
    loose = With({"threshold": 0.5}, part="accuracy").score(said(task, near), Context(90, 100))[0]
    assert loose.parts["accuracy"] == 1.0


def test_loose_grounding_asks_the_same_and_says_a_box_near_by():
    for i in range(20):
        loose, plain = (Triune.named(kind, "train", 0)[i] for kind in ("grounding_loose", "grounding"))
        assert (loose.prompt, loose.answer, loose.params) == (plain.prompt, plain.answer, plain.params)
        said = [int(c) for c in loose.meta["response"].partition("<answer>")[2][:-9].split()]
        assert 0 < sum(abs(a - b) for a, b in zip(said, plain.answer, strict=True)) <= 16


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="no kind tea; there are: maths"):
        Triune.named("tea", "train", 0)
    with pytest.raises(IndexError):
        Triune()[-1]
