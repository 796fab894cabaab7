"""A page on which a person watches training episodes and takes over, by keyboard or gamepad: one more of those in `fovea.envs.watched`.

    Gym("fovea/Insertion-v0", around=("learned", "page:8765"))

The address is printed when the first episode begins; it holds a token. Training never waits for anybody: without a visitor it runs at full
speed, with one the chosen copy keeps to `hz` steps a second. Hands are on while a key of movement is held (or until the toggle is pressed
again), and off where nothing has been heard for `STALE_S`: a tab that is closed or hangs lets go. Of several visitors one acts at a time.
What the person says of success ends an episode: with reward 1, or with 0 as a cut.

One thread speaks HTTP (`fovea.rollout.http`); the environment's thread leaves pictures and takes what was last asked for. The page closes
with the last of its copies. Where an episode is played again, what was done in it is done again, and hands do nothing.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from fovea.envs.films import pictures
from fovea.envs.watched import Watched
from fovea.images import data_uri
from fovea.rollout.http import GUARD, Door, Refused, Reply, Request, address_of, listen, secret

STALE_S = 0.5
"""Hands that have said nothing for so long are off."""
HERE_S, PATIENCE_S = 2.0, 600.0
"""A visitor who has asked for nothing for so long is gone; a demonstration waits so long for somebody to begin."""
ASSETS = Path(__file__).parent / "assets"
FILES = {"/": ("watch.html", "text/html"), "/watch.js": ("watch.js", "text/javascript"), "/watch.css": ("watch.css", "text/css")}
POLICY = (
    "default-src 'none'; img-src data:; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)

KEYS = (
    ("ArrowRight", "ArrowLeft", "a0"),
    ("ArrowUp", "ArrowDown", "-a1"),
    ("KeyE", "KeyQ", "b7-b6"),
    ("KeyD", "KeyA", "a2"),
    ("KeyW", "KeyS", "-a3"),
    ("KeyC", "KeyZ", "b5-b4"),
    ("KeyO", "KeyL", "b3-b0"),
)
"""For one dimension of an action each: keys that add and take away, and what a gamepad says (axis n, button n less button m)."""
PLACED = {"right": 0, "left": 0, "up": 1, "down": 1, "rise": 2, "open": 6, "close": 6}
"""Words for the positive direction of a dimension -> the keys that suit them. "left", "down" and "close" take them the other way round."""
BACKWARD = ("left", "down", "close")


@dataclass(frozen=True)
class Page:
    """Somebody at a page; a wrapper for `Gym.around`. Copies of an environment with the same settings share one page.

    What the dimensions of an action are called is in the environment's `metadata["axes"]`, the word of the positive direction of each, such
    as ("right", "down"). A person who plays demonstrations (`replay.demonstrations`) takes the place of `demonstrate()` while hands are
    on; an environment that has none waits for them.

    Attributes:
      port: 0 takes a free one. host: other machines reach it where it is not this one's own address.
      hz: steps a second of the copy that is watched.
    """

    port: int = 0
    hz: float = 10.0
    host: str = "127.0.0.1"
    looks = True

    def __post_init__(self) -> None:
        if not 0 <= self.port < 1 << 16:
            raise ValueError(f"page: port = {self.port}; expected 0 to {(1 << 16) - 1}")
        if not 0 < self.hz <= 1000:
            raise ValueError(f"page: hz = {self.hz}; expected more than 0, at most 1000")

    def __call__(self, env: gym.Env) -> gym.Wrapper:
        space = env.action_space
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"page: the environment takes {space}; expected a Box of one dimension, which keys can move")
        if self not in DESKS:
            DESKS[self] = Desk(self)
        return Watched(env, Person(DESKS[self], space.shape[0]))


DESKS: dict[Page, Desk] = {}
"""The pages of this process."""


def bindings(axes: Sequence[str], dims: int) -> list[dict[str, str]]:
    """For each dimension that has keys: its number, its name, the keys that add and take away, and what a gamepad says.

    Args:
      axes: words of the positive directions; where one is missing or unknown the next keys that are free.
    """
    names = [*axes, *(f"action {i + 1}" for i in range(len(axes), dims))][:dims]
    taken = {PLACED[n] for n in names if n in PLACED}
    free = iter([i for i in range(len(KEYS)) if i not in taken])
    out = []
    for i, name in enumerate(names):
        if (at := PLACED[name] if name in PLACED else next(free, None)) is None:
            continue
        plus, minus, pad = KEYS[at]
        if name in BACKWARD:
            plus, minus, pad = minus, plus, f"!{pad}"
        out.append({"dim": str(i), "name": name, "plus": plus, "minus": minus, "pad": pad})
    return out


@dataclass(frozen=True)
class Hands:
    """What the hands last did, in which copy and when: `action` is None where they are off."""

    seat: int = -1
    action: tuple[float, ...] | None = None
    at: float = -math.inf


class Person:
    """The watcher of one copy.

    Attributes:
      frames: camera -> picture, what the last step showed; `count` grows with every one. `blind`: nothing can be drawn.
      done: at each step of the episode, what was done in the policy's place.
      again: where an episode is played again, what is done at the next step, (None,) if nothing; None where hands act.
    """

    def __init__(self, desk: Desk, size: int):
        self.desk, self.size = desk, size
        self.frames: dict[str, np.ndarray] = {}
        self.count, self.episode, self.steps, self.taken, self.acts = 0, 0, 0, 0, False
        self.axes: list[dict[str, str]] = []
        self.at = -math.inf
        self.mark: bool | None = None
        self.seat, self.blind = -1, False
        self.done: list[list[float] | None] = []
        self.given: list[float] | None = None
        self.again: tuple[Sequence[float] | None] | None = None
        self.desk.copies += 1
        self._leaves = weakref.finalize(self, desk.leave)
        self._leaves.atexit = False

    def close(self) -> None:
        self.desk.seats.pop(self.seat, None)
        self.seat = -1
        self._leaves()
        self.desk.wait()

    def begin(self, scene: Any, obs: Any, rng: np.random.Generator) -> None:
        self.desk.open()
        if self.seat < 0:
            self.seat = self.desk.sit(self)
        self.dims = self.size // getattr(scene, "chunk", 1)
        self.axes = bindings((getattr(scene, "metadata", None) or {}).get("axes", ()), self.dims)
        self.episode, self.steps, self.taken, self.acts, self.mark = self.episode + 1, 0, 0, False, None
        self.done = []
        self._show(scene, obs)

    def takes(self, scene: Any, proposed: np.ndarray | None) -> np.ndarray | None:
        if self.again is None:
            self.desk.pace(self)
        asked = self.desk.asked(self.seat) if self.again is None else self.again[0]
        self.acts, self.given = asked is not None, None if asked is None else list(asked)
        if asked is None:
            return None
        one = np.zeros(self.dims, np.float32)
        given = np.clip(np.asarray(asked, np.float32)[: self.dims], -1, 1)
        one[: len(given)] = given
        return np.tile(one, self.size // self.dims)

    def shows(self, scene: Any) -> np.ndarray:
        """
        Raises:
          TimeoutError: the environment cannot show anything itself, and nobody came.
        """
        if (given := self.takes(scene, None)) is not None:
            return given
        if hasattr(scene, "demonstrate"):
            return scene.demonstrate()
        until = time.monotonic() + PATIENCE_S
        while (given := self.takes(scene, None)) is None:
            if time.monotonic() > until:
                raise TimeoutError(
                    f"{self.desk.door.told(self.desk.address)}: nobody has taken over within {PATIENCE_S:g} s to demonstrate; expected "
                    "a person, an environment with demonstrate(), or replay.demonstrations=0"
                )
            self.at = time.monotonic()
            time.sleep(0.02)
        return given

    def sees(self, scene: Any, obs: Any) -> bool | None:
        self.steps, self.taken = self.steps + 1, self.taken + self.acts
        self.done.append(self.given)
        self._show(scene, obs)
        mark, self.mark = self.mark, None
        return mark if self.again is None else None

    def _show(self, scene: Any, obs: Any) -> None:
        self.at = time.monotonic()
        if not self.blind and (self.desk.visited or not self.frames):
            self.frames = self._seen(scene, obs)
        self.count += 1

    def _seen(self, scene: Any, obs: Any) -> dict[str, np.ndarray]:
        try:
            return pictures(scene, obs)
        except Exception as e:  # what drawing may raise: it costs the picture, not the run
            self.blind = True
            warnings.warn(f"page: {scene} is not shown: {type(e).__name__}: {e}", stacklevel=2)
            return {}

    def state(self, has: Any) -> dict[str, Any]:
        """What the page is told; pictures only where it `has` others. A picture may be newer than its count, never older."""
        count = self.count
        told = {"seat": self.seat, "episode": self.episode, "steps": self.steps, "taken": self.taken, "acts": self.acts}
        fresh = [] if has == count else [[name, data_uri(x)] for name, x in self.frames.items()]
        return {**told, "count": count, "axes": self.axes, "frames": fresh, "idle": time.monotonic() - self.at}


class Desk:
    """What the page and the environments' thread share.

    Attributes:
      address: without the token; "" until the first episode begins.
      copies: of environments that are around. It serves until the last of them is closed.
      leader: the visitor whose hands were on last, as long as that page is open; it says which copy is watched, and how fast it steps.
    """

    def __init__(self, page: Page):
        self.page, self.address = page, ""
        self.door = Door("fovea-watch", secret("", page.host, "take over what is trained"))
        self.seats: dict[int, weakref.ref[Person]] = {}
        self.hands, self.visitors = Hands(), dict[str, float]()
        self.leader, self.watched, self.slow, self.next = "", 0, True, 0.0
        self.lock = threading.Lock()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread: threading.Thread | None = None
        self.end: Callable[[], None] = lambda: None
        self.copies, self.sat = 0, 0

    # -- the environments' thread ---------------------------------------------------------------------------------------------

    def sit(self, person: Person) -> int:
        with self.lock:
            seat, self.sat = self.sat, self.sat + 1
            self.seats[seat] = weakref.ref(person)
        return seat

    def leave(self) -> None:
        """A copy is gone. Any thread may find that out, also one that holds the lock, so this one neither locks nor waits."""
        self.copies -= 1
        if not self.copies and self.loop is not None:
            loop, self.loop = self.loop, None
            loop.call_soon_threadsafe(self.end)

    def wait(self) -> None:
        """Until the port is free, where the last copy is gone."""
        if self.loop is None and self.thread is not None and self.thread is not threading.current_thread():
            self.thread.join()

    @property
    def visited(self) -> bool:
        """Whether a page is open somewhere."""
        now = time.monotonic()
        return any(now - at < HERE_S for at in list(self.visitors.values()))

    def pace(self, person: Person) -> None:
        """Wait for the next step of the copy that somebody watches."""
        if person.seat != self.watched or not self.slow or not self.visited:
            return
        now = time.monotonic()
        time.sleep(max(0.0, min(self.next - now, 1 / self.page.hz)))
        self.next = max(self.next, now) + 1 / self.page.hz

    def asked(self, seat: int) -> tuple[float, ...] | None:
        """What the hands on a copy do; None where they are off."""
        hands = self.hands
        return hands.action if hands.seat == seat and time.monotonic() - hands.at < STALE_S else None

    def open(self) -> None:
        """Serve, unless it does already.

        Raises:
          OSError: the port is taken.
        """
        if self.loop is not None:
            return
        self.wait()
        ready, fault = threading.Event(), list[OSError]()

        async def serve() -> None:
            over = asyncio.Event()
            try:
                server = await listen(self.handle, self.page.host, self.page.port, self.check)
                self.address = address_of(self.page.host, server)
                self.loop, self.end = asyncio.get_running_loop(), over.set
            except OSError as e:
                fault.append(e)
                return
            finally:
                ready.set()
            await over.wait()
            server.close()

        self.thread = threading.Thread(target=lambda: asyncio.run(serve()), name="page", daemon=True)
        self.thread.start()
        ready.wait()
        if fault:
            where = f"port {self.page.port} of {self.page.host}"
            raise OSError(fault[0].errno, f"page: {where} cannot be had ({fault[0].strerror}); page:0 takes a free one")
        self.door.at(self.address)
        print(f"take over at {self.door.told(self.address)}", file=sys.stderr, flush=True)

    # -- the thread that speaks HTTP ------------------------------------------------------------------------------------------

    def check(self, request: Request) -> None:
        """
        Raises:
          Refused: no such route, or not the token. The body need not be there yet.
        """
        routes = {("GET", path) for path in FILES} | {("POST", "/state")}
        if (request.method, request.path) not in routes:
            raise Refused(404, f"no route {request.method} {request.path}")
        self.door.check(request, "the run")

    async def handle(self, request: Request) -> Any:
        self.check(request)
        if request.method == "POST":
            return Reply(json.dumps(self.state(request.json())).encode(), "application/json", headers=GUARD)
        if (first := self.door.first(request)) is not None:
            return first
        name, kind = FILES[request.path]
        return Reply((ASSETS / name).read_bytes(), f"{kind}; charset=utf-8", headers={**GUARD, "Content-Security-Policy": POLICY})

    def state(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Take in what a visitor does, and answer with what there is to see.

        Raises:
          Refused: not in the form of the page's own script.
        """
        asks, now = wish(said), time.monotonic()
        with self.lock:
            self.visitors = {v: at for v, at in self.visitors.items() if now - at < HERE_S} | {asks.visitor: now}
            other = self.hands.action is not None and self.leader != asks.visitor and now - self.hands.at < STALE_S
            if not other and (asks.action is not None or self.leader not in self.visitors):
                self.leader = asks.visitor
            if self.leader == asks.visitor:
                self.watched, self.slow, self.hands = asks.seat, asks.slow, Hands(asks.seat, asks.action, now)
            people = {seat: person for seat, ref in list(self.seats.items()) if (person := ref()) is not None}
            if asks.mark is not None and not other and asks.seat in people:
                people[asks.seat].mark = asks.mark
        seats = [p.state(asks.has.get(str(seat))) for seat, p in people.items()]
        return {"seats": seats, "other": other, "visitors": len(self.visitors), "hz": self.page.hz}


@dataclass(frozen=True)
class Wish:
    """What a page's script posts: who it is, which copy, what its hands do (None: off), what it says of success, what it has seen."""

    visitor: str
    seat: int
    action: tuple[float, ...] | None
    mark: bool | None
    slow: bool
    has: Mapping[str, Any] = field(default_factory=dict)


def wish(said: Mapping[str, Any]) -> Wish:
    """
    Raises:
      Refused: a field of another form, with what was found.
    """
    action, mark, has = said.get("action"), said.get("mark"), said.get("has", {})
    number = lambda x: isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)  # noqa: E731
    for name, ok, expected in (
        ("visitor", isinstance(said.get("visitor"), str) and 0 < len(said["visitor"]) <= 64, "a name of at most 64 characters"),
        ("seat", type(said.get("seat")) is int, "the number of a copy"),
        ("action", action is None or (isinstance(action, list) and len(action) <= 64 and all(map(number, action))), "numbers, or null"),
        ("mark", mark is None or isinstance(mark, bool), "true, false or null"),
        ("slow", isinstance(said.get("slow", True), bool), "true or false"),
        ("has", isinstance(has, dict), "an object"),
    ):
        if not ok:
            raise Refused(400, f"{name} = {str(said.get(name))[:80]}; expected {expected}")
    return Wish(said["visitor"], said["seat"], None if action is None else tuple(map(float, action)), mark, said.get("slow", True), has)
