"""Deadlines, overlap, and failures that are never zeros."""

import asyncio
import os
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from fovea.types import Context, Episode, Group, Score, Segment, Task, Turn, user
from fovea.verifiers import Scorer, TooManyUnscored, weighted


def group_of(verifier="exact", texts=("cat", "dog"), name="t", answer="cat", **params):
    task = Task(name, "zoo", user("?", images=0), answer=answer, verifier=verifier, params=params)
    return Group(task, [Episode(f"{name}/{i}", task, turns=[Turn(text)]) for i, text in enumerate(texts)])


def test_groups_and_single_episodes_are_scored_once():
    calls = []

    def mine(answer, task):
        calls.append(answer)
        return answer == task.answer

    group = group_of(mine)
    with Scorer() as scorer:
        scorer.submit(group.episodes[1])
        scorer.submit(group)
        scorer.finish()
    assert [e.score.value for e in group.episodes] == [1.0, 0.0]
    assert sorted(calls) == ["cat", "dog"]


def test_submit_returns_at_once_and_verifiers_overlap():
    gate = threading.Event()

    def waits(answer, task):
        gate.wait(5)
        return 1.0

    group = group_of(waits, texts="abc")
    with Scorer(workers=3, timeout_s=20) as scorer:
        scorer.submit(group)
        assert all(e.score is None for e in group.episodes)
        gate.set()
        scorer.finish()
    assert [e.score.value for e in group.episodes] == [1.0] * 3


def test_async_verifiers_wait_together():
    async def slow(answer, task):
        await asyncio.sleep(0.2)
        return 1.0

    group = group_of(slow, texts=["a"] * 40)
    begin = time.monotonic()
    with Scorer(workers=1) as scorer:
        scorer.score([group])
    assert time.monotonic() - begin < 4
    assert all(e.score.value == 1.0 for e in group.episodes)


def test_a_verifier_past_its_deadline_leaves_its_episode_unscored_and_the_others_scored():
    release = threading.Event()

    def hangs(answer, task):
        if answer == "hang":
            release.wait(30)
        return True

    group = group_of(hangs, texts=["a", "hang", "b", "c", "d", "e"])
    with Scorer(timeout_s=0.3, workers=1) as scorer:
        scorer.score([group])
    release.set()
    ok = [e.score.ok for e in group.episodes]
    assert ok == [True, False, True, True, True, True]
    assert "'hangs' gave no score within 0.3 s" in group.episodes[1].score.reason


def test_a_late_score_does_not_overwrite_the_failure():
    release, done = threading.Event(), threading.Event()

    def late(answer, task):
        release.wait(30)
        done.set()
        return 1.0

    group = group_of(late, texts=["a"])
    with Scorer(timeout_s=0.1, max_unscored=1.0) as scorer:
        scorer.score([group])
        release.set()
        assert done.wait(5)
        time.sleep(0.05)
    assert not group.episodes[0].score.ok


def test_an_async_verifier_past_its_deadline_is_unscored():
    async def hangs(answer, task):
        await asyncio.sleep(30)

    group = group_of(hangs, texts=["a"])
    with Scorer(timeout_s=0.1, max_unscored=1.0) as scorer:
        scorer.score([group])
    assert "within 0.1 s" in group.episodes[0].score.reason


def test_too_many_failures_stop_with_the_first_reasons_and_their_tasks():
    def picky(answer, task):
        if task.id != "good":
            raise RuntimeError("the judge is down")
        return 1.0

    groups = [group_of(picky, name=n) for n in ("good", "bad-1", "bad-2")]
    with Scorer() as scorer, pytest.raises(TooManyUnscored) as stopped:
        scorer.score(groups)
    text = str(stopped.value)
    assert "4 of 6 episodes could not be scored; at most 20% may fail" in text
    assert "4x picky: RuntimeError: the judge is down at test_scorer.py:" in text
    assert "task bad-1, bad-2" in text
    assert groups[0].episodes[0].score.value == 1.0
    assert all(not e.score.ok for g in groups[1:] for e in g.episodes)


def test_the_allowed_fraction_is_of_one_step():
    def odd(answer, task):
        return float("nan") if answer == "bad" else 1.0

    with Scorer(max_unscored=0.2) as scorer:
        scorer.score([group_of(odd, texts=["a"] * 8 + ["bad"] * 2)])
        assert len(scorer.unscored) == 2
        with pytest.raises(TooManyUnscored):
            scorer.score([group_of(odd, texts=["a"] * 7 + ["bad"] * 3)])
        scorer.score([group_of(odd, texts=["a"] * 10)])


def test_an_unknown_verifier_is_a_reason_and_no_crash():
    group = group_of("exat")
    with Scorer(max_unscored=1.0) as scorer:
        scorer.score([group])
    assert "did you mean 'exact'" in group.episodes[0].score.reason


def test_episodes_that_ended_in_an_error_are_not_judged():
    group = group_of()
    group.episodes[0].stop, group.episodes[0].error = "error", "tool crashed"
    with Scorer(max_unscored=1.0) as scorer:
        scorer.score([group])
    assert group.episodes[0].score.reason == "the episode ended in an error: tool crashed"
    assert group.episodes[1].score.ok


class Ranked:
    """Scores by rank within the group: needs all of it."""

    scope = "group"

    def score(self, group, context):
        order = sorted(e.text for e in group.episodes)
        return [Score(float(order.index(e.text))) for e in group.episodes]


def test_group_verifiers_wait_for_their_group():
    group = group_of(Ranked(), texts=["b", "c", "a"])
    with Scorer() as scorer:
        for episode in group.episodes:
            scorer.submit(episode)
        assert all(e.score is None for e in group.episodes)
        scorer.submit(group)
        scorer.finish()
    assert [e.score.value for e in group.episodes] == [1.0, 2.0, 0.0]


def test_a_weighted_override_waits_for_the_group_where_the_tasks_own_verifier_does():
    group = group_of(Ranked(), texts=["b", "a"])
    with Scorer(weighted({"rank": (2.0, "task"), "said": (1.0, "exact")})) as scorer:
        scorer.submit(group.episodes[0])
        scorer.submit(group)
        scorer.finish()
    assert [e.score.value for e in group.episodes] == [2.0, 0.0]


@pytest.mark.parametrize("result", [[], [Score(1.0)] * 3, None, [1.0, 1.0], "ab"])
def test_a_wrong_number_or_type_of_scores_is_a_failure(result):
    class Wrong:
        scope = "group"

        def score(self, group, context):
            return result

    group = group_of(Wrong())
    with Scorer(max_unscored=1.0) as scorer:
        scorer.score([group])
    assert all(not e.score.ok and "expected" in e.score.reason for e in group.episodes)


def test_an_override_replaces_every_verifier_or_those_of_one_source():
    def mine(answer, task):
        return 0.25

    for override, expected in ((mine, 0.25), ("format", 0.0), ({"zoo": mine}, 0.25), ({"other": mine}, 1.0)):
        group = group_of(texts=["cat"])
        with Scorer(override) as scorer:
            scorer.score([group])
        assert group.episodes[0].score.value == expected, override


def test_verifiers_see_the_clock():
    def clock(answer, task, context):
        return float(context.step)

    group, other = group_of(clock, texts=["a"]), group_of(clock, texts=["a"])
    with Scorer() as scorer:
        scorer.begin(Context(step=3))
        scorer.score([group])
        scorer.score([other], Context(step=5))
    assert (group.episodes[0].score.value, other.episodes[0].score.value) == (3.0, 5.0)


# -- processes --------------------------------------------------------------------------------------------------------------------


def test_processes_give_the_scores_of_threads():
    def groups():
        boxes = group_of("boxes", ("<answer>cat 0 0 9 9</answer>", "no"), answer=[{"label": "cat", "bbox_2d": [0, 0, 9, 8]}], threshold=0.5)
        parts = {"right": (1.0, "number", {"tolerance": 1}), "form": (0.1, "format", {"tags": ["answer"]})}
        return [
            boxes,
            group_of("weighted", ("<answer>4</answer>", "7"), answer=5, parts=parts, mean=True),
            group_of("length", ("a b", "c"), max=1),
        ]

    for group in (here := groups())[2].episodes + (there := groups())[2].episodes:
        group.segments.append(Segment(None, *[np.ones(2, bool)] * 5))
    with Scorer() as scorer:
        scorer.score(here, Context(3, 9))
    with Scorer(processes=2, timeout_s=60) as scorer:
        scorer.score(there, Context(3, 9))
    for mine, theirs in zip([e for g in here for e in g.episodes], [e for g in there for e in g.episodes]):
        assert replace(mine.score, places=None, expected=None) == replace(theirs.score, places=None, expected=None)
    assert list(map(list, there[0].episodes[0].score.places.at)) == [[0, 0, 9, 9]] and there[0].episodes[1].score.expected.labels == ["cat"]
    assert all(e.score.ok for g in there for e in g.episodes)


def test_a_process_that_hangs_is_killed_and_the_next_answer_scored(monkeypatch):
    with Scorer(processes=1, timeout_s=60, max_unscored=1.0) as scorer:
        scorer.score([group_of()])
        worker = scorer._pool.free.get()
        scorer._pool.free.put(worker)
        os.kill(worker.process.pid, signal.SIGSTOP)
        scorer.timeout_s = 0.2
        late = scorer.score([group_of(texts=("cat",))])[0].episodes[0]
        scorer.timeout_s = 60
        assert not late.score.ok and "within 0.2 s" in late.score.reason and worker.process.wait(30) == -signal.SIGKILL
        assert [e.score.value for e in scorer.score([group_of()])[0].episodes] == [1.0, 0.0]


def test_what_cannot_travel_is_a_failure_and_functions_stay_here():
    with Scorer(processes=1, timeout_s=60, max_unscored=1.0) as scorer:
        group = scorer.score([group_of("set", answer={1, 2})])[0]
        assert "JSON" in group.episodes[0].score.reason
        mine = scorer.score([group_of(lambda answer, task: answer == "cat")])[0]
        assert [e.score.value for e in mine.episodes] == [1.0, 0.0]
