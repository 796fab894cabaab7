"""Verifiers that compare an answer with the gold one: exact, choice, number, set, count, text_distance, box_iou, point_in_box.

Each factory takes the parameters a task may carry in `Task.params` and returns a verifier.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

from fovea.math.boxes import iou
from fovea.types import Context, Episode, Places, Score, Verifier
from fovea.verifiers.core import PerEpisode, Stages, Unscorable, check_stages, on_answer, placed, staged
from fovea.verifiers.parse import (
    extract_answer,
    multiset_f1,
    normalise,
    parse_choice,
    parse_counts,
    parse_items,
    parse_number,
    parse_numbers,
    text_similarity,
)
from fovea.video import still

FAR = 1e9
"""No coordinate is as large."""

_YES_NO = {True: ("yes", "true"), False: ("no", "false")}


def exact(*, case: bool = False) -> Verifier:
    """The answer equals the gold text (or any of a gold list); whitespace, outer punctuation and, unless `case`, case do not count.

    A gold bool accepts yes/true or no/false.
    """

    def judge(answer: str, gold: Any) -> bool:
        accepted = gold if isinstance(gold, list | tuple | set) else _YES_NO[gold] if isinstance(gold, bool) else [gold]
        if not [g for g in accepted if str(g).strip()]:
            raise Unscorable(f"gold answer is {gold!r}; expected a text that is not empty")
        return normalise(answer, case) in {normalise(str(g), case) for g in accepted}

    return on_answer("exact", judge)


def choice(*, options: Sequence[str] = ()) -> Verifier:
    """The chosen letter (A, (B), b), "the answer is C") or an option's own text; gold is a letter, an option's text or its index from 0."""

    def judge(answer: str, gold: Any) -> bool:
        names = [normalise(str(o)) for o in options]
        if isinstance(gold, int) and not isinstance(gold, bool):
            right = chr(ord("A") + gold) if 0 <= gold < (len(options) or 26) else None
        else:
            right = parse_choice(str(gold), [str(o) for o in options])
        if right is None:
            raise Unscorable(f"gold answer {gold!r} is neither a letter nor one of the options {names or '(none given)'}")
        return parse_choice(answer, [str(o) for o in options]) == right

    return on_answer("choice", judge)


def number(*, tolerance: float = 0.0, relative: float = 0.0) -> Verifier:
    """The last number of the answer is within max(tolerance, relative * |gold|) of gold. Exact arithmetic; 0.5, 1/2 and 50% are equal.

    Where only one side has a percent sign the other may mean it too: gold 50 accepts "50%", gold "50%" accepts "50" and "0.5".
    """

    def judge(answer: str, gold: Any) -> bool:
        right, said = parse_number(gold), parse_number(answer)
        if right is None:
            raise Unscorable(f"gold answer {gold!r} holds no number")
        if said is None:
            return False
        readings = [(said[0], right[0])]
        if said[1] != right[1]:
            readings.append((said[0] * (100 if said[1] else 1), right[0] * (100 if right[1] else 1)))
        return any(abs(s - r) <= max(Fraction(str(tolerance)), Fraction(str(relative)) * abs(r)) for s, r in readings)

    return on_answer("number", judge)


def set_f1(*, threshold: float = 1.0) -> Verifier:
    """F1 of the answer's items against the gold items, as multisets; items are split at commas, semicolons, line ends and "and"."""

    def judge(answer: str, gold: Any) -> float:
        return multiset_f1(Counter(parse_items(answer)), Counter(parse_items(gold)))

    return on_answer("set", judge, threshold)


def count(*, threshold: float = 1.0) -> Verifier:
    """F1 of counts by name ("2 cats, dog: 3", JSON) against a gold mapping name -> count."""

    def judge(answer: str, gold: Any) -> float:
        right = parse_counts(gold)
        if right is None:
            raise Unscorable(f"gold answer {gold!r} holds no counts; expected a mapping such as {{'cat': 2}}")
        return multiset_f1(parse_counts(answer) or Counter(), right)

    return on_answer("count", judge, threshold)


def text_distance(*, threshold: float = 1.0, case: bool = False) -> Verifier:
    """1 - edit distance / length of the longer text, in characters; the best of a gold list. Correct at `threshold`."""

    def judge(answer: str, gold: Any) -> float:
        accepted = gold if isinstance(gold, list | tuple) else [gold]
        if not accepted:
            raise Unscorable("gold answer is an empty list; expected a text, or several")
        return max(text_similarity(normalise(answer, case), normalise(str(g), case)) for g in accepted)

    return on_answer("text_distance", judge, threshold)


def box_iou(
    *,
    threshold: Stages = 0.5,
    graded: bool | Literal["reached"] = False,
    scale: float | None = None,
    image: int = 0,
    least: float = 0.0,
) -> Verifier:
    """Overlap with the gold box [x1, y1, x2, y2) in pixels: 1 at IoU >= threshold, or the IoU itself when `graded`.

    A threshold that rises over the run is pairs (share of the run, threshold), such as `detection.DYNAMIC` of V-Triune (arXiv 2505.18129);
    "reached" pays the IoU from the threshold on and nothing below, as there.

    `scale` says what the policy's full side length is: None for pixels, 1 for fractions, 1000 for the 0..1000 convention; it is then
    converted with the size of `Task.images[image]`. Overlaps that are not wider and higher than `least` pixels count nothing (1 in the code
    of VLM-R1).
    """

    check_stages("box_iou: threshold", threshold)

    def judge(episode: Episode, context: Context) -> Score:
        gold = _gold(episode, 4, "a box [x1, y1, x2, y2) in pixels")
        box = _said(episode, 4, scale, image)
        overlap = 0.0 if box is None else float(iou([box], [gold], least)[0, 0])
        hit = overlap >= staged(threshold, context.progress)
        paid = overlap * (graded is True or hit) if graded else float(hit)
        verdict = {"score": paid, "iou": overlap, "correct": hit}
        return placed(verdict, Places([box], image=image) if box else None, Places([gold], image=image))

    return PerEpisode("box_iou", judge)


def point_in_box(*, scale: float | None = None, image: int = 0) -> Verifier:
    """The last two numbers of the answer are a point inside the gold box [x1, y1, x2, y2), in pixels (or `scale`, as for box_iou)."""

    def judge(episode: Episode, context: Context) -> Score:
        x1, y1, x2, y2 = gold = _gold(episode, 4, "a box [x1, y1, x2, y2) in pixels")
        point = _said(episode, 2, scale, image)
        inside = point is not None and x1 <= point[0] < x2 and y1 <= point[1] < y2
        return placed(inside, Places([point], image=image) if point else None, Places([gold], image=image))

    return PerEpisode("point_in_box", judge)


def _gold(episode: Episode, count: int, what: str) -> tuple[float, ...]:
    box = parse_numbers(episode.task.answer, count)
    if box is None or box[2] <= box[0] or box[3] <= box[1]:
        raise Unscorable(f"gold answer {episode.task.answer!r} is not {what} with x1 < x2 and y1 < y2")
    return box


def _said(episode: Episode, count: int, scale: float | None, image: int) -> tuple[float, ...] | None:
    """The coordinates of the answer in pixels."""
    answer = extract_answer(episode.text)
    numbers = None if answer is None else parse_numbers(answer, count)
    if numbers is None or any(abs(v) > FAR for v in numbers):
        return None
    if scale is None:
        return numbers
    if image >= len(episode.task.images):
        raise Unscorable(f"scale={scale} needs the size of image {image}, but the task has {len(episode.task.images)} image(s)")
    sides = still(episode.task.images[image]).size
    return tuple(v / scale * sides[i % 2] for i, v in enumerate(numbers))


def episode_return(*, success: float | None = None) -> Verifier:
    """The sum of the rewards that the environment gave; its last measures are parts. Correct at `success`, else where it measured one."""

    def judge(episode: Episode, context: Context) -> Score:
        total, measures = float(sum(turn.reward for turn in episode.turns)), dict(episode.turns[-1].measures) if episode.turns else {}
        won = total >= success if success is not None else measures["success"] > 0 if "success" in measures else None
        return Score(total, parts=measures, correct=won)

    return PerEpisode("return", judge)


FACTORIES: Mapping[str, Any] = {
    "exact": exact,
    "choice": choice,
    "number": number,
    "set": set_f1,
    "count": count,
    "text_distance": text_distance,
    "box_iou": box_iou,
    "point_in_box": point_in_box,
    "return": episode_return,
}
