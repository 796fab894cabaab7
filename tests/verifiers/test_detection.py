import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fovea.types import Context, Episode, Group, Task, Turn, user
from fovea.verifiers import build
from fovea.verifiers.detection import parse_detections, squash

A, B, FAR = [0, 0, 10, 10], [20, 0, 30, 10], [80, 80, 90, 90]


def boxes(*items):
    return [{"label": label, "bbox_2d": list(box)} for label, box in items]


def score(name, answer, gold, step=0, **params):
    said = answer if isinstance(answer, str) else json.dumps(answer)
    task = Task("t", "test", user("Where?", images=0), answer=gold)
    episode = Episode("e", task, turns=[Turn(f"<answer>{said}</answer>")])
    return build(name, params).score(Group(task, [episode]), Context(step=step, total_steps=100))[0]


@pytest.mark.parametrize(
    ("text", "labels", "whole", "none"),
    [
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "cat"}]', ("cat",), True, False),
        ('Here:\n```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "cat"}]\n```', ("cat",), True, False),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "cat"}, {"bbox_2d": [1, 2, 3', ("cat",), False, False),  # cut off
        ('[{"bbox_2d": [1, 2, 3], "label": "cat"}]', (), False, False),
        ('[{"bbox_2d": [1, 2, 3, 4]}]', (), False, False),
        ('[{"bbox_2d": [3, 2, 1, 4], "label": "cat"}]', (), True, False),  # corners the wrong way round
        ('[{"bbox_2d": [1, 2, 3, 1e10], "label": "cat"}, {"bbox_2d": [1, 2, 3.5, 4], "label": " dog "}]', ("dog",), False, False),
        ('[{"bbox_2d": [1, NaN, 3, 4], "label": "cat"}]', (), False, False),
        ('[{"bbox_2d": [3, 2, 1, Infinity], "label": "cat"}]', (), False, False),
        ('[{"bbox_2d": [true, 2, 3, 4], "label": "cat"}]', (), False, False),
        (f'[{{"bbox_2d": [1, 2, 1{"0" * 400}, 4], "label": "cat"}}]', (), False, False),
        ("cat 1 2 3 4; red dog: [5, 6, 7, 8]", ("cat", "red dog"), True, False),
        ("1 2 3 4", (), False, False),
        ("None", (), True, True),
        ("[]", (), True, True),
        ("", (), False, False),
        ("no idea", (), False, False),
        ('{"label": "cat"}', (), False, False),
        ("[" * 3000, (), False, False),
    ],
)
def test_reading(text, labels, whole, none):
    found = parse_detections(text)
    assert (found.labels, found.whole, found.none) == (labels, whole, none)
    assert found.box_N4.shape == (len(labels), 4)


def iou_of(share):
    """A box that overlaps A with this IoU."""
    return [0, 0, 10, 10 * share]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (boxes(("a", iou_of(0.8)), ("b", [20, 0, 30, 6])), 0.79),
        (boxes(("a", iou_of(0.8)), ("b", [20, 0, 30, 6]), ("a", FAR)), 0.74),
        (boxes(("a", iou_of(0.8))), 0.505),
        (boxes(("b", iou_of(0.8)), ("b", [20, 0, 30, 6])), 0.7 * 0.3 + 0.3),  # a wrong label keeps the match, not its overlap
        ("None", 0.0),
    ],
)
def test_weighted_sum_by_hand(found, expected):
    assert score("detection", found, boxes(("a", A), ("b", B)), reward="weighted_sum").value == pytest.approx(expected)


def plain_weighted_sum(found, gold):
    """(value, f1) by loops: pairs of falling overlap, each box once; what is not wider and higher than a pixel is no overlap."""

    def area(box):
        return (box[2] - box[0]) * (box[3] - box[1])

    def overlap(p, g):
        (_, a), (_, b) = found[p], gold[g]
        w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        inner = w * h if w > 1 and h > 1 else 0
        return inner / (area(a) + area(b) - inner)

    def named(p, g):
        return found[p][0].strip().lower() == gold[g][0].strip().lower()

    def matched(pairs):
        kept = []
        for p, g in sorted(pairs, key=lambda pair: -overlap(*pair)):
            if all(p != q and g != h for q, h in kept):
                kept.append((p, g))
        return kept

    P, G = len(found), len(gold)
    near = [(p, g) for p in range(P) for g in range(G) if overlap(p, g) >= 0.5]
    pairs, hits = matched(near), len(matched([pair for pair in near if named(*pair)]))
    position = sum(overlap(*pair) for pair in pairs if named(*pair)) / G
    return 0.7 * position + 0.3 * (1 - ((G - len(pairs)) / G + (P - len(pairs)) / P) / 2), 2 * hits / (P + G)


corner, side = st.integers(0, 6), st.integers(1, 6)
some_boxes = st.lists(
    st.tuples(
        st.sampled_from(["cat", "Cat ", "dog"]), st.tuples(corner, corner, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(found=some_boxes, gold=some_boxes)
def test_weighted_sum_equals_plain_loops(found, gold):
    result = score("detection", boxes(*found), boxes(*gold), reward="weighted_sum")
    assert (result.value, result.parts["f1"]) == pytest.approx(plain_weighted_sum(found, gold), abs=1e-12)
    assert sum(result.places.hits) == pytest.approx(result.parts["f1"] * (len(found) + len(gold)) / 2)


def test_boxes_behind_the_hits_are_free_under_ap_and_not_under_od_length():
    gold, both = boxes(("a", A), ("a", B)), boxes(("a", A), ("a", B))
    spam = both + boxes(*[("a", [i, 50, i + 5, 60]) for i in range(8)])
    assert [score("detection", x, gold, reward="map").value for x in (both, spam)] == [1.0, 1.0]
    assert [score("detection", x, gold).value for x in (both, spam)] == pytest.approx([1.0, 0.2])
    half = [both[0], *boxes(("a", FAR), ("a", [60, 60, 70, 70])), both[1]]
    assert score("detection", half, gold, reward="ap50").value == pytest.approx(0.7525, abs=5e-5)
    assert score("detection", half, gold).value == pytest.approx(0.3762, abs=5e-5)
    assert score("detection", both[:1], gold).value == pytest.approx(0.5050, abs=5e-5)
    assert dict(score("detection", spam, gold).parts) == {"boxes": 10, "gold": 2, "precision": 0.2, "recall": 1.0, "f1": 4 / 12}


def test_one_threshold_and_where_the_parts_count():
    gold, found = boxes(("a", A), ("a", B)), boxes(("a", iou_of(0.8)), ("a", [20, 0, 30, 6]))
    assert score("detection", found, gold, reward="ap50").value == 1.0
    assert score("detection", found, gold, reward="ap75").value == pytest.approx(0.5050, abs=5e-5)
    assert [score("detection", found, gold, at=at).parts["f1"] for at in (0.5, 0.75, 0.85)] == [1.0, 0.5, 0.0]


def test_where_nothing_is_there_it_must_be_said():
    for gold in ("None", []):
        assert score("detection", "None", gold).value == 1.0
        assert score("detection", "[]", gold).value == 1.0
        assert score("detection", "a dog, perhaps", gold).value == 0.0
        assert score("detection", boxes(("a", A)), gold).value == 0.0
        assert score("criterion", "None", gold).value == 3.0
        assert score("criterion", "a dog, perhaps", gold).value == 0.0


def test_squash_keeps_its_bounds():
    assert [squash(v, 0.5, 0.75) for v in (0.49, 0.5, 0.6, 0.75, 0.76)] == [0, 0.5, 0.6, 0.75, 1]


@pytest.mark.parametrize(
    ("gold", "step", "parts"),
    [
        (2, 0, (1, 1, 0.8)),
        (2, 50, (1, 0.5, 0.4)),
        (3, 0, (1, 2 / 3, 0.8)),
        (5, 0, (1, 0, 0.8)),
    ],
)
def test_criterion_by_hand(gold, step, parts):
    """Two boxes inside two of the gold ones, GIoU .8 and .6."""
    truth = boxes(*[("a", [20 * i, 0, 20 * i + 10, 10]) for i in range(gold)])
    found = boxes(("a", [0, 0, 10, 8]), ("a", [20, 0, 30, 6]))
    result = score("criterion", found, truth, step=step)
    assert [result.parts[p] for p in ("format", "recall", "precision")] == pytest.approx(parts)
    assert result.value == pytest.approx(sum(parts))
    assert score("criterion", found, truth, step=step, parts=("precision",)).value == pytest.approx(parts[2])


def test_criterion_takes_other_phases():
    truth, found = boxes(("a", A)), boxes(("a", [0, 0, 10, 6]))  # GIoU .6
    phases = ((0.25, 0.25, 0.5), (0.5, 0.65, 0.75))
    assert score("criterion", found, truth, step=0, phases=phases, parts=("precision",)).value == 1.0
    assert score("criterion", found, truth, step=99, phases=phases, parts=("precision",)).value == 0.0
    assert score("criterion", found, truth, step=99, phases=phases, parts=("recall",)).value == 1.0
    with pytest.raises(ValueError, match=r"criterion: phases is .*; expected two triples"):
        build("criterion", {"phases": phases[:1]})


def test_exactly_the_threshold_counts_the_threshold():
    assert score("criterion", boxes(("a", [0, 0, 10, 5])), boxes(("a", A)), parts=("recall",)).value == 0.5


def test_unmatched_boxes_are_free_per_match_and_not_per_prediction():
    found, gold = boxes(("a", A), ("a", FAR)), boxes(("a", A))
    assert score("criterion", found, gold, parts=("precision",)).value == 1.0
    assert score("criterion", found, gold, parts=("precision",), per="predicted").value == 0.5


some = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 40), st.integers(0, 40), st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=6
).map(lambda rows: boxes(*[(c, (x, y, x + w, y + h)) for c, x, y, w, h in rows]))


@settings(max_examples=40, deadline=None)
@given(some, some, st.randoms())
def test_criterion_properties(found, gold, random):
    value = score("criterion", found, gold)
    shuffled, golds = random.sample(found, len(found)), random.sample(gold, len(gold))
    assert score("criterion", shuffled, golds).value == pytest.approx(value.value)
    assert score("criterion", found, gold, step=99).parts["precision"] <= value.parts["precision"] + 1e-12
    assert score("criterion", found, gold, step=99, progressive=False).value == value.value
    for step in (0, 99):
        assert score("criterion", gold, gold, step=step).value == 3.0
    for reward in ("map", "ap50", "od_length", "weighted_sum"):
        assert 0 <= score("detection", found, gold, reward=reward).value <= 1 + 1e-12


def test_fractions_of_the_picture_are_turned_into_pixels():
    from PIL import Image

    task = Task("t", "test", user("Where?", images=1), images=(Image.new("RGB", (200, 100)),), answer=boxes(("a", [20, 10, 60, 50])))
    said = json.dumps(boxes(("a", [100, 100, 300, 500])))
    episode = Episode("e", task, turns=[Turn(f"<answer>{said}</answer>")])
    assert build("detection", {"scale": 1000}).score(Group(task, [episode]), Context())[0].value == 1.0


def test_wrong_gold_and_wrong_parameters_are_named():
    assert "is no list of" in score("detection", "None", "what").reason
    with pytest.raises(ValueError, match="reward is 'ap90'; expected one of map, ap50, ap75, od_length, weighted_sum"):
        build("detection", {"reward": "ap90"})
    with pytest.raises(ValueError, match="expected some of format, recall, precision"):
        build("criterion", {"parts": ("recal",)})


@pytest.mark.parametrize("piece", ["{", "[", "```", "a ", "1 ", "1,", "a 1 2 3 ", '{"bbox_2d": [', "\n", "-", "1 2 3 4 "])
def test_long_nonsense_is_read_quickly(piece):
    text = piece * (100_000 // len(piece))
    begin = time.process_time()
    score("detection", text, boxes(("a", A)))
    assert time.process_time() - begin < 2


@pytest.mark.parametrize("name", ["detection", "criterion", "boxes"])
def test_answers_of_a_group_are_judged_as_if_each_were_alone(name):
    gold = boxes(("cat", A), ("dog", B))
    said = [boxes(("Cat", A), ("cat", FAR), ("dog", B)), "no idea", "None", boxes(("cat", B)), boxes(("dog", B), ("cat", A))]
    texts = [x if isinstance(x, str) else json.dumps(x) for x in said]
    task = Task("t", "test", user("Where?", images=0), answer=gold)
    group = Group(task, [Episode(f"e{i}", task, turns=[Turn(f"<answer>{x}</answer>")]) for i, x in enumerate(texts)])
    together = build(name, {}).score(group, Context(step=0, total_steps=100))
    alone = [score(name, x, gold) for x in texts]
    assert [(s.value, s.parts) for s in together] == [(s.value, s.parts) for s in alone]
    assert [s.places.hits for s in together] == [s.places.hits for s in alone]
    assert len({s.value for s in together}) > 2
