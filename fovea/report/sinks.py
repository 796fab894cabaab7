"""Where numbers go besides the run folder: Weights & Biases, Trackio, MLflow. A sink is an object with `log` and `close`.

All three work without a network: what they write stays on this machine, inside the run folder where they allow it, unless their own
settings (WANDB_MODE or WANDB_API_KEY, TRACKIO_SPACE_ID or TRACKIO_SERVER_URL, MLFLOW_TRACKING_URI) name a server. A sink that fails is
left behind; the run goes on without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fovea.report.compare import flatten

PROJECT = "fovea"


class Sink(Protocol):
    """Takes the numbers of steps, in order; a step may come again with further numbers."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class _Run:
    """A sink around a run object with `log` and `finish`."""

    run: Any

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log(dict(metrics), step=step)

    def close(self) -> None:
        self.run.finish()


class Wandb(_Run):
    """Weights & Biases. Offline unless it knows a key or WANDB_MODE says otherwise; `wandb sync` uploads later."""

    def __init__(self, folder: Path, config: Mapping[str, Any]):
        import wandb

        known = bool(os.environ.get("WANDB_MODE") or os.environ.get("WANDB_API_KEY"))
        options: dict[str, Any] = {} if known else {"mode": "offline"}
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.resolve().name,
            id=_id(folder),
            resume="allow",
            dir=str(folder),
            config=dict(config),
            **options,
        )


class Trackio(_Run):
    """Trackio: a database under TRACKIO_DIR (its default: the user's cache), shown by `trackio show`."""

    def __init__(self, folder: Path, config: Mapping[str, Any]):
        import trackio

        self.run = trackio.init(project=PROJECT, name=f"{folder.resolve().name}-{_id(folder)[:6]}", config=dict(config), resume="allow")


class MLflow:
    """MLflow: a database in the run folder, `mlflow ui --backend-store-uri sqlite:///RUN/mlflow.db`, or MLFLOW_TRACKING_URI."""

    def __init__(self, folder: Path, config: Mapping[str, Any]):
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve() / 'mlflow.db'}")
        found = self.client.get_experiment_by_name(PROJECT)
        experiment = found.experiment_id if found else self.client.create_experiment(PROJECT)
        earlier = self.client.search_runs([experiment], f"tags.fovea = '{_id(folder)}'", max_results=1)
        run = earlier[0] if earlier else self.client.create_run(experiment, run_name=folder.resolve().name, tags={"fovea": _id(folder)})
        self.id = run.info.run_id
        if not earlier:
            for name, value in flatten(config):
                self.client.log_param(self.id, name, str(value)[:500])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        at = time.time_ns() // 1_000_000
        self.client.log_batch(self.id, metrics=[Metric(_plain(name), value, at, step) for name, value in metrics.items()])

    def close(self) -> None:
        self.client.set_terminated(self.id)


SINKS: Mapping[str, tuple[str, Callable[[Path, Mapping[str, Any]], Sink]]] = {
    "wandb": ("wandb", Wandb),
    "trackio": ("trackio", Trackio),
    "mlflow": ("mlflow", MLflow),
}
"""Name -> (the package and extra that it needs, how to open it)."""


def check(names: Sequence[str]) -> None:
    """
    Raises:
      ValueError: an unknown sink.
      ImportError: its package is missing.
    """
    for name in names:
        if name not in SINKS:
            raise ValueError(f"sinks: found {name!r}, expected any of {', '.join(SINKS)} (TensorBoard events are always written)")
        if importlib.util.find_spec(SINKS[name][0]) is None:
            raise ImportError(f'sinks: {name} is not installed: pip install "fovea-rl[{name}]"')


class Sinks:
    """All sinks of a run, opened at the first number. One that fails is named once, on standard error, and not asked again."""

    def __init__(self, names: Sequence[str], folder: Path, config: Callable[[], Mapping[str, Any]]):
        check(names)
        self.names, self.folder, self.config = list(names), folder, config
        self.open: dict[str, Sink] = {}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        finite = {k: float(v) for k, v in metrics.items() if math.isfinite(v)}
        for name in list(self.names):
            with self._guarded(name):
                if name not in self.open:
                    self.open[name] = SINKS[name][1](self.folder, self.config())
                self.open[name].log(step, finite)

    def close(self) -> None:
        for name, sink in list(self.open.items()):
            with self._guarded(name):
                sink.close()
        self.open.clear()

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Any:
        try:
            yield
        except Exception as e:
            self.names.remove(name)
            self.open.pop(name, None)
            print(f"fovea: {name} failed and gets no more numbers of this run ({type(e).__name__}: {e})", file=sys.stderr)


def _id(folder: Path) -> str:
    """The same for every process that continues the run in this folder."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


def _plain(name: str) -> str:
    """A metric's name in the characters that MLflow allows."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-./ ") else "_" for c in name)[:250]
