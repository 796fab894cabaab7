"""Verifiers of answers that are lists of labelled boxes.

`detection` (VLM-R1, arXiv 2504.07615), `criterion` (Vision-R1, arXiv 2503.18013), `boxes` (V-Triune, arXiv 2505.18129).

An answer is a JSON list of ``{"bbox_2d": [x1, y1, x2, y2], "label": "cat"}`` (in a ``json`` block, or bare), the word "None", or plain
text, ``cat 1 2 3 4; dog 5 6 7 8``. Gold answers are such a list in pixels; an empty list or "None" says that nothing is there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fovea.math.boxes import (
    COCO_THRESHOLDS,
    Array,
    Picture,
    as_boxes,
    assign,
    giou_and_distance,
    greedy,
    iou,
    mean_average_precision,
    near,
    once,
    same,
)
from fovea.types import Context, Episode, Group, Places, Score, Task, Verifier
from fovea.verifiers.core import Stages, Unscorable, as_score, check_stages, reason_of, staged
from fovea.verifiers.parse import READ, extract_answer, find_floats
from fovea.video import still

Rewarded = Literal["map", "ap50", "ap75", "od_length", "weighted_sum"]

LONGEST = 4 * READ
"""Characters at the end of an answer in which boxes are looked for."""

FAR = 1e9
"""No coordinate is as large."""

PLAIN = frozenset({int, float})

_NUMBER = r"-?\d{1,7}(?:\.\d{1,9})?"
_FOUR = re.compile(rf"(?<![\w.]){_NUMBER}(?:[\s,]{{1,3}}{_NUMBER}){{3}}(?![\w.])")
_OBJECT = re.compile(r"\{[^{}]{0,400}\}")
_LABEL = re.compile(r"[\s;,.\])]{0,9}([A-Za-z][\w \-]{0,60}?)[\s:=\[(]{0,9}")


@dataclass(frozen=True)
class Detections:
    """Labelled boxes read from a text.

    Attributes:
      box_N4, labels: what could be read; boxes whose corners are the wrong way round are dropped.
      whole: the text was a list of complete entries and nothing of it was dropped for its form.
      none: the text says that there is nothing ("None" or an empty list).
    """

    box_N4: Array
    labels: tuple[str, ...]
    whole: bool = True
    none: bool = False

    @cached_property
    def names(self) -> list[str]:
        """The labels by which boxes are compared: case does not count."""
        return [x.lower() for x in self.labels]


def parse_detections(value: Any) -> Detections:
    """Boxes of an answer or of a gold annotation; what cannot be read is an empty list that is neither `whole` nor `none`."""
    if value is None:
        return Detections(as_boxes([]), (), whole=False)
    if not isinstance(value, str):
        return _listed(value)
    text = value[-LONGEST:].strip()
    if text.strip(" .`\"'").lower() == "none":
        return Detections(as_boxes([]), (), none=True)
    block = _fenced(text)
    try:
        return _listed(json.loads(block))
    except (ValueError, RecursionError):
        pass
    found = _listed([x for text in _OBJECT.findall(block) for x in _object(text)])
    return Detections(found.box_N4, found.labels, whole=False) if found.labels else _plain(block)


def _plain(text: str) -> Detections:
    """``cat 1 2 3 4; dog: [5, 6, 7, 8]``: a label is what stands between two boxes."""
    entries, whole, at = [], True, 0
    for four in _FOUR.finditer(text):
        label = _LABEL.fullmatch(text, at, four.start())
        whole &= label is not None
        entries.append({"label": label.group(1), "bbox_2d": find_floats(four.group())} if label else None)
        at = four.end()
    found = _listed([e for e in entries if e])
    return Detections(found.box_N4, found.labels, whole=whole and bool(entries) and not text[at:].strip(" ;,.\n])"))


def _fenced(text: str) -> str:
    """The last ``` block, or the text itself."""
    end = text.rfind("```")
    start = text.rfind("```", 0, max(end, 0))
    if end < 0:
        return text
    inner = text[end + 3 :] if start < 0 else text[start + 3 : end]
    return inner.removeprefix("json").strip()


def _object(text: str) -> list[Any]:
    try:
        return [json.loads(text)]
    except ValueError:
        return []


def _listed(value: Any) -> Detections:
    listed = isinstance(value, (list, tuple))
    corners, labels, whole = [], [], listed
    for entry in value if listed else (value,):
        told = entry if isinstance(entry, (dict, Mapping)) else {}
        box, label = told.get("bbox_2d", told.get("box")), told.get("label")
        if not (isinstance(label, str) and isinstance(box, (list, tuple)) and len(box) == 4 and _numbers(box)):
            whole = False
            continue
        x1, y1, x2, y2 = box
        if -FAR < x1 < x2 < FAR and -FAR < y1 < y2 < FAR:
            corners += box
            labels.append(label.strip())
        else:
            whole = whole and all(-FAR < x < FAR for x in box)
    return Detections(np.array(corners, np.float64).reshape(-1, 4), tuple(labels), whole, none=listed and not value)


def _numbers(box: Sequence[Any]) -> bool:
    return PLAIN.issuperset(map(type, box)) or all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in box)


# -- the boxes of a group against those of its task ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """Boxes of an answer and of the truth, what relates each pair, and whether their labels are equal, whatever their case."""

    found: Detections
    gold: Detections
    related: tuple[Array, ...]
    same_PG: NDArray[np.bool_]

    @property
    def overlap_PG(self) -> Array:
        """How much each pair overlaps."""
        return self.related[0]

    def named(self, pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Those with equal labels, whatever their case."""
        found, gold = self.found.names, self.gold.names
        return [(p, g) for p, g in pairs if found[p] == gold[g]]

    @cached_property
    def half(self) -> list[tuple[int, int]]:
        """Those that overlap by 0.5 or more, by falling overlap."""
        return near(self.overlap_PG, 0.5)

    @cached_property
    def value_PG(self) -> Array:
        """The overlaps, −1 where the labels differ."""
        return np.where(self.same_PG, self.overlap_PG, -1.0)


Judged = tuple[float, Mapping[str, float], Sequence[int]]
"""The value of an answer, its parts, and which of its boxes count."""


@dataclass(frozen=True)
class Located:
    """A verifier of boxes: the truth is read, and all boxes of a group related to it, at once; then each answer is judged alone.

    Attributes:
      judge: an answer's pairs -> its value, parts, and the boxes that count.
      relate: (P, 4) and (G, 4) boxes -> matrices (P, G); row by row, so that answers do not touch each other.
      scale, image: as for `box_iou`.
    """

    name: str
    judge: Callable[[Pairs, Context], Judged]
    relate: Callable[[Array, Array], tuple[Array, ...]]
    scale: float | None = None
    image: int = 0
    scope: str = field(default="episode", init=False)

    def score(self, group: Group, context: Context) -> list[Score]:
        try:
            gold = _gold(group.task)
        except Exception as error:
            return [self._failed(error)] * len(group.episodes)
        said = [self._said(episode) for episode in group.episodes]
        read = [found for found in said if isinstance(found, Detections)]
        ends = np.cumsum([len(found.labels) for found in read])[:-1]
        related = self.relate(np.concatenate([found.box_N4 for found in read]), gold.box_N4) if read else ()
        same_PG = same([name for found in read for name in found.names], gold.names)
        split = zip(*(np.split(x, ends) for x in (same_PG, *related)), strict=True)
        return [self._one(found, gold, *next(split), context=context) if isinstance(found, Detections) else found for found in said]

    def _one(self, found: Detections, gold: Detections, same_PG: NDArray[np.bool_], *related: Array, context: Context) -> Score:
        try:
            value, parts, hits = self.judge(Pairs(found, gold, related, same_PG), context)
        except Exception as error:
            return self._failed(error)
        counts = [False] * len(found.labels)
        for p in hits:
            counts[p] = True
        places, expected = Places(found.box_N4, found.labels, counts, self.image), Places(gold.box_N4, gold.labels, image=self.image)
        return as_score(Score(float(value), parts, places=places, expected=expected))

    def _said(self, episode: Episode) -> Detections | Score:
        try:
            return _said(episode, self.scale, self.image)
        except Exception as error:
            return self._failed(error)

    def _failed(self, error: Exception) -> Score:
        return Score.failed(f"{self.name}: {reason_of(error)}")


def _overlaps(box_P4: Array, gold_G4: Array, least: float = 0.0) -> tuple[Array]:
    return (iou(box_P4, gold_G4, least),)


# -- VLM-R1 -------------------------------------------------------------------------------------------------------------------


def detection(*, reward: Rewarded = "od_length", at: float = 0.5, scale: float | None = None, image: int = 0) -> Verifier:
    """How well labelled boxes are found in one picture (VLM-R1, arXiv 2504.07615, section 3.3 and its code).

    reward: "map" is COCO's AP (IoU .50 to .95) of this picture, all scores equal, "ap50" and "ap75" that at one IoU: boxes behind the
      last hit are free, so a policy learns to spam. "od_length" multiplies "map" by #gold / #boxes where there are more boxes than gold.
      "weighted_sum" is 0.7 · Σ IoU of the matches / #gold + 0.3 · (1 − (miss rate + false-alarm rate) / 2).
    at: the IoU from which on the parts count a hit. scale, image: as for `box_iou`.

    Parts: boxes and gold (how many); precision, recall and f1 of boxes with the right label.
    """
    judges: dict[str, Judge] = {
        "map": partial(_average_precision, thresholds=COCO_THRESHOLDS),
        "ap50": partial(_average_precision, thresholds=(0.5,)),
        "ap75": partial(_average_precision, thresholds=(0.75,)),
        "od_length": _od_length,
        "weighted_sum": _weighted_sum,
    }
    if reward not in judges:
        raise ValueError(f"detection: reward is {reward!r}; expected one of {', '.join(judges)}")

    def judge(pairs: Pairs, context: Context) -> Judged:
        if pairs.gold.labels:
            value = judges[reward](pairs) if pairs.found.labels else 0.0
        else:
            value = float(pairs.found.none)
        hits = [p for p, _ in once(pairs.named(pairs.half if at == 0.5 else near(pairs.overlap_PG, at)))]
        return value, _measured(pairs, len(hits)), hits

    return Located("detection", judge, partial(_overlaps, least=1.0 if reward == "weighted_sum" else 0.0), scale, image)


Judge = Callable[[Pairs], float]


def _average_precision(pairs: Pairs, thresholds: Sequence[float]) -> float:
    found, gold = pairs.found, pairs.gold
    return mean_average_precision([Picture(found.box_N4, found.labels, gold.box_N4, gold.labels, overlap_PG=pairs.overlap_PG)], thresholds)


def _od_length(pairs: Pairs) -> float:
    P, G = pairs.overlap_PG.shape
    return _average_precision(pairs, COCO_THRESHOLDS) * min(1.0, G / P)


def _weighted_sum(pairs: Pairs) -> float:
    matched = once(pairs.half)
    P, G = pairs.overlap_PG.shape
    position = sum(pairs.overlap_PG[p, g] for p, g in pairs.named(matched)) / G
    return float(0.7 * position + 0.3 * (1 - ((G - len(matched)) / G + (P - len(matched)) / P) / 2))


def _measured(pairs: Pairs, hits: int) -> dict[str, float]:
    P, G = pairs.overlap_PG.shape
    return {
        "boxes": float(P),
        "gold": float(G),
        "precision": hits / P if P else float(G == 0),
        "recall": hits / G if G else 1.0,
        "f1": 2 * hits / (P + G) if P + G else 1.0,
    }


# -- Vision-R1 (criterion) ----------------------------------------------------------------------------------------------------

PHASES = ((0.5, 0.5, 0.75), (0.75, 0.75, 0.9))
"""(τ, ξ1, ξ2) of Vision-R1 before and after its thresholds rise."""


def criterion(
    *,
    parts: Sequence[str] = ("format", "recall", "precision"),
    progressive: bool = True,
    switch: float = 0.5,
    phases: Sequence[tuple[float, float, float]] = PHASES,
    per: Literal["matched", "predicted"] = "matched",
    scale: float | None = None,
    image: int = 0,
) -> Verifier:
    """Format + recall + precision after one-to-one matching over all boxes, with thresholds that rise (Vision-R1, arXiv 2503.18013).

    Boxes are matched by least L1 distance of the corners − [same label] − GIoU (Hungarian); each pair counts with its GIoU v.
      recall:    f(Σ [v > τ] / #gold; 0.5, 0.75), exactly τ counting τ;   precision: mean of f(v; ξ1, ξ2) over the pairs;
      f(v; lo, hi) is 0 below lo, 1 above hi, else v;   format: 1 for a list of complete entries.
    (τ, ξ1, ξ2) is the first of `phases`, (0.5, 0.5, 0.75), and, where `progressive`, from the share `switch` of the run on the second,
    (0.75, 0.75, 0.9).

    parts: which of the three are summed. per: the paper's mean is over matched pairs, so further boxes cost nothing; "predicted" divides
    by the number of boxes. scale, image: as for `box_iou`.

    Departures: format asks every entry for its box and its label, where the released code passes entries without one of them; and where
    nothing is to be found, format and both other parts are earned by saying so, not by any text that cannot be read.
    """
    known = ("format", "recall", "precision")
    if not parts or any(p not in known for p in parts):
        raise ValueError(f"criterion: parts is {tuple(parts)!r}; expected some of {', '.join(known)}")
    if per not in ("matched", "predicted"):
        raise ValueError(f"criterion: per is {per!r}; expected 'matched' or 'predicted'")
    if len(phases) != 2 or not all(len(p) == 3 and 0 <= p[0] <= 1 and 0 <= p[1] <= p[2] <= 1 for p in phases):
        raise ValueError(f"criterion: phases is {phases!r}; expected two triples (tau, xi1, xi2) out of [0, 1], xi1 at most xi2")

    def judge(pairs: Pairs, context: Context) -> Judged:
        found, gold = pairs.found, pairs.gold
        late = progressive and context.progress >= switch
        tau, low, high = phases[late]
        v_N, box_N = _matched(pairs)
        if not found.labels:
            recall = precision = float(found.none and not gold.labels)
        else:
            recall = squash(sum(squash(v, tau, tau) for v in v_N) / max(1, len(gold.labels)), 0.5, 0.75)
            precision = sum(squash(v, low, high) for v in v_N) / (len(found.labels) if per == "predicted" else max(1, len(v_N)))
        well = found.whole and not found.none if gold.labels else found.none
        value = {"format": float(well), "recall": recall, "precision": precision}
        hits = [p for p, v in zip(box_N, v_N) if v >= tau]
        return sum(value[p] for p in parts), {**value, "boxes": float(len(found.labels))}, hits

    return Located("criterion", judge, giou_and_distance, scale, image)


def squash(v: float, low: float, high: float) -> float:
    """0 below `low`, 1 above `high`, `v` between; both bounds keep their value."""
    return 0.0 if v < low else 1.0 if v > high else v


def _matched(pairs: Pairs) -> tuple[list[float], list[int]]:
    """(min(P, G),) GIoU of the matched pairs, and which found box is in each."""
    giou_PG, distance_PG = pairs.related
    if not giou_PG.size:
        return [], []
    matched = assign(distance_PG - pairs.same_PG - giou_PG)
    return giou_PG[matched].tolist(), matched[0].tolist()


# -- V-Triune -----------------------------------------------------------------------------------------------------------------

DYNAMIC = ((0.10, 0.85), (0.25, 0.95), (1.0, 0.99))
"""V-Triune's rising IoU threshold: pairs (share of the run, threshold)."""
AVERAGE = (*COCO_THRESHOLDS, 0.99)
"""The thresholds whose scores its server averages where none is set."""
APS: dict[str, tuple[float, ...]] = {"map": COCO_THRESHOLDS, "map50": (0.5,), "map75": (0.75,)}
Pairing = Callable[[Pairs, float], list[tuple[int, int]]]


def label_first(pairs: Pairs, least: float) -> list[tuple[int, int]]:
    """For every gold box in turn the free prediction of its label that it overlaps most, kept where that reaches `least`."""
    value_PG, kept = pairs.value_PG.copy(), []
    for g in range(value_PG.shape[1]):
        p = int(value_PG[:, g].argmax()) if len(value_PG) else -1
        if p >= 0 and value_PG[p, g] >= least:
            kept.append((p, g))
            value_PG[p] = -1.0
    return kept


def iou_first(pairs: Pairs, least: float) -> list[tuple[int, int]]:
    """Pairs of falling overlap whatever their labels, of which those of one label are kept."""
    return pairs.named(greedy(pairs.overlap_PG, least))


PAIRINGS: dict[str, Pairing] = {"iou_max_label_first": label_first, "iou_max_iou_first": iou_first}


def boxes(
    *,
    ratios: Mapping[str, float] | None = None,
    completeness: float = 0.0,
    threshold: Stages | Literal["average"] = DYNAMIC,
    penalty: float = 0.6,
    scale: float | None = None,
    image: int = 0,
) -> Verifier:
    """How well labelled boxes are found, under an IoU threshold ε that rises over the run (V-Triune, arXiv 2505.18129, and its server).

      score = Σ_k ratio_k · score_k / Σ_k ratio_k · penalty^|#boxes − #gold|
      score of a matching = (1 − c) · Σ IoU of the pairs / #gold + c · (1 − (miss rate + false-alarm rate) / 2),   c = `completeness`

    ratios: which scores, by default the paper's {"iou_max_label_first": 1}: every gold box takes the free box of its label that it overlaps
      most, where that reaches ε; "iou_max_iou_first" pairs by overlap alone and drops pairs of two labels; "map", "map50", "map75" are
      COCO's AP of this picture, all scores equal.
    threshold: pairs (share of the run, ε), one ε, or "average": the mean over .5, .55, ..., .95, .99.
    scale, image: as for `box_iou`. Coarse coordinates need thresholds that they can reach.

    Parts: format (1 where a box was read), iou (Σ IoU of label-first pairs at ε = 0.5 / #gold), precision and recall at 50 to 99.

    Departures: pairing by overlap takes the best pair, where the released code records the last one scanned; where nothing is to be found,
    saying so earns 1.
    """
    ratios = dict(ratios or {"iou_max_label_first": 1.0})
    unknown = [k for k in ratios if k not in (*PAIRINGS, *APS)]
    if unknown or not sum(ratios.values()) > 0:
        raise ValueError(f"boxes: ratios is {ratios!r}; expected weights of {', '.join((*PAIRINGS, *APS))} that sum to more than 0")
    if threshold != "average":
        check_stages("boxes: threshold", threshold)

    def judge(pairs: Pairs, context: Context) -> Judged:
        found = pairs.found
        P, G = pairs.overlap_PG.shape
        epsilons = AVERAGE if threshold == "average" else (staged(threshold, context.progress),)

        def one(kind: str) -> float:
            if kind in APS:
                return _average_precision(pairs, APS[kind])
            return float(np.mean([_matching(PAIRINGS[kind](pairs, e), pairs, completeness) for e in epsilons]))

        value = float(found.none) if not G else 0.0
        if P and G:
            value = sum(w * one(k) for k, w in ratios.items() if w) / sum(ratios.values()) * penalty ** abs(P - G)
        counts = {e: len(label_first(pairs, e)) for e in (0.5, 0.75, 0.95, 0.99)}
        shares = {f"recall_{round(100 * e)}": n / G if G else 1.0 for e, n in counts.items()}
        shares |= {f"precision_{round(100 * e)}": n / P if P else float(not G) for e, n in counts.items()}
        half = label_first(pairs, 0.5)
        told = {"format": float(P > 0 or found.none), "iou": _overlap(half, pairs) if G else float(found.none), **shares}
        hits = [p for p, _ in label_first(pairs, max(min(epsilons), 0.5))]
        return value, told, hits

    return Located("boxes", judge, _overlaps, scale, image)


def _matching(matched: Sequence[tuple[int, int]], pairs: Pairs, completeness: float) -> float:
    P, G = pairs.overlap_PG.shape
    whole = 1 - ((G - len(matched)) / G + (P - len(matched)) / P) / 2
    return (1 - completeness) * _overlap(matched, pairs) + completeness * whole


def _overlap(matched: Sequence[tuple[int, int]], pairs: Pairs) -> float:
    """Σ IoU of the matched pairs / #gold."""
    return float(sum(pairs.overlap_PG[p, g] for p, g in matched) / pairs.overlap_PG.shape[1])


# -- from an episode ----------------------------------------------------------------------------------------------------------


def _said(episode: Episode, scale: float | None, image: int) -> Detections:
    found = parse_detections(extract_answer(episode.text))
    if scale is None or not found.labels:
        return found
    if image >= len(episode.task.images):
        raise Unscorable(f"scale={scale} needs the size of image {image}, but the task has {len(episode.task.images)} image(s)")
    w, h = still(episode.task.images[image]).size
    return Detections(found.box_N4 / scale * np.array([w, h, w, h]), found.labels, found.whole, found.none)


def _gold(task: Task) -> Detections:
    gold = parse_detections(task.answer)
    if not (gold.whole or gold.none):
        raise Unscorable(f'gold answer {task.answer!r:.80} is no list of {{"label": …, "bbox_2d": [x1, y1, x2, y2]}} with x1 < x2')
    return gold


FACTORIES: Mapping[str, Any] = {"detection": detection, "criterion": criterion, "boxes": boxes}
