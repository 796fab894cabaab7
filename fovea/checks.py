"""Contract checks to run on your own parts: a broken contract raises `ContractError`, whose message states the rule that was broken.

    check_verifier(my_verifier)              check_environment(MyEnvironment)      check_source(my_source)
    check_sampler(my_sampler)                check_gate(my_gate)                   check_method(MyMethod())
    check_policy(my_policy)                  check(anything)                       fovea check my.py:name

Each function returns the rules that hold, one line each. Checks look from outside and never need the class of the thing they check.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import importlib.util
import inspect
import json
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fovea.types import Action, Context, Episode, Group, Observation, Score, Task, Turn, user
from fovea.video import still


class ContractError(AssertionError):
    """A rule of a contract does not hold."""


@dataclass
class Rules:
    """The rules of one contract, stated and numbered in the order in which they are checked."""

    contract: str
    held: list[str] = field(default_factory=list)
    now: str = ""

    def rule(self, text: str) -> None:
        """From here on `text` is checked; the rule before it holds."""
        self.end()
        self.now = text

    def need(self, condition: Any, found: str) -> None:
        if not condition:
            self.fail(found)

    def fail(self, found: str) -> None:
        raise ContractError(f"{self.contract} rule {len(self.held) + 1}: {self.now}; {found}") from None

    def attempt(self, what: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The result of a call that must not raise."""
        try:
            return call(*args, **kwargs)
        except ContractError:
            raise
        except Exception as error:
            self.fail(f"{what} raised {_last_line(error)}")

    def end(self) -> list[str]:
        if self.now:
            self.held.append(self.now)
            self.now = ""
        return [f"{self.contract} rule {i}: {text}" for i, text in enumerate(self.held, 1)]


def _last_line(error: BaseException) -> str:
    from fovea.verifiers.core import reason_of

    return reason_of(error)


# -- verifiers ------------------------------------------------------------------------------------------------------------------

HOSTILE = (
    "",
    " ",
    "<answer>",
    "</answer><answer>",
    "\\boxed{",
    "nan",
    "1e999",
    "\x00\ud800",
    "9" * 5000,
    "🙂" * 100,
    "[" * 1000,
    "<think>",
)
"""Answers that a policy may well give; a verifier judges them or refuses them with a reason."""


def probe_tasks() -> list[Task]:
    """Small tasks of several kinds for verifiers that are checked without a task of their own."""
    from PIL import Image

    image = Image.new("RGB", (32, 24), "white")
    answers: list[Any] = ["4", 4, "B", [4, 4, 20, 20], ["a", "b"], {"cat": 2}, [{"label": "cat", "bbox_2d": [4, 4, 20, 20]}], [2, 3, 1]]
    return [Task(f"probe-{i}", "probe", user("What is shown?"), (image,), answer=a) for i, a in enumerate(answers)]


def gold_text(task: Task) -> str:
    """A text that states the gold answer, as a policy would."""
    gold = task.meta.get("gold", task.answer)
    if task.verifier == "point_in_box" and "gold" not in task.meta:
        gold = [(task.answer[0] + task.answer[2]) / 2, (task.answer[1] + task.answer[3]) / 2]
    if isinstance(gold, list | tuple) and gold and all(isinstance(v, str) for v in gold):
        gold = ", ".join(gold) if task.verifier == "set" else gold[0]
    text = gold if isinstance(gold, str) else json.dumps(gold, default=str)
    return f"<answer>{text}</answer>"


def check_verifier(verifier: Any, task: Task | None = None, *, seconds: float = 1.0) -> list[str]:
    """Rules for an object with `scope` and `score`, for a plain function `f(answer, task)`, or for a name in VERIFIERS.

    Args:
      task: a task of the kind the verifier is for; without one, several small tasks are tried and one must be scorable.
      seconds: longest time for one answer of 100,000 characters.
    """
    from PIL import Image

    from fovea.verifiers import build

    r = Rules("Verifier")
    r.rule("it is a name, a function f(answer, task) or an object with `scope` and `score(group, context)`")
    verifier = r.attempt("building it", build, verifier, task.params if task is not None else {})
    r.rule('`scope` is "episode" or "group"')
    r.need(verifier.scope in ("episode", "group"), f"got {verifier.scope!r}")
    tasks = [task] if task is not None else probe_tasks()
    texts = ["<answer>4</answer>", "B", "[4, 4, 20, 20]", "<think>hm</think><answer>a, b</answer>", "2 cats"]

    def group_of(t: Task, texts: Sequence[str]) -> Group:
        drawn = Image.new("RGB", (8, 8), (180, 90, 30))  # for verifiers of what a policy draws; the others do not look
        return Group(t, [Episode(f"{t.id}#{i}", t, turns=[Turn(text, drawn=drawn)]) for i, text in enumerate(texts)])

    def score(t: Task, texts: Sequence[str]) -> list[Score]:
        return r.attempt(f"score() of task {t.id!r}", verifier.score, group_of(t, texts), Context())

    r.rule("score() returns a list of exactly one Score for each episode of the group")
    tables = []
    for t in tasks:
        own = [gold_text(t), *texts] if task is not None else texts
        scores = score(t, own)
        r.need(isinstance(scores, list), f"got {type(scores).__name__}")
        r.need(len(scores) == len(own), f"got {len(scores)} scores for {len(own)} episodes")
        wrong = next((s for s in scores if not isinstance(s, Score)), None)
        r.need(wrong is None, f"got {wrong!r} ({type(wrong).__name__})")
        tables.append((t, own, scores))

    r.rule("scores must be finite floats, and so must their parts")
    for t, own, scores in tables:
        for text, s in zip(own, scores, strict=True):
            r.need(s.ok or "expected a finite number" not in s.reason, f"for {text!r} (task {t.id!r}): {s.reason}")
            r.need(not s.ok or _is_finite(s.value), f"got {s.value!r} for {text!r} (task {t.id!r})")
            bad = next((k for k, v in s.parts.items() if not _is_finite(v)), None)
            r.need(bad is None, f"got {s.parts.get(bad or '')!r} in part {bad!r} for {text!r} (task {t.id!r})")

    r.rule("an unscored episode has a reason, and `correct` is True, False or None")
    for t, own, scores in tables:
        for text, s in zip(own, scores, strict=True):
            r.need(s.ok or s.reason, f"got Score(ok=False) without a reason for {text!r} (task {t.id!r})")
            r.need(s.correct is None or isinstance(s.correct, bool), f"got correct={s.correct!r} for {text!r}")

    advice = "" if task is not None else "; pass a task of your own with task=..."
    r.rule(f"ordinary answers (a number, a letter, a list, words) are all scored{advice}")
    scorable = [(t, own, scores) for t, own, scores in tables if all(s.ok for s in scores)]
    first = next((s.reason for _, _, scores in tables for s in scores if not s.ok), "")
    r.need(scorable, f"every task left episodes unscored, first reason: {first}")
    t, own, scores = scorable[0]

    r.rule("the same group gives the same scores again, and neither group nor task is changed")
    group = group_of(t, own)
    before = _episode_record(group)
    again = r.attempt("score()", verifier.score, group, Context())
    r.need([_key(s) for s in again] == [_key(s) for s in scores], f"got {[s.value for s in scores]} and then {[s.value for s in again]}")
    r.need(_episode_record(group) == before, "the group was changed by score()")

    if verifier.scope == "episode":
        r.rule('with scope "episode" an episode\'s score does not depend on the others in its group')
        group.episodes.reverse()
        reverse = r.attempt("score()", verifier.score, group, Context())[::-1]
        for i, (together, apart) in enumerate(zip(scores, reverse, strict=True)):
            r.need(_key(together) == _key(apart), f"got {together.value} and, in another order, {apart.value} for {own[i]!r}")
            alone = r.attempt("score()", verifier.score, Group(t, [group_of(t, own).episodes[i]]), Context())[0]
            r.need(_key(together) == _key(alone), f"got {together.value} in the group and {alone.value} alone for {own[i]!r}")

    r.rule("any text is judged, or refused with a reason; nothing is raised")
    for text in HOSTILE:
        s = score(t, [text])[0]
        r.need(_is_finite(s.value) if s.ok else s.reason, f"got {s!r} for {text[:30]!r}")

    r.rule(f"an answer of 100,000 characters takes at most {seconds:g} s (linear-time parsing)")
    for text in ("1," * 50_000, "a" * 100_000, "(" * 100_000, "<answer>" * 12_500):
        begin = time.perf_counter()
        score(t, [text])
        took = time.perf_counter() - begin
        r.need(took <= seconds, f"took {took:.2f} s for {text[:8]!r} repeated")
    return r.end()


def _is_finite(x: Any) -> bool:
    return isinstance(x, int | float) and math.isfinite(x)


def _key(s: Score) -> tuple[Any, ...]:
    return (s.ok, s.value if s.ok else s.reason, tuple(sorted(s.parts.items())), s.correct)


def _episode_record(group: Group) -> list[Any]:
    return [(e.id, e.text, e.stop, e.role, repr(e.task.answer), repr(dict(e.task.params))) for e in group.episodes]


# -- environments ---------------------------------------------------------------------------------------------------------------


def check_environment(
    environment: Any, task: Task | None = None, actions: Sequence[Action] | None = None, *, max_steps: int = 100
) -> list[str]:
    """Rules for `reset(task, seed)` and `step(action)`.

    Args:
      environment: an object, or a class or function that makes a new one.
      task: passed to reset; by default one picture with a question.
      actions: played in turn, then repeated; by default a plain text, or samples of `action_space` where there is one.
      max_steps: an episode that is still running then is left.
    """
    r = Rules("Environment")
    r.rule("it has reset(task, seed) and step(action)")
    make = environment if isinstance(environment, type) or not hasattr(environment, "reset") else lambda: environment
    env = r.attempt("making it", make)
    r.need(callable(getattr(env, "reset", None)) and callable(getattr(env, "step", None)), f"got {type(env).__name__} without them")
    task = task or probe_tasks()[0]

    def play(seed: int) -> list[tuple[Any, ...]]:
        return r.attempt("an episode", _play, r, make(), task, seed, actions, max_steps)

    r.rule("reset returns an Observation; step returns (Observation, finite float, bool, bool, dict)")
    first = play(7)
    r.rule("the same task, seed and actions give the same episode")
    second = play(7)
    for i, (a, b) in enumerate(zip(first, second, strict=False)):
        r.need(a == b, f"turn {i} differs: {_difference(a, b)}")
    r.need(len(first) == len(second), f"one episode had {len(first)} turns and the other {len(second)}")
    r.rule("an episode can follow another in the same environment: reset starts anew")
    env = make()
    r.attempt("an episode", _play, r, env, task, 7, actions, max_steps)
    third = r.attempt("an episode after another", _play, r, env, task, 7, actions, max_steps)
    r.need(third == first, "an episode after another differs from the first with the same seed; state is left over")
    if hasattr(env, "demonstrate"):
        r.rule("demonstrate() says the same text twice in a state, and step takes it")
        for _ in _demonstrated(r, make(), task, max_steps):
            pass
    return r.end()


def _demonstrated(r: Rules, env: Any, task: Task, max_steps: int) -> Iterator[str]:
    """What the environment demonstrates, turn by turn."""
    r.attempt("reset", lambda: _now(env.reset(task, 7)))
    for _ in range(max_steps):
        said, again = (r.attempt("demonstrate()", lambda: _now(env.demonstrate())) for _ in range(2))
        r.need(isinstance(said, str) and said == again, f"it said {_short(said)}, then {_short(again)}")
        yield said
        _, _, terminated, truncated, _ = r.attempt(f"step with {_short(said)}", lambda said=said: _now(env.step(Action(said))))
        if terminated or truncated:
            return


def _play(r: Rules, env: Any, task: Task, seed: int, actions: Sequence[Action] | None, max_steps: int) -> list[tuple[Any, ...]]:
    """One episode as comparable records."""
    observation = _now(env.reset(task, seed))
    r.need(isinstance(observation, Observation), f"reset returned {type(observation).__name__}")
    record: list[tuple[Any, ...]] = [(_picture(observation),)]
    space = getattr(env, "action_space", None)
    if space is not None and hasattr(space, "seed"):
        space.seed(seed)
    for i in range(max_steps):
        if actions:
            action = actions[i % len(actions)]
        else:
            action = Action(space.sample()) if space is not None else Action("<answer>4</answer>")
        result = _now(env.step(action))
        r.need(isinstance(result, tuple) and len(result) == 5, f"step {i} returned {_short(result)}; expected five values")
        observation, reward, terminated, truncated, info = result
        r.need(isinstance(observation, Observation), f"step {i} returned {type(observation).__name__} as observation")
        r.need(_is_finite(_item(reward)) and not isinstance(reward, bool), f"step {i} returned reward {reward!r}")
        r.need(isinstance(_item(terminated), bool), f"step {i} returned terminated={terminated!r}")
        r.need(isinstance(_item(truncated), bool), f"step {i} returned truncated={truncated!r}")
        r.need(isinstance(info, dict), f"step {i} returned info of type {type(info).__name__}")
        record.append((_picture(observation), float(reward), bool(terminated), bool(truncated)))
        if terminated or truncated:
            break
    return record


def _now(result: Any) -> Any:
    """The value of an asynchronous environment's answer."""
    if not inspect.isawaitable(result):
        return result
    from fovea.verifiers.core import _in_own_loop

    async def wait() -> Any:
        return await result

    return _in_own_loop(wait())


def _item(x: Any) -> Any:
    return x.item() if hasattr(x, "item") else x


def _picture(observation: Observation) -> tuple[Any, ...]:
    array = None if observation.array is None else bytes(memoryview(_numpy(observation.array)).cast("B"))
    return (repr(observation.messages), tuple(still(i).tobytes() for i in observation.images), array, observation.append)


def _numpy(x: Any) -> Any:
    import numpy as np

    return np.ascontiguousarray(np.asarray(x))


def _difference(a: tuple[Any, ...], b: tuple[Any, ...]) -> str:
    names = ("observation", "reward", "terminated", "truncated")
    name, x, y = next(((n, x, y) for n, x, y in zip(names, a, b, strict=False) if x != y), ("length", len(a), len(b)))
    return name if name == "observation" else f"{name} {x!r} and {y!r}"


def _short(x: Any) -> str:
    return f"{x!r:.80} ({type(x).__name__})"


# -- sources, samplers, gates ---------------------------------------------------------------------------------------------------


BLIND = ("math", "random", "format", "length", "return")
"""Verifiers that are not asked about a gold answer: they need a worker process, or do not look at answers."""


def check_source(source: Any, count: int = 16) -> list[str]:
    """Rules for `source[i] -> Task` (and `len(source)` unless it is infinite), on the first `count` tasks."""
    from fovea.verifiers import build

    r = Rules("Source")
    r.rule("source[i] is a Task, for every i below len(source)")
    r.need(hasattr(source, "__getitem__"), f"{type(source).__name__} has no __getitem__")
    n = r.attempt("len()", len, source) if hasattr(source, "__len__") else None
    r.need(n is None or n > 0, "the source is empty")
    tasks = []
    for i in range(count if n is None else min(count, n)):
        task = r.attempt(f"source[{i}]", lambda i=i: source[i])
        r.need(isinstance(task, Task), f"source[{i}] is {_short(task)}")
        tasks.append(task)

    r.rule("source[i] is the same task every time")
    for i, task in enumerate(tasks):
        other = r.attempt(f"source[{i}]", lambda i=i: source[i])
        same = (task.id, task.prompt, repr(task.answer)) == (other.id, other.prompt, repr(other.answer))
        r.need(
            same and [still(x).tobytes() for x in task.images] == [still(x).tobytes() for x in other.images],
            f"source[{i}] ({task.id!r}) changed",
        )

    r.rule("ids are texts, each used once")
    seen: dict[str, int] = {}
    for i, task in enumerate(tasks):
        r.need(isinstance(task.id, str) and task.id, f"source[{i}] has id {task.id!r}")
        r.need(task.id not in seen, f"id {task.id!r} belongs to source[{seen.get(task.id)}] and source[{i}]")
        seen[task.id] = i

    r.rule("a prompt is a tuple of messages {role, content: [parts]} that ends with something to answer")
    for task in tasks:
        r.need(isinstance(task.prompt, tuple) and task.prompt, f"task {task.id!r} has prompt {_short(task.prompt)}")
        for m in task.prompt:
            good = isinstance(m, dict) and m.get("role") in ("system", "user", "assistant", "tool") and isinstance(m.get("content"), list)
            r.need(good, f"task {task.id!r} has message {_short(m)}")
            wrong = [
                p
                for p in m["content"]
                if not (p.get("type") in ("image", "video") or (p.get("type") == "text" and isinstance(p.get("text"), str)))
            ]
            r.need(not wrong, f"task {task.id!r} has part {wrong[:1]}; expected {{'type': 'image'}} or {{'type': 'text', 'text': ...}}")
        r.need(task.prompt[-1]["role"] != "assistant", f"task {task.id!r} ends with the assistant's message")

    r.rule("there is one image placeholder for each image, and images are RGB pictures")
    for task in tasks:
        marks = sum(p["type"] in ("image", "video") for m in task.prompt for p in m["content"])
        r.need(marks == len(task.images), f"task {task.id!r} has {marks} placeholder(s) and {len(task.images)} image(s)")
        modes = [getattr(still(x), "mode", type(x).__name__) for x in task.images]
        r.need(all(m == "RGB" for m in modes), f"task {task.id!r} has images of kind {modes}")

    r.rule("the verifier exists, takes the task's params and does not call the gold answer wrong")
    for task in tasks:
        verifier = r.attempt(f"the verifier of task {task.id!r}", build, task.verifier, task.params)
        # what a policy's own coordinates would be is not derivable from the gold box in pixels
        if (
            not isinstance(task.verifier, str)
            or task.verifier in ("math", "random", "format", "length", "return")
            or "scale" in task.params
        ):
            continue
        probe = Episode("gold", task, turns=[Turn(gold_text(task))])
        score = r.attempt(f"scoring task {task.id!r}", verifier.score, Group(task, [probe]), Context())[0]
        r.need(score.ok, f"task {task.id!r} cannot be scored: {score.reason}")
        r.need(score.correct is not False, f"task {task.id!r} with answer {task.answer!r}: its gold answer {probe.text!r} is judged wrong")

    if n is not None:
        r.rule("source[len(source)] raises IndexError")
        try:
            source[n]
        except IndexError:
            pass
        except Exception as error:
            r.fail(f"source[{n}] raised {_last_line(error)}")
        else:
            r.fail(f"source[{n}] returned a task although len(source) is {n}")
    return r.end()


def check_sampler(sampler: Any, draws: int = 20) -> list[str]:
    """Rules for `next, observe, state_dict, load_state_dict`. The sampler is put back to where it was."""
    r = Rules("Sampler")
    r.rule("it has next(context), observe(groups), state_dict() and load_state_dict(state)")
    missing = [name for name in ("next", "observe", "state_dict", "load_state_dict") if not callable(getattr(sampler, name, None))]
    r.need(not missing, f"{type(sampler).__name__} lacks {', '.join(missing)}")

    r.rule("its state is plain JSON")
    start = r.attempt("state_dict()", sampler.state_dict)
    try:
        start = json.loads(json.dumps(start, allow_nan=False))
    except (TypeError, ValueError) as error:
        r.fail(f"state_dict() cannot be written as JSON: {error}")

    def draw(n: int) -> list[str]:
        tasks = [r.attempt("next()", sampler.next, Context(step=i, total_steps=n)) for i in range(n)]
        wrong = next((t for t in tasks if not isinstance(t, Task)), None)
        r.need(wrong is None, f"next() returned {_short(wrong)}")
        return [t.id for t in tasks]

    r.rule("next() returns a Task")
    first = draw(draws)
    r.rule("the same state deals the same tasks again")
    r.attempt("load_state_dict()", sampler.load_state_dict, copy.deepcopy(start))
    again = draw(draws)
    at = next((i for i, (a, b) in enumerate(zip(first, again, strict=True)) if a != b), None)
    r.need(at is None, f"draw {at} was task {first[at or 0]!r} and after load_state_dict {again[at or 0]!r}")
    r.rule("a state saved in the middle of a run goes on where it was")
    r.attempt("load_state_dict()", sampler.load_state_dict, copy.deepcopy(start))
    draw(draws // 2)
    middle = json.loads(json.dumps(sampler.state_dict()))
    rest = draw(draws - draws // 2)
    r.attempt("load_state_dict()", sampler.load_state_dict, middle)
    r.need(draw(draws - draws // 2) == rest, "the draws after a saved state differ from those after loading it")
    r.rule("observe() takes scored groups, and an empty list")
    r.attempt("observe([])", sampler.observe, [])
    r.attempt("observe()", sampler.observe, [_scored(True, False), _scored(None, None), _scored()])
    r.attempt("load_state_dict()", sampler.load_state_dict, start)
    return r.end()


def check_gate(gate: Any) -> list[str]:
    """Rules for `admit(group) -> bool`."""
    r = Rules("Gate")
    r.rule("admit(group) returns True or False for any group: mixed, all right, all wrong, without a notion of correct, unscored, empty")
    groups = [_scored(True, False), _scored(True, True), _scored(False, False), _scored(None, None), _scored(), Group(probe_tasks()[0], [])]
    unscored = _scored(True)
    unscored.episodes[0].score = Score.failed("probe")
    for group in [*groups, unscored]:
        verdict = r.attempt("admit()", gate.admit, group)
        r.need(isinstance(verdict, bool), f"got {_short(verdict)}")
    r.rule("the same group gets the same answer, and is not changed")
    for group in groups:
        values = [(e.id, e.score) for e in group.episodes]
        r.need(gate.admit(group) == gate.admit(group), "two calls differ")
        r.need([(e.id, e.score) for e in group.episodes] == values, "the group was changed by admit()")
    return r.end()


def _scored(*corrects: bool | None) -> Group:
    task = probe_tasks()[0]
    scores = [Score(float(c or 0), correct=c) for c in corrects]
    return Group(task, [Episode(f"e{i}", task, turns=[Turn("4")], score=s) for i, s in enumerate(scores)])


# -- methods --------------------------------------------------------------------------------------------------------------------


def check_method(method: Any) -> list[str]:
    """Rules for `needs`, `credit(batch)` and `loss(out, batch)`, on a small ragged batch in float64; or for `init` and `update`."""
    from fovea import _method_checks

    if _has(method, "init", "update"):
        return _method_checks.check_off_policy(method, Rules("Method"))
    return _method_checks.check(method, Rules("Method"))


# -- policies -------------------------------------------------------------------------------------------------------------------


def check_policy(policy: Any, *, tolerance: float = 1e-4) -> list[str]:
    """Rules for a language policy: what it samples, how it re-computes it, and what it must never say.

    Args:
      tolerance: largest difference in nats between a sampled log-probability and the re-computed one.
    """
    import torch

    from fovea.batch import collate
    from fovea.rollout.engine import Engine
    from fovea.rollout.sampling import Sampling

    r = Rules("Policy")
    r.rule("it has encode, encode_append, decode_text, prefill, decode, evaluate, parameters, eos_ids, banned_ids and version")
    names = ("encode", "encode_append", "decode_text", "prefill", "decode", "evaluate", "parameters", "eos_ids", "banned_ids", "version")
    missing = [name for name in names if not hasattr(policy, name)]
    r.need(not missing, f"{type(policy).__name__} lacks {', '.join(missing)}")

    tasks = probe_tasks()[:2]
    tasks[1] = Task("probe-text", "probe", user("Say a longer sentence about nothing in particular.", images=0), answer="x")
    r.rule("encode gives equal keys for equal prompts and different keys for different ones")
    keys = [r.attempt("encode()", policy.encode, t.prompt, t.images).key for t in (*tasks, *tasks)]
    r.need(keys[:2] == keys[2:], "the same prompt was encoded under two keys")
    r.need(keys[0] != keys[1], "two prompts share one key")

    r.rule("it generates without an error, for prompts of unequal length")
    sampling = Sampling(max_new_tokens=6, min_new_tokens=2)
    groups = r.attempt("a rollout", Engine(policy, seed=1).rollout, tasks, 2, sampling)
    errors = [e.error for g in groups for e in g.episodes if e.stop == "error"]
    r.need(not errors, f"an episode ended with: {errors[:1]}")

    r.rule("it never samples a banned id (image placeholders)")
    banned = set(policy.banned_ids)
    said = {int(a) for g in groups for e in g.episodes for s in e.segments for a, m in zip(s.actions, s.mask, strict=True) if m}
    r.need(not said & banned, f"sampled {sorted(said & banned)}")

    r.rule(f"evaluate() gives the log-probabilities that were recorded while sampling, within {tolerance:g} nats")
    for g in groups:
        for e in g.episodes:
            e.score = Score(0.0)
    batch = collate(groups)
    out = r.attempt("evaluate()", policy.evaluate, batch, frozenset({"logp", "entropy"}))
    for name in ("logp", "entropy"):
        r.need(name in out and out[name].shape == batch.mask_BT.shape, f"stream {name!r} is missing or not {tuple(batch.mask_BT.shape)}")
    chosen = batch.mask_BT > 0
    gap = float((out["logp"].detach().cpu().float() - batch.logp_old_BT)[chosen].abs().max())
    r.need(gap <= tolerance, f"they differ by up to {gap:.2g} nats")

    r.rule("log-probabilities are not positive, entropies not negative, and the gradient reaches a trainable parameter")
    r.need(bool((out["logp"][chosen.to(out["logp"].device)] <= 1e-6).all()), "a log-probability is positive")
    r.need(bool((out["entropy"][chosen.to(out["entropy"].device)] >= -1e-5).all()), "an entropy is negative")
    trainable = [p for p in policy.parameters() if p.requires_grad]
    r.need(trainable, "no parameter requires a gradient")
    with torch.enable_grad():
        logp = policy.evaluate(batch, frozenset({"logp"}))["logp"]
        r.need(logp.requires_grad, "logp carries no gradient")
        grads = torch.autograd.grad(logp.sum(), trainable, allow_unused=True)
    r.need(any(g is not None and bool((g != 0).any()) for g in grads), "the gradient of logp is zero everywhere")
    return r.end()


# -- by shape -------------------------------------------------------------------------------------------------------------------


def check(thing: Any) -> list[str]:
    """Check an object against the contract that its shape suggests; returns the rules that hold.

    A class is made without arguments where that is possible. A list of tasks is a source.
    """
    if isinstance(thing, type):
        try:
            made = thing()
        except TypeError as error:
            raise ContractError(f"{thing.__name__} cannot be made without arguments ({error}); check an object instead") from None
        return check_environment(thing) if _has(made, "reset", "step") else check(made)
    if _has(thing, "score", "scope"):
        return check_verifier(thing)
    if _has(thing, "reset", "step"):
        return check_environment(thing)
    if _has(thing, "credit", "loss") or _has(thing, "init", "update"):
        return check_method(thing)
    if _has(thing, "encode", "prefill"):
        return check_policy(thing)
    if _has(thing, "next", "state_dict"):
        return check_sampler(thing)
    if _has(thing, "admit"):
        return check_gate(thing)
    if _has(thing, "__getitem__") and not isinstance(thing, str | dict):
        return check_source(thing)
    if callable(thing):
        return check_verifier(thing)
    raise ContractError(
        f"{type(thing).__name__} ({_members(thing)}) has the shape of no part; expected a verifier (a function f(answer, task), or "
        "`scope` and `score`), an environment (reset, step), a source (__getitem__), a sampler (next, state_dict), a gate (admit), "
        "a method (credit, loss; or init, update) or a policy (encode, prefill)"
    )


def _members(thing: Any) -> str:
    return "with " + ", ".join(found[:8]) if (found := [n for n in dir(thing) if not n.startswith("_")]) else "without methods"


def _has(thing: Any, *names: str) -> bool:
    return all(hasattr(thing, name) for name in names)


def load_object(address: str) -> Any:
    """The object at "file.py:name" or "package.module:name"; the file's folder can be imported from, as when it is run.

    Raises:
      ValueError: an address of another form, or no such name in the file; the nearest is given.
      FileNotFoundError: no such file.
      ImportError: running the file raised something, named with its line.
    """
    place, colon, name = address.rpartition(":")
    if not colon or not place or not name:
        raise ValueError(f"{address!r} is not FILE.py:NAME (for example my_reward.py:reward)")
    if place.endswith(".py"):
        file = Path(place).expanduser().resolve()
        if not file.is_file():
            there = sorted(p.name for p in file.parent.glob("*.py")) if file.parent.is_dir() else []
            near = difflib.get_close_matches(file.name, there, 1)
            raise FileNotFoundError(f"no such file: {place}" + (f"; did you mean {near[0]}?" if near else ""))
        module = _run_file(file)
    else:
        module = importlib.import_module(place)
    thing = module
    for part in name.split("."):
        if not hasattr(thing, part):
            public = [n for n in vars(thing) if not n.startswith("_")] if hasattr(thing, "__dict__") else []
            near = difflib.get_close_matches(part, public, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has: {', '.join(public[:10])}"
            raise ValueError(f"{place} has no {name!r}{hint}")
        thing = getattr(thing, part)
    return thing


def _run_file(file: Path) -> Any:
    key = f"fovea_user_{file.stem}_{abs(hash(str(file)))}"
    if key in sys.modules:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException as e:
        del sys.modules[key]
        if not isinstance(e, Exception):
            raise
        lines = [n for frame, n in traceback.walk_tb(e.__traceback__) if frame.f_code.co_filename == str(file)]
        line = e.lineno if isinstance(e, SyntaxError) else lines[-1] if lines else "?"
        raise ImportError(f"{file.name}, line {line}: running the file raised {type(e).__name__}: {e}") from e
    return module
