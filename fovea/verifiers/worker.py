"""The process that scores for others: a verifier's name and parameters, a task's gold answer and what was said, as one line of JSON.

Pictures stay where they are; a verifier that needs their sizes gets blank ones of these sizes.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from PIL import Image

from fovea.types import Context, Episode, Group, Places, Score, Segment, Task, Turn
from fovea.video import still


def packed(group: Group, context: Context, verifier: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """What a worker needs to know of a group."""
    task = group.task
    return {
        "task": {"id": task.id, "source": task.source, "answer": task.answer, "verifier": verifier, "params": dict(params)},
        "sizes": [still(image).size for image in task.images],
        "episodes": [
            {
                "id": e.id,
                "role": e.role,
                "stop": e.stop,
                "units": e.length,
                "turns": [[t.text, t.reward, t.stop, dict(t.measures)] for t in e.turns],
            }
            for e in group.episodes
        ],
        "context": asdict(context),
    }


def unpacked(request: Mapping[str, Any]) -> tuple[Group, Context]:
    task = Task(prompt=(), images=tuple(Image.new("RGB", tuple(size)) for size in request["sizes"]), **request["task"])
    return Group(task, [_episode(task, **e) for e in request["episodes"]]), Context(**request["context"])


def _episode(task: Task, id: str, role: str, stop: str, units: int, turns: list[list[Any]]) -> Episode:
    spoken: Any = np.ones(units, bool)
    segments = [Segment(None, spoken, spoken, spoken, spoken, spoken)] if units else []
    return Episode(id, task, role, segments, [Turn(text, reward=r, stop=end, measures=m) for text, r, end, m in turns], stop)


def scored(request: Mapping[str, Any]) -> dict[str, Any]:
    from fovea.verifiers import resolve

    group, context = unpacked(request)
    return {"scores": [_told(s) for s in resolve(group.task).score(group, context)]}


def _told(score: Score) -> dict[str, Any]:
    looked = {name: places and _drawn(places) for name, places in (("places", score.places), ("expected", score.expected))}
    return {"value": score.value, "parts": dict(score.parts), "ok": score.ok, "correct": score.correct, "reason": score.reason, **looked}


def _drawn(places: Places) -> dict[str, Any]:
    at = [[float(v) for v in place] for place in places.at]
    return {"at": at, "labels": list(places.labels), "hits": [bool(h) for h in places.hits], "image": places.image}


def scores(reply: Mapping[str, Any]) -> list[Score]:
    looked = ("places", "expected")
    return [Score(**{**s, **{name: s[name] and Places(**s[name]) for name in looked}}) for s in reply["scores"]]


def main() -> None:
    logging.disable(logging.CRITICAL)
    out, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        try:
            reply = scored(json.loads(line))
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(reply), file=out, flush=True)


if __name__ == "__main__":
    main()
