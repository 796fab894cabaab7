"""The worlds are pure functions, keep their splits apart by construction, and know their own answers."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fovea.tasks.worlds import FAMILIES, SPLITS, World, describe, draw_item, glance_response, gold_response, make, split_of
from fovea.tasks.worlds.families import SHAPES, WORDS, scatter, scene_boxes, scene_caption

NAMES = ("count", "colour", "relation", "compare", "odd", "find", "point", "read", "chart", "two_step")


def question(task):
    return task.prompt[0]["content"][-1]["text"]


def test_the_ten_families_are_there():
    assert tuple(FAMILIES) == NAMES


@pytest.mark.parametrize("family", NAMES)
def test_same_address_same_task_and_other_addresses_differ(family):
    a, b = make(family, 7), make(family, 7)
    assert a.meta == b.meta and a.prompt == b.prompt and a.images[0].tobytes() == b.images[0].tobytes()
    others = [make(family, 8), make(family, 7, seed=1), make(family, 7, split="heldout")]
    assert all(o.images[0].tobytes() != a.images[0].tobytes() and o.id != a.id for o in others)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NAMES), st.integers(0, 10**9), st.integers(0, 1000), st.sampled_from(SPLITS), st.sampled_from([None, 1, 2, 3]))
def test_every_draw_lies_in_its_split(family, index, seed, split, level):
    item, _ = draw_item(family, index, split, seed, level)
    assert split_of(item.key) == split


def test_no_held_out_scene_is_drawn_in_training_by_any_family():
    keys = {split: {draw_item(f, i, split)[0].key for f in NAMES for i in range(150)} for split in SPLITS}
    assert len(keys["train"]) > 1000 and not keys["train"] & keys["heldout"]


def test_the_key_is_the_content_and_not_the_jitter():
    pairs = [("red", "star"), ("blue", "cross")]
    a, b = (scatter(np.random.default_rng(s), pairs, [0, 4]) for s in (1, 2))
    assert a[0].cx != b[0].cx
    assert [(t.cell, t.colour, t.shape) for t in a] == [(t.cell, t.colour, t.shape) for t in b]


def test_about_one_scene_in_five_is_held_out():
    part = np.mean([split_of(("text", str(i))) == "heldout" for i in range(4000)])
    assert 0.17 < part < 0.23
    assert 10 <= sum(split_of(("text", w)) == "heldout" for w in WORDS) < len(WORDS) / 2


@pytest.mark.parametrize("family", NAMES)
def test_gold_answers_fit_their_verifier_and_slips_do_not(family):
    for i in range(40):
        task = make(family, i, split="heldout")
        gold = re.fullmatch(r"<answer>([^<>]+)</answer>", gold_response(task))
        assert gold, gold_response(task)
        text, slip = gold[1], task.meta["glance"]
        if task.verifier in ("exact", "number"):
            assert text == str(task.answer) and slip != text
        else:
            x1, y1, x2, y2 = task.answer
            assert 0 <= x1 < x2 <= 64 and 0 <= y1 < y2 <= 64
            values, wrong = ([int(v) for v in s.split()] for s in (text, slip))
            if task.verifier == "box_iou":
                assert values == task.answer and iou(wrong, task.answer) < task.params["threshold"]
            else:
                assert task.verifier == "point_in_box"
                assert x1 <= values[0] <= x2 and y1 <= values[1] <= y2
                assert not (x1 <= wrong[0] <= x2 and y1 <= wrong[1] <= y2)
        assert glance_response(task) == f"<answer>{slip}</answer>"
        assert describe(task) and task.images[0].size == (64, 64) and task.images[0].mode == "RGB"
        assert task.meta["family"] == task.source == family and task.meta["split"] == "heldout"


def iou(a, b):
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, wide) * max(0, high)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def caption_things(task):
    """(row, column, colour, shape) of every shape, read back from the caption."""
    for r, line in enumerate(task.meta["caption"].split(" / ")):
        words, col = line.split(), 0
        while words:
            if words[0] == "none":
                words = words[1:]
            else:
                yield r + 1, col + 1, words[0], words[1]
                words = words[2:]
            col += 1


def test_answers_follow_from_the_caption():
    """An independent solver that reads only caption and question agrees with the gold answer."""
    plural = {s: s + ("es" if s == "cross" else "s") for s in SHAPES}
    for i in range(60):
        task = make("count", i)
        target = re.sub(r"^(How many|Count the) ", "", question(task)).removesuffix(" are there?").rstrip(".")
        things = list(caption_things(task))
        assert task.answer == sum(f"{c} shapes" == target or plural[s] == target for _, _, c, s in things)

        task = make("colour", i)
        shape = re.search("|".join(SHAPES), question(task))[0]
        assert [task.answer] == [c for _, _, c, s in caption_things(task) if s == shape]

        task = make("relation", i)
        places = {f"{c} {s}": (r, k) for r, k, c, s in caption_things(task)}
        first, second = (places[m] for m in re.findall(r"the (\w+ \w+?)(?: relative|:)", question(task)))
        want = {(0, -1): "left", (0, 1): "right", (-1, 0): "above", (1, 0): "below"}
        assert task.answer == want[tuple(np.sign(np.subtract(first, second)))]

        task = make("compare", i)
        a, b = re.search(r"more (\w+) or (\w+)", question(task)).groups()
        n = [sum(k in (c, plural[s]) for _, _, c, s in caption_things(task)) for k in (a, b)]
        assert task.answer == ("same" if n[0] == n[1] else a if n[0] > n[1] else b)

        task = make("odd", i)
        column = 2 if "colour" in question(task) else 3
        values = [t[column] for t in caption_things(task)]
        assert [task.answer] == [f"{t[2]} {t[3]}" for t in caption_things(task) if values.count(t[column]) == 1]

        task = make("two_step", i)
        shape = re.search("|".join(SHAPES), question(task))[0]
        (hue,) = [c for _, _, c, s in caption_things(task) if s == shape]
        assert task.answer == sum(c == hue for _, _, c, _ in caption_things(task))

        task = make("chart", i)
        words = task.meta["caption"].split()
        bars = {c: int(v) for c, v in zip(words[::2], words[1::2], strict=True)}
        if m := re.match(r"How tall is the (\w+)", question(task)):
            assert task.answer == bars[m[1]]
        elif m := re.match(r"Which bar is the (\w+)", question(task)):
            assert task.answer == (max if m[1] == "tallest" else min)(bars, key=bars.__getitem__)
        else:
            high, low = re.search(r"the (\w+) bar than the (\w+)", question(task)).groups()
            assert task.answer == bars[high] - bars[low] >= 0


@pytest.mark.parametrize("family", ("find", "point"))
def test_boxes_contain_their_shape(family):
    for i in range(30):
        task = make(family, i)
        phrase = re.search(r"the (\w+ \w+)", question(task))[1]
        named = [b for b in task.meta["boxes"].split(", ") if b.startswith(phrase.removesuffix("shape"))]
        assert len(named) == 1 and [int(v) for v in named[0].split()[2:]] == list(task.answer)
        x1, y1, x2, y2 = task.answer
        pixels = np.asarray(task.images[0]).astype(int)
        inside = np.abs(pixels[y1:y2, x1:x2] - pixels[0, 0]).sum(-1) > 60
        assert inside.mean() > 0.2 and inside[:2].any() and inside[-2:].any() and inside[:, :2].any() and inside[:, -2:].any()


@pytest.mark.parametrize("family", [f for f in NAMES if f not in ("read", "chart")])
def test_levels_hold_more_shapes(family):
    counts = [np.mean([make(family, i, level=level).meta["boxes"].count(",") + 1 for i in range(20)]) for level in (1, 2, 3)]
    assert counts[0] + 1 < counts[1] and counts[1] + 1 < counts[2]


def test_levels_of_reading_and_charts():
    assert all(len(make("read", i, level=1).answer) == 3 and make("read", i, level=1).answer.isdigit() for i in range(10))
    assert all(make("read", i, level=2).answer in WORDS for i in range(10))
    assert all(len(make("read", i, level=3).answer) == 4 for i in range(10))
    bars = [len(make("chart", 0, level=level).meta["caption"].split()) // 2 for level in (1, 2, 3)]
    assert bars == [3, 4, 5]
    assert any("taller" in question(make("chart", i, level=3)) for i in range(20))


def test_world_deals_families_and_levels_in_turn_without_state():
    world = World(("count", "read"), seed=3, levels=(1, 3))
    tasks = [world[i] for i in range(6)]
    assert [t.source for t in tasks] == ["count", "read"] * 3
    assert [t.meta["level"] for t in tasks] == [1, 1, 3, 3, 1, 1]
    assert world[4].meta == tasks[4].meta and len({t.id for t in tasks}) == 6
    first = [t for t, _ in zip(iter(world), range(6), strict=False)]
    assert [t.id for t in first] == [t.id for t in tasks]


def test_caption_names_all_nine_cells_in_reading_order():
    things = scatter(np.random.default_rng(0), [("red", "star"), ("blue", "cross")], [1, 8])
    assert scene_caption(things) == "none red star none / none none none / none none blue cross"
    assert scene_boxes(things).startswith("red star ") and ", blue cross " in scene_boxes(things)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make("counts", 0), "family: found 'counts'"),
        (lambda: make("count", 0, split="test"), "split: found 'test'"),
        (lambda: make("count", 0, level=4), "level: found 4"),
    ],
)
def test_errors_name_what_was_found_and_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
    with pytest.raises(IndexError):
        World()[-1]
