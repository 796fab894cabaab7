"""Kill a run at random instants, give the same command again until it is done, compare its end with that of a run left alone.

    python benchmarks/reliability/resume.py [--kills 100] [--steps 60] [--per-run 5] [--seed 0] [--out FILE]

A run is killed several times before it may end. Each kill has a drawn signal (SIGKILL, SIGTERM, SIGINT) and a drawn aim: start-up, a
step, the writing of a checkpoint (its temporary folder is there), an evaluation (its step is logged, its result is not). What is counted
is the phase in which the signal was sent, read off the run folder. Equal means: the same bytes of weights, moments and random generators,
the same counters and sampler, the same metrics and stored rollouts; only times may differ.

Most processes are forked from one that has imported the libraries, which saves their import; every tenth is a fresh `python -m fovea`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OUT = Path(__file__).with_name("resume.json")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PHASES = ("startup", "step", "checkpoint", "evaluation")
TIMES = ("time/", "speed/", "memory/")
EVAL_EVERY, FRESH_EVERY, PATIENCE_S = 10, 10, 300.0
REWARD = '''"""Right answers are rare before training: any difference between answers will do."""


def reward(answer, task, episode):
    return sum(map(ord, episode.text)) % 5 / 4
'''
CASES = {
    "on-policy": ["grpo", "--method.beta", "0.05", "--updates-per-rollout", "2"],
    "offline": ["sft"],
    "off-policy": [
        *("sac", "--updates-per-rollout", "2", "--horizon", "4"),
        *("--replay.start", "16", "--replay.size", "64", "--replay.batch", "8"),  # full after a quarter of the run
    ],
}


# -- what must be equal ---------------------------------------------------------------------------------------------------------


def outcome(run: Path) -> dict[str, Any]:
    """Everything of a finished run that must not depend on how often it was interrupted."""
    from fovea.trainer import checkpoint as ckpt

    last = ckpt.latest(run / "checkpoints")
    assert last is not None, f"{run} has no checkpoint"
    return {
        "step": last.step,
        "tensors": {name: sha for name, sha in last.state["files"].items() if name.endswith(".safetensors")},
        "sampler": last.state["collector"],
        "counters": {k: v for k, v in last.state["run"].items() if k != "train_seconds"},
        "metrics": [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in rows(run)],
        "rollouts": {f.name: f.read_text() for f in sorted((run / "rollouts").glob("*.jsonl"))},
    }


def difference(a: Any, b: Any) -> str:
    """The first thing in which two outcomes differ, "" when there is none."""
    if a == b:
        return ""
    if isinstance(a, dict) and isinstance(b, dict):
        key = next(k for k in {**a, **b} if k not in a or k not in b or a[k] != b[k])
        return f"{key}: {difference(a.get(key), b.get(key))}"
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        i = next(i for i in range(len(a)) if a[i] != b[i])
        return f"{i}: {difference(a[i], b[i])}"
    return f"{a!r:.200} against {b!r:.200}"


def rows(run: Path) -> list[dict[str, Any]]:
    """Whole lines of the metrics."""
    with contextlib.suppress(OSError):
        return [json.loads(line) for line in (run / "metrics.jsonl").read_bytes().split(b"\n")[:-1]]
    return []


# -- processes ------------------------------------------------------------------------------------------------------------------


class Process:
    """`fovea ARGUMENTS` in a process of its own, forked from this one or with a fresh interpreter; what it says goes to `log`."""

    def __init__(self, arguments: list[str], log: Path, fresh: bool):
        self.code: int | None = None
        if fresh:
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "fovea", *arguments]
            with log.open("ab") as out:
                self.pid = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True).pid
            return
        self.pid = os.fork()
        if self.pid == 0:
            self._become(arguments, log)

    @staticmethod
    def _become(arguments: list[str], log: Path) -> None:
        code = 1
        try:
            os.setsid()
            out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.dup2(out, 1)
            os.dup2(out, 2)
            sys.argv = ["fovea", *arguments]
            from fovea import cli

            code = cli.main(arguments)
            sys.stdout.flush()
            sys.stderr.flush()
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)

    def alive(self) -> bool:
        if self.code is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if done else None
        return self.code is None

    def wait(self, limit_s: float = PATIENCE_S) -> int:
        """Exit status, negative after a signal."""
        ends = time.monotonic() + limit_s
        while self.alive():
            if time.monotonic() > ends:
                os.kill(self.pid, signal.SIGKILL)
                raise TimeoutError(f"process {self.pid} did not end within {limit_s:.0f} s")
            time.sleep(0.002)
        assert self.code is not None
        return self.code


def preload() -> None:
    """Import what a run imports; forks of this process begin at once. Nothing here may leave a thread behind."""
    import importlib

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in (
        "torch.utils.tensorboard",
        "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
        "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl",
        "fovea.api",
        "fovea.cli",
        "fovea.policies.hf_vlm",
        "fovea.rollout.engine",
        "fovea.report.page",
        "fovea.report.console",
        "fovea.recipes",
        "fovea.trainer.origin",
        "torch._dynamo",
    ):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


# -- kills ----------------------------------------------------------------------------------------------------------------------


def phase_of(run: Path, before: tuple[int, int]) -> str:
    """What a live run is doing, read off its folder; `before` is the stamp of its metrics when the process began."""
    if any((run / "checkpoints").glob(".step-*.partial")):
        return "checkpoint"
    metrics = run / "metrics.jsonl"
    if not metrics.exists() and (run / "config.json").exists() and before == (0, 0):
        return "evaluation"  # the one before the first step
    if stamp(metrics) == before:
        return "startup"
    last = (rows(run) or [{}])[-1]
    return "evaluation" if last.get("step", 1) % EVAL_EVERY == 0 and "eval/n" not in last else "step"


def stamp(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


@dataclass
class Sweep:
    """Kills and their outcomes so far.

    Attributes:
      per_run: kills of one run before it may end.
      span: seconds that each phase takes, from the run left alone; a kill comes at a random part of it.
    """

    folder: Path
    model: Path
    steps: int
    per_run: int
    draw: random.Random
    span: dict[str, float] = field(default_factory=dict)
    launched: int = 0
    kills: list[dict[str, Any]] = field(default_factory=list)
    endings: list[dict[str, Any]] = field(default_factory=list)

    def arguments(self, case: str, run: Path) -> list[str]:
        spoken = {
            "model": self.model,
            "data": "worlds:count,colour",
            "reward": f"{self.folder / 'reward.py'}:reward",
            "tasks-per-step": 2,
            "group-size": 2,
            "sampling.max-new-tokens": 4,
        }
        fixed = (spoken if case != "off-policy" else {}) | {
            "steps": self.steps,
            "eval-tasks": 2,
            "eval-every": EVAL_EVERY,
            "checkpoint-every": 5,
            "threads": 1,
            "learning-rate": 1e-3,
            "out": run,
        }
        return ["train", *CASES[case], *(str(x) for k, v in fixed.items() for x in (f"--{k}", v))]

    def start(self, case: str, run: Path, fresh: bool = False) -> Process:
        self.launched += 1
        return Process(self.arguments(case, run), self.folder / f"{run.name}.log", fresh)

    def alone(self, case: str) -> dict[str, Any]:
        """The outcome of a run that nobody interrupts; measures how long its phases take."""
        run = self.folder / f"{case}-alone"
        process, seconds, last = self.start(case, run), Counter(), time.monotonic()
        while process.alive():
            now = time.monotonic()
            seconds[phase_of(run, (0, 0))] += now - last
            last = now
            time.sleep(0.001)
        if process.wait() != 0:
            raise RuntimeError((self.folder / f"{run.name}.log").read_text()[-3000:])
        for phase, n in {
            "startup": 1,
            "step": self.steps,
            "checkpoint": self.steps / 5 + 1,
            "evaluation": self.steps / EVAL_EVERY + 1,
        }.items():
            self.span[phase] = max(self.span.get(phase, 0.0), seconds[phase] / n)
        return outcome(run)

    def chain(self, case: str, number: int, wanted: int) -> Path:
        """One run, killed `wanted` times at most and then left to end."""
        run = self.folder / f"{case}-{number}"
        for _ in range(wanted):
            fresh = self.launched % FRESH_EVERY == FRESH_EVERY - 1
            before = stamp(run / "metrics.jsonl")
            process = self.start(case, run, fresh)
            if not self.kill(process, run, before, fresh):
                break
        process = self.start(case, run)
        if process.wait() != 0:
            raise RuntimeError(f"{run.name} did not end:\n" + (self.folder / f"{run.name}.log").read_text()[-3000:])
        return run

    def kill(self, process: Process, run: Path, before: tuple[int, int], fresh: bool) -> bool:
        """Wait for a drawn instant, send a drawn signal, wait for the end; False where the run was done before."""
        aim, number = self.draw.choice(PHASES), self.draw.choice(SIGNALS)
        skip = self.draw.randrange(1 + self.steps // 5) if aim != "startup" else 0
        part = self.draw.random() * self.span[aim] * (8.0 if fresh and aim == "startup" else 1.0)
        reached = self._reached(aim, run, before, skip)
        while process.alive() and not reached():
            time.sleep(0.0005)
        time.sleep(part)
        if not process.alive():
            return False
        phase = phase_of(run, before)
        os.kill(process.pid, number)
        code = process.wait()
        self.kills.append(
            {"signal": signal.Signals(number).name, "phase": phase, "aim": aim, "run": run.name, "code": code, "fresh": fresh}
        )
        return True

    def _reached(self, aim: str, run: Path, before: tuple[int, int], skip: int) -> Callable[[], bool]:
        """Whether the process has come to its aim, after `skip` steps of its own."""
        first: list[int] = []

        def reached() -> bool:
            if aim == "startup":
                return True
            if stamp(run / "metrics.jsonl") == before:
                return aim == phase_of(run, before) and skip == 0
            now = phase_of(run, before)
            if not first:
                first.append(len(rows(run)))
            return now == aim and len(rows(run)) >= first[0] + skip

        return reached


def sweep(kills: int, steps: int, per_run: int, seed: int, folder: Path) -> dict[str, Any]:
    """Kill runs `kills` times in all; the result, ready for JSON."""
    from fovea import load_policy
    from fovea.bench.flops import Shape
    from fovea.bench.workload import build_checkpoint

    (folder / "reward.py").write_text(REWARD)
    shape = Shape(
        hidden=32, layers=1, heads=2, kv_heads=1, head_dim=16, inner=64, vocab=384, v_hidden=32, v_layers=1, v_full_layers=1, v_inner=64
    )
    made = os.fork()  # what makes a model starts threads, and this process must have none
    if made == 0:
        build_checkpoint(folder / "model", shape)
        os._exit(0)
    os.waitpid(made, 0)
    load_policy(folder / "model")  # fills caches of the libraries
    began = time.monotonic()
    work = Sweep(folder, folder / "model", steps, per_run, random.Random(seed))
    expected = {case: work.alone(case) for case in CASES}
    number = 0
    while len(work.kills) < kills:
        case = list(CASES)[number % len(CASES)]
        run = work.chain(case, number, min(per_run, kills - len(work.kills)))
        why = difference(expected[case], outcome(run))
        mine = [k for k in work.kills if k["run"] == run.name]
        work.endings.append({"run": run.name, "kills": len(mine), "equal": not why, **({"difference": why} if why else {})})
        print(f"{run.name}: {len(mine)} kills, {why or 'equal'}  ({len(work.kills)}/{kills})", flush=True)
        number += 1
    return {
        "kills": len(work.kills),
        "equal": sum(e["kills"] for e in work.endings if e["equal"]),
        "runs": len(work.endings),
        "runs_equal": sum(e["equal"] for e in work.endings),
        "steps": steps,
        "by_signal": dict(sorted(Counter(k["signal"] for k in work.kills).items())),
        "by_phase": {p: sum(k["phase"] == p for k in work.kills) for p in PHASES},
        "by_signal_and_phase": dict(sorted(Counter(f"{k['signal']} {k['phase']}" for k in work.kills).items())),
        "fresh_interpreters": sum(k["fresh"] for k in work.kills),
        "differences": [e for e in work.endings if not e["equal"]],
        "cases": {case: shlex.join(arguments) for case, arguments in CASES.items()},
        "seconds": round(time.monotonic() - began),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--per-run", type=int, default=5, help="kills of one run before it may end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    preload()
    with tempfile.TemporaryDirectory() as folder:
        result = sweep(options.kills, options.steps, options.per_run, options.seed, Path(folder))
    from fovea.bench.measure import provenance

    words = ["python", "benchmarks/reliability/resume.py", *sys.argv[1:]]
    result |= {"date": time.strftime("%Y-%m-%d"), **provenance(words, threads=1)}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['equal']} of {result['kills']} kills ended equal; written to {options.out}")
    return int(result["equal"] != result["kills"])


if __name__ == "__main__":
    sys.exit(main())
