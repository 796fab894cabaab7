"""Boxes: overlaps, one-to-one matching, average precision.

Boxes are rows [x1, y1, x2, y2) of float arrays, all in one unit (pixels, fractions, grid cells). A box without area overlaps nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

COCO_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
RECALLS_R = np.linspace(0.0, 1.0, 101)
OUTWARD_41 = np.array([[-1.0], [-1.0], [1.0], [1.0]])
TINY = np.finfo(np.float64).tiny
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


def _ends(a_N4: ArrayLike, b_M4: ArrayLike) -> tuple[Array, Array]:
    """(4, N, 1) and (4, 1, M): −x1, −y1, x2, y2. Of two such ends the smaller is that of the overlap, the larger that of the hull."""
    a_4N, b_4M = (np.multiply(as_boxes(x).T, OUTWARD_41, order="C") for x in (a_N4, b_M4))  # numpy is fast where the long axes are last
    return a_4N[:, :, None], b_4M[:, None]


def _sides(end_4NM: Array) -> Array:
    """Sides (2, N, M) of the boxes with these ends; below 0 where they are the wrong way round."""
    return end_4NM[:2] + end_4NM[2:]


def _area(end_4NM: Array) -> Array:
    """(N, M); 0 where x2 <= x1 or y2 <= y1."""
    side_2NM = np.maximum(_sides(end_4NM), 0.0)
    return side_2NM[0] * side_2NM[1]


def _iou(a_4N1: Array, b_41M: Array, side_2NM: Array) -> tuple[Array, Array]:
    """IoU and union (N, M) by the sides of the overlaps. A box without area has no overlap with sides above 0."""
    inner_NM = side_2NM[0] * side_2NM[1]
    union_NM = _area(a_4N1) + _area(b_41M) - inner_NM
    return inner_NM / np.maximum(union_NM, TINY), union_NM


def iou(a_N4: ArrayLike, b_M4: ArrayLike, least: float = 0.0) -> Array:
    """Intersection over union (N, M) in [0, 1].

    least: overlaps that are not wider and higher than this count nothing. VLM-R1's code has 1 pixel.
    """
    a, b = _ends(a_N4, b_M4)
    side_2NM = _sides(np.minimum(a, b))
    return _iou(a, b, np.where(side_2NM > least, side_2NM, 0.0) if least else np.maximum(side_2NM, 0.0))[0]


def giou(a_N4: ArrayLike, b_M4: ArrayLike) -> Array:
    """IoU − (hull − union) / hull, (N, M) in [−1, 1] (Rezatofighi et al. 2019, arXiv 1902.09630); −1 where neither box has an area."""
    return giou_and_distance(a_N4, b_M4)[0]


def giou_and_distance(a_N4: ArrayLike, b_M4: ArrayLike) -> tuple[Array, Array]:
    """GIoU and the sum of the distances of the four edges (L1, in the unit of the boxes), (N, M) each."""
    a, b = _ends(a_N4, b_M4)
    side_2NM, hull_2NM = _sides(np.minimum(a, b)), _sides(np.maximum(a, b))
    iou_NM, union_NM = _iou(a, b, np.maximum(side_2NM, 0.0))
    giou_NM = iou_NM - 1 + union_NM / np.maximum(hull_2NM[0] * hull_2NM[1], TINY)
    apart_2NM = hull_2NM - side_2NM  # of two ends, the farther less the nearer is their distance
    return giou_NM, apart_2NM[0] + apart_2NM[1]


def ciou(a_N4: ArrayLike, b_M4: ArrayLike) -> Array:
    """IoU − d²/c² − α v, (N, M): distance of the centres and difference of the aspect ratios count too (arXiv 1911.08287, eq. 10)."""
    a, b = as_boxes(a_N4), as_boxes(b_M4)
    overlap_NM = iou(a, b)
    apart_NM2 = (a[:, None, :2] + a[:, None, 2:] - b[None, :, :2] - b[None, :, 2:]) / 2
    corner_NM = (_sides(np.maximum(*_ends(a, b))) ** 2).sum(0)
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


def near(overlap_NM: ArrayLike, least: float) -> list[tuple[int, int]]:
    """The pairs whose overlap reaches `least`, by falling overlap; the first of equals goes first."""
    overlap_NM = np.asarray(overlap_NM, np.float64)
    n_C, m_C = (overlap_NM >= least).nonzero()
    rank_C = (-overlap_NM[n_C, m_C]).argsort(kind="stable")
    return list(zip(n_C[rank_C].tolist(), m_C[rank_C].tolist(), strict=True))


def once(pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pairs in order, without those whose row or column has been taken."""
    of_row: dict[int, int] = {}
    taken: set[int] = set()
    for n, m in pairs:
        if n not in of_row and m not in taken:
            of_row[n] = m
            taken.add(m)
    return list(of_row.items())


def greedy(overlap_NM: ArrayLike, least: float) -> list[tuple[int, int]]:
    """Pairs of falling overlap, each row and column once, until none reaches `least`; the first of equals goes first."""
    return once(near(overlap_NM, least))


# -- average precision --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """What was found in one picture and what is there.

    Attributes:
      box_P4, label_P: predictions; without `score_P` each has score 1, and equals are ranked as given.
      gold_G4, gold_label_G: the truth.
      overlap_PG: IoU of predictions and truth, where it is known already.
    """

    box_P4: Array
    label_P: Sequence[str | int]
    gold_G4: Array
    gold_label_G: Sequence[str | int]
    score_P: Sequence[float] | None = None
    overlap_PG: Array | None = None

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
    positives = Counter(c for p in pictures for c in p.gold_label_G)
    if not positives:
        return float("nan")
    ranked: dict[str | int, list[int]] = {c: [] for c in positives}
    hits, scores, seen = [], [], 0
    for picture in pictures:
        hit_KP, score_P, label_P = _hits(picture, np.asarray(thresholds, np.float64))
        mine: dict[str | int, list[int]] = {c: [] for c in positives}
        for p, c in enumerate(label_P):
            if c in mine and len(mine[c]) < MAX_DETECTIONS:
                mine[c].append(seen + p)
        for c, at in mine.items():
            ranked[c] += at
        hits.append(hit_KP)
        scores.append(score_P)
        seen += len(label_P)
    longest = max(map(len, ranked.values()))
    if not longest:
        return 0.0
    hit_KP, score_P = np.concatenate([*hits, np.zeros((len(thresholds), 1), bool)], 1), np.concatenate(scores)
    if len(pictures) > 1:  # the predictions of one are in their order already
        ranked = {c: [at[i] for i in np.argsort(-score_P[at], kind="stable")] for c, at in ranked.items()}
    at_CP = np.array([at + [seen] * (longest - len(at)) for at in ranked.values()])  # what is filled up hits nothing, and comes last
    return float(_area_under(hit_KP[:, at_CP], tuple(positives.values())).mean())


def _hits(picture: Picture, threshold_K: Array) -> tuple[NDArray[np.bool_], Array, Sequence[str | int]]:
    """Predictions by falling score: (K, P) whether each takes a gold box of its label that no better one took, scores (P,), labels.

    A prediction takes the free box it overlaps most, the last of equals.
    """
    overlap_PG = iou(picture.box_P4, picture.gold_G4) if picture.overlap_PG is None else picture.overlap_PG
    label_P, score_P = picture.label_P, np.ones(len(picture.box_P4))
    if picture.score_P is not None:
        score_P = np.asarray(picture.score_P, np.float64)
        rank_P = np.argsort(-score_P, kind="stable")
        overlap_PG, score_P, label_P = overlap_PG[rank_P], score_P[rank_P], [label_P[p] for p in rank_P]
    overlap_PG = np.where(same(label_P, picture.gold_label_G), overlap_PG, -1.0)
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
    return hit_KP, score_P, label_P


def same(a_N: Sequence[str | int], b_M: Sequence[str | int]) -> NDArray[np.bool_]:
    """(N, M): whether two labels are equal."""
    number: dict[str | int, int] = {}
    code_NM = np.array([number.setdefault(x, len(number)) for x in (*a_N, *b_M)], np.intp)
    return code_NM[: len(a_N), None] == code_NM[len(a_N) :]


def _area_under(hit_KCP: NDArray[np.bool_], positives_C: tuple[int, ...]) -> Array:
    """(K, C): mean over 101 recalls of the best precision at that recall or a higher one, of predictions by falling score."""
    true_KCP = hit_KCP.cumsum(2)
    precision_KCP = true_KCP / np.arange(1, hit_KCP.shape[2] + 1)
    best_KCP = np.maximum.accumulate(precision_KCP[..., ::-1], 2)[..., ::-1]
    points_CG = _recall_points(positives_C)
    reached_KCP = points_CG[np.arange(len(positives_C))[:, None], true_KCP]
    return (points_CG[:, 0] * best_KCP[..., 0] + (best_KCP * reached_KCP * hit_KCP).sum(2)) / len(RECALLS_R)


@lru_cache(maxsize=4096)
def _recall_points(positives_C: tuple[int, ...]) -> NDArray[np.intp]:
    """(C, largest + 1): how many of the 101 recalls are reached with exactly so many hits and not with one less."""
    reached = [np.searchsorted(np.arange(n + 1) / n, RECALLS_R) for n in positives_C]
    return np.stack([np.bincount(r, minlength=max(positives_C) + 1) for r in reached])
