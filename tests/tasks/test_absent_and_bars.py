"""Shapes that may not be there, and bars with a hint: what is asked, what is right, and that nothing held out is drawn in training."""

import ast

import pytest

from fovea.tasks.absent import Absent
from fovea.tasks.bars import Bars, facts
from fovea.tasks.resolve import pair
from fovea.tasks.worlds import make
from fovea.types import Context, Episode, Group, Turn
from fovea.verifiers import resolve


def verdict(task, text):
    (score,) = resolve(task).score(Group(task, [Episode("e", task, turns=[Turn(text)])]), Context())
    return score.correct


def asked(task):
    return task.prompt[0]["content"][-1]["text"]


@pytest.mark.parametrize("kind", [Absent, Bars])
def test_training_and_heldout_pictures_differ_and_every_task_is_a_function_of_its_index(kind):
    train, held = pair({Absent: "absent", Bars: "bars"}[kind], seed=7)
    keys = [{source[i].meta["key"] for i in range(60)} for source in (train, held)]
    assert not keys[0] & keys[1]
    again = kind(seed=7)[13]
    assert (again.id, asked(again), again.meta) == (train[13].id, asked(train[13]), train[13].meta)
    assert train[4].images[0].tobytes() == kind(seed=7)[4].images[0].tobytes() != held[4].images[0].tobytes()
    assert held[3].id == pair({Absent: "absent", Bars: "bars"}[kind], seed=8)[1][3].id  # the run's seed does not reach it


def test_an_absent_shape_is_asked_for_like_one_that_is_there_of_a_picture_without_shapes():
    source, kinds = Absent(seed=3), set()
    for i in range(1, 60, 2):
        task, there = source[i], make("find", i, "train", 3, 1)
        assert task.source == "absent" and asked(task) == asked(there) and task.id != there.id
        assert task.meta["boxes"] == "" and task.images[0].tobytes() != there.images[0].tobytes()
        assert verdict(task, "<answer>none</answer>") and not verdict(task, "<answer>4 5 20 18</answer>")
        kinds.add(ast.literal_eval(task.meta["key"])[0])
    assert kinds == {"text", "bars"}


def test_gold_responses_earn_the_score_and_those_of_other_tasks_do_not():
    for i in range(20):
        task, wrong = Absent(seed=3)[i], Absent("mislabelled", seed=3)[i]
        assert verdict(task, task.meta["response"])
        assert asked(wrong) == asked(task) and not verdict(wrong, wrong.meta["response"])
    held = Absent("mislabelled", split="heldout")
    assert [held[i].source for i in range(3)] == ["find", "absent", "count"] and verdict(held[1], held[1].meta["response"])


def test_hints_are_right_as_often_as_said():
    def right(split, start, step):
        tasks = [Bars(split=split)[i] for i in range(start, 400, step)]
        assert all(f"Is it {t.meta['hint']}? " in asked(t) for t in tasks)
        return sum(t.meta["hint"] == t.answer for t in tasks) / len(tasks)

    assert right("train", 0, 1) == pytest.approx(0.7, abs=0.07) and right("heldout", 0, 2) == pytest.approx(0.7, abs=0.1)
    assert right("heldout", 1, 2) == 0.0 and Bars(split="heldout")[1].source == "broken"


def test_what_a_start_is_taught():
    rows = [Bars("warm")[i] for i in range(300)]
    looks, reads = [t for t in rows if t.images], [t for t in rows if not t.images]
    assert len(reads) == 75
    said = [(facts(t.meta["response"].split("</think>")[0].removeprefix("<think>")), facts(t.meta["caption"])) for t in looks]
    kept = [s[c] == h for s, true in said for c, h in true.items()]
    assert sum(kept) / len(kept) == pytest.approx(0.5, abs=0.06)
    assert all(verdict(t, t.meta["response"]) for t in rows)  # the answers are right; a reader's is what its description says
    for t in reads:
        assert t.answer == facts(asked(t).split("\n")[0].lower())[t.meta["asked"]]


def test_probes_ask_for_another_bar():
    task = Bars()[0]
    question, answer = task.meta["probes"]["other"]
    bars = facts(task.meta["caption"])
    assert task.meta["asked"] not in question and bars[next(c for c in bars if c in question)] == answer


@pytest.mark.parametrize("name, kinds", [("absent:new", "'', 'mislabelled'"), ("bars:new", "'', 'warm'")])
def test_an_unknown_kind_is_named(name, kinds):
    with pytest.raises(ValueError, match=f"data '{name}': no such kind; there are: {kinds}"):
        pair(name)
