"""MiniWoB++ in Chromium (Liu et al. 2018, arXiv 1802.08802): small web pages, seen in screenshots and used by mouse and keyboard.

    "miniwob:click-test-2"              the page, 160 x 210 pixels; what is asked is the prompt
    "miniwob:click-test-2,view=area,side=64,reply=short"    what lies below the yellow line that repeats the question, 64 x 64 pixels

A reply does one thing: ``click(x,y)``, ``doubleclick(x,y)``, ``move(x,y)``, ``drag(x1,y1,x2,y2)``, ``scroll(x,y,down)``,
``type(text)``, ``key(name)``; of several the last. Points are pixels of the picture as shown. The reward is the page's own, −1 to 1,
without its loss by the clock, and no episode ends by the clock.

`TASKS` have a good player and start again without being loaded again. Every other page of the package can be named as well; it is loaded
for each episode, and what it takes from the clock instead of from `Math.random` does not follow the seed.
"""

from __future__ import annotations

import asyncio
import base64
import io
import re
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fovea.envs.browser import PATIENCE_S, Browser, apart, browsers, later
from fovea.envs.gestures import last_call
from fovea.envs.gym import refuse_constant
from fovea.envs.simulators import invalid_reward
from fovea.envs.words import REPLIES, answered
from fovea.envs.zoom import fit, number
from fovea.types import Action, Observation, Task, user

WIDTH, HEIGHT, TOP = 160, 210, 50  # of a page, and where what is asked ends, in pixels
VIEWS = {"page": 0, "area": TOP}
TASKS = (
    *"click-test click-test-2 click-button click-button-sequence click-dialog click-dialog-2 click-tab click-tab-2".split(),
    *"click-tab-2-easy click-link click-color click-shape count-shape click-shades click-checkboxes click-checkboxes-large".split(),
    *"click-checkboxes-transfer click-option click-widget click-collapsible focus-text focus-text-2 grid-coordinate".split(),
    *"enter-text enter-text-dynamic enter-password login-user simple-arithmetic".split(),
)
"""Pages with a good player (miniwob.js)."""
POINTS = {"click": 2, "doubleclick": 2, "move": 2, "drag": 4, "scroll": 3}
"""Action -> how many numbers it takes."""
ACTIONS = (*POINTS, "type", "key")
KEY = re.compile(
    r"((Control|Shift|Alt)\+)*(Enter|Tab|Backspace|Delete|Escape|Space|Arrow(Up|Down|Left|Right)|Home|End|PageUp|PageDown|[A-Za-z0-9])"
)
LONGEST = 200  # characters that one action types
HOW = (
    "Do one thing: click(x,y), doubleclick(x,y), move(x,y), drag(x1,y1,x2,y2), scroll(x,y,down), type(text) or key(name), "
    "in pixels of the picture, which is {width} wide and {height} high."
)
CAUSE = "a page that had not been drawn yet: a machine so busy that it needs fewer browsers at a time (browsers=1)"
RANDOM_CLICK, SLIP = range(2)  # what a random number is for


class MiniWob:
    """One page per episode: `task.meta["what"]` where the task has it, else `page`, dealt by `task.meta["seed"]` or the seed.

    Every turn shows the last screenshot alone. Its methods are coroutines; from a reset to the end of the episode, or until `close`, a
    browser is lent to it.

    Args:
      page: of `TASKS`, or another of the package.
      view: "page", or the "area" below the question.
      side: longest side of the picture in pixels; 0: as it is.
      reply: "" reads the whole text, "short" its answer, "json" what stands behind ``"action":``.
      max_turns: the episode is cut after so many replies.
      invalid: reward of a reply that names no action inside the picture, which does nothing; "random" clicks at random instead.
      slips: share of the turns in which `demonstrate` clicks elsewhere, on something else or anywhere.
      browsers: that run at a time; episodes wait for one.
    """

    _browser: Browser | None = None

    def __init__(
        self,
        page: str = "click-test-2",
        view: str = "page",
        side: int = 0,
        reply: str = "",
        max_turns: int = 10,
        invalid: str = "-0.1",
        slips: float = 0.0,
        browsers: int = 4,
    ):
        if page not in pages():
            raise ValueError(f"miniwob: no page {page!r}; there are: {', '.join(pages())}")
        if view not in VIEWS or reply not in ("", *REPLIES):
            raise ValueError(f"miniwob: view = {view!r}, reply = {reply!r}; expected one of {(*VIEWS,)}, and '' or one of {REPLIES}")
        if browsers < 1 or max_turns < 1 or side < 0 or not 0 <= slips <= 1:
            found = f"browsers = {browsers}, max_turns = {max_turns}, side = {side}, slips = {slips}"
            raise ValueError(f"miniwob: {found}; expected at least 1, 1 and 0, and a share between 0 and 1")
        self.kind, self.reply, self.max_turns, self.slips, self.most = page, reply, max_turns, slips, browsers
        self.invalid, self.view, self.top = invalid_reward(invalid), view, VIEWS[view]
        self.scale = max(WIDTH, HEIGHT - self.top) / side if side else 1.0
        self.size = round(WIDTH / self.scale), round((HEIGHT - self.top) / self.scale)

    async def reset(self, task: Task, seed: int) -> Observation:
        self.name, self.turns, self.seed = str(task.meta.get("what", self.kind)), 0, seed
        if self.name not in pages():
            raise ValueError(f"task {task.id!r}: meta['what'] = {self.name!r}; expected one of {', '.join(pages())}")
        await apart(self._guarded(self._deal, str(task.meta.get("seed", seed))))
        refuse_constant(self.seen, f"miniwob:{self.name}", CAUSE)
        return self._look()

    async def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        said = str(action.value)
        call = parse(answered(said, self.reply) if self.reply else said, self.size)
        self.turns += 1
        legal, over, done, reward = call is not None, self.turns >= self.max_turns, False, self.invalid or 0.0
        if call is None and self.invalid is None:
            x, y = (int(n) for n in self._rng(RANDOM_CLICK).integers(self.size))
            call = "click", (x, y)
        if call is not None:
            done, reward = await apart(self._guarded(self._act, *call))
        if done or over:
            await apart(self._leave())
        info = {"legal": legal, "measures": {"success": float(done and reward > 0)}, **({} if legal else {"invalid": True})}
        return Observation() if done else self._look(), reward, done, over and not done, info

    async def demonstrate(self) -> str:
        """What a good player says now, who clicks elsewhere as often as `slips` says."""
        if self.name not in TASKS:
            raise ValueError(f"miniwob: nobody demonstrates {self.name!r}; there are: {', '.join(TASKS)}")
        advice = await apart(self._guarded(self._advice))
        rng = self._rng(SLIP)
        if "click" in advice and rng.random() < self.slips:
            others = advice["others"] if rng.random() < 0.5 else []
            advice["click"] = others[int(rng.integers(len(others)))] if others else [int(n) for n in rng.integers(self.size)]
        if "click" in advice and advice["click"] is None:
            raise RuntimeError(f"miniwob: what {self.name!r} asks for is covered, or outside of the view {self.view!r} (seed {self.seed})")
        (name,) = (n for n in ("click", "type", "key") if n in advice)
        call = f"{name}({','.join(map(str, advice[name])) if name == 'click' else advice[name]})"
        json = f'{{"thoughts": "{call} comes next", "action": "{call}"}}'
        return {"short": f"<answer>{call}</answer>", "json": json}.get(self.reply, call)

    def close(self) -> None:
        """Give the browser back."""
        if (browser := self._browser) is not None:
            self._browser = None
            later(browsers(self.most).back(browser))

    __del__ = close

    def _look(self) -> Observation:
        asked = self.goal
        if self.reply != "short":
            asked += "\n" + HOW.format(width=self.size[0], height=self.size[1])
        if self.reply == "json":
            asked += '\nAnswer with JSON alone: {"thoughts": ..., "action": ...}'
        return Observation(messages=user(asked), images=(self.seen,))

    def _rng(self, purpose: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, purpose, self.turns])))

    # -- in the thread of the browsers ----------------------------------------------------------------------------------------

    async def _guarded(self, work: Callable[..., Any], *args: Any) -> Any:
        """What `work` gives; where it raises or does not end in time, the browser is closed for good."""
        if self._browser is None:
            self._browser = await browsers(self.most).lend()
        try:
            return await asyncio.wait_for(work(*args), PATIENCE_S)
        except BaseException:
            await self._leave(broken=True)
            raise

    async def _leave(self, broken: bool = False) -> None:
        if (browser := self._browser) is not None:
            self._browser = None
            await browsers(self.most).back(browser, broken)

    async def _deal(self, seed: str) -> None:
        assert self._browser is not None
        self.page, self.tools = await self._browser.page(pages()[self.name], _script(), again=self.name not in TASKS)
        await self.page.mouse.move(-1, -1)  # what lay under the mouse of the last episode looked different
        self.goal = await self.page.evaluate("seed => fovea.start(seed)", seed)
        await self._shoot()

    async def _advice(self) -> dict[str, Any]:
        return await self.page.evaluate("([task, scale, top]) => fovea.advice(task, scale, top)", [self.name, self.scale, self.top])

    async def _act(self, name: str, given: Any) -> tuple[bool, float]:
        """(whether the episode ended, the page's reward)."""
        mouse, keyboard = self.page.mouse, self.page.keyboard
        if name == "type":
            await keyboard.type(given)
        elif name == "key":
            await keyboard.press(given)
        else:
            points = [((x + 0.5) * self.scale, self.top + (y + 0.5) * self.scale) for x, y in zip(given[:4:2], given[1:4:2])]
            await mouse.move(*points[0])
            if name in ("click", "doubleclick"):
                await mouse.click(*points[0], click_count=2 if name == "doubleclick" else 1)
            elif name == "drag":
                await mouse.down()
                await mouse.move(*points[1], steps=3)
                await mouse.up()
            elif name == "scroll":
                await mouse.wheel(0, given[2] * self.scale)
        done, reward = await self.page.evaluate("fovea.state()")
        if not done:
            await self._shoot()
        return done, float(reward) if done else 0.0

    async def _shoot(self) -> None:
        clip = {"x": 0, "y": self.top, "width": WIDTH, "height": HEIGHT - self.top, "scale": 1}
        shot = await self.tools.send("Page.captureScreenshot", {"format": "png", "optimizeForSpeed": True, "clip": clip})
        whole = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
        self.seen = fit(whole, 0 if self.scale == 1 else max(self.size))


def parse(text: str, size: tuple[int, int]) -> tuple[str, Any] | None:
    """(action, what it takes) of the last action in `text`: points in a picture of `size`, how far a scroll goes, or a text.

    None where no action is named, or its numbers, its key or the length of its text are none that it takes.
    """
    called = last_call(text, ACTIONS)
    if called is None:
        return None
    name, given = called
    if name == "type":
        return (name, given) if 0 < len(given) <= LONGEST else None
    if name == "key":
        return (name, given) if KEY.fullmatch(given) else None
    numbers = [number(n) for n in given.split(",")]
    if len(numbers) != POINTS[name] or not all(abs(n) < 1e4 for n in numbers):
        return None
    inside = all(0 <= n < limit for n, limit in zip(numbers[: 2 * (len(numbers) // 2)], size * 2))
    return (name, tuple(numbers)) if inside else None


@cache
def pages() -> dict[str, str]:
    """Page -> its address, of all that the package brings."""
    found = find_spec("miniwob")
    if found is None or not found.submodule_search_locations:
        raise ImportError("MiniWoB++ needs the package miniwob: pip install 'fovea-rl[browser]'")
    folder = Path(found.submodule_search_locations[0]) / "html" / "miniwob"
    return {file.stem: file.as_uri() for file in sorted(folder.glob("*.html"))}


@cache
def _script() -> str:
    return Path(__file__).with_suffix(".js").read_text(encoding="utf-8") + "\n0"  # evaluates to something that can be sent
