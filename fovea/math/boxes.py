"""Boxes: overlaps, one-to-one matching, average precision.

Boxes are rows [x1, y1, x2, y2) of float arrays, all in one unit (pixels, fractions, grid cells). A box without area overlaps nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

COCO_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
RECALLS_R = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = 100  # of one category in one picture; COCO drops the others


def as_boxes(boxes: ArrayLike) -> Array:
    """(N, 4) float64.

    Raises:
      ValueError: another shape, or numbers that are not finite.
    """
    box_N4 = np.asarray(boxes, np.float64)
    if box_N4.size == 0:
        return box_N4.reshape(0, 4)
    if box_N4.ndim != 2 or box_N4.shape[1] != 4:
        raise ValueError(f"boxes: found shape {box_N4.shape}, expected (N, 4) rows [x1, y1, x2, y2)")
    if not np.isfinite(box_N4).all():
        raise ValueError("boxes: found a coordinate that is not finite, expected finite numbers")
    return box_N4


def area(box_N4: Array) -> Array:
    """(N,); 0 where x2 <= x1 or y2 <= y1."""
    side_N2 = (box_N4[:, 2:] - box_N4[:, :2]).clip(min=0.0)
    return side_N2[:, 0] * side_N2[:, 1]


def _overlap(a_N4: Array, b_M4: Array, least: float) -> tuple[Array, Array]:
    """Intersection and union (N, M)."""
    side_NM2 = np.minimum(a_N4[:, None, 2:], b_M4[None, :, 2:]) - np.maximum(a_N4[:, None, :2], b_M4[None, :, :2])
    inner_NM = np.where((side_NM2 > least).all(2), side_NM2[..., 0] * side_NM2[..., 1], 0.0)
    area_N, area_M = area(a_N4), area(b_M4)
    empty_NM = (area_N[:, None] == 0) | (area_M[None] == 0)
    inner_NM[empty_NM] = 0.0
    return inner_NM, area_N[:, None] + area_M[None] - inner_NM


def iou(a_N4: ArrayLike, b_M4: ArrayLike, least: float = 0.0) -> Array:
    """Intersection over union (N, M) in [0, 1].

    least: overlaps that are not wider and higher than this count nothing. VLM-R1's code has 1 pixel.
    """
    inner_NM, union_NM = _overlap(as_boxes(a_N4), as_boxes(b_M4), least)
    return np.divide(inner_NM, union_NM, out=np.zeros_like(inner_NM), where=union_NM > 0)


def _hull(a_N4: Array, b_M4: Array) -> Array:
    """Sides (N, M, 2) of the smallest box around each pair."""
    return np.maximum(a_N4[:, None, 2:], b_M4[None, :, 2:]) - np.minimum(a_N4[:, None, :2], b_M4[None, :, :2])


def giou(a_N4: ArrayLike, b_M4: ArrayLike) -> Array:
    """IoU − (hull − union) / hull, (N, M) in (−1, 1] (Rezatofighi et al. 2019, arXiv 1902.09630)."""
    a, b = as_boxes(a_N4), as_boxes(b_M4)
    inner_NM, union_NM = _overlap(a, b, 0.0)
    hull_NM = _hull(a, b).prod(2)
    overlap_NM = np.divide(inner_NM, union_NM, out=np.zeros_like(inner_NM), where=union_NM > 0)
    return overlap_NM - np.divide(hull_NM - union_NM, hull_NM, out=np.zeros_like(inner_NM), where=hull_NM > 0)


def ciou(a_N4: ArrayLike, b_M4: ArrayLike) -> Array:
    """IoU − d²/c² − α v, (N, M): distance of the centres and difference of the aspect ratios count too (arXiv 1911.08287, eq. 10)."""
    a, b = as_boxes(a_N4), as_boxes(b_M4)
    overlap_NM = iou(a, b)
    apart_NM2 = (a[:, None, :2] + a[:, None, 2:] - b[None, :, :2] - b[None, :, 2:]) / 2
    corner_NM = (_hull(a, b) ** 2).sum(2)
    distance_NM = np.divide((apart_NM2**2).sum(2), corner_NM, out=np.zeros_like(overlap_NM), where=corner_NM > 0)
    angle_N, angle_M = (np.arctan2(x[:, 2] - x[:, 0], x[:, 3] - x[:, 1]) for x in (a, b))
    v_NM = 4 / np.pi**2 * (angle_N[:, None] - angle_M[None]) ** 2
    weight_NM = np.divide(v_NM, 1 - overlap_NM + v_NM, out=np.zeros_like(v_NM), where=v_NM > 0)
    return overlap_NM - distance_NM - weight_NM * v_NM


OVERLAPS: dict[str, Callable[[ArrayLike, ArrayLike], Array]] = {"iou": iou, "giou": giou, "ciou": ciou}


def assign(cost_NM: ArrayLike) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The one-to-one assignment of least total cost (Hungarian algorithm, scipy): rows and columns of min(N, M) pairs.

    Raises:
      ImportError: without scipy, which the extra `boxes` brings.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as e:
        raise ImportError("matching boxes one to one needs scipy; pip install 'fovea-rl[boxes]' brings it") from e
    return linear_sum_assignment(np.asarray(cost_NM, np.float64))


def greedy(overlap_NM: ArrayLike, least: float) -> list[tuple[int, int]]:
    """Pairs of falling overlap, each row and column once, until none reaches `least`; the first of equals goes first."""
    overlap_NM = np.array(overlap_NM, np.float64)
    pairs = []
    while overlap_NM.size and overlap_NM.max() >= least:
        n, m = divmod(int(overlap_NM.argmax()), overlap_NM.shape[1])
        pairs.append((n, m))
        overlap_NM[n], overlap_NM[:, m] = -np.inf, -np.inf
    return pairs


# -- average precision --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """What was found in one picture and what is there.

    Attributes:
      box_P4, label_P: predictions; without `score_P` each has score 1, and equals are ranked as given.
      gold_G4, gold_label_G: the truth.
    """

    box_P4: Array
    label_P: Sequence[str | int]
    gold_G4: Array
    gold_label_G: Sequence[str | int]
    score_P: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for boxes, labels in (("box_P4", self.label_P), ("gold_G4", self.gold_label_G)):
            object.__setattr__(self, boxes, as_boxes(getattr(self, boxes)))
            if len(getattr(self, boxes)) != len(labels):
                raise ValueError(f"{boxes} has {len(getattr(self, boxes))} boxes and {len(labels)} labels; expected one label for each")
        if self.score_P is not None and len(self.score_P) != len(self.box_P4):
            raise ValueError(f"box_P4 has {len(self.box_P4)} boxes and {len(self.score_P)} scores; expected one score for each")


def mean_average_precision(pictures: Sequence[Picture], thresholds: Sequence[float] = COCO_THRESHOLDS) -> float:
    """COCO's AP: 101-point interpolated precision, mean over IoU thresholds and over the categories that have a gold box; 0 to 1.

    Predictions of other categories cost nothing, and neither do predictions ranked behind the last hit, as in pycocotools (all areas,
    100 detections of a category in a picture). No gold box anywhere: NaN.
    """
    found = [_hits(p, np.asarray(thresholds, np.float64)) for p in pictures]
    categories = sorted({c for p in pictures for c in p.gold_label_G}, key=str)
    scores = []
    for c in categories:
        positives = sum(sum(x == c for x in p.gold_label_G) for p in pictures)
        parts = [(hit_KP[:, at], score_P[at]) for hit_KP, score_P, label_P in found for at in [_first(label_P, c)]]
        hit_KP = np.concatenate([h for h, _ in parts], 1)
        rank_P = np.argsort(-np.concatenate([s for _, s in parts]), kind="stable")
        scores.append(_area_under(hit_KP[:, rank_P], positives).mean())
    return float(np.mean(scores)) if scores else float("nan")


def _first(label_P: Sequence[str | int], category: str | int) -> list[int]:
    return [p for p, x in enumerate(label_P) if x == category][:MAX_DETECTIONS]


def _hits(picture: Picture, threshold_K: Array) -> tuple[NDArray[np.bool_], Array, list[str | int]]:
    """Predictions by falling score: (K, P) whether each takes a gold box of its label that no better one took, scores (P,), labels.

    A prediction takes the free box it overlaps most, the last of equals.
    """
    score_P = np.ones(len(picture.box_P4)) if picture.score_P is None else np.asarray(picture.score_P, np.float64)
    rank_P = np.argsort(-score_P, kind="stable")
    label_P = [picture.label_P[p] for p in rank_P]
    overlap_PG = iou(picture.box_P4[rank_P], picture.gold_G4)
    overlap_PG[[[a != b for b in picture.gold_label_G] for a in label_P] or np.zeros(overlap_PG.shape, bool)] = -1.0
    least_K1 = np.minimum(threshold_K, 1 - 1e-10)[:, None]
    K, G = len(threshold_K), overlap_PG.shape[1]
    rival_PG = overlap_PG >= least_K1.min()
    alone_PG = rival_PG & (rival_PG.sum(1, keepdims=True) == 1) & (rival_PG.sum(0) == 1)
    hit_KP = np.where(alone_PG, overlap_PG, -1.0).max(1, initial=-1.0) >= least_K1  # what nobody else can take needs no order
    free_KG, every_K = np.ones((K, G), bool), np.arange(K)
    for p in (rival_PG & ~alone_PG).any(1).nonzero()[0]:
        value_KG = np.where(free_KG & (overlap_PG[p] >= least_K1), overlap_PG[p], -1.0)
        best_K = G - 1 - value_KG[:, ::-1].argmax(1)
        hit_KP[:, p] = value_KG[every_K, best_K] >= 0
        free_KG[every_K, best_K] &= ~hit_KP[:, p]
    return hit_KP, score_P[rank_P], label_P


def _area_under(hit_KP: NDArray[np.bool_], positives: int) -> Array:
    """(K,): mean over 101 recalls of the best precision at that recall or a higher one."""
    if hit_KP.shape[1] == 0:
        return np.zeros(len(hit_KP))
    true_KP = hit_KP.cumsum(1)
    precision_KP = true_KP / np.arange(1, hit_KP.shape[1] + 1)
    best_KP = np.maximum.accumulate(precision_KP[:, ::-1], 1)[:, ::-1]
    points_G = _recall_points(positives)
    return (points_G[0] * best_KP[:, 0] + (best_KP * points_G[true_KP] * hit_KP).sum(1)) / len(RECALLS_R)


@cache
def _recall_points(positives: int) -> NDArray[np.intp]:
    """(positives + 1,): how many of the 101 recalls are reached with exactly so many hits and not with one less."""
    return np.bincount(np.searchsorted(np.arange(positives + 1) / positives, RECALLS_R), minlength=positives + 1)
