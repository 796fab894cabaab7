"""One run from first to last step: collect, update, evaluate, checkpoint, log; resumable at any moment, blind to the method.

The state of a run is its completed step count plus what a checkpoint holds. Every random draw is addressed by (seed, step, task, ...), so
an interrupted run that starts again from its last complete checkpoint repeats the same numbers. A checkpoint may be written wherever the
weights are those of a complete step whose metrics are on disk; a step's evaluation may still be to do, and is done first on going on.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from fovea.batch import Batch
from fovea.recipe import Recipe, completed
from fovea.report.metrics import batch_metrics, headline, memory_metrics, time_metrics
from fovea.trainer import checkpoint as ckpt
from fovea.trainer import streams
from fovea.trainer.distributed import ALONE, Halt, Team
from fovea.trainer.update import Adam, TrainingDiverged, minibatches, optimizer_step, prepare
from fovea.types import Context, Group

OnStep = Callable[[int, dict[str, float]], Any]
Progress = Callable[..., None]


ORIGINS = {"data": "the training data", "heldout": "the held-out data", "base": "the weights under `model`, which no checkpoint holds,"}


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop and has saved its state; the message says how to go on."""


class Collector(Protocol):
    """Where groups come from: rollouts (`on_policy`) or a dataset (`offline`).

    `unscored` are the groups of the last step of which some episode could not be scored, whole; those that train lack these episodes.
    """

    unscored: Sequence[Group]

    def collect(self, context: Context, progress: Callable[..., None] | None) -> tuple[list[Group], dict[str, float]]:
        """The groups that train this step, and metrics of how they came to be."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Learning(Protocol):
    """How weights change where that is not by credit and one optimizer on the step's own groups (`off_policy`).

    `state` is what the method changes, a `fovea.methods.state.MethodState`.
    """

    state: Any

    def learn(self, context: Context, learning_rate: float, progress: Callable[[int, int], None]) -> dict[str, float]:
        """The updates of one step; their metrics."""
        ...

    def sync(self) -> None:
        """Return once what is not in a checkpoint would survive a power cut."""
        ...


@dataclass
class State:
    """What a checkpoint stores beside weights and optimizer moments. `evaluated` is the last step whose weights were evaluated."""

    step: int = 0
    version: int = 0
    train_seconds: float = 0.0
    best: float | None = None
    best_step: int | None = None
    stale: int = 0
    evaluated: int | None = None


class Session:
    """Runs a recipe with a policy and a collector inside a run folder.

    Args:
      evaluate: takes a progress callback and returns (metrics, groups) on held-out tasks; None skips evaluation.
      console: shows progress; see fovea.report.console.
      on_step: called after every step with (step, metrics), on the main process; returning True ends the run.
      team: the processes that train together. All make the same session, with the same weights already placed.
      path: run folder; default that of `folder`.
      origin: hashes of what decides the numbers and is in no checkpoint: "data", "heldout", "base" (weights that are not trained). A run
        goes on only with the same ones.
      surroundings: what else may change a digit or a meaning, by name (versions, threads, the files of user code); a change is said aloud.
      watch: called before a checkpoint is written; what it returns is said aloud.
      learning: takes the place of credit and optimizer.
    """

    def __init__(
        self,
        recipe: Recipe,
        policy: Any,
        collector: Collector,
        folder: Any,
        console: Any,
        evaluate: Callable[[Progress], tuple[dict[str, float], list[Group]]] | None = None,
        on_step: OnStep | None = None,
        team: Team = ALONE,
        path: Path | None = None,
        origin: Mapping[str, str] | None = None,
        surroundings: Mapping[str, Any] | None = None,
        watch: Callable[[], str] | None = None,
        learning: Learning | None = None,
    ):
        self.recipe, self.policy, self.collector = recipe, policy, collector
        self.folder, self.console, self.evaluate, self.on_step = folder, console, evaluate, on_step
        self.team = team
        self.adam = Adam(
            recipe.learning_rate,
            recipe.warmup_steps,
            recipe.schedule,
            recipe.steps,
            recipe.weight_decay,
            recipe.betas,
            recipe.max_grad_norm,
            recipe.optimizer,
            "optimizer" in recipe.offload,
        )
        self.learning = learning
        self.optimizer = self.adam.build(policy) if learning is None else learning.state
        self.state = State()
        self.checkpoints = Path(path or folder.path) / "checkpoints"
        self.origin, self.surroundings, self.watch = dict(origin or {}), dict(surroundings or {}), watch
        self.parent: dict[str, Any] | None = None
        self._saved: tuple[int, int | None] | None = None  # step and evaluation of the last checkpoint
        self._saving_s = 0.0  # since the last line of metrics
        self._stop = threading.Event()
        streams.seed(recipe.seed, team.rank)
        self._mark()

    # -- resuming -------------------------------------------------------------------------------------------------------------

    def restore(self, checkpoint: ckpt.Checkpoint) -> None:
        """Continue from `checkpoint`; its weights must already be loaded into the policy.

        Raises:
          CheckpointError: it belongs to a recipe, to data or to base weights with other numbers; the differing ones are named.
        """
        stored = checkpoint.state
        if decisive := {k: v for k, v in self.changes(checkpoint).items() if self.recipe.decides(k)}:
            changed = "; ".join(f"{k}: {then!r} then, {now!r} now" for k, (then, now) in decisive.items())
            raise ckpt.CheckpointError(
                f"{checkpoint.path} belongs to another recipe ({changed}); choose another --out, or a new run that starts from this step: "
                f"--fork {checkpoint.path.parent.parent}@{checkpoint.step} --out FOLDER"
            )
        for name, then in stored["origin"].items():
            now = self.origin.get(name)
            if now is not None and then != now:
                raise ckpt.CheckpointError(
                    f"{checkpoint.path}: {ORIGINS.get(name, name)} has changed since the run began: found SHA-256 {now[:12]}…, expected "
                    f"{then[:12]}…. Put back what it was, or start a new run from this step: "
                    f"--fork {checkpoint.path.parent.parent}@{checkpoint.step} --out FOLDER"
                )
        ckpt.load_optimizer(checkpoint, self.optimizer)
        self.collector.load_state_dict(stored["collector"])
        self.state, self.parent = State(**stored["run"]), stored["parent"]
        self._take_streams(checkpoint)
        for name, then in stored["surroundings"].items():
            if (now := self.surroundings.get(name)) != then:
                self.console.note(
                    f"{name} was {then} when step {checkpoint.step} was saved and is {now} now; numbers may differ from there"
                )
        self.folder.truncate(self.state.step)
        begun = self.parent["step"] if self.parent else 0
        if self.team.main and self.state.step > begun and (self.folder.last_step or 0) < self.state.step:
            self.console.note(f"the metrics end at step {self.folder.last_step}: lines up to step {self.state.step} have been lost")
        self._mark()
        self._saved = self._here()

    def fork(self, checkpoint: ckpt.Checkpoint, parent: Mapping[str, Any]) -> None:
        """Start a new run from another one's `checkpoint`; its weights must already be loaded into the policy.

        Moments and data position are taken over where they still fit, else they begin anew; what changed is said aloud and recorded.
        """
        stored, note = checkpoint.state, self.console.note
        changed = {k: {"then": then, "now": now} for k, (then, now) in self.changes(checkpoint).items()}
        self.parent = {**parent, "step": checkpoint.step, "checkpoint": stored[ckpt.SEAL], "changed": changed}
        note(f"starts from step {checkpoint.step} of {parent['run']}")
        for k, v in changed.items():
            note(f"  {k}: {v['then']!r} there, {v['now']!r} here")
        try:
            ckpt.load_optimizer(checkpoint, self.optimizer)
        except ckpt.CheckpointError as e:
            self.optimizer = self.adam.build(self.policy) if self.learning is None else self.learning.state
            note(f"  the optimizer's moments begin anew: {e}")
        if "data" not in changed and stored["origin"].get("data") == self.origin.get("data"):
            try:
                self.collector.load_state_dict(stored["collector"])
            except (ValueError, KeyError) as e:
                note(f"  the data begin anew: {e}")
        else:
            note("  the data begin anew: they are not those of the parent")
        self.state = State(step=checkpoint.step, version=int(stored["run"]["version"]))
        self._take_streams(checkpoint)
        self._mark()

    def changes(self, checkpoint: ckpt.Checkpoint) -> dict[str, tuple[Any, Any]]:
        """Recipe field -> (value in the checkpoint, value now), of those that differ; what the checkpoint does not know had its default."""
        now = ckpt.plain(self.recipe.to_json())
        then = ckpt.plain(completed({"type": "Recipe", **checkpoint.state["recipe"]}, self.recipe))
        del then["type"]
        return {k: (then.get(k), now.get(k)) for k in {**then, **now} if then.get(k) != now.get(k)}

    def _take_streams(self, checkpoint: ckpt.Checkpoint) -> None:
        """The version of the policy, and this process's generators; a process that the run did not have before keeps its own."""
        self.policy.version = self.state.version
        mine = f"{self.team.rank}."
        found = {k.removeprefix(mine): x for k, x in ckpt.load_streams(checkpoint).items() if k.startswith(mine)}
        if found:
            streams.restore(found)

    def save(self) -> ckpt.Checkpoint:
        if self.watch is not None and (said := self.watch()):
            self.console.note(said)
        content = {
            "fingerprint": self.recipe.fingerprint(),
            "recipe": self.recipe.to_json(),
            "collector": self._collected,
            "run": asdict(self.state),
            "origin": self.origin,
            "surroundings": self.surroundings,
            "parent": self.parent,
        }
        began = time.perf_counter()
        self.folder.sync()
        if self.learning is not None:
            self.learning.sync()
        states = {f"{rank}.{k}": x for rank, part in enumerate(self.team.gather(lambda: self._streams)) for k, x in part.items()}
        saved = ckpt.save(self.checkpoints, self.state.step, self.policy, self.optimizer, content, self.team, states)
        self.team.only_main(ckpt.prune, self.checkpoints, self.recipe.keep, self.state.best_step)
        self._saved = self._here()
        self._saving_s += time.perf_counter() - began
        return saved

    def _here(self) -> tuple[int, int | None]:
        return self.state.step, self.state.evaluated

    def _mark(self) -> None:
        """Everything is as after a complete step: what a checkpoint written from now on holds of what moves inside a step."""
        self._collected, self._streams, self._whole = self.collector.state_dict(), streams.capture(), True

    # -- the loop -------------------------------------------------------------------------------------------------------------

    def run(self) -> State:
        """Train until `recipe.steps` are complete.

        Raises:
          TrainingDiverged: with the step, the tasks and the last good checkpoint.
          Interrupted: after Ctrl-C or SIGTERM, with the state saved.
        """
        state = self.state
        with self._signals():
            try:
                done = self._settle({}, tell=state.evaluated is not None)
                if state.step == 0 or self.parent is not None:
                    self._keep()
                while not done and state.step < self.recipe.steps and not self._early():
                    self._check_stop()
                    done = self._step()
                self._keep()
            except Exception as e:
                if not isinstance(e, ckpt.CheckpointError):
                    self._rescue()
                raise
        return state

    def _step(self) -> bool:
        recipe, state, clock = self.recipe, self.state, _Clock(self._waited)
        context = Context(state.step, recipe.steps, state.version)
        try:
            with self.team.whole():
                groups, metrics = self.collector.collect(context, self._progress("generate"))
                clock.lap("generate")
                clock.move("generate", "score", metrics.pop("time/score_s", 0.0))
                batch = (
                    prepare(self.policy, recipe.method, groups, context, recipe.micro_batch, self.team) if self.learning is None else None
                )
        except Halt:
            raise self._interrupt() from None
        parts = minibatches(batch, recipe.updates_per_rollout, recipe.epochs_per_rollout, recipe.seed, state.step) if batch else []
        clock.lap("prepare")
        self._whole = False
        metrics |= batch_metrics(batch) | self._update(parts, groups, state.step) if batch else self._learn(context)
        clock.lap("update")
        state.step += 1
        state.train_seconds += clock.total
        metrics |= time_metrics(
            {**clock.seconds, "step": clock.total}, metrics.get("length/tokens", 0.0), metrics.get("length/episodes", 0.0)
        )
        metrics |= memory_metrics() | {"time/save_s": self._saving_s}
        self._saving_s = 0.0
        self.folder.log(state.step, metrics)
        shown = {"force": state.step == recipe.steps, "unscored": self.collector.unscored}
        self.folder.log_groups(state.step, groups, policy=self.policy, batch=batch, **shown)
        self._mark()
        done = self._settle(metrics)
        if state.step % recipe.checkpoint_every == 0 or state.best_step == state.step:
            self._keep()
        return done

    def _waited(self) -> float:
        """Seconds in which this process has stood still for others."""
        return sum(waits.seconds for waits in {self.team.waits, getattr(self.collector, "waits", self.team.waits)})

    def _settle(self, metrics: dict[str, float], tell: bool = True) -> bool:
        """Evaluate where it is due and `tell` of the step; whether the run is to end here."""
        step = self.state.step
        if self._evaluation_due():
            metrics = metrics | self._evaluate()
            self._mark()
        if not metrics:
            return False
        self.console.step(step, metrics)
        if not tell:
            return False
        done = self.team.from_main(lambda: bool(self.on_step and self.on_step(step, metrics)))
        self._mark()
        return done

    def _evaluation_due(self) -> bool:
        state, recipe = self.state, self.recipe
        if self.evaluate is None or state.evaluated == state.step:
            return False
        return state.evaluated is None or state.step == recipe.steps or (recipe.eval_every > 0 and state.step % recipe.eval_every == 0)

    def _keep(self) -> None:
        """Save, unless just this has been saved."""
        if self._saved != self._here():
            self.save()

    def _progress(self, phase: str) -> Progress:
        def progress(done: int, total: int, *_: Any) -> None:
            self.console.phase(phase, done, total)
            if self._stop.is_set():
                raise Halt

        return progress

    def _update(self, parts: Sequence[Batch], groups: Sequence[Group], step: int) -> dict[str, float]:
        """The optimizer steps of one rollout; metrics are their means."""
        recipe = self.recipe
        rows: list[dict[str, float]] = []
        for i, part in enumerate(parts):
            self.console.phase("update", i, len(parts))
            try:
                rows.append(
                    optimizer_step(
                        self.policy,
                        recipe.method,
                        part,
                        self.optimizer,
                        lr=self.adam.lr_at(step),
                        micro_batch=recipe.micro_batch,
                        max_grad_norm=recipe.max_grad_norm,
                        max_tokens=recipe.sampling.max_new_tokens,
                        team=self.team,
                    )
                )
            except TrainingDiverged as e:
                self._whole = i == 0
                tasks = ", ".join(g.task.id for g in groups[:8]) + (" …" if len(groups) > 8 else "")
                good = next((p.name for p in ckpt.written(self.checkpoints)), "none yet")
                raise TrainingDiverged(
                    f"step {step + 1}: {e}. Tasks: {tasks}. Weights were not touched by this update; last good checkpoint: {good}. "
                    "Likely causes: learning rate too high, a verifier that returns huge values. The same command would do the same again; "
                    "--fork RUN@STEP starts a new run before this step with other settings."
                ) from None
            self.state.version += 1
            self.policy.version = self.state.version
        return {k: sum(r.get(k, 0.0) for r in rows) / len(rows) for k in rows[0]}

    def _learn(self, context: Context) -> dict[str, float]:
        """The updates of a step by `learning`."""
        assert self.learning is not None
        metrics = self.learning.learn(context, self.adam.lr_at(context.step), lambda i, n: self.console.phase("update", i, n))
        if odd := {k: v for k, v in metrics.items() if not math.isfinite(v)}:
            good = next((p.name for p in ckpt.written(self.checkpoints)), "none yet")
            raise TrainingDiverged(
                f"step {context.step + 1}: {odd}, expected finite numbers; last good checkpoint: {good}. Likely causes: learning "
                "rate too high, rewards of huge size. --fork RUN@STEP starts a new run before this step with other settings."
            )
        self.state.version += int(bool(metrics))
        self.policy.version = self.state.version
        return metrics

    def _evaluate(self) -> dict[str, float]:
        assert self.evaluate is not None
        began = time.perf_counter()
        try:
            with self.team.whole():
                metrics, groups = self.evaluate(self._progress("evaluate"))
        except Halt:
            raise self._interrupt() from None
        state, score = self.state, headline(metrics)
        metrics = metrics | {"time/eval_s": time.perf_counter() - began}
        self.folder.log(state.step, metrics)
        self.folder.log_groups(state.step, groups, policy=self.policy, split="eval")
        if state.best is None or state.best != state.best or score > state.best:  # NaN (nothing could be scored) gives way
            state.best, state.best_step, state.stale = score, state.step, 0
        else:
            state.stale += 1
        state.evaluated = state.step
        return metrics

    def _early(self) -> bool:
        stop = bool(self.recipe.early_stop) and self.state.stale >= self.recipe.early_stop
        if stop:
            self.console.note(
                f"early stop: no better held-out result for {self.state.stale} evaluations (best at step {self.state.best_step})"
            )
        return stop

    # -- interruption ---------------------------------------------------------------------------------------------------------

    def _check_stop(self) -> None:
        if self.team.any(self._stop.is_set()):
            raise self._interrupt()

    def _interrupt(self) -> Interrupted:
        """Save; every process of the team has been told to stop."""
        self._stop.set()
        self._keep()
        kept = self.checkpoints / f"step-{self.state.step:06d}"
        return Interrupted(f"stopped after step {self.state.step}; saved to {kept}. The same command goes on from there.")

    def _rescue(self) -> None:
        """Something failed: keep the complete steps since the last checkpoint. Saving takes all processes; of several one may be gone."""
        if self.team.size == 1 and self._whole and self.state.step and self._saved != self._here():
            with contextlib.suppress(Exception):  # what failed first is what the user must hear of
                self.console.note(f"saved {self.save().path.name} before ending")

    def _signals(self) -> Any:
        return _Signals(self._stop) if threading.current_thread() is threading.main_thread() else contextlib.nullcontext()


class _Clock:
    """Seconds of consecutive phases; what `waited` counts meanwhile is a phase of its own, "wait"."""

    def __init__(self, waited: Callable[[], float]) -> None:
        self.seconds: dict[str, float] = {}
        self.waited, self.before = waited, waited()
        self.began = self.last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now, waited = time.perf_counter(), self.waited()
        self.seconds[phase], self.last = now - self.last, now
        self.move(phase, "wait", waited - self.before)
        self.before = waited

    def move(self, phase: str, part: str, seconds: float) -> None:
        """Count `seconds` of a phase under a name of their own."""
        if seconds:
            self.seconds[phase] -= seconds
            self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    @property
    def total(self) -> float:
        return self.last - self.began


class _Signals:
    """While entered, the first SIGINT, SIGTERM or SIGHUP asks for a clean stop; a second SIGINT interrupts at once.

    A signal that this process was started to ignore (`nohup`, a shell's background job) stays ignored.
    """

    def __init__(self, stop: threading.Event):
        self.stop, self.before = stop, {}

    def __enter__(self) -> None:
        for number in {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self.before[number] = signal.signal(number, self._ask)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: object) -> None:
        if self.stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stop.set()
