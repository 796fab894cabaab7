"""What did we run? A recipe is one flat frozen dataclass; a run stores it resolved.

Every field can be set on the command line (``fovea train --group-size 4 --method dapo --method.eps-hi 0.28``) and in Python
(``fovea.train("grpo", group_size=4)``). Batch sizes name their unit; `micro_batch` changes memory, never results.
"""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import difflib
import hashlib
import json
import numbers
import types
import typing
from collections.abc import Callable, Mapping, Sized
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from fovea.methods.grpo import GRPO
from fovea.policies.control import Network
from fovea.policies.lora import LoRA
from fovea.report.sinks import SINKS
from fovea.rollout.sampling import Sampling
from fovea.rollout.services import Services
from fovea.tasks.curation import Curation
from fovea.trainer.replay import Replay

PARTS = ("tower", "projector", "text")
READ_BY_EVAL = (
    *("dtype", "device", "engine", "data", "heldout", "reward", "environment", "program", "on_bad_row", "sampling", "max_rows"),
    *("max_unscored", "verifier_timeout_s", "verifier_processes", "seed", "threads"),
)
"""Fields that an evaluation reads; the others say how to train."""


@dataclass(frozen=True)
class Recipe:
    """A run, from data to report.

    Attributes:
      name: shown in the report and used for the default run folder.
      model: "tiny" (ships with the package), a folder with a Hugging Face checkpoint, a hub id (owner/name), "SLUG:NAME": what another
        recipe makes, trained first (see fovea.starts), "network": a small one, made for the simulator in `data` (a run is one, too, with
        what it has learned), or "pi0:NAME": a π0 from
        a folder or a hub id, for a robot in `data`.
      network: its size.
      freeze: parts that are not trained: "tower" (vision encoder), "projector" (vision-to-text merger), "text" (all else).
      lora: adapters that are trained instead of the weights (`rank` 0: none).
      dtype: "float32" or "bfloat16" for weights and activations; "float64" to compare runs exactly.
      gradient_checkpointing: recompute activations in the backward pass; less memory, about a third more time.
      device: where the model computes: "cpu", "cuda", "cuda:1", ...
      engine: "local", or where answers are generated instead: the address of a server (several separated by commas), or a Remote;
        "ray", or a Ray with its fields, for actors on the machines of a cluster.
      data: "worlds" or "worlds:count,colour" for the procedural tasks, a JSONL/CSV/Parquet file or folder, a Source object, or
        "gym:ID" (a Gym object, where it has arguments) for the starts of a simulator.
      heldout: the same for evaluation; None takes the held-out split of `data`.
      reward: overrides each task's verifier: a verifier name, "file.py:function", or a Python callable.
      environment: a name such as "cards:points24" (`fovea list envs`), "file.py:Class" or a factory of environments; None answers in
        one step.
      program: "file.py:coroutine" or an episode program; None is the reset/step loop.
      on_bad_row: "stop" reports every bad data row and ends; "skip" reports and goes on without them.
      method: hyperparameters of the learning rule, an instance from fovea.methods; a name takes that method's defaults.
      sampling: how answers are drawn while training.
      tasks_per_step: tasks in one optimizer step's rollout.
      group_size: answers to each task.
      updates_per_rollout: optimizer steps taken on each rollout (its rows are split evenly among them).
      epochs_per_rollout: passes over each rollout.
      micro_batch: rows per forward/backward pass.
      max_rows: episodes generated at a time; bounds memory. Of a simulator: copies that step together.
      horizon: steps that every copy of a simulator takes in one training step, episodes going on in the next; 0 plays whole episodes.
      replay: what is kept of them by methods that learn from recorded episodes; `updates_per_rollout` is how often they do so each step.
      dynamic_sampling: keep drawing until every training group has both right and wrong answers (DAPO).
      max_resample: rollouts per step at most while dynamic sampling.
      services: environments, answers, data and training side by side instead of in turns (`workers` 0: in turns).
      curation: which episodes of a task the services play, and which groups train.
      steps: rollout-and-update steps.
      learning_rate, warmup_steps, schedule, weight_decay, betas: AdamW and its schedule.
      max_grad_norm: gradients of a greater norm are scaled down to it (0: never).
      optimizer: "adamw"; "adamw_8bit" keeps its moments in 8 bits, "paged_adamw" and "paged_adamw_8bit" in memory that moves to the host
        when a GPU runs out of its own (all three need bitsandbytes).
      offload: what waits in host memory when a GPU has too little: "optimizer" (moments), "activations". Changes no number.
      eval_every: steps between held-out evaluations (0: only before and after).
      eval_tasks: held-out tasks per evaluation (0: no evaluation).
      eval_temperature: 0 is greedy.
      early_stop: evaluations without improvement before the run ends (0: never).
      checkpoint_every: steps between checkpoints; the last and the best are always kept.
      keep: recent checkpoints kept besides the best.
      log_every: steps between stored sample rollouts.
      sinks: where numbers go besides the run folder and TensorBoard events: "wandb", "trackio", "mlflow" (an extra each).
      max_unscored: fraction of episodes that may fail to be scored in a step before the run stops.
      verifier_timeout_s: deadline of one scoring.
      verifier_processes: processes in which verifiers that are given by name score (0: threads of this one); one that hangs is killed.
      parallel: how the weights lie on several processes (torchrun): "data", all of them on each; "fsdp", a part on each; "auto"
        shards what would fill more than half of a process's memory. Changes memory and speed, never results.
      seed: addresses every random draw.
      threads: CPU threads of torch (0: leave as it is).
    """

    name: str = "grpo"
    model: str = "tiny"
    network: Network = field(default_factory=Network)
    freeze: tuple[str, ...] = ()
    lora: LoRA = field(default_factory=LoRA)
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    gradient_checkpointing: bool = False
    device: str = "cpu"
    engine: Any = "local"

    data: Any = "worlds"
    heldout: Any = None
    reward: Any = None
    environment: Any = None
    program: Any = None
    on_bad_row: Literal["stop", "skip"] = "stop"

    method: Any = field(default_factory=GRPO)
    sampling: Sampling = field(default_factory=Sampling)
    tasks_per_step: int = 16
    group_size: int = 8
    updates_per_rollout: int = 1
    epochs_per_rollout: int = 1
    micro_batch: int = 64
    max_rows: int = 256
    horizon: int = 0
    replay: Replay = field(default_factory=Replay)
    dynamic_sampling: bool = False
    max_resample: int = 20
    services: Services = field(default_factory=Services)
    curation: Curation = field(default_factory=Curation)
    steps: int = 60

    learning_rate: float = 3e-4
    warmup_steps: int = 2
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = "adamw"
    offload: tuple[str, ...] = ()

    eval_every: int = 0
    eval_tasks: int = 400
    eval_temperature: float = 0.0
    early_stop: int = 0
    checkpoint_every: int = 10
    keep: int = 2
    log_every: int = 5
    sinks: tuple[str, ...] = ()
    max_unscored: float = 0.2
    verifier_timeout_s: float = 10.0
    verifier_processes: int = 0
    parallel: Literal["auto", "data", "fsdp"] = "auto"
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", _method(self.method))
        _typed(type(self), vars(self), "")
        problems = [
            f"{name} = {value!r}, expected {rule}"
            for name, value, ok, rule in (
                ("tasks_per_step", self.tasks_per_step, self.tasks_per_step >= 1, "at least 1"),
                ("group_size", self.group_size, self.group_size >= 1, "at least 1"),
                ("updates_per_rollout", self.updates_per_rollout, self.updates_per_rollout >= 1, "at least 1"),
                ("epochs_per_rollout", self.epochs_per_rollout, self.epochs_per_rollout >= 1, "at least 1"),
                ("micro_batch", self.micro_batch, self.micro_batch >= 1, "at least 1"),
                ("max_rows", self.max_rows, self.max_rows >= 1, "at least 1"),
                ("horizon", self.horizon, self.horizon >= 0, "0 (whole episodes) or more"),
                (
                    "horizon",
                    self.horizon,
                    self.horizon > 0 or not _learns(self.method) or self.method.needs.data != "replay",
                    f"at least 1, because {type(self.method).__name__} learns from a replay",
                ),
                (
                    "replay.length",
                    self.replay.length,
                    self.replay.length >= _units(self.method),
                    f"at least {_units(self.method)}, because {type(self.method).__name__} looks ahead",
                ),
                ("max_resample", self.max_resample, self.max_resample >= 1, "at least 1"),
                (
                    "curation",
                    self.curation,
                    self.curation == Curation() or self.services.workers > 0,
                    "none, because services.workers is 0 and only the services' data manager curates",
                ),
                (
                    "dynamic_sampling",
                    self.dynamic_sampling,
                    not (self.dynamic_sampling and self.services.workers),
                    "False with services, whose data manager does the same by curation.mixed",
                ),
                ("steps", self.steps, self.steps >= 0, "0 or more"),
                ("learning_rate", self.learning_rate, self.learning_rate >= 0, "0 or more"),
                ("warmup_steps", self.warmup_steps, self.warmup_steps >= 0, "0 or more"),
                ("weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more"),
                ("betas", self.betas, len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "two numbers from 0 to below 1"),
                ("max_grad_norm", self.max_grad_norm, self.max_grad_norm >= 0, "0 (no clipping) or more"),
                ("eval_every", self.eval_every, self.eval_every >= 0, "0 or more"),
                ("eval_tasks", self.eval_tasks, self.eval_tasks >= 0, "0 or more"),
                ("eval_temperature", self.eval_temperature, self.eval_temperature >= 0, "0 or more"),
                ("early_stop", self.early_stop, self.early_stop >= 0, "0 or more"),
                ("checkpoint_every", self.checkpoint_every, self.checkpoint_every >= 1, "at least 1"),
                ("keep", self.keep, self.keep >= 1, "at least 1"),
                ("log_every", self.log_every, self.log_every >= 1, "at least 1"),
                ("verifier_timeout_s", self.verifier_timeout_s, self.verifier_timeout_s > 0, "more than 0"),
                ("verifier_processes", self.verifier_processes, self.verifier_processes >= 0, "0 or more"),
                ("threads", self.threads, self.threads >= 0, "0 or more"),
                ("max_unscored", self.max_unscored, 0 <= self.max_unscored <= 1, "a fraction between 0 and 1"),
                (
                    "method",
                    self.method,
                    _learns(self.method),
                    "a name or an instance of fovea.methods, or another with credit and loss (or init and update)",
                ),
                (
                    "engine",
                    self.engine,
                    self.engine == "local" or is_dataclass(self.engine),
                    '"local", a fovea.rollout.remote.Remote or a fovea.rollout.rayed.Ray',
                ),
                ("sinks", self.sinks, set(self.sinks) <= set(SINKS), f"any of {tuple(SINKS)}"),
                ("freeze", self.freeze, set(self.freeze) <= set(PARTS), f"any of {PARTS}"),
                ("offload", self.offload, set(self.offload) <= {"optimizer", "activations"}, "any of ('optimizer', 'activations')"),
                *((n, v, v in allowed, f"one of {allowed}") for n, allowed in _choices().items() for v in [getattr(self, n)]),
                (
                    "lora.where",
                    self.lora.where,
                    not (self.lora.rank and "tower" in self.lora.parts and "tower" in self.freeze),
                    "'language', because freeze names the tower",
                ),
            )
            if not ok
        ]
        if problems:
            raise ValueError("recipe: " + "; ".join(problems))

    def replace(self, **changes: Any) -> Recipe:
        """A copy with some fields changed. ``method__beta=0.1`` reaches into `method`, ``sampling__top_p=0.9`` into `sampling`.

        Raises:
          ValueError: a name that is no field, with the nearest one.
        """
        own = {f.name for f in fields(self)}
        nested: dict[str, dict[str, Any]] = {}
        for key in [k for k in changes if "__" in k]:
            outer, inner = key.split("__", 1)
            nested.setdefault(outer, {})[inner] = changes.pop(key)
        if "method" in changes:
            changes["method"] = _method(changes["method"])
        for outer, inner in nested.items():
            base = changes.get(outer, getattr(self, outer, None))
            if not is_dataclass(base) or isinstance(base, type):
                raise ValueError(
                    f"recipe: {outer!r} has no fields of its own; expected method, sampling, lora, network, replay, services or curation"
                )
            _known(inner, {f.name for f in fields(base)}, outer)
            _typed(type(base), inner, f"{outer}.")
            changes[outer] = dataclasses.replace(base, **inner)
        _known(changes, own, "recipe")
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """The resolved recipe as plain JSON; objects appear by their qualified name."""
        return {f.name: plain(getattr(self, f.name)) for f in fields(self)}

    def fingerprint(self) -> str:
        """Hash of everything that decides the numbers of a run; two runs with equal fingerprints may continue each other."""
        decides = {k: v for k, v in self.to_json().items() if self.decides(k)}
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]

    def decides(self, name: str) -> bool:
        """Whether a field decides numbers of a run. `steps` does not, so that a run can be prolonged, unless a schedule needs it."""
        return name not in RUNNING | PROLONGS or (name == "steps" and self.schedule != "constant")


RUNNING = frozenset(
    {"name", "log_every", "sinks", "keep", "checkpoint_every", "threads", "parallel", "verifier_timeout_s", "verifier_processes"}
)
"""Fields that decide no number of a run."""
PROLONGS = frozenset({"engine", "steps", "eval_every", "eval_tasks", "eval_temperature", "early_stop"})
"""Fields with which a run may go on changed: where it generates, how long it trains, and what is measured on the way."""


def _method(given: Any) -> Any:
    from fovea import methods

    return methods.get(given)() if isinstance(given, str) else given


def _learns(method: Any) -> bool:
    contracts = ("needs", "credit", "loss"), ("needs", "init", "update")
    return not isinstance(method, type) and any(all(hasattr(method, name) for name in names) for names in contracts)


def _units(method: Any) -> int:
    """Units in a window of the replay that a method reads."""
    return getattr(method.needs, "units", 1) if _learns(method) else 1


@cache
def _choices() -> dict[str, tuple[Any, ...]]:
    """Field -> the words that it may be."""
    hints = typing.get_type_hints(Recipe)
    return {name: typing.get_args(hint) for name, hint in hints.items() if typing.get_origin(hint) is Literal}


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _typed(kind: type, given: Mapping[str, Any], where: str) -> None:
    """
    Raises:
      ValueError: values that are of another type than their field.
    """
    wrong = [(n, v, hint) for n, v in given.items() if (hint := _hints(kind).get(n, Any)) is not Any and not _fits(v, hint)]
    if wrong:
        raise ValueError("recipe: " + "; ".join(f"{where}{n} = {v!r:.60}, expected {_called(hint)}" for n, v, hint in wrong))


def _fits(value: Any, hint: Any) -> bool:
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or origin is Callable or origin is collections.abc.Callable:
        return True
    if origin is Literal:
        return isinstance(value, type(inside[0]))  # which of the words is looked at by name
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, h) for h in inside)
    if origin is tuple:
        kinds = inside[:1] * len(value) if isinstance(value, tuple | list) and inside[-1] is Ellipsis else inside
        return isinstance(value, tuple | list) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if origin is not None:
        return isinstance(value, origin)
    if hint in (int, float):
        number = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool) and abs(value) < 1e300  # type: ignore[operator]
    return isinstance(value, hint if hint is not None else type(None))


def _called(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}
    origin = typing.get_origin(hint)
    if origin is Literal:
        return f"one of {typing.get_args(hint)}"
    return names.get(hint) or (f"a {origin.__name__}, {hint}" if isinstance(origin, type) else str(getattr(hint, "__name__", hint)))


def _known(given: dict[str, Any], known: set[str], where: str) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"
            raise ValueError(f"{where}: unknown field {name!r}{hint}")


def plain(value: Any) -> Any:
    """`value` as plain JSON; objects appear by their qualified name, functions with what they were made with."""
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Callable) and hasattr(value, "__qualname__"):
        name = f"{value.__module__}:{value.__qualname__}"
        held = _held(value)
        return {"type": name, **{k: plain(v) for k, v in held.items()}} if held else name
    name = f"{type(value).__module__}:{type(value).__qualname__}"
    if isinstance(value, Sized):  # a source: its rows are data, not settings
        return {"type": name, "name": getattr(value, "name", ""), "rows": len(value)}
    if is_dataclass(value):
        return {"type": type(value).__name__, **{f.name: plain(getattr(value, f.name)) for f in fields(value)}}
    return name


def completed(then: Any, value: Any) -> Any:
    """`then`, what `plain` once wrote of such a value, with the defaults of the fields that its class has gained since."""
    if not is_dataclass(value) or not isinstance(then, Mapping) or then.get("type") != type(value).__name__:
        return then
    gained = {f.name: plain(_default(f)) for f in fields(value) if f.name not in then and _default(f) is not MISSING}
    return gained | {k: completed(v, getattr(value, k, None)) for k, v in then.items()}


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _held(function: Any) -> dict[str, Any]:
    """The variables that an inner function took from around it: a verifier made by `number(tolerance=1)` differs by them alone."""
    held, cells = {}, getattr(function, "__closure__", None) or ()
    for name, cell in zip(function.__code__.co_freevars if cells else (), cells, strict=True):
        with contextlib.suppress(ValueError):  # not filled yet
            if cell.cell_contents is not function:
                held[name] = cell.cell_contents
    return held
