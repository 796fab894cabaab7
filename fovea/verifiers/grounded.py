"""Thoughts that point at places: the rewards of ViGoRL (arXiv 2505.23678), for one turn and for several with a crop tool.

    one turn         0.5 accuracy + 0.5 format · coordinates
    several turns    0.6 accuracy + 0.4 grammar · (1 + 0.2 (distinct − 1)), distinct crops counted from the first

Departures from the released code: every tool call must be valid JSON (it looks at calls with braces only), ground truths are lower-cased
like answers, an answer may hold line breaks, and an empty web action is no answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from fovea.types import Context, Episode, Verifier
from fovea.verifiers.core import PerEpisode, Unscorable
from fovea.verifiers.form import follows_tags
from fovea.verifiers.parse import called_point, cited_points, parse_numbers, tagged

CALLED, SEEN = "tool_call", "observation"
"""The tags of a call and of what comes back."""
_LABEL = re.compile(r"[A-Za-z][.)]\s+")
_INSIDE = re.compile(r"\[([^\[\]]*)\]")
VERBS = ("go_back", "stop", "scroll", "click", "type")
"""Of web actions, in the order in which they are looked for."""
AFTER: Mapping[str, tuple[str, ...]] = {
    "<think>": ("</think>",),
    "</think>": ("<tool_call>", "<answer>"),
    "<tool_call>": ("</tool_call>",),
    "</tool_call>": ("<observation>",),
    "<observation>": ("</observation>",),
    "</observation>": ("<think>",),
    "<answer>": ("</answer>",),
    "</answer>": (),
}
"""The tags that may follow a tag in an episode of several turns."""


# -- accuracy -----------------------------------------------------------------------------------------------------------------


def unlabelled(answer: str) -> str:
    """The answer without a leading "A. " or "A) "."""
    answer = answer.strip()
    label = _LABEL.match(answer)
    return answer[label.end() :] if label else answer


def text_accuracy(said: str, gold: Any) -> float:
    """1 where both are the same text, case and labels aside."""
    return float(unlabelled(said).casefold() == unlabelled(str(gold)).casefold())


def whole_point(text: str) -> tuple[int, int] | None:
    """The point of an answer that is "(x, y)" and nothing else."""
    found = cited_points(text)
    return found[0][1] if len(found) == 1 and found[0][0].group() == text.strip() else None


def point_accuracy(said: str, gold: Any) -> float:
    """1 for a point inside the box, its edges included."""
    box = parse_numbers(gold, 4)
    if box is None:
        raise Unscorable(f"gold answer {gold!r:.80} is not a box [x1, y1, x2, y2] in pixels")
    point = whole_point(said)
    return float(point is not None and box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3])


def action_accuracy(said: str, gold: Any) -> float:
    """Of a web action: `go_back` and `stop` by the verb, `scroll [where]` by both, `click [id]` and `type [id] [text]` half by each."""
    gold = str(gold)
    verb = next((v for v in VERBS if v in said), None)
    if verb is None:
        return 0.0
    if verb in ("go_back", "stop"):
        return float(verb in gold)
    ours, theirs = _INSIDE.search(said), _INSIDE.search(gold)
    if ours is None or theirs is None:
        return 0.0
    same = ours[1].strip() == theirs[1].strip()
    return float(same and verb in gold) if verb == "scroll" else 0.5 * (verb in gold) + 0.5 * same


KINDS: Mapping[str, Callable[[str, Any], float]] = {"text": text_accuracy, "point": point_accuracy, "action": action_accuracy}
"""What is asked for -> (answer, gold) -> 0 to 1."""


def _kind(name: str, kind: str) -> Callable[[str, Any], float]:
    if kind not in KINDS:
        raise ValueError(f"{name}: kind is {kind!r}; expected one of {', '.join(map(repr, KINDS))}")
    return KINDS[kind]


def _accuracy(accuracy: Callable[[str, Any], float], text: str, episode: Episode) -> float:
    if episode.task.answer is None:
        raise Unscorable("the task has no answer (Task.answer is None)")
    said = tagged(text, "answer")
    return 0.0 if said is None else accuracy(said, episode.task.answer)


def _answers(said: str | None, kind: str) -> bool:
    """Whether an answer has the form that its kind asks for."""
    return bool(said and said.strip()) and (kind != "point" or whole_point(said or "") is not None)


# -- one turn -----------------------------------------------------------------------------------------------------------------


def grounded(*, kind: str = "text", points: int = 1) -> Verifier:
    """0.5 accuracy + 0.5 where the form is right and at least `points` different "(x, y)" stand in the thought.

    kind: what the answer is, "text", "point" (x, y) inside a gold box, or a web "action". points: 0 for a policy that need not point.
    """
    accuracy = _kind("grounded", kind)

    def judge(episode: Episode, context: Context) -> dict[str, float | bool]:
        text = episode.text
        form = follows_tags(text, ("think", "answer"), strict=True) and _answers(tagged(text, "answer"), kind)
        cited = {point for _, point in cited_points(tagged(text, "think") or "")}
        right = _accuracy(accuracy, text, episode)
        return {
            "score": 0.5 * right + 0.5 * (form and len(cited) >= points),
            "accuracy": right,
            "format": float(form),
            "cited": float(len(cited)),
            "correct": right == 1,
        }

    return PerEpisode("grounded", judge)


# -- several turns ------------------------------------------------------------------------------------------------------------


def transcript(episode: Episode) -> str:
    """All that was said in an episode after its question, by the policy and by the environment, pictures aside."""
    said = []
    for k, turn in enumerate(episode.turns):
        parts = [p for m in turn.observation.messages if k and m["role"] != "assistant" for p in _parts(m["content"])]
        said += [part["text"] for part in parts if part["type"] == "text"] + [turn.text]
    return "".join(said)


def _parts(content: Any) -> Sequence[Mapping[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _spans(text: str, call: str, seen: str) -> list[tuple[str, str]]:
    """Every tag, under its usual name, with what stands between it and the next one."""
    usual = {"think": "think", "answer": "answer", call: CALLED, seen: SEEN}
    tags = list(re.finditer(f"<(/?)({'|'.join(map(re.escape, usual))})>", text))
    starts = [*(t.start() for t in tags), len(text)]
    return [(f"<{t[1]}{usual[t[2]]}>", text[t.end() : end]) for t, end in zip(tags, starts[1:], strict=True)]


def follows_turns(text: str, kind: str = "text", call: str = CALLED, seen: str = SEEN) -> bool:
    """Whether a transcript is thought, call and observation, over and over, then thought and answer, and nothing after it (`AFTER`).

    Every call must be JSON with two whole numbers, the answer must have the form of its kind. call, seen: the tags of calls and of
    observations.
    """
    spans = _spans(text, call, seen)
    order = [tag for tag, _ in spans]
    if not order or order[0] != "<think>" or order[-1] != "</answer>" or spans[-1][1].strip():
        return False
    if any(later not in AFTER[tag] for tag, later in pairwise(order)):
        return False
    calls = all(called_point(inside) is not None for tag, inside in spans if tag == "<tool_call>")
    return calls and _answers(spans[-2][1], kind)


def crops(text: str, call: str = CALLED, seen: str = SEEN) -> list[tuple[int, int]]:
    """The points that a transcript calls for, those that an observation follows."""
    spans = _spans(text, call, seen)
    called = [(inside, *(tag for tag, _ in spans[i + 1 : i + 3])) for i, (tag, inside) in enumerate(spans) if tag == "<tool_call>"]
    return [p for inside, *tags in called if tags == ["</tool_call>", "<observation>"] and (p := called_point(inside)) is not None]


def distinct(points: Sequence[tuple[float, float]], near: float = 10.0) -> int:
    """How many points are at least `near` pixels from all that were counted before."""
    counted: list[tuple[float, float]] = []
    for point in points:
        if all(math.dist(point, other) >= near for other in counted):
            counted.append(point)
    return len(counted)


def grounded_turns(*, kind: str = "text", bonus: float = 0.2, near: float = 10.0, call: str = CALLED, seen: str = SEEN) -> Verifier:
    """0.6 accuracy + 0.4 grammar · (1 + `bonus` for every distinct crop after the first).

    An observation is the environment's alone: a policy that writes its tags has no grammar and no crops.

    kind: as of `grounded`. near: pixels, of the picture as shown, from which on two crops are distinct. call, seen: the tags around calls
    and crops, as in the environment.
    """
    accuracy = _kind("grounded_turns", kind)

    def judge(episode: Episode, context: Context) -> dict[str, float | bool]:
        text = transcript(episode)
        forged = any(f"<{end}{seen}>" in turn.text for turn in episode.turns for end in ("", "/"))
        right, form = _accuracy(accuracy, text, episode), not forged and follows_turns(text, kind, call, seen)
        shown = [] if forged else crops(text, call, seen)
        n = distinct(shown, near)
        return {
            "score": 0.6 * right + 0.4 * form * (1 + bonus * max(0, n - 1)),
            "accuracy": right,
            "format": float(form),
            "crops": float(len(shown)),
            "distinct": float(n),
            "correct": right == 1,
        }

    return PerEpisode("grounded_turns", judge)


FACTORIES: Mapping[str, Any] = {"grounded": grounded, "grounded_turns": grounded_turns}
