"""One run from first to last step: collect, update, evaluate, checkpoint, log; resumable at any moment, blind to the method.

The state of a run is its completed step count plus what a checkpoint holds. Every random draw is addressed by (seed, step, task, ...), so
an interrupted run that starts again from its last complete checkpoint repeats the same numbers.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fovea.batch import Batch
from fovea.recipe import Recipe
from fovea.report.metrics import batch_metrics, memory_metrics, time_metrics
from fovea.trainer import checkpoint as ckpt
from fovea.trainer.distributed import ALONE, Halt, Team
from fovea.trainer.update import Adam, TrainingDiverged, minibatches, optimizer_step, prepare
from fovea.types import Context, Group

OnStep = Callable[[int, dict[str, float]], Any]


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop and has saved its state; the message says how to go on."""


class Collector(Protocol):
    """Where groups come from: rollouts (`on_policy`) or a dataset (`offline`)."""

    def collect(self, context: Context, progress: Callable[..., None] | None) -> tuple[list[Group], dict[str, float]]:
        """The groups that train this step, and metrics of how they came to be."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class State:
    """What a checkpoint stores beside weights and optimizer moments."""

    step: int = 0
    version: int = 0
    train_seconds: float = 0.0
    best: float | None = None
    best_step: int | None = None
    stale: int = 0


class Session:
    """Runs a recipe with a policy and a collector inside a run folder.

    Args:
      evaluate: returns (metrics, groups) on held-out tasks; None skips evaluation.
      console: shows progress; see fovea.report.console.
      on_step: called after every step with (step, metrics), on the main process; returning True ends the run.
      team: the processes that train together. All make the same session, with the same weights already placed.
      path: run folder; default that of `folder`.
    """

    def __init__(
        self,
        recipe: Recipe,
        policy: Any,
        collector: Collector,
        folder: Any,
        console: Any,
        evaluate: Callable[[], tuple[dict[str, float], list[Group]]] | None = None,
        on_step: OnStep | None = None,
        team: Team = ALONE,
        path: Path | None = None,
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
        self.optimizer = self.adam.build(policy)
        self.state = State()
        self.checkpoints = Path(path or folder.path) / "checkpoints"
        self._collected = collector.state_dict()  # as of the last complete step: what a checkpoint must hold
        self._stop = threading.Event()

    # -- resuming -------------------------------------------------------------------------------------------------------------

    def restore(self, checkpoint: ckpt.Checkpoint) -> None:
        """Continue from `checkpoint`; its weights must already be loaded into the policy.

        Raises:
          CheckpointError: it belongs to a recipe with other numbers; the differing fields are named.
        """
        stored = checkpoint.state
        if stored["fingerprint"] != self.recipe.fingerprint():
            mine = self.recipe.to_json()
            changed = [f"{k}: {v!r} then, {mine.get(k)!r} now" for k, v in stored["recipe"].items() if mine.get(k) != v]
            raise ckpt.CheckpointError(f"{checkpoint.path} belongs to another recipe ({'; '.join(changed)}); choose another --out")
        ckpt.load_optimizer(checkpoint, self.optimizer)
        self.collector.load_state_dict(stored["collector"])
        self._collected = stored["collector"]
        self.state = State(**stored["run"])
        self.policy.version = self.state.version
        self.folder.truncate(self.state.step)

    def save(self) -> ckpt.Checkpoint:
        run = {f: getattr(self.state, f) for f in State.__dataclass_fields__}
        content = {
            "fingerprint": self.recipe.fingerprint(),
            "recipe": self.recipe.to_json(),
            "collector": self._collected,
            "run": run,
        }
        saved = ckpt.save(self.checkpoints, self.state.step, self.policy, self.optimizer, content, self.team)
        self.team.only_main(ckpt.prune, self.checkpoints, self.recipe.keep, self.state.best_step)
        return saved

    # -- the loop -------------------------------------------------------------------------------------------------------------

    def run(self) -> State:
        """Train until `recipe.steps` are complete.

        Raises:
          TrainingDiverged: with the step, the tasks and the last good checkpoint.
          Interrupted: after Ctrl-C or SIGTERM, with the state saved.
        """
        with self._signals():
            if self.evaluate is not None and self.state.best is None:
                self.console.step(0, self._evaluate())
            if self.state.step == 0:
                self.save()
            while self.state.step < self.recipe.steps:
                if self._step() or self._early():
                    break
        self.save()
        return self.state

    def _step(self) -> bool:
        recipe, state, clock = self.recipe, self.state, _Clock()
        self._check_stop()
        context = Context(state.step, recipe.steps, state.version)
        try:
            with self.team.whole():
                groups, metrics = self.collector.collect(context, self._progress)
                clock.lap("generate")
                clock.move("generate", "score", metrics.pop("time/score_s", 0.0))
                batch = prepare(self.policy, recipe.method, groups, context, recipe.micro_batch, self.team)
        except Halt:
            self._stop.set()
            self._check_stop()
            raise
        parts = minibatches(batch, recipe.updates_per_rollout, recipe.epochs_per_rollout, recipe.seed, state.step)
        clock.lap("prepare")
        metrics |= batch_metrics(batch) | self._update(parts, groups, state.step)
        clock.lap("update")
        state.step += 1
        self._collected = self.collector.state_dict()
        state.train_seconds += clock.total
        metrics |= time_metrics(
            {**clock.seconds, "step": clock.total}, metrics.get("length/tokens", 0.0), metrics.get("length/episodes", 0.0)
        )
        metrics |= memory_metrics()
        self.folder.log(state.step, metrics)
        self.folder.log_groups(state.step, groups, policy=self.policy, batch=batch, force=state.step == recipe.steps)
        due = state.step == recipe.steps or (recipe.eval_every > 0 and state.step % recipe.eval_every == 0)
        if self.evaluate is not None and due:
            metrics |= self._evaluate()
        self.console.step(state.step, metrics)
        if state.step % recipe.checkpoint_every == 0 and state.step < recipe.steps:
            self.save()
        return self.team.from_main(lambda: bool(self.on_step and self.on_step(state.step, metrics)))

    def _progress(self, done: int, total: int, *_: Any) -> None:
        self.console.phase("generate", done, total)
        if self._stop.is_set():
            raise Halt

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
                tasks = ", ".join(g.task.id for g in groups[:8]) + (" …" if len(groups) > 8 else "")
                good = max((p.name for p in self.checkpoints.glob("step-*")), default="none yet")
                raise TrainingDiverged(
                    f"step {step + 1}: {e}. Tasks: {tasks}. Weights were not touched by this update; last good checkpoint: {good}. "
                    "Likely causes: learning rate too high, a verifier that returns huge values."
                ) from None
            self.state.version += 1
            self.policy.version = self.state.version
        return {k: sum(r.get(k, 0.0) for r in rows) / len(rows) for k in rows[0]}

    def _evaluate(self) -> dict[str, float]:
        assert self.evaluate is not None
        with self.team.whole():
            metrics, groups = self.evaluate()
        state, score = self.state, metrics["eval/accuracy"]
        if state.best is None or score > state.best:
            state.best, state.best_step, state.stale = score, state.step, 0
        else:
            state.stale += 1
        self.folder.log(state.step, metrics)
        self.folder.log_groups(state.step, groups, policy=self.policy, split="eval")
        if state.step and state.best_step == state.step:
            self.save()
        return metrics

    def _early(self) -> bool:
        stop = bool(self.recipe.early_stop) and self.state.stale >= self.recipe.early_stop
        if stop:
            self.console.note(
                f"early stop: no better held-out accuracy for {self.state.stale} evaluations (best at step {self.state.best_step})"
            )
        return stop

    # -- interruption ---------------------------------------------------------------------------------------------------------

    def _check_stop(self) -> None:
        if self.team.any(self._stop.is_set()):
            saved = self.save()
            raise Interrupted(f"stopped after step {self.state.step}; saved to {saved.path}. The same command goes on from there.")

    def _signals(self) -> Any:
        return _Signals(self._stop) if threading.current_thread() is threading.main_thread() else contextlib.nullcontext()


class _Clock:
    """Seconds of consecutive phases."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.began = self.last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase], self.last = now - self.last, now

    def move(self, phase: str, part: str, seconds: float) -> None:
        """Count `seconds` of a phase under a name of their own."""
        if seconds:
            self.seconds[phase] -= seconds
            self.seconds[part] = seconds

    @property
    def total(self) -> float:
        return self.last - self.began


class _Signals:
    """While entered, the first SIGINT, SIGTERM or SIGHUP asks for a clean stop; a second SIGINT interrupts at once."""

    def __init__(self, stop: threading.Event):
        self.stop, self.before = stop, {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            self.before[number] = signal.signal(number, self._ask)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: object) -> None:
        if self.stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stop.set()
