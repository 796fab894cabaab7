"""Hints that hold in training and break when it counts; sums of shapes."""

import re

import numpy as np
import pytest

from fovea.tasks.hints import Hints
from fovea.tasks.resolve import pair
from fovea.tasks.sums import Sums
from fovea.tasks.worlds import World
from fovea.tasks.worlds.families import SHAPES
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


def test_the_sum_is_of_the_shapes_at_the_places_named_and_its_answer_earns_all():
    for i in range(40):
        task = Sums.named("", "train", 0)[i]
        said = re.findall(r"(row (\d) column (\d)) is (\w+) (\d)", task.meta["response"])
        assert task.prompt[0]["content"][-1]["text"] == f"Add the shapes at {said[0][0]} and {said[1][0]}."
        assert task.answer == sum(int(n) for *_, n in said)
        assert score(task, task.meta["response"]) == 1.0
        assert score(task, f"<answer>{task.answer + 1}</answer>") == 0.0
        picture = np.asarray(task.images[0], np.float64)
        for _, row, column, shape, n in said:
            assert SHAPES[int(n) - 1] == shape
            y, x = (12 + 20 * (int(at) - 1) for at in (row, column))
            cell = picture[max(0, y - 11) : y + 11, max(0, x - 11) : x + 11]
            inked = (np.abs(cell - picture[32, 32]).max(2) > 60).mean()
            assert inked > 0.1


def test_the_shapes_read_are_those_drawn():
    """Of a square more of its box is inked than of a circle, and of a circle more than of a cross."""
    inked = {}
    for i in range(120):
        task = Sums.named("", "train", 1)[i]
        picture = np.asarray(task.images[0], np.float64)
        for row, column, shape in re.findall(r"row (\d) column (\d) is (\w+)", task.meta["response"]):
            y, x = (12 + 20 * (int(at) - 1) for at in (row, column))
            ink = np.abs(picture[max(0, y - 11) : y + 11, max(0, x - 11) : x + 11] - picture[32, 32]).max(2) > 60
            ys, xs = np.nonzero(ink)
            inked.setdefault(shape, []).append(ink.sum() / ((np.ptp(ys) + 1) * (np.ptp(xs) + 1)))
    means = {shape: np.mean(shares) for shape, shares in inked.items()}
    assert means["square"] > means["circle"] > means["cross"]
    assert set(means) == set(SHAPES)


def test_a_noisy_response_misreads_shapes_and_adds_what_it_read():
    wrong = 0
    for i in range(N):
        task = Sums.named("noisy", "train", 0)[i]
        m, n = map(int, re.findall(r" (\d)(?= and | /)", task.meta["response"]))
        assert task.meta["response"].endswith(f"<answer>{m + n}</answer>")
        wrong += m + n != task.answer
    assert 0.35 < wrong / N < 0.6


def test_items_are_the_same_every_time_and_no_picture_is_in_both_splits():
    for source in (Hints.named("noisy:count", "train", 1), Sums.named("noisy", "train", 1)):
        a, b = source[9], source[9]
        assert (a.id, a.meta, a.images[0].tobytes()) == (b.id, b.meta, b.images[0].tobytes())
    ids = {s[i].id for s in (Sums.named("", "train", 0), Sums.named("", "heldout", 0)) for i in range(20)}
    assert len(ids) == 40
