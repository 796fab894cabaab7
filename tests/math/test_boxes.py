import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fovea.math.boxes import OVERLAPS, Picture, assign, ciou, giou, giou_and_distance, greedy, iou, mean_average_precision, near, once

TEN = [0, 0, 10, 10]


@pytest.mark.parametrize(
    ("overlap", "other", "expected"),
    [
        (iou, [5, 0, 15, 10], 1 / 3),
        (iou, [9, 0, 19, 10], 10 / 190),
        (iou, [10, 0, 20, 10], 0.0),
        (iou, [3, 3, 3, 9], 0.0),  # no area
        (iou, [9, 9, 1, 1], 0.0),  # corners the wrong way round
        (giou, [5, 0, 15, 10], 1 / 3),
        (giou, [20, 0, 30, 10], -1 / 3),
        (giou, [0, 0, 10, 8], 0.8),
        (ciou, [5, 0, 15, 10], 1 / 3 - 25 / 325),
        (ciou, [0, 0, 10, 8], 0.8 - 1 / 200 - 0.0001203),  # v = 4/π² (atan 1.25 − π/4)² = 0.004965, α = v / (0.2 + v) = 0.02422
    ],
)
def test_overlaps_by_hand(overlap, other, expected):
    assert overlap([TEN], [other])[0, 0] == pytest.approx(expected, abs=2e-5)


def test_an_overlap_of_one_pixel_can_count_nothing():
    assert iou([TEN], [[9, 0, 19, 10]], least=1.0)[0, 0] == 0.0
    assert iou([TEN], [[8, 0, 18, 10]], least=1.0)[0, 0] == pytest.approx(20 / 180)


boxes = st.lists(
    st.tuples(st.floats(0, 50), st.floats(0, 50), st.floats(0.5, 50), st.floats(0.5, 50)).map(
        lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=50, deadline=None)
@given(boxes, boxes, st.floats(0.1, 10), st.floats(-20, 20))
def test_overlaps_are_symmetric_and_know_no_unit(a, b, scale, shift):
    for name, overlap in OVERLAPS.items():
        value = overlap(a, b)
        assert value.shape == (len(a), len(b))
        np.testing.assert_allclose(value, overlap(b, a).T, atol=1e-9, err_msg=name)
        np.testing.assert_allclose(value, overlap(np.array(a) * scale + shift, np.array(b) * scale + shift), atol=1e-6, err_msg=name)
        np.testing.assert_allclose(np.diag(overlap(a, a)), 1.0, atol=1e-9, err_msg=name)
    distance = giou_and_distance(a, b)[1]
    np.testing.assert_allclose(distance, np.abs(np.array(a)[:, None] - np.array(b)[None]).sum(2), atol=1e-9)
    assert (ciou(a, b) <= iou(a, b) + 1e-12).all()
    assert (giou(a, b) <= iou(a, b) + 1e-12).all()


def test_assignment_looks_at_the_whole_and_greedy_does_not():
    overlap = np.array([[0.9, 0.8], [0.85, 0.0]])
    assert list(zip(*assign(-overlap), strict=True)) == [(0, 1), (1, 0)]
    assert greedy(overlap, 0.5) == [(0, 0)]
    assert greedy(np.zeros((0, 3)), 0.5) == []


def picture(hits: list[int], gold: int) -> Picture:
    """`gold` boxes in a row; a prediction is the next of them where `hits` has 1, and far away where it has 0."""
    row = [[20 * i, 0, 20 * i + 10, 10] for i in range(gold)]
    left = iter(row)
    found = [next(left) if hit else [500, 500, 510, 510] for hit in hits]
    return Picture(np.array(found, float), ["a"] * len(found), np.array(row, float), ["a"] * gold)


@pytest.mark.parametrize(
    ("hits", "expected"),
    [
        ([1, 1], 1.0),
        ([1, 1, 0, 0, 0, 0, 0, 0, 0, 0], 1.0),  # boxes behind the last hit are free
        ([0, 1, 1], 0.6667),
        ([1, 0, 1], 0.8350),
        ([1], 0.5050),
        ([1, 0], 0.5050),
        ([1, 0, 0, 1], 0.7525),
        ([], 0.0),
    ],
)
def test_average_precision_by_hand(hits, expected):
    assert mean_average_precision([picture(hits, 2)], (0.5,)) == pytest.approx(expected, abs=5e-5)


def test_categories_without_gold_cost_nothing_and_a_wrong_label_never_hits():
    gold = [[0, 0, 10, 10]]
    assert mean_average_precision([Picture(np.array([TEN, TEN]), ["dog", "cat"], np.array(gold), ["cat"])]) == 1.0
    assert mean_average_precision([Picture(np.array([TEN]), ["Cat"], np.array(gold), ["cat"])]) == 0.0
    assert np.isnan(mean_average_precision([Picture(np.array([TEN]), ["cat"], np.zeros((0, 4)), [])]))


def random_picture(rng: np.random.Generator, categories: int) -> Picture:
    def scattered(n: int) -> np.ndarray:
        corner = rng.uniform(0, 60, (n, 2))
        return np.concatenate([corner, corner + rng.uniform(9, 30, (n, 2))], 1)

    P, G = int(rng.integers(0, 25)), int(rng.integers(1, 10))
    gold = scattered(G)
    labels = [f"c{i}" for i in rng.integers(0, categories, G)]
    found = np.concatenate([gold + rng.normal(0, 1, gold.shape), gold + rng.normal(0, 0.5, gold.shape), scattered(25)])[
        rng.permutation(2 * G + 25)[:P]
    ]
    score = None if rng.random() < 0.5 else rng.integers(0, 5, P) / 5
    return Picture(found, [f"c{i}" for i in rng.integers(0, categories, P)], gold, labels, score)


def coco(pictures: list[Picture]) -> float:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    names = sorted({c for p in pictures for c in [*p.gold_label_G, *p.label_P]}, key=str)
    number = {c: i + 1 for i, c in enumerate(names)}
    gold, found = [], []
    for i, p in enumerate(pictures):
        for (x1, y1, x2, y2), c in zip(p.gold_G4.tolist(), p.gold_label_G, strict=True):
            row = {"image_id": i, "category_id": number[c], "bbox": [x1, y1, x2 - x1, y2 - y1]}
            gold.append({**row, "id": len(gold) + 1, "area": (x2 - x1) * (y2 - y1), "iscrowd": 0})
        scores = [1.0] * len(p.label_P) if p.score_P is None else p.score_P
        for (x1, y1, x2, y2), c, s in zip(p.box_P4.tolist(), p.label_P, scores, strict=True):
            found.append({"image_id": i, "category_id": number[c], "bbox": [x1, y1, x2 - x1, y2 - y1], "score": float(s)})
    if not found:
        return 0.0
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i} for i in range(len(pictures))],
        "annotations": gold,
        "categories": [{"id": i, "name": c} for c, i in number.items()],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(found), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return float(run.stats[0])


@pytest.mark.parametrize("seed", range(40))
def test_average_precision_is_that_of_pycocotools(seed):
    pytest.importorskip("pycocotools")
    rng = np.random.default_rng(seed)
    pictures = [random_picture(rng, categories=1 + seed % 3) for _ in range(1 + seed % 4)]
    assert mean_average_precision(pictures) == pytest.approx(coco(pictures), abs=1e-6)


@pytest.mark.parametrize(
    ("found", "labels", "message"),
    [
        ([[0, 0, 1]], ["a"], r"found shape \(1, 3\), expected \(N, 4\)"),
        ([[0, 0, 1, float("nan")]], ["a"], "not finite"),
        ([[0, 0, 1, 1]], [], "box_P4 has 1 boxes and 0 labels"),
    ],
)
def test_wrong_boxes_are_named(found, labels, message):
    with pytest.raises(ValueError, match=message):
        Picture(found, labels, np.zeros((0, 4)), [])


def test_pairs_reach_an_overlap_and_each_box_counts_once():
    pairs = near([[0.5, 0.9], [0.49, 0.7]], 0.5)
    assert pairs == [(0, 1), (1, 1), (0, 0)]
    assert once(pairs) == [(0, 1)]
    assert once(near([[0.6, 0.6], [0.6, 0.2]], 0.5)) == [(0, 0)]
