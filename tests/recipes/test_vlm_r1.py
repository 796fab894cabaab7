import json

import pytest

from fovea import recipes
from fovea.api import build_scorer
from fovea.ledger.claim import arm_recipe
from fovea.ledger.measures import Finished
from fovea.ledger.runs import run_key
from fovea.recipes.vlm_r1 import CLAIM, boxes_per_gold, real, tiny, warm
from fovea.tasks.detect import make
from fovea.types import Context, Episode, Group, Task, Turn, user


def scores(recipe, *said):
    """The scores of (task, answer) pairs of one step, in their order."""
    groups = [Group(task, [Episode("e", task, turns=[Turn(text)])]) for task, text in said]
    build_scorer(recipe).score(groups, Context())
    return [g.episodes[0].score for g in groups]


def test_every_source_of_a_step_goes_to_its_own_verifier():
    listed, named = make("ovd", 0), make("rec", 0)
    x1, y1, x2, y2 = named.answer
    half = f"<answer>{x1} {y1} {x2} {(y1 + y2) / 2}</answer>"
    found = scores(tiny, (listed, listed.meta["response"]), (named, half), (listed, "no tags"), (named, named.meta["response"]))
    assert [s.value for s in found] == [2.0, pytest.approx(1.5), 0.0, 2.0]
    assert {"accuracy/precision", "accuracy/boxes"} <= set(found[0].parts)
    assert "accuracy/iou" in found[1].parts


def test_at_full_size_too_and_each_source_has_its_own_format():
    box = {"bbox_2d": [0, 0, 10, 5], "label": "cat"}
    rec = Task("r", "rec", user("Where?", 0), answer=[0, 0, 10, 10], verifier="box_iou", params={"graded": True, "least": 1})
    ovd = Task("o", "ovd", user("Where?", 0), answer=[box], verifier="detection")
    spam = [box, *({"bbox_2d": [50, 50, 60 + i, 60], "label": "cat"} for i in range(3))]

    def answer(value, before=""):
        return f"{before}<think>so</think>\n<answer>```json\n{json.dumps(value)}\n```</answer>"

    found = scores(
        real,
        (rec, answer(box)),
        (rec, answer("[0, 0, 10, 5]")),  # a box, but no object
        (rec, answer(box, "well, ")),
        (ovd, answer([box])),
        (ovd, answer([box], "well, ")),  # no word outside the tags of a list
        (ovd, answer(spam)),
    )
    assert [s.value for s in found] == pytest.approx([1.5, 0.5, 1.5, 2.0, 1.0, 1.25])


def test_the_recipes_differ_in_size_only():
    assert {recipes.get(n).name for n in ("vlm-r1", "vlm-r1:real", "vlm-r1:warm")} == {tiny.name, real.name, warm.name}
    assert tiny.model == "vlm-r1:warm"
    assert tiny.group_size == real.group_size == 8
    assert real.tasks_per_step == 16
    assert tiny.method.std_eps == real.method.std_eps == 1e-4
    assert real.method.beta == 0.04
    assert tiny.method.beta == 0.0  # as in the paper's run on lists
    assert {tuple(r.parts) for r in (tiny.reward, *real.reward.values())} == {("accuracy", "format")}


def test_arms_differ_and_boxes_are_counted_where_there_are_some():
    assert len({run_key(tiny.replace(model="tiny"), CLAIM, arm, 0) for arm in CLAIM.arms if "seconds_of" not in CLAIM.arms[arm]}) == 6
    assert {a: arm_recipe(tiny, c).reward.parts["accuracy"][2]["reward"] for a, c in CLAIM.arms.items() if a in ("map", "od_length")} == {
        "map": "map",
        "od_length": "od_length",
    }
    answers = [{"task": t, "parts": {"accuracy/boxes": b, "accuracy/gold": g}} for t, b, g in (("a", 6, 2), ("b", 3, 0), ("c", 1, 2))]
    assert boxes_per_gold(Finished([], answers)) == {"a": 3.0, "c": 0.5}
