"""The page of a person who takes over: what the hands do, whose they are, and that training goes on whatever happens to them."""

import base64
import http.client
import io
import json
import socket
import time

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

import fovea
from fovea.envs import page as live
from fovea.envs.insertion import Insertion
from fovea.envs.page import DESKS, Page, bindings, wish
from fovea.envs.parts import Part, pack, seen_in
from fovea.envs.pixels import Reach
from fovea.envs.watched import DEMONSTRATE, ByTurns, LimitEnds
from fovea.policies import control
from fovea.policies.control import Network
from fovea.rollout.http import Refused
from fovea.rollout.vector import VectorEngine
from fovea.tasks.gym import Gym, wrapper
from fovea.trainer.off_policy import succeeded
from fovea.trainer.replay import Replay
from fovea.types import Context, Task

STALE_S, HERE_S = live.STALE_S, live.HERE_S
NOTHING = np.zeros(2, np.float32)


@pytest.fixture
def seat(monkeypatch):
    """A watched scene and its page's desk, as fast as it goes; on a busy machine a visitor takes time between two words."""
    monkeypatch.setenv("FOVEA_TOKEN", "sesame")
    for name in ("STALE_S", "HERE_S"):
        monkeypatch.setattr(live, name, 600.0)
    page = Page(hz=1000.0)
    env = page(Insertion(see="numbers", limit=500))
    env.reset(seed=1)
    yield env, DESKS[page]
    env.close()
    DESKS.clear()


def port(desk):
    return int(desk.address.rpartition(":")[2])


def ask(desk, path="/state", token="sesame", method="POST", headers=None, **said):
    """(status, answer) of a visitor who chose copy 0 and has both hands in their lap, unless `said` says otherwise."""
    connection = http.client.HTTPConnection("127.0.0.1", port(desk), timeout=30)
    sent = {"visitor": "ann", "seat": 0, "action": None, "mark": None, "has": {}, **said}
    given = {"Authorization": f"Bearer {token}"} if token else {}
    connection.request(method, path, json.dumps(sent) if method == "POST" else None, {**given, **(headers or {})})
    answer = connection.getresponse()
    body = answer.read()
    return answer.status, json.loads(body) if answer.getheader("Content-Type") == "application/json" else body, dict(answer.getheaders())


def noted(env, action=NOTHING):
    info = env.step(action)[4]
    return info["noted"]["intervened"], info["noted"]["action"].tolist()


# -- who acts -----------------------------------------------------------------------------------------------------------------------


def test_hands_that_are_on_act_and_hands_that_are_off_do_not(seat):
    env, desk = seat
    assert noted(env, np.array([0.5, 0.25], np.float32)) == (False, [0.5, 0.25]), "nobody has come"
    assert ask(desk)[0] == 200 and noted(env) == (False, [0, 0]), "somebody looks on"
    ask(desk, action=[1, -0.5])
    assert noted(env) == (True, [1.0, -0.5])
    ask(desk, action=[7, 0, 3])
    assert noted(env) == (True, [1.0, 0.0]), "within [−1, 1], and no more numbers than there are dimensions"
    ask(desk, action=[-1])
    assert noted(env) == (True, [-1.0, 0.0])
    ask(desk, action=[])
    assert noted(env) == (True, [0.0, 0.0]), "hands that are on and stand still"
    ask(desk)
    assert noted(env) == (False, [0, 0])
    _, told, _ = ask(desk)
    assert {k: told["seats"][0][k] for k in ("seat", "episode", "steps", "taken", "acts")} == {
        "seat": 0,
        "episode": 1,
        "steps": 7,
        "taken": 4,
        "acts": False,
    }


def test_a_visitor_who_vanishes_lets_go_and_the_run_goes_on(seat, monkeypatch):
    env, desk = seat
    monkeypatch.setattr(live, "STALE_S", STALE_S)
    monkeypatch.setattr(live, "HERE_S", HERE_S)
    now = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    waited = []
    monkeypatch.setattr(live.time, "sleep", waited.append)
    ask(desk, action=[1, 0])
    now[0] += 0.49
    assert noted(env)[0]
    now[0] += 0.02
    assert not noted(env)[0], "half a second old"
    before = len(waited)
    now[0] += 2.0
    assert not noted(env)[0] and len(waited) == before and not desk.visited, "nobody is there to keep to a pace for"


def test_one_visitor_acts_at_a_time(seat):
    env, desk = seat
    ask(desk, action=[1, 0])
    assert ask(desk, visitor="bob", action=[-1, 0])[1]["other"] and noted(env) == (True, [1.0, 0.0])
    assert not ask(desk)[1]["other"], "ann lets go"
    assert not ask(desk, visitor="bob", action=[-1, 0])[1]["other"] and noted(env) == (True, [-1.0, 0.0])
    ask(desk)
    assert noted(env) == (True, [-1.0, 0.0]), "who only looks on takes nothing away"
    assert ask(desk, mark=True)[1]["visitors"] == 2 and not env.step(NOTHING)[2], "nor ends anything"


def test_each_copy_has_hands_of_its_own(seat):
    env, desk = seat
    other = desk.page(Insertion(see="numbers"))
    other.reset(seed=2)
    ask(desk, seat=1, action=[0, 1])
    assert not noted(env)[0] and noted(other) == (True, [0.0, 1.0])
    assert [s["seat"] for s in ask(desk)[1]["seats"]] == [0, 1]
    del other
    assert [s["seat"] for s in ask(desk)[1]["seats"]] == [0], "a copy that is gone is not shown"


def test_a_copy_that_waits_for_hands_stays_on_the_page(seat, monkeypatch):
    env, desk = seat
    other = desk.page(Insertion(see="numbers"))
    other.reset(seed=2)
    later = time.monotonic() + 1e4
    monkeypatch.setattr(live.time, "monotonic", lambda: later)
    env.step(NOTHING)
    assert [s["seat"] for s in ask(desk)[1]["seats"]] == [0, 1], "a slow copy has its seat as a quick one has"
    other.close()
    assert [s["seat"] for s in ask(desk)[1]["seats"]] == [0], "and leaves it when it is closed"


def test_where_only_a_person_can_show_anything_one_copy_plays(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "PATIENCE_S", 0.0)
    monkeypatch.delattr(Insertion, "demonstrate")
    made = []
    monkeypatch.setattr(Gym, "vector", lambda self, count, was=Gym.vector: made.append(count) or was(self, count))
    with pytest.raises(TimeoutError, match="nobody has taken over"):
        fovea.train(
            "hil-serl",
            data=Gym("fovea/Insertion-v0", {"see": "numbers", "limit": 40}, around=(Page(),)),
            network=Network(width=8),
            max_rows=2,
            replay=Replay(size=200, start=20, batch=8, demonstrations=2, share=0.5),
            steps=1,
            eval_tasks=0,
            threads=1,
            out=str(tmp_path),
            quiet=True,
        )
    assert made.count(2) == 1 and made[-1] == 1, "the engine that trains has both"
    assert DESKS.pop(Page()).loop is None


def test_a_chunk_repeats_what_the_hands_do():
    class Chunky(Insertion):
        chunk = 3

        def __init__(self):
            super().__init__(see="numbers")
            self.action_space = gym.spaces.Box(-1, 1, (6,), np.float32)

        def step(self, action):
            return super().step(action[:2])

    page = Page()
    env = page(Chunky())
    env.reset(seed=1)
    assert env.watcher.dims == 2
    DESKS[page].hands = live.Hands(env.watcher.seat, (0.5, -0.5), time.monotonic())
    assert env.watcher.takes(env.unwrapped, None).tolist() == [0.5, -0.5] * 3
    DESKS.clear()


def test_the_copy_that_is_watched_keeps_to_a_pace(seat, monkeypatch):
    env, desk = seat
    ask(desk)
    waited = []
    monkeypatch.setattr(live.time, "sleep", waited.append)
    for _ in range(3):
        env.step(NOTHING)
    assert len(waited) == 3 and 0 < sum(waited) <= 3 / desk.page.hz
    ask(desk, slow=False)
    env.step(NOTHING)
    assert len(waited) == 3, "full speed"


# -- success ------------------------------------------------------------------------------------------------------------------------


def test_what_the_person_says_of_success_ends_the_episode(seat):
    env, desk = seat
    ask(desk, mark=True)
    _, reward, terminated, truncated, info = env.step(NOTHING)
    assert (reward, terminated, truncated, info["measures"]["marked"]) == (1.0, True, False, 1.0)
    env.reset(seed=1)
    assert env.step(NOTHING)[2:4] == (False, False), "once"
    ask(desk, mark=False)
    _, reward, terminated, truncated, info = env.step(NOTHING)
    assert (reward, terminated, truncated, info["measures"]["marked"]) == (0.0, False, True, 0.0)
    env.reset(seed=1)
    ask(desk, mark=False)
    env.reset(seed=2)
    assert env.step(NOTHING)[2:4] == (False, False), "what was said of an episode that is over says nothing of the next"
    ask(desk, mark=False)
    assert LimitEnds(env).step(NOTHING)[2:4] == (True, False), "the paper's code"


def test_a_person_who_says_success_makes_a_demonstration_one():
    from tests.trainer.test_shown import played

    episode = played(set()).episodes[0]
    for measures, kept in (({}, True), ({"success": 0.0}, False), ({"success": 0.0, "marked": 1.0}, True), ({"marked": 0.0}, False)):
        episode.turns = [type("Turn", (), {"measures": measures})]
        assert succeeded(episode) == kept


def test_demonstrations_are_the_environments_own_until_hands_are_on(seat, monkeypatch):
    env, desk = seat
    env.reset(seed=1, options={DEMONSTRATE: True})
    flag, action = noted(env, np.array([-1, -1], np.float32))
    assert flag and action[0] > 0, "it knows the way"
    ask(desk, action=[-1, 0])
    assert noted(env) == (True, [-1.0, 0.0])
    monkeypatch.setattr(Insertion, "demonstrate", None)
    monkeypatch.delattr(Insertion, "demonstrate")
    monkeypatch.setattr(live, "PATIENCE_S", 0.0)
    desk.hands = live.Hands()
    with pytest.raises(TimeoutError, match=r"nobody has taken over within 0 s to demonstrate; expected a person"):
        env.step(NOTHING)


# -- the door -----------------------------------------------------------------------------------------------------------------------


def test_nothing_without_the_token(seat):
    env, desk = seat
    for token in ("", "other"):
        assert ask(desk, token=token, action=[1, 0])[0] == 401 and ask(desk, "/", token, "GET")[0] == 401
    assert not noted(env)[0] and not desk.visited
    status, body, headers = ask(desk, "/?token=sesame", "", "GET")
    assert status == 303 and headers["Location"] == "/" and "SameSite=Strict" in headers["Set-Cookie"]
    cookie = {"Cookie": headers["Set-Cookie"].partition(";")[0]}
    status, body, headers = ask(desk, "/", "", "GET", cookie)
    assert status == 200 and b"Backspace" in body and "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert ask(desk, token="", headers=cookie, action=[1, 0])[0] == 200 and noted(env)[0]


def test_nothing_else_is_served(seat):
    _, desk = seat
    for path in ("/state", "/../page.py", "/config.json", "/watch.js/.."):
        assert ask(desk, path, method="GET")[0] == 404
    assert ask(desk, "/", method="POST")[0] == 404 and desk.address.startswith("http://127.0.0.1:")


def test_another_servers_page_is_refused(seat):
    env, desk = seat
    for other in ("http://127.0.0.1:1", "http://localhost", "null"):
        status, answer, _ = ask(desk, headers={"Origin": other}, action=[1, 0])
        assert status == 403 and f"a page of {other} asks; expected this server's own" in answer["error"]["message"]
    assert not noted(env)[0]
    assert ask(desk, headers={"Origin": desk.address}, action=[1, 0])[0] == 200 and noted(env)[0]


def test_the_page_closes_with_its_last_copy(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    page = Page(number, 10.0)
    first, second, unused = (page(Insertion(see="numbers")) for _ in range(3))
    first.reset(seed=1)
    second.reset(seed=1)
    first.close()
    first.close()
    del unused
    assert DESKS[page].loop is not None
    second.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", number), timeout=5)
    faster = Page(number, 20.0)(Insertion(see="numbers"))
    faster.reset(seed=1)
    faster.close()
    again = page(Insertion(see="numbers"))
    again.reset(seed=1)
    socket.create_connection(("127.0.0.1", number), timeout=5).close()
    again.close()
    DESKS.clear()


@pytest.mark.parametrize(
    ("field", "found"),
    [
        ("visitor", ""),
        ("visitor", "x" * 65),
        ("seat", "0"),
        ("seat", True),
        ("action", [float("nan")]),
        ("action", ["1"]),
        ("action", 1),
        ("action", [0] * 65),
        ("mark", 1),
        ("slow", 0),
        ("has", []),
    ],
)
def test_a_wish_of_another_form_is_refused_by_name(field, found):
    said = {"visitor": "ann", "seat": 0, "action": [0.5], "mark": None, "has": {}}
    assert wish(said).action == (0.5,)
    with pytest.raises(Refused, match=f"{field} = .*; expected"):
        wish({**said, field: found})


def test_a_port_that_is_taken_and_settings_that_cannot_be_are_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"page: port {number} of 127.0.0.1 cannot be had .*; page:0 takes a free one"):
            Page(number)(Insertion(see="numbers")).reset(seed=0)
    with pytest.raises(ValueError, match=r"page: the environment takes Discrete\(4\); expected a Box of one dimension"):
        Page()(Reach())
    for wrong in ({"port": -1}, {"hz": 0.0}):
        with pytest.raises(ValueError, match=f"page: {next(iter(wrong))} = "):
            Page(**wrong)
    DESKS.clear()


# -- what is shown ------------------------------------------------------------------------------------------------------------------


def test_pictures_are_those_of_the_observation_or_what_is_rendered(seat):
    env, desk = seat
    ask(desk)
    env.step(NOTHING)
    shown = ask(desk)[1]["seats"][0]
    (name, uri), count = shown["frames"][0], shown["count"]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
    assert name == "" and (picture == env.unwrapped.render()).all()
    assert ask(desk, has={"0": count})[1]["seats"][0]["frames"] == [], "what the page has is not sent again"
    two = np.arange(2 * 2 * 6, dtype=np.uint8).reshape(2, 2, 6)
    assert {k: v[0, 0].tolist() for k, v in seen_in(two).items()} == {"1": [0, 1, 2], "2": [3, 4, 5]}
    parts = (Part("wrist", (2, 2, 3), "uint8"), Part("state", (2,)), Part("told", (4,), "uint8"))
    row = pack(parts, {"wrist": two[..., :3], "state": [1, 2], "told": [0] * 4})
    assert list(seen_in(row, parts)) == ["wrist"] and (seen_in(row, parts)["wrist"] == two[..., :3]).all()
    assert seen_in(np.zeros(3, np.float32)) == {} == seen_in(two[..., :4])


def test_a_picture_is_never_older_than_its_count(seat, monkeypatch):
    env, desk = seat
    ask(desk)
    env.step(NOTHING)
    person, encode = env.watcher, live.data_uri

    def slowly(picture):
        monkeypatch.setattr(live, "data_uri", encode)
        env.step(np.ones(2, np.float32))
        return encode(picture)

    monkeypatch.setattr(live, "data_uri", slowly)
    told = person.state(None)
    assert person.state(told["count"])["frames"], "the step in between is still to be seen"


def test_simulators_that_show_numbers_are_drawn_or_listed_without(monkeypatch):
    gym_of = Gym.named("Pendulum-v1,around=page", "train")
    envs = gym_of.vector(1)
    assert gym_of.kwargs == {} and envs.envs[0].unwrapped.render_mode == "rgb_array"
    envs.close()
    page = Page()
    unseen, broken = (page(gym.make("Pendulum-v1", render_mode=mode)) for mode in (None, "rgb_array"))
    unseen.reset(seed=1)

    def nothing():
        raise RuntimeError("no display")

    monkeypatch.setattr(broken.unwrapped, "render", nothing)
    with pytest.warns(UserWarning, match="is not shown: RuntimeError: no display"):
        broken.reset(seed=1)
    broken.step(np.zeros(1, np.float32))
    said = {"visitor": "ann", "seat": 0, "action": None, "mark": None, "has": {}}
    assert [(s["seat"], s["frames"]) for s in DESKS[page].state(said)["seats"]] == [(0, []), (1, [])]
    unseen.close()
    broken.close()
    DESKS.clear()


def test_keys_go_where_the_environment_says():
    def keys(axes, dims):
        return [(b["name"], b["plus"], b["pad"]) for b in bindings(axes, dims)]

    assert keys(("right", "down"), 2) == [("right", "ArrowRight", "a0"), ("down", "ArrowDown", "!-a1")]
    assert keys((), 3) == [("action 1", "ArrowRight", "a0"), ("action 2", "ArrowUp", "-a1"), ("action 3", "KeyE", "b7-b6")]
    assert keys(("down", "turn", "close"), 3) == [("down", "ArrowDown", "!-a1"), ("turn", "ArrowRight", "a0"), ("close", "KeyL", "!b3-b0")]
    assert keys(("right", "up", "rise"), 2) == [("right", "ArrowRight", "a0"), ("up", "ArrowUp", "-a1")]
    assert [b["dim"] for b in bindings((), 20)] == [str(i) for i in range(7)], "more dimensions than keys"


# -- by name, and in a run ------------------------------------------------------------------------------------------------------------


def test_whoever_is_around_has_a_name():
    assert wrapper("page:8765,hz=20") == Page(8765, 20.0) and wrapper("by-turns") == ByTurns()
    assert Gym("a", around=("page",)).around == (Page(),)
    made = Gym.named("fovea/Insertion-v0,around=never+page:80", "train")
    assert made.make == "fovea/Insertion-v0" and made.around[1] == Page(80)
    assert Gym.named("fovea/Insertion-v0,around=page:80", "heldout").around == () == made.heldout().around
    for name, match in (
        ("pgae", "did you mean 'page'"),
        ("page:x", "port = 'x'; expected int"),
        ("never:3", "no option '3'"),
        ("by-chance", "found no share, expected by-chance:SHARE"),
    ):
        with pytest.raises(ValueError, match=match):
            wrapper(name)
    with pytest.raises(ValueError, match="found 'limit=3', expected around=NAME"):
        Gym.named("fovea/Insertion-v0,limit=3", "train")


def test_what_a_person_does_is_kept_as_what_a_script_does_is(tmp_path, monkeypatch):
    """A person comes after the first step and holds "down": all that is done from then on is theirs, and is kept a second time."""
    monkeypatch.setenv("FOVEA_TOKEN", "sesame")
    monkeypatch.setattr(live, "STALE_S", 600.0)
    page = Page(hz=1000.0)

    def come(step, metrics):
        desk = DESKS[page]
        ask(desk, slow=False, seat=ask(desk)[1]["seats"][0]["seat"], action=[0, 1])

    try:
        fovea.train(
            "hil-serl",
            data=Gym("fovea/Insertion-v0", {"see": "numbers", "limit": 40}, around=(page,)),
            network=Network(width=8),
            max_rows=1,
            horizon=20,
            steps=3,
            replay=Replay(size=200, start=20, batch=8, demonstrations=0, share=0.5),
            updates_per_rollout=1,
            eval_tasks=0,
            threads=1,
            out=str(tmp_path),
            quiet=True,
            on_step=come,
        )
    finally:
        DESKS.clear()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["policy/intervened"] for r in rows] == [0.0, 1.0, 1.0]
    assert rows[0]["replay/shown"] == 0 and rows[1]["replay/shown"] >= 20, "with the frames after"
    assert "sesame" not in (tmp_path / "config.json").read_text()


def test_what_a_person_did_is_done_again_when_a_run_goes_on():
    page = Page(hz=1000.0)
    task = Task("t", "t", ())

    def engine():
        made = Gym("fovea/Insertion-v0", {"see": "numbers", "limit": 60}, around=(page, ByTurns()))  # the person has the last word
        return VectorEngine(control.Random(made.spaces(envs := made.vector(2))), envs, 0)

    def stream(driver, step, hands=None):
        desk = DESKS[page]
        if hands is not None:
            seat = driver.envs.envs[0].env.watcher.seat
            desk.hands = live.Hands(seat, hands, time.monotonic() + 600)
        groups = driver.stream(task, 7, Context(step))
        desk.hands = live.Hands()
        return [e.segments[0].actions.tolist() for g in groups for e in g.episodes], groups

    whole, first, second = engine(), engine(), engine()
    for driver in (whole, first):
        stream(driver, 0)
        done, groups = stream(driver, 1, (0.25, -0.5))
        assert groups[0].episodes[0].segments[0].extras["intervened"].all() and done[0] == [[0.25, -0.5]] * 7
    people = [env.env.watcher for env in second.envs.envs]
    for person in people:
        person.mark = True
    state = json.loads(json.dumps(first.state_dict()))
    DESKS[page].asked = lambda seat: (1.0, 1.0)
    second.load_state_dict(state)
    del DESKS[page].asked
    assert second.lost == 0 and second.state_dict() == state and not any(person.again for person in people)
    assert stream(second, 2)[0] == stream(whole, 2)[0]
    for driver in (whole, first, second):
        driver.close()
    DESKS.clear()


def test_a_browser_takes_over_by_its_keys(chromium, seat, monkeypatch):
    env, desk = seat
    tab = chromium.new_page(viewport={"width": 1200, "height": 800})
    faults = []
    tab.on("pageerror", lambda e: faults.append(str(e)))
    tab.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)

    def until(wanted):
        for _ in range(2000):
            if (found := noted(env)) == wanted:
                return True
            tab.wait_for_timeout(20)
        return found

    tab.goto(desk.door.whole(desk.address))
    tab.wait_for_selector("#stage img[src^='data:image/png']", state="attached")
    assert "token" not in tab.url and tab.inner_text("#keys").split() == [
        "→",
        "←",
        "right,",
        "and",
        "back",
        "↓",
        "↑",
        "down,",
        "and",
        "back",
    ]
    assert until((False, [0, 0]))
    tab.keyboard.down("ArrowRight")
    assert until((True, [1.0, 0.0])) is True
    tab.wait_for_selector("body.mine")
    tab.keyboard.down("ArrowUp")
    assert until((True, [1.0, -1.0])) is True, "the picture's down is the action's positive direction"
    tab.keyboard.up("ArrowUp")
    tab.keyboard.up("ArrowRight")
    assert until((False, [0, 0])) is True
    tab.keyboard.press("Space")
    assert until((True, [0.0, 0.0])) is True, "hands are kept on"
    tab.keyboard.press("Space")
    assert until((False, [0, 0])) is True
    tab.keyboard.press("Enter")
    assert any(env.step(NOTHING)[2] or tab.wait_for_timeout(20) for _ in range(400)), "success"
    tab.keyboard.down("ArrowRight")
    env.reset(seed=1)
    assert until((True, [1.0, 0.0])) is True
    tab.close()
    monkeypatch.setattr(live, "STALE_S", 0.0)
    assert not noted(env)[0] and not faults


def test_what_was_said_while_the_run_was_out_of_reach_is_dropped(chromium, seat):
    env, desk = seat
    tab = chromium.new_page()
    tab.goto(desk.door.whole(desk.address))
    tab.wait_for_selector("#stage img[src^='data:image/png']", state="attached")
    tab.route("**/state", lambda route: route.abort())
    tab.wait_for_selector("#who:has-text('no answer')")
    tab.keyboard.press("Enter")
    tab.wait_for_timeout(200)
    tab.unroute("**/state")
    tab.wait_for_selector("#who:has-text('the policy acts')")
    tab.wait_for_timeout(100)
    assert env.watcher.mark is None
    tab.close()
