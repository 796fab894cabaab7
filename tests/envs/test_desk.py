"""The desk: every job can be done by somebody who knows how, gestures by hand, latency on a clock of ours, jobs that come again."""

import asyncio

import numpy as np
import pytest

from fovea.checks import check_environment, check_source
from fovea.envs.desk import JOBS, Desk
from fovea.envs.desk.screen import BIN, COLOURS, ENTRIES, GESTURES, MENU, SLOTS, Screen, Window, middle
from fovea.envs.gestures import Gesture, gesture
from fovea.envs.resolve import environment
from fovea.tasks.desk import Jobs
from fovea.tasks.resolve import pair
from fovea.types import Action, Task

TASK = Task("t", "desk", (), verifier="return")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("click(12, 34)", Gesture("click", ((12, 34),))),
        ("Thought: first click(1,2).\nAction: double(3,4)", Gesture("double", ((3, 4),))),
        ("drag(1,2,30,40)", Gesture("drag", ((1, 2), (30, 40)))),
        ("scroll(1,2, down)", Gesture("scroll", ((1, 2),), "down")),
        ("type('a, b')", Gesture("type", (), "a, b")),
        ("hotkey(ctrl,c)", Gesture("hotkey", (), "ctrl,c")),
        ("wait()", Gesture("wait")),
        ("click(12)", None),
        ("click(a,b)", None),
        ("press(1,2)", None),
        ("nothing", None),
    ],
)
def test_gestures_are_read_from_the_last_call(text, found):
    assert gesture(text, GESTURES) == found


def screen(**given):
    return Screen(list(COLOURS), dict.fromkeys(COLOURS, "notes"), **given)


def do(s, *gestures):
    for g in gestures:
        found = gesture(g, GESTURES)
        assert found is not None
        s.do(found)
    return s


def test_gestures_by_hand():
    s = do(screen(), f"click({middle(SLOTS[1])})")
    assert s.chosen == "green" and not s.windows
    assert [w.colour for w in do(s, f"double({middle(SLOTS[0])})").windows] == ["red"]
    s = do(screen(), f"click({middle(MENU)})", f"click({middle(ENTRIES[3])})")
    assert [w.colour for w in s.windows] == ["yellow"] and not s.menu
    s = do(screen(), f"drag({middle(SLOTS[2])},{middle(BIN)})")
    assert s.binned == ("blue",) and s.icons == ["red", "green", "", "yellow"]
    window = Window("red", "notes", 4, 14)
    s = do(screen(windows=[window]), "type(1)", f"click({middle(window.parts['text'])})", "type(42)", "hotkey(ctrl,c)")
    assert s.values == {"red/text": "42"} and s.clip == "42"  # nothing is typed where nothing has the focus
    assert do(s, f"click({middle(window.close)})").windows == []
    s = do(Screen(list(COLOURS), dict.fromkeys(COLOURS, "notes"), slow=("red",)), f"double({middle(SLOTS[0])})")
    assert s.windows[0].loading == 2 and do(s, "wait()").windows[0].loading == 0


@pytest.mark.parametrize("kind", ["notes", "form", "checks", "list", "pair"])
def test_what_is_shown_lies_in_its_window_and_does_not_overlap(kind):
    window = Window("red", kind, 4, 14)
    parts = [*window.parts.values(), window.close]
    for i, (x1, y1, x2, y2) in enumerate(parts):
        assert window.x <= x1 < x2 <= window.area[2] and window.y <= y1 < y2 <= window.area[3]
        for a1, b1, a2, b2 in parts[:i]:
            assert min(x2, a2) <= max(x1, a1) or min(y2, b2) <= max(y1, b1)


@pytest.mark.parametrize("kind", JOBS)
def test_who_knows_how_does_the_job_in_time(kind):
    turns = set()
    for i in range(12):
        task = Jobs((kind,), 12)[i]
        env = Desk()
        env.reset(task, i)
        turn, over, cut = 0, False, False
        while not (over or cut):
            _, reward, over, cut, info = env.step(Action(env.demonstrate()))
            turn += 1
        assert reward == 1.0 and over and not cut and info["measures"] == {"success": 1.0}
        turns.add(turn)
    assert max(turns) <= JOBS[kind].horizon


def test_jobs_are_not_done_by_doing_nothing_and_are_cut_at_their_horizon():
    assert [j.horizon for j in JOBS.values()] == sorted(j.horizon for j in JOBS.values()) and len(JOBS) == 12
    for kind, job in JOBS.items():
        env = Desk(kind)
        env.reset(TASK, 5)
        ends = [env.step(Action("hm"))[1:4] for _ in range(job.horizon)]
        assert ends == [(0.0, False, False)] * (job.horizon - 1) + [(0.0, False, True)]
        env.reset(TASK, 5)
        assert env.step(Action("finished()"))[1:4] == (0.0, True, False)


def test_the_episode_may_end_when_the_job_is_done():
    env = Desk("mark", ends="done")
    env.reset(TASK, 3)
    assert env.step(Action(env.demonstrate()))[1:4] == (1.0, True, False)


def test_slips_make_worse_demonstrations():
    def won(slips):
        count = 0
        for i in range(30):
            env = Desk("send", slips=slips)
            env.reset(TASK, i)
            reward = over = 0
            while not over:
                _, reward, ended, cut, _ = env.step(Action(env.demonstrate()))
                over = ended or cut
            count += reward
        return count

    assert won(0.0) == 30 and won(0.6) < 25


@pytest.mark.parametrize("slow", [True, False])
def test_latency_is_lognormal_on_whatever_clock(slow):
    waited = []

    async def sleep(seconds):
        waited.append(seconds)

    async def play(n):
        for _ in range(n):
            env = Desk("mark", latency=0.5, slow=slow, sleep=sleep)
            await env.reset(TASK, 1)  # the same seed, as in a group
            await env.step(Action("wait()"))

    asyncio.run(play(800))
    logs = np.log(np.array(waited) / 0.5).reshape(800, 2)
    assert abs(logs[:, 0].mean()) < 0.15 and abs(logs[:, 0].std() - 1.0) < 0.1
    assert (np.corrcoef(logs.T)[0, 1] > 0.99) == slow


def test_contracts():
    for reply in ("", "short", "json"):
        check_environment(lambda reply=reply: Desk("send", reply=reply), TASK)
    check_source(Jobs())
    assert environment("desk:send,reply=short")().reply == "short"


def test_sources_by_name():
    train, held = pair("desk:mark,set,each=3")
    assert len(train) == 6 and [t.source for t in train] == ["mark", "set"] * 3 and train[0].id != held[0].id
    assert train[1].meta == Jobs(("mark", "set"), 3)[1].meta and train[1].images[0].size == (96, 64)
    for wrong in ("desk:cook", "desk:each=0", "desk:split=x"):
        with pytest.raises(ValueError, match="desk:"):
            pair(wrong)


@pytest.mark.parametrize("wrong", [{"job": "cook"}, {"reply": "xml"}, {"ends": "never"}, {"latency": -1.0}, {"slips": 2.0}])
def test_the_desk_refuses_what_cannot_be(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Desk(**wrong)
