"""Verifiers of answers that are lists of labelled boxes: `detection` (VLM-R1, arXiv 2504.07615) and `criterion` (Vision-R1, 2503.18013).

An answer is a JSON list of ``{"bbox_2d": [x1, y1, x2, y2], "label": "cat"}`` (in a ``json`` block, or bare), the word "None", or plain
text, ``cat 1 2 3 4; dog 5 6 7 8``. Gold answers are such a list in pixels; an empty list or "None" says that nothing is there.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from fovea.math.boxes import COCO_THRESHOLDS, Array, Picture, as_boxes, assign, giou, greedy, iou, mean_average_precision
from fovea.types import Context, Episode, Verifier
from fovea.verifiers.core import PerEpisode, Unscorable
from fovea.verifiers.parse import READ, extract_answer, find_floats
from fovea.video import still

Rewarded = Literal["map", "ap50", "od_length", "weighted_sum"]

LONGEST = 4 * READ
"""Characters at the end of an answer in which boxes are looked for."""

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
    entries = value if isinstance(value, list | tuple) else [value]
    boxes, labels, whole = [], [], isinstance(value, list | tuple)
    for entry in entries:
        box = entry.get("bbox_2d", entry.get("box")) if isinstance(entry, Mapping) else None
        label = entry.get("label") if isinstance(entry, Mapping) else None
        if not (isinstance(label, str) and isinstance(box, list | tuple) and len(box) == 4 and all(map(_number, box))):
            whole = False
        elif box[0] < box[2] and box[1] < box[3]:
            boxes.append(box)
            labels.append(label.strip())
    return Detections(as_boxes(boxes), tuple(labels), whole, none=isinstance(value, list | tuple) and not entries)


def _number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) and abs(x) < 1e9


# -- VLM-R1 -------------------------------------------------------------------------------------------------------------------


def detection(*, reward: Rewarded = "od_length", scale: float | None = None, image: int = 0) -> Verifier:
    """How well labelled boxes are found in one picture (VLM-R1, arXiv 2504.07615, section 3.3 and its code).

    reward: "map" is COCO's AP (IoU .50 to .95) of this picture, all scores equal, and "ap50" that at IoU 0.5: boxes behind the last hit
      are free, so a policy learns to spam. "od_length" multiplies "map" by #gold / #boxes where there are more boxes than gold.
      "weighted_sum" is 0.7 · Σ IoU of the matches / #gold + 0.3 · (1 − (miss rate + false-alarm rate) / 2).
    scale, image: as for `box_iou`.

    Parts: boxes (how many), precision and recall at IoU 0.5 with the right label.
    """
    judges: dict[str, Callable[[Detections, Detections], float]] = {
        "map": partial(_average_precision, thresholds=COCO_THRESHOLDS),
        "ap50": partial(_average_precision, thresholds=(0.5,)),
        "od_length": _od_length,
        "weighted_sum": _weighted_sum,
    }
    if reward not in judges:
        raise ValueError(f"detection: reward is {reward!r}; expected one of {', '.join(judges)}")

    def judge(episode: Episode, context: Context) -> dict[str, float]:
        found, gold = _said(episode, scale, image), _gold(episode)
        value = float(found.none) if not gold.labels else judges[reward](found, gold) if found.labels else 0.0
        return {"score": value, **_measured(found, gold)}

    return PerEpisode("detection", judge)


def _average_precision(found: Detections, gold: Detections, thresholds: Sequence[float]) -> float:
    return mean_average_precision([Picture(found.box_N4, found.labels, gold.box_N4, gold.labels)], thresholds)


def _od_length(found: Detections, gold: Detections) -> float:
    return _average_precision(found, gold, COCO_THRESHOLDS) * min(1.0, len(gold.labels) / len(found.labels))


def _weighted_sum(found: Detections, gold: Detections) -> float:
    overlap_NM = iou(found.box_N4, gold.box_N4, least=1.0)
    pairs = greedy(overlap_NM, 0.5)
    P, G = overlap_NM.shape
    position = sum(overlap_NM[p, g] for p, g in pairs if found.labels[p].lower() == gold.labels[g].lower()) / G
    return float(0.7 * position + 0.3 * (1 - ((G - len(pairs)) / G + (P - len(pairs)) / P) / 2))


def _measured(found: Detections, gold: Detections) -> dict[str, float]:
    P, G = len(found.labels), len(gold.labels)
    same_PG = np.array([[a.lower() == b.lower() for b in gold.labels] for a in found.labels], bool).reshape(P, G)
    hits = len(greedy(np.where(same_PG, iou(found.box_N4, gold.box_N4), 0.0), 0.5))
    return {"boxes": float(P), "precision": hits / P if P else float(G == 0), "recall": hits / G if G else 1.0}


# -- Vision-R1 (criterion) ----------------------------------------------------------------------------------------------------


def criterion(
    *,
    parts: Sequence[str] = ("format", "recall", "precision"),
    progressive: bool = True,
    switch: float = 0.5,
    per: Literal["matched", "predicted"] = "matched",
    scale: float | None = None,
    image: int = 0,
) -> Verifier:
    """Format + recall + precision after one-to-one matching over all boxes, with thresholds that rise (Vision-R1, arXiv 2503.18013).

    Boxes are matched by least L1 distance of the corners − [same label] − GIoU (Hungarian); each pair counts with its GIoU v.
      recall:    f(Σ [v > τ] / #gold; 0.5, 0.75), exactly τ counting τ;   precision: mean of f(v; ξ1, ξ2) over the pairs;
      f(v; lo, hi) is 0 below lo, 1 above hi, else v;   format: 1 for a list of complete entries.
    (τ, ξ1, ξ2) is (0.5, 0.5, 0.75) and, where `progressive`, from the share `switch` of the run on (0.75, 0.75, 0.9).

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

    def judge(episode: Episode, context: Context) -> dict[str, float]:
        found, gold = _said(episode, scale, image), _gold(episode)
        late = progressive and context.progress >= switch
        tau, low, high = (0.75, 0.75, 0.9) if late else (0.5, 0.5, 0.75)
        v_N = _matched(found, gold)
        if not found.labels:
            recall = precision = float(found.none and not gold.labels)
        else:
            reached = np.where(v_N == tau, tau, v_N > tau).sum() / max(1, len(gold.labels))
            recall = float(squash(np.array([reached]), 0.5, 0.75)[0])
            precision = float(squash(v_N, low, high).sum() / (len(found.labels) if per == "predicted" else max(1, len(v_N))))
        well = found.whole and not found.none if gold.labels else found.none
        value = {"format": float(well), "recall": recall, "precision": precision}
        return {"score": sum(value[p] for p in parts), **value, "boxes": float(len(found.labels))}

    return PerEpisode("criterion", judge)


def squash(v_N: Array, low: float, high: float) -> Array:
    """0 below `low`, 1 above `high`, `v` between; both bounds keep their value."""
    return np.where(v_N < low, 0.0, np.where(v_N > high, 1.0, v_N))


def _matched(found: Detections, gold: Detections) -> Array:
    """(min(P, G),) GIoU of the matched pairs."""
    if not found.labels or not gold.labels:
        return np.zeros(0)
    giou_PG = giou(found.box_N4, gold.box_N4)
    same_PG = np.array([[a.lower() == b.lower() for b in gold.labels] for a in found.labels], np.float64)
    apart_PG = np.abs(found.box_N4[:, None] - gold.box_N4[None]).sum(2)
    return giou_PG[assign(apart_PG - same_PG - giou_PG)]


# -- from an episode ----------------------------------------------------------------------------------------------------------


def _said(episode: Episode, scale: float | None, image: int) -> Detections:
    found = parse_detections(extract_answer(episode.text))
    if scale is None or not found.labels:
        return found
    if image >= len(episode.task.images):
        raise Unscorable(f"scale={scale} needs the size of image {image}, but the task has {len(episode.task.images)} image(s)")
    w, h = still(episode.task.images[image]).size
    return Detections(found.box_N4 / scale * np.array([w, h, w, h]), found.labels, found.whole, found.none)


def _gold(episode: Episode) -> Detections:
    gold = parse_detections(episode.task.answer)
    if not (gold.whole or gold.none):
        raise Unscorable(f'gold answer {episode.task.answer!r:.80} is no list of {{"label": …, "bbox_2d": [x1, y1, x2, y2]}} with x1 < x2')
    return gold


FACTORIES: Mapping[str, Any] = {"detection": detection, "criterion": criterion}
