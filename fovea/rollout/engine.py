"""The local rollout engine: all live episode programs share one continuously batched decoder.

Every program is a coroutine. Its `policy.act(...)` puts a call into the engine's queue and waits; the driver admits queued calls (one
prefill for all of them, equal prefixes once), decodes one token for every row of every cohort, and wakes a program when its turn is
complete. Rows leave as soon as they end and new ones enter between two tokens. What was sampled is what is stored: text is decoded for
people and environments only.

Left out: key/value reuse between the turns of an episode; a later turn prefills its prefix and its own history again.
"""

from __future__ import annotations

import asyncio
import bisect
import contextvars
import inspect
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from fovea.envs.answer import Answer
from fovea.rollout import programs
from fovea.rollout.given import check_members, given_ids, gold_text
from fovea.rollout.sampling import Sampling, address, logp_of, numbered, sample, uniforms
from fovea.types import Action, Context, Environment, Episode, Group, Message, Observation, Prefix, Score, Segment, Task, Turn, begun

Program = Callable[[Task, "Actor", Any], Awaitable[None]]
Progress = Callable[[int, int, int], None]

PREFILL_TOKENS = 16384  # prompt tokens that one prefill may hold by default
SEED_BITS = 31  # environments take non-negative 32-bit seeds
STOP_TAIL = 4  # bytes of a UTF-8 character, the most tokens it can be spread over
TRIES = 3  # of an episode, or of a question, that loses whom it needs


class Cohort(Protocol):
    """Rows that were prefilled together, with their keys and values."""

    def keep(self, index_R: Tensor) -> None: ...


class LanguagePolicy(Protocol):
    """What the engine asks of a policy that reads and writes tokens."""

    version: int
    eos_ids: tuple[int, ...]
    banned_ids: tuple[int, ...]

    def encode(self, messages: Sequence[Message], images: Sequence[Any]) -> Prefix: ...

    def encode_append(self, messages: Sequence[Message]) -> list[int]: ...

    def decode_text(self, ids: Sequence[int], skip_special: bool = True) -> str: ...

    def prefill(self, prefixes: list[Prefix], suffixes: list[list[Sequence[int]]], room: int) -> tuple[Any, Tensor]: ...

    def decode(self, cohorts: list[Any], tokens: list[Tensor]) -> list[Tensor]: ...


class Scorer(Protocol):
    """Takes episodes, and groups once they are whole, and scores them while others still generate."""

    def submit(self, item: Group | Episode, context: Context | None = None) -> Any: ...

    def finish(self) -> Any: ...


class ContextOverflow(ValueError):
    """A prompt leaves no room for an answer; prompts are never cut."""


class Lost(ConnectionError):
    """The process that held the environment, or drew the turn, has ended. Begun anew elsewhere, an episode draws the same numbers."""


class Stopped(RuntimeError):
    """The rollout was interrupted from another thread."""


@dataclass
class Units:
    """The growing columns of one segment; they become tensors when the episode ends.

    Attributes:
      shown: messages and images that `prefix` was made from.
    """

    prefix: Prefix
    shown: tuple[Sequence[Message], Sequence[Any]] = ((), ())
    ids: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    logp_old: list[float] = field(default_factory=list)
    logp_behaviour: list[float] = field(default_factory=list)
    turn: list[int] = field(default_factory=list)
    version: list[int] = field(default_factory=list)
    reward: list[float] = field(default_factory=list)
    remote: bool = False
    marks: dict[str, list[float]] = field(default_factory=dict)

    def insert(self, ids: Sequence[int], turn: int, version: int) -> None:
        """Tokens of the environment: part of the context, never trained on."""
        for token in ids:
            self.add(token, 0.0, 0.0, turn, version, chosen=False)

    def add(self, token: int, logp_old: float, logp_behaviour: float, turn: int, version: int, chosen: bool = True) -> None:
        self.ids.append(token)
        self.mask.append(chosen)
        self.logp_old.append(logp_old)
        self.logp_behaviour.append(logp_behaviour)
        self.turn.append(turn)
        self.version.append(version)

    def segment(self, rewarded: bool, bootstrap: bool) -> Segment:
        """The columns as tensors, up to the last unit that the policy chose."""
        n = max(i for i, chosen in enumerate(self.mask) if chosen) + 1
        return Segment(
            prefix=self.prefix,
            actions=torch.tensor(self.ids[:n], dtype=torch.long),
            mask=torch.tensor(self.mask[:n], dtype=torch.bool),
            logp_old=torch.tensor(self.logp_old[:n], dtype=torch.float32),
            logp_behaviour=torch.tensor(self.logp_behaviour[:n], dtype=torch.float32),
            turn=torch.tensor(self.turn[:n], dtype=torch.long),
            version=torch.tensor(self.version[:n], dtype=torch.long),
            reward=tuple(self.reward) if rewarded else (),
            bootstrap=bootstrap,
            remote=self.remote,
            extras={name: torch.tensor((column + [0.0] * n)[:n]) for name, column in self.marks.items()},
        )


@dataclass
class Call:
    """One pending or running turn: the row of a cohort.

    Attributes:
      given: its tokens, where they are said instead of drawn, so that how likely they were is known like that of any other.
    """

    units: Units
    sampling: Sampling
    room: int
    key: int
    turn: int
    start: int
    task: Task
    done: asyncio.Future[str]
    given: tuple[int, ...] = ()

    @property
    def n(self) -> int:
        """Tokens of this turn so far."""
        return len(self.units.ids) - self.start


class Actor:
    """The policy as an episode program sees it. One per episode; it keeps the books of that episode.

    Attributes:
      seed: environment seed, the same for every episode of the group, so that they share their start.
      context: where training stands.
      demonstrate: what a good player would say now, of an environment that knows it.
    """

    def __init__(self, rollout: Rollout, episode: Episode, sampling: Sampling, seed: int, place: tuple[int | str, ...]):
        self.seed, self.context = seed, rollout.context
        self.demonstrate: Callable[[], Any] | None = None
        self._rollout, self._episode, self._sampling, self._place = rollout, episode, sampling, place
        self._units: list[Units] = []
        self._messages: tuple[Message, ...] = ()
        self._images: tuple[Any, ...] = ()
        self._start = 0  # where the last turn begins among the units of its segment
        self._busy = self._cut = False

    def branch(self, name: str) -> Actor:
        """The same policy in a conversation of its own: it knows nothing of this one but what it is shown.

        What is said there is kept in `episode.branches[name]`, for verifiers and the run page, and is not trained on.
        """
        if name in self._episode.branches:
            raise RuntimeError(f"task {self._episode.task.id!r}: branch {name!r} was opened already; expected a name of its own for each")
        role = "greedy" if self._episode.role == "greedy" else "sample"
        aside = Episode(id=f"{self._episode.id}/{name}", task=self._episode.task, role=role)
        self._episode.branches[name] = aside.turns
        return Actor(self._rollout, aside, self._sampling, self.seed, (*self._place, name))

    def reach(self, text: str) -> int:
        """How many units of the last turn it takes until `text` has been said there; 0 where it is not said."""
        units, decode = self._units[-1], self._rollout.policy.decode_text
        ids = units.ids[self._start :]
        n = bisect.bisect_left(range(len(ids) + 1), True, key=lambda k: text in decode(ids[:k], skip_special=False))
        return n if n <= len(ids) else 0

    def mark(self, name: str, values: Sequence[float]) -> None:
        """A number for each unit of the last turn, kept in the segment's `extras[name]`; the units of turns without a mark have 0."""
        units = self._units[-1]
        if len(values) != len(units.ids) - self._start:
            raise ValueError(f"mark {name!r}: {len(values)} values for the {len(units.ids) - self._start} units of the last turn")
        column = units.marks.setdefault(name, [])
        column += [*([0.0] * (self._start - len(column))), *map(float, values)]

    async def act(self, observation: Observation, **overrides: Any) -> Action:
        """What the policy answers to `observation`; `overrides` are fields of `Sampling` for this turn only.

        A temperature given here changes what is drawn; `logp_old` stays at the temperature of the rollout, which is the trainer's.
        """
        if self._busy:
            raise RuntimeError(f"task {self._episode.task.id!r}: act was called while another act of the same episode was pending")
        turn = len(self._episode.turns)
        units = self._observe(observation, turn)
        sampling = replace(self._sampling, **overrides)
        if self._episode.role == "greedy":
            sampling = replace(sampling, temperature=0.0)
        room = self._rollout.engine.room(units, sampling, self._episode.task)
        call = Call(
            units=units,
            sampling=sampling,
            room=room,
            key=address(*self._place, turn),
            turn=turn,
            start=len(units.ids),
            task=self._episode.task,
            done=asyncio.get_running_loop().create_future(),
            given=await self._given(turn, room) if self._episode.role == "gold" else (),
        )
        self._busy, self._start = True, call.start
        try:
            stop = await self._rollout.submit(call)
        finally:
            self._busy = False
        ids = tuple(units.ids[call.start :])
        text = begun(observation.messages) + self._rollout.policy.decode_text(ids)
        units.reward.append(0.0)
        self._episode.turns.append(Turn(text=text, observation=observation, stop=stop))
        self._episode.stop = stop
        return Action(value=text, token_ids=ids, logp=tuple(units.logp_old[call.start :]), stop=stop)

    async def _given(self, turn: int, room: int) -> tuple[int, ...]:
        """The gold answer, or what the environment demonstrates, as this turn."""
        task = self._episode.task
        if turn and self.demonstrate is None:
            raise RuntimeError(f"task {task.id!r}: its gold answer is one turn, and the episode program asks for another one")
        ids = given_ids(self._rollout.policy, gold_text(task) if self.demonstrate is None else await programs.settled(self.demonstrate()))
        if len(ids) > room:
            raise ValueError(f"task {task.id!r}: its gold answer has {len(ids)} tokens; expected at most max_new_tokens = {room}")
        return tuple(ids)

    def _observe(self, observation: Observation, turn: int) -> Units:
        """The segment this turn writes to: extended by appended text, opened anew by a replaced history or an appended image."""
        policy = self._rollout.policy
        if not observation.append or not self._units:
            self._messages, self._images = tuple(observation.messages), tuple(observation.images)
            return self._open()
        said = {"role": "assistant", "content": [{"type": "text", "text": self._episode.text}]}
        before = self._messages[:-1] if begun(self._messages) else self._messages  # what was begun is in what was said
        self._messages = (*before, said, *observation.messages)
        self._images = (*self._images, *observation.images)
        if observation.images:
            return self._open()
        units = self._units[-1]
        extra = list(policy.encode_append(observation.messages))
        if extra and units.ids and extra[0] == units.ids[-1] and extra[0] in policy.eos_ids:
            extra = extra[1:]  # the policy closed its turn itself
        units.insert(extra, turn, policy.version)
        return units

    def _open(self) -> Units:
        self._units.append(Units(self._rollout.encode(self._messages, self._images), (self._messages, self._images)))
        return self._units[-1]

    def reward(self, value: float, truncated: bool = False, measures: Mapping[str, float] | None = None) -> None:
        """Book the environment's answer to the last turn."""
        if not self._units or not self._units[-1].reward:
            return
        self._units[-1].reward[-1] += float(value)
        self._episode.turns[-1] = replace(self._episode.turns[-1], reward=self._units[-1].reward[-1], measures=measures or {})
        self._cut = truncated

    def close(self, rewarded: bool) -> None:
        """Write the segments into the episode."""
        last = len(self._units) - 1
        for i, units in enumerate(self._units):
            if any(units.mask):
                self._episode.segments.append(units.segment(rewarded, bootstrap=self._cut and i == last))
        if self._cut and not self._episode.error:
            self._episode.stop = "cut"


class Recorder:
    """The environment as an episode program sees it: rewards go into the books on the way, and an episode of `turns` turns is cut."""

    def __init__(self, env: Any, actor: Actor, turns: int = 0):
        self._env, self._actor, self._left = env, actor, turns

    def reset(self, task: Task, seed: int) -> Any:
        return self._env.reset(task, seed)

    def step(self, action: Action) -> Any:
        result = self._env.step(action)
        return self._later(result) if inspect.isawaitable(result) else self._book(result)

    async def _later(self, result: Awaitable[Any]) -> Any:
        return self._book(await result)

    def _book(self, result: Any) -> Any:
        observation, reward, terminated, truncated, info = result
        self._left -= 1
        truncated = truncated or (self._left == 0 and not terminated)
        self._actor.reward(reward, truncated, info.get("measures"))
        return observation, reward, terminated, truncated, info

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)


class Engine:
    """Batches the pending calls of all live episode programs.

    Args:
      policy: tokens in, tokens out; see `LanguagePolicy`.
      program: `async def program(task, policy, env)`.
      environment: called without arguments for each episode (a class will do); None for one question and one answer.
      seed: first part of every random address.
      max_rows: episodes alive at a time. It bounds memory and never changes results beyond float rounding.
      max_context: longest sequence in tokens, prompt included; None when the policy sets no limit.
      prefill_tokens: prompt tokens that one prefill may hold, so that many waiting prompts do not become one huge forward.
    Attributes:
      counts: episodes, errors, tokens, prefills, prefixes (prefilled), decode_steps since the engine was made.
    """

    def __init__(
        self,
        policy: Any,
        program: Program = programs.episode,
        environment: Callable[[], Environment] | None = None,
        seed: int = 0,
        max_rows: int = 64,
        max_context: int | None = None,
        prefill_tokens: int = PREFILL_TOKENS,
    ):
        if max_rows < 1:
            raise ValueError(f"max_rows = {max_rows}; expected at least 1")
        if environment is not None and not callable(environment):
            raise TypeError(f"environment = {environment!r}; expected a class or a function that makes a new environment for each episode")
        self.policy, self.program, self.environment, self.seed = policy, program, environment, seed
        self.max_rows, self.max_context, self.prefill_tokens = max_rows, max_context, prefill_tokens
        self.counts: Counter[str] = Counter()

    def rollout(
        self,
        tasks: Sequence[Task],
        group_size: int,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        context: Context = Context(),  # noqa: B008 - frozen
        members: Sequence[str] = (),
        score: Scorer | None = None,
        on_progress: Progress | None = None,
        attempt: int = 0,
    ) -> list[Group]:
        """`group_size` episodes of each task and one more for each name in `members` ("greedy", "gold"), in the order of `tasks`.

        `attempt` is part of the random address: pass 1, 2, ... when a step rolls out again (dynamic sampling), or the same task gives the
        same episodes. Episodes that failed have stop "error", the reason, and a failed score.
        """
        check_members(members, ("greedy", "gold"))
        for task in tasks if "gold" in members and self.environment is None else ():
            gold_text(task)  # a task without one ends the run, not just an episode
        roles = ["sample"] * group_size + list(members)
        groups = [
            Group(task, [Episode(id=f"{context.step}/{name}/{g}", task=task, role=role) for g, role in enumerate(roles)])
            for task, name in zip(tasks, numbered(t.id for t in tasks), strict=True)
        ]
        rollout = self.begin(groups, sampling, context, score, on_progress, attempt)
        run_anywhere(rollout.drive, rollout.stop)
        if score is not None:
            score.finish()
        return groups

    def room(self, units: Units, sampling: Sampling, task: Task) -> int:
        """Tokens that this turn may still sample."""
        limit = self.max_context
        if limit is None:
            return sampling.max_new_tokens
        used = units.prefix.length + len(units.ids)
        if used >= limit:
            raise ContextOverflow(
                f"task {task.id!r} of source {task.source!r}: the prompt has {used} tokens and the context holds {limit}; "
                "prompts are never cut: use smaller images, a shorter prompt or a larger max_context"
            )
        return min(sampling.max_new_tokens, limit - used)

    def begin(self, *args: Any) -> Rollout:
        """The driver of one rollout."""
        return Rollout(self, *args)


class Decoder:
    """Queued calls and the rows that are being decoded, by one policy.

    Attributes:
      tokens: drawn so far.
    """

    def __init__(self, engine: Engine, sampling: Sampling):
        self.engine, self.policy, self.sampling = engine, engine.policy, sampling
        self.pending: list[Call] = []
        self.rows: list[tuple[Any, list[Call]]] = []  # cohorts with the call of each row
        self.logits: list[Tensor] = []
        self.tokens = 0

    def admit(self) -> None:
        """Prefill the queued calls, equal prefixes once, in cohorts of bounded size."""
        by_prefix: dict[str, list[Call]] = {}
        for call in self.pending:
            by_prefix.setdefault(call.units.prefix.key, []).append(call)
        self.pending = []
        part: list[list[Call]] = []
        size = 0
        for calls in by_prefix.values():
            cost = calls[0].units.prefix.length + sum(len(c.units.ids) for c in calls)
            if part and size + cost > self.engine.prefill_tokens:
                self.prefill(part)
                part, size = [], 0
            part.append(calls)
            size += cost
        self.prefill(part)

    def prefill(self, part: list[list[Call]]) -> None:
        rows = [call for calls in part for call in calls]
        cohort, logits_RV = self.policy.prefill(
            [calls[0].units.prefix for calls in part], [[list(c.units.ids) for c in calls] for calls in part], max(c.room for c in rows)
        )
        self.rows.append((cohort, rows))
        self.logits.append(logits_RV)
        self.engine.counts["prefills"] += 1
        self.engine.counts["prefixes"] += len(part)

    def step(self) -> None:
        """Sample one token for every row, let finished rows go, decode the others."""
        token_R = self.draw(torch.cat(self.logits) if len(self.logits) > 1 else self.logits[0], [c for _, rows in self.rows for c in rows])
        going: list[tuple[Any, list[Call]]] = []
        tokens: list[Tensor] = []
        at = 0
        for cohort, rows in self.rows:
            mine_R = token_R[at : at + len(rows)]
            at += len(rows)
            keep = [r for r, call in enumerate(rows) if not self.finished(call)]
            if not keep:
                continue
            if len(keep) < len(rows):
                index_R = torch.tensor(keep, device=mine_R.device)
                cohort.keep(index_R)
                rows, mine_R = [rows[r] for r in keep], mine_R[index_R]
            going.append((cohort, rows))
            tokens.append(mine_R)
        self.rows = going
        self.logits = self.policy.decode([cohort for cohort, _ in going], tokens) if going else []
        self.engine.counts["decode_steps"] += 1

    def draw(self, logits_RV: Tensor, calls: list[Call]) -> Tensor:
        """One token per row into the books of its segment."""
        uniform_R = uniforms([c.key for c in calls], [c.n for c in calls])
        token_R = torch.empty(len(calls), dtype=torch.long, device=logits_RV.device)
        kinds: dict[tuple[bool, float, float, int], list[int]] = {}
        for r, call in enumerate(calls):
            kinds.setdefault((bool(call.given), call.sampling.temperature, call.sampling.top_p, call.sampling.top_k), []).append(r)
        version, banned = self.policy.version, self.policy.banned_ids
        for (given, *_), rows in kinds.items():
            whole = len(kinds) == 1
            index = torch.tensor(rows)
            own_RV = logits_RV if whole else logits_RV[index]
            if given:
                said_R = torch.tensor([calls[r].given[calls[r].n] for r in rows], device=logits_RV.device)
                old_R = behaviour_R = logp_of(own_RV, said_R, banned, self.sampling.temperature or 1.0)
            else:
                held = [calls[r].n < calls[r].sampling.min_new_tokens for r in rows]
                said_R, old_R, behaviour_R = sample(
                    own_RV,
                    uniform_R if whole else uniform_R[index],
                    calls[rows[0]].sampling,
                    banned,
                    torch.tensor(held) if any(held) else None,
                    self.policy.eos_ids,
                    self.sampling.temperature,
                )
                self.tokens += len(rows)
                self.engine.counts["tokens"] += len(rows)
            token_R[index] = said_R
            for r, token, old, behaviour in zip(rows, said_R.tolist(), old_R.tolist(), behaviour_R.tolist(), strict=True):
                calls[r].units.add(token, old, behaviour, calls[r].turn, version)
        return token_R

    def finished(self, call: Call) -> bool:
        """Whether the turn is complete after its newest token; if so, its program is woken."""
        stop = ""
        if call.given:
            stop = "eos" if call.n == len(call.given) else ""
        elif call.units.ids[-1] in self.policy.eos_ids:
            stop = "eos"
        elif call.sampling.stop and self.said_stop(call):
            stop = "stop"
        elif call.n >= call.room:
            stop = "length"
        if stop and not call.done.done():
            call.done.set_result(stop)
        return bool(stop)

    def said_stop(self, call: Call) -> bool:
        """Only the tail can hold a new stop string: a token is at least one byte, so it spans at most its length in bytes in tokens."""
        tail = max(len(s.encode()) for s in call.sampling.stop) + STOP_TAIL
        text = self.policy.decode_text(call.units.ids[max(call.start, len(call.units.ids) - tail) :], skip_special=False)
        return any(s in text for s in call.sampling.stop)


class Rollout(Decoder):
    """One call of `Engine.rollout`: its groups and the driver."""

    def __init__(
        self,
        engine: Engine,
        groups: list[Group],
        sampling: Sampling,
        context: Context,
        score: Scorer | None,
        on_progress: Progress | None,
        attempt: int,
    ):
        super().__init__(engine, sampling)
        self.context, self.stop = context, threading.Event()
        self.groups, self.score, self.on_progress, self.attempt = groups, score, on_progress, attempt
        self.encoded: dict[tuple[int, ...], tuple[Any, Prefix]] = {}
        self.done = 0
        self.total = sum(len(g.episodes) for g in groups)
        self.draws = any(e.role != "gold" for g in groups for e in g.episodes)

    # -- asked by actors ------------------------------------------------------------------------------------------------------

    def encode(self, messages: tuple[Message, ...], images: tuple[Any, ...]) -> Prefix:
        """The policy's prefix; members of a group show the very same objects, which are then not hashed again."""
        key = (id(messages), *(id(m) for m in messages), *(id(image) for image in images))
        if key not in self.encoded:
            self.encoded[key] = ((messages, images), self.policy.encode(messages, images))  # kept alive: ids stay unique
        return self.encoded[key][1]

    async def submit(self, call: Call) -> str:
        """Queue the call; returns why the turn stopped. Where nothing is drawn, nobody asks how likely the given answers were."""
        if call.given and not self.draws:
            return self.give(call)
        self.pending.append(call)
        self.wake.set()
        return await call.done

    def give(self, call: Call) -> str:
        """What is given as the turn, whose log-probabilities are left at zero."""
        for token in call.given:
            call.units.add(token, 0.0, 0.0, call.turn, self.policy.version)
        return "eos"

    # -- the driver -----------------------------------------------------------------------------------------------------------

    async def drive(self) -> None:
        """Start episodes while there is room, admit their calls, decode one token for all; wait only when nothing can be decoded."""
        self.wake = asyncio.Event()
        waiting = list(enumerate(self.groups))[::-1]
        left = {g: len(group.episodes) for g, group in enumerate(self.groups)}
        live: dict[asyncio.Task[None], tuple[int, int]] = {}
        queue: list[tuple[int, int]] = []
        self.report()
        try:
            while waiting or queue or live:
                self.check()
                # a group enters as a whole where it fits, so its prefix is prefilled once
                while waiting and (len(live) + len(queue) + len(waiting[-1][1].episodes) <= self.engine.max_rows or not (live or queue)):
                    g, group = waiting.pop()
                    queue.extend((g, e) for e in range(len(group.episodes)))
                while queue and len(live) < self.engine.max_rows:
                    g, e = queue.pop(0)
                    live[asyncio.ensure_future(self.run(g, e))] = (g, e)
                self.wake.clear()
                await asyncio.sleep(0)
                await asyncio.sleep(0)  # a woken program reaches its next act, through one wrapper task if need be
                for task in [t for t in live if t.done()]:
                    g, e = live.pop(task)
                    task.result()
                    left[g] -= 1
                    if self.score is not None:
                        self.score.submit(self.groups[g] if left[g] == 0 else self.groups[g].episodes[e], self.context)
                if self.pending:
                    self.admit()
                if self.rows:
                    self.step()
                elif live and not self.pending and not any(t.done() for t in live):
                    await self.rest()
        finally:
            for task in live:
                task.cancel()
            await asyncio.gather(*live, return_exceptions=True)

    def check(self) -> None:
        """Raise what ends the whole rollout."""
        if self.stop.is_set():
            raise Stopped("rollout interrupted")

    async def rest(self) -> None:
        """Until a program calls, an episode ends, somebody asks to stop, or what draws the turns fails."""
        while not self.wake.is_set() and not self.stop.is_set():
            try:
                await asyncio.wait_for(self.wake.wait(), timeout=0.2)
            except TimeoutError:
                self.check()

    async def run(self, g: int, e: int) -> None:
        """One episode from start to end."""
        episode = self.groups[g].episodes[e]
        name = episode.id.rsplit("/", 1)[0]
        await play(self, episode, (self.engine.seed, self.context.step, self.attempt, name, e))
        self.done += 1
        self.wake.set()
        self.report()

    def report(self) -> None:
        if self.on_progress is not None:
            self.on_progress(self.done, self.total, self.tokens)


async def play(rollout: Any, episode: Episode, place: tuple[int | str, ...], turns: int = 0, said: Sequence[str] = ()) -> None:
    """One episode from start to end; whatever its program or environment raises ends this episode and no other.

    One that is `Lost` begins anew, with the same random numbers, up to `TRIES` times.

    Args:
      rollout: whom the actor asks: a `Rollout`, or what has its `engine`, `policy`, `context`, `sampling`, `encode` and `submit`.
      place: random address; what comes before its last part is shared by the group.
      turns: the episode is cut after so many; 0 leaves that to the environment.
      said: what an episode of role "gold" says turn by turn, instead of what the environment demonstrates.
    """
    engine: Engine = rollout.engine
    for tries in range(1, TRIES + 1):
        actor = Actor(rollout, episode, rollout.sampling, address(*place[:-1]) >> (64 - SEED_BITS), place)
        try:
            await _run(engine, episode, actor, turns, said)
        except Exception as error:
            if isinstance(error, Lost) and tries < TRIES:
                engine.counts["again"] += 1
                episode.turns.clear()
                episode.branches.clear()
                continue
            episode.stop, episode.error = "error", f"{type(error).__name__}: {error}"
            episode.score = Score.failed(f"episode ended with an error: {episode.error}")
            engine.counts["errors"] += 1
        actor.close(rewarded=engine.environment is not None)
        engine.counts["episodes"] += 1
        return


async def _run(engine: Engine, episode: Episode, actor: Actor, turns: int, said: Sequence[str]) -> None:
    """The episode program in an environment of its own."""
    env: Any = (engine.environment or Answer)()
    try:
        again = iter(said)
        actor.demonstrate = (lambda: next(again)) if said else getattr(env, "demonstrate", None)
        await engine.program(episode.task, actor, Recorder(env, actor, len(said) or turns))  # type: ignore[arg-type]
        if not episode.turns:
            raise RuntimeError("the episode program ended without a call of policy.act")
    finally:
        if hasattr(env, "close"):
            env.close()


def run_anywhere(work: Callable[[], Any], stop: threading.Event) -> None:
    """Run a coroutine to its end, in a thread of its own where this one already runs an event loop (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work())
        return
    with ThreadPoolExecutor(max_workers=1) as pool:
        future = pool.submit(contextvars.copy_context().run, asyncio.run, work())
        try:
            future.result()
        except BaseException:
            stop.set()
            raise
