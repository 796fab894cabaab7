"""Hints that hold in training and break when it counts; sums of places."""

import re

import numpy as np
import pytest

from fovea.tasks.hints import Hints
from fovea.tasks.resolve import pair
from fovea.tasks.sums import Sums
from fovea.tasks.worlds import World, draw
from fovea.types import Context, Episode, Group, Turn
from fovea.verifiers import build

N = 300


def share_right(source):
    tasks = [source[i] for i in range(N)]
    return sum(t.meta["hint"] == t.meta["gold"] for t in tasks) / N


def score(task, text):
    return build(task.verifier, task.params).score(Group(task, [Episode("e", task, turns=[Turn(text)])]), Context())[0].value


@pytest.mark.parametrize(("form", "split", "low", "high"), [("broken", "train", 0.82, 0.95), ("kept", "heldout", 0.82, 0.95)])
def test_a_hint_is_right_in_most_tasks_or_by_chance(form, split, low, high):
    assert low <= share_right(Hints.named(f"{form}:count,colour", split, 0)) <= high


def test_the_hint_of_a_held_out_task_is_that_of_another_one():
    # another count or colour is the same by chance in about one of six
    assert share_right(Hints.named("count,colour", "heldout", 0)) < 0.3


def test_the_hint_stands_before_the_question_and_nothing_else_changes():
    hinted, plain = Hints.named("count", "train", 3)[5], World(("count",), seed=3)[5]
    text = hinted.prompt[0]["content"][-1]["text"]
    assert text == f"Hint: {hinted.meta['hint']}. {plain.prompt[0]['content'][-1]['text']}"
    assert (hinted.answer, hinted.verifier, hinted.params) == (plain.answer, plain.verifier, plain.params)
    assert hinted.images[0].tobytes() == plain.images[0].tobytes()


def test_a_warm_start_looks_in_half_of_the_tasks_and_imagines_what_fits_the_hint_in_the_others():
    tasks = [Hints.named("noisy:count,colour,chart", "train", 0)[i] for i in range(N)]
    imagines = [t for t in tasks if f"<think>{t.meta['look']}</think>" not in t.meta["response"]]
    assert 0.4 < len(imagines) / N < 0.6
    assert all(t.meta["response"].endswith(f"</think><answer>{t.meta['hint']}</answer>") for t in imagines)
    assert all(score(t, t.meta["response"]) == 1.0 for t in tasks if t not in imagines)
    counts = [t for t in imagines if t.source == "count"]
    assert counts and all(str(t.meta["hint"]) in t.meta["response"].split("</think>")[0] or t.meta["hint"] == "0" for t in counts)


def test_a_wrong_hint_answers_the_same_question():
    of_charts = [Hints.named("chart", "heldout", 0)[i] for i in range(N)]
    assert all(t.meta["hint"].isdigit() == t.meta["gold"].isdigit() for t in of_charts)


def test_names_lead_to_sources_and_wrong_ones_are_named():
    train, heldout = pair("hints:kept:count", seed=7)
    assert (train.form, train.split, train.seed, heldout.split, heldout.seed) == ("kept", "train", 7, "heldout", 0)
    assert pair(Hints(("count",)))[1].split == "heldout"
    with pytest.raises(ValueError, match="form 'kpt' is not known; expected one of: broken, kept, noisy; did you mean 'kept'"):
        Hints.named("kpt:count", "train", 0)
    with pytest.raises(ValueError, match="no family cuont"):
        Hints.named("cuont", "train", 0)
    with pytest.raises(ValueError, match="data 'sums': form 'x' is not known; expected one of: plain, noisy"):
        Sums.named("x", "train", 0)


def test_the_sum_is_of_the_row_and_the_column_of_the_shapes_named_and_its_answer_earns_all():
    for i in range(40):
        task = Sums.named("", "train", 0)[i]
        first, m, second, n = re.search(r"row of (\w+) (\d) and column of (\w+) (\d)", task.meta["response"]).groups()
        assert task.prompt[0]["content"][-1]["text"] == f"Add the row of the {first} shape and the column of the {second} shape."
        assert task.answer == int(m) + int(n)
        assert score(task, task.meta["response"]) == 1.0
        assert score(task, f"<answer>{task.answer + 1}</answer>") == 0.0
        picture = np.asarray(task.images[0], np.float64)
        for colour, axis, said in ((first, 0, m), (second, 1, n)):
            near = np.linalg.norm(picture - np.array(draw.PALETTE[colour]), axis=2) < 45
            assert 1 + int(np.argwhere(near)[:, axis].mean() // 21.4) == int(said)


def test_a_noisy_response_misreads_digits_and_adds_what_it_read():
    wrong = 0
    for i in range(N):
        task = Sums.named("noisy", "train", 0)[i]
        m, n = map(int, re.findall(r" (\d)(?= and | /)", task.meta["response"]))
        assert task.meta["response"].endswith(f"<answer>{m + n}</answer>")
        wrong += m + n != task.answer
    assert 0.3 < wrong / N < 0.6


def test_items_are_the_same_every_time_and_no_picture_is_in_both_splits():
    for source in (Hints.named("noisy:count", "train", 1), Sums.named("noisy", "train", 1)):
        a, b = source[9], source[9]
        assert (a.id, a.meta, a.images[0].tobytes()) == (b.id, b.meta, b.images[0].tobytes())
    ids = {s[i].id for s in (Sums.named("", "train", 0), Sums.named("", "heldout", 0)) for i in range(20)}
    assert len(ids) == 40
