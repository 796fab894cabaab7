"""MiniWoB++ in Chromium: actions from text, pages by seed, a good player, browsers that die."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from PIL import Image

from fovea.checks import check_environment
from fovea.envs.browser import Browsers, apart, browsers
from fovea.envs.miniwob import CAUSE, KEY, TASKS, MiniWob, parse
from fovea.envs.resolve import ENVIRONMENTS, environment
from fovea.rollout.engine import Engine
from fovea.rollout.sampling import Sampling
from fovea.types import Action, Task
from tests.rollout.fake_policy import FakePolicy, scripted

needs_chromium = pytest.mark.skipif(bool(ENVIRONMENTS["miniwob"].problem()), reason=ENVIRONMENTS["miniwob"].problem())
SIZE = (160, 210)
ALIKE = {"click-checkboxes-large", "click-checkboxes-transfer", "click-tab-2-easy", "click-link", "enter-text-dynamic", "enter-password"}
"""Tasks whose player is that of another one."""


def start(what, seed=1):
    return Task(f"{what}/{seed}", "web", (), verifier="return", meta={"what": what, "seed": seed})


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("click(12, 30)", ("click", (12.0, 30.0))),
        ("no, click(1,2) is wrong: doubleclick(159.5,209)", ("doubleclick", (159.5, 209.0))),
        ("drag(1,2,3,4)", ("drag", (1.0, 2.0, 3.0, 4.0))),
        ("scroll(1,2,-300)", ("scroll", (1.0, 2.0, -300.0))),
        ("type(Ann Lee)", ("type", "Ann Lee")),
        (r'type("a \"b\" (c)")', ("type", 'a "b" (c)')),
        ("key(Control+a)", ("key", "Control+a")),
        *((bad, None) for bad in ("click(160,3)", "click(-1,3)", "click(3)", "click(a,b)", "click(nan,1)", "key(Reboot)", "type()", "hm")),
        ("drag(1,2,3,210)", None),
        (f"type({'a' * 201})", None),
    ],
)
def test_an_action_is_read_from_a_text(text, action):
    assert parse(text, SIZE) == action


def test_keys_are_those_of_a_keyboard():
    assert all(KEY.fullmatch(k) for k in ("Enter", "ArrowUp", "Shift+Tab", "x"))
    assert not any(KEY.fullmatch(k) for k in ("", "F99", "Control+"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("miniwob:click-tset", "no page 'click-tset'; there are: ascending-numbers, "),
        ("miniwob:click-test,view=half", r"view = 'half', reply = ''; expected one of \('page', 'area'\)"),
        ("miniwob:click-test,browsers=0", "browsers = 0"),
        ("miniwob:click-test,invalid=no", "invalid = 'no'; expected 'random' or a number"),
    ],
)
@needs_chromium
def test_wrong_options_are_explained(name, message):
    with pytest.raises(ValueError, match=message):
        environment(name)


async def played(env, task, wrong=False):
    """(first observation, replies, reward, info) of the good player, or of one who clicks on something else first."""
    first, said, reward, over, info = await env.reset(task, 0), [], 0.0, False, {}
    while not over:
        say = await env.demonstrate()
        if wrong and not said:
            (x, y), *_ = (await apart(env._advice()))["others"]
            say = f"<answer>click({x},{y})</answer>"
        said.append(say)
        _, paid, terminated, truncated, info = await env.step(Action(say))
        reward, over = reward + paid, terminated or truncated
    return first, said, reward, info


@needs_chromium
def test_the_good_player_wins_and_a_second_look_is_the_same():
    async def all_tasks():
        for what in (t for t in TASKS if t not in ALIKE):
            env = MiniWob(what, view="area", side=64, reply="short", max_turns=40, browsers=1)
            first, said, reward, info = await played(env, start(what))
            assert reward == 1 and info["measures"] == {"success": 1.0}, (what, said, reward)
            assert first.images[0].size == (64, 64)
            again = await env.reset(start(what), 5)
            assert again.images[0].tobytes() == first.images[0].tobytes() and again.messages == first.messages, what
            assert set(await apart(env.page.evaluate("fovea.tasks"))) == set(TASKS)
            env.close()

    made = browsers(1).counts["made"]
    asyncio.run(all_tasks())
    assert browsers(1).counts["made"] - made <= 1


@needs_chromium
def test_something_else_is_wrong():
    async def all_tasks():
        env = MiniWob(view="area", reply="short", max_turns=1, browsers=1)
        for what in ("click-test-2", "click-tab", "click-color", "click-shape", "count-shape", "click-dialog-2", "focus-text-2"):
            *_, reward, info = await played(env, start(what, 4), wrong=True)
            assert reward == -1 and info["measures"] == {"success": 0.0}, what

    asyncio.run(all_tasks())


@needs_chromium
def test_the_contract_and_an_invalid_reply():
    env = MiniWob("click-test-2", max_turns=2, browsers=1, invalid="-0.5")
    check_environment(lambda: env, start("click-test-2"))

    async def invalid():
        first = await env.reset(start("click-test-2"), 0)
        seen, *rest = await env.step(Action("click(500,3)"))
        return first, seen, rest

    first, seen, (reward, terminated, truncated, info) = asyncio.run(invalid())
    assert (reward, terminated, truncated, info["legal"]) == (-0.5, False, False, False)
    assert seen.images[0].tobytes() == first.images[0].tobytes() and first.images[0].size == (160, 210)
    assert first.messages[0]["content"][-1]["text"].startswith("Click button ONE.\nDo one thing: click(x,y), ")
    env.close()


@needs_chromium
def test_slips_click_elsewhere_as_often_as_they_say():
    async def said(slips):
        env = MiniWob("click-test-2", slips=slips, browsers=1)
        texts = []
        for seed in range(12):
            await env.reset(start("click-test-2", 3), seed)
            texts.append(await env.demonstrate())
        env.close()
        return texts

    right, noisy = asyncio.run(said(0.0)), asyncio.run(said(0.5))
    assert len(set(right)) == 1 and 2 <= sum(a != b for a, b in zip(right, noisy, strict=True)) <= 10


@needs_chromium
def test_a_blank_page_is_refused_with_its_likely_cause(monkeypatch):
    async def blank(self):
        self.seen = Image.new("RGB", SIZE, "white")

    monkeypatch.setattr(MiniWob, "_shoot", blank)
    env = MiniWob("click-test", browsers=1)
    with pytest.raises(RuntimeError, match=r"miniwob:click-test: its first .* of one colour, \[255, 255, 255\]; likely " + CAUSE[:20]):
        asyncio.run(env.reset(start("click-test"), 0))
    env.close()


def chromium_below(pid):
    """Process ids of the browsers (not their helpers) below `pid`."""
    found, parents = [], dict[int, int]()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
            except OSError:
                continue
            if b"chrom" in command and b"--type=" not in command and b"--remote-debugging" in command:
                found.append(int(entry.name))

    def below(child):
        return child == pid or (child in parents and child > 1 and below(parents[child]))

    return [p for p in found if below(p)]


class Murder(MiniWob):
    """Its second episode loses the browser under it."""

    episodes = 0

    async def step(self, action):
        Murder.episodes += 1
        if Murder.episodes == 2:
            for pid in chromium_below(os.getpid()):
                os.kill(pid, signal.SIGKILL)
        return await super().step(action)


@needs_chromium
def test_a_killed_browser_costs_one_episode_and_is_replaced():
    shared = browsers(1)
    before = shared.counts.copy()
    policy = FakePolicy(scripted({"Click button ONE.": "<answer>click(1,1)</answer>"}))
    engine = Engine(policy, environment=lambda: Murder("click-test-2", reply="short", max_turns=1, browsers=1), max_rows=3)
    (group,) = engine.rollout([start("click-test-2")], 4, Sampling(temperature=0, max_new_tokens=40))
    ends = sorted(e.stop for e in group.episodes)
    assert ends == ["cut", "cut", "cut", "error"] and engine.counts["errors"] == 1
    now = shared.counts - before
    assert (now["broken"], now["lent"], now["dead"]) == (1, 4, 0) and len(shared.free) == 1


def test_episodes_wait_for_a_browser_and_a_dead_one_is_not_lent():
    class Chromium:
        alive = True

        def is_connected(self):
            return self.alive

        async def close(self):
            self.alive = False

    class Fake(Browsers):
        async def _start(self):
            from fovea.envs.browser import Browser

            self.counts["made"] += 1
            chromium = Chromium()
            return Browser(type("Driver", (), {"stop": chromium.close})(), chromium, None)

    async def story():
        pool = Fake(2)
        one, two = await pool.lend(), await pool.lend()
        waiting = asyncio.ensure_future(pool.lend())
        await asyncio.sleep(0)
        assert not waiting.done()
        await pool.back(one)
        assert await waiting is one
        await pool.back(two, broken=True)
        await pool.back(one)
        one.chromium.alive = False
        assert await pool.lend() is not one
        assert pool.counts == {"made": 3, "lent": 4, "broken": 1, "dead": 1}

    asyncio.run(story())
