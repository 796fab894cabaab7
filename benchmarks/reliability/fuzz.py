"""Bad input by the thousand: every reader gets generated and damaged input and may accept it or refuse it with a clean error, nothing else.

    python benchmarks/reliability/fuzz.py                                all families, 10,000 inputs each; writes fuzz.json
    python benchmarks/reliability/fuzz.py --family jsonl csv             these families; the others in fuzz.json stay
    python benchmarks/reliability/fuzz.py --family jsonl --inputs 500 --print
    python benchmarks/reliability/fuzz.py --family jsonl --only 17       one input, its error with a traceback

Input i of a family depends on (seed, family, i) alone. Each family runs in a process of its own, with branch coverage of the modules that
read it; one that is in fuzz.json already, with the same seed and number and without a crash, is not run again. What may be raised is
`is_clean`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.reliability.inputs import FAMILIES, Family  # noqa: E402
from fovea.files import write_text  # noqa: E402

PACKAGE = ROOT / "fovea"
OUT = Path(__file__).with_name("fuzz.json")
SECONDS, PATIENCE = 20, 600
"""Longest processor time of one input, and longest wait for it; what takes longer is a crash."""
MEMORY_BYTES = 12 << 30
SAYS = (
    *("expected", "is damaged", "unknown", "known:", "Known:", "there are:", "did you mean", "Tried", "cannot be used"),
    *("is not spoken", "outside"),
)


class Hang(BaseException):
    """An input took longer than `SECONDS` or `PATIENCE`."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raise `Hang` inside where it takes too long. A machine that is busy with other work slows no processor time."""

    def late(*_: Any) -> None:
        raise Hang(f"more than {SECONDS} s of processor time, or {PATIENCE} s")

    signal.signal(signal.SIGPROF, late)
    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)


def is_clean(error: BaseException, family: Family) -> bool:
    """Whether an error is one of ours: of a type the family may raise, raised by a line of this package, naming what was found where.

    `SystemExit` with status 2 is the command line's own.
    """
    if isinstance(error, SystemExit):
        return error.code in (0, 2) and SystemExit in family.clean
    frames = traceback.extract_tb(error.__traceback__)
    raised_here = Path(frames[-1].filename).is_relative_to(PACKAGE) and (frames[-1].line or "").lstrip().startswith(("raise", "self.fail"))
    text = str(error)
    return isinstance(error, family.clean) and raised_here and any(s in text for s in SAYS) and any(n in text for n in family.names)


def judge(family: Family, rng: Random, folder: Path) -> tuple[str, Any]:
    """("accepted" | "clean" | "crash", the error if any) of one input."""
    given = family.make(rng, folder)
    try:
        with warnings.catch_warnings(), limited():
            warnings.simplefilter("ignore")
            return ("accepted" if family.feed(given, folder) else "clean"), None
    except Hang as e:
        return "crash", e
    except BaseException as e:
        if isinstance(e, KeyboardInterrupt):
            raise
        return ("clean" if is_clean(e, family) else "crash"), e


def run(name: str, inputs: int, seed: int, at: Path | None = None) -> dict[str, Any]:
    """One family in this process. `at` is a file that always holds the number of the present input, for crashes of the process."""
    import coverage

    family = FAMILIES[name]
    measured = coverage.Coverage(branch=True, include=[str(PACKAGE / m) for m in family.modules], data_file=None)
    counts, crashes = {"accepted": 0, "clean": 0, "crash": 0}, []

    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        family.prepare(Path(folder))
        measured.start()
        for i in range(inputs):
            if at is not None:
                at.write_text(str(i))
            kind, error = judge(family, Random(f"{seed}/{name}/{i}"), Path(folder))
            counts[kind] += 1
            if kind == "crash":
                crashes.append({"input": i, "error": f"{type(error).__name__}: {error}"[:300], "where": _where(error)})
        measured.stop()
        family.finish()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        measured.json_report(outfile=file.name)
        totals = json.loads(Path(file.name).read_text())["totals"]
    return {
        "inputs": inputs,
        "clean_errors": counts["clean"],
        "accepted": counts["accepted"],
        "crashes": counts["crash"],
        "branch_coverage": round(totals["covered_branches"] / max(1, totals["num_branches"]), 3),
        "line_coverage": round(totals["covered_lines"] / max(1, totals["num_statements"]), 3),
        "modules": list(family.modules),
        "cpu_seconds": round(time.process_time() - began, 1),
        **({"examples": crashes[:20]} if crashes else {}),
    }


def _where(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(PACKAGE)]
    return f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].lineno}" if frames else ""


def apart(name: str, inputs: int, seed: int) -> dict[str, Any]:
    """One family in a process of its own; one that dies is a crash at the input it had."""
    with tempfile.TemporaryDirectory() as folder:
        at, out = Path(folder) / "at", Path(folder) / "out.json"
        options = {"--family": name, "--inputs": inputs, "--seed": seed, "--at": at, "--out": out}
        command = [sys.executable, __file__, "--print", *(str(x) for pair in options.items() for x in pair)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return json.loads(out.read_text())
        last = at.read_text() if at.exists() else "?"
        return {"inputs": inputs, "crashes": 1, "examples": [{"input": last, "error": f"status {done.returncode}: {done.stderr[-500:]}"}]}


def provenance() -> dict[str, Any]:
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    packages = ("pillow", "pyarrow", "av", "safetensors", "tokenizers", "transformers", "torch")
    return {
        "commit": commit,
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {"python": platform.python_version(), **{p: metadata.version(p) for p in packages}},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--family", choices=FAMILIES, nargs="+", default=list(FAMILIES))
    parser.add_argument("--print", action="store_true", help="run the first family in this process and write nothing but its result")
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="run this input alone and show what it raises")
    parser.add_argument("--at", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    if options.only is not None:
        return only(options.family[0], options.only, options.seed)
    if options.print:
        result = run(options.family[0], options.inputs, options.seed, options.at)
        if options.out:
            options.out.write_text(json.dumps(result))
        else:
            print(json.dumps(result, indent=1))
        return 0
    about, out = provenance(), options.out or OUT
    found = json.loads(out.read_text()) if out.exists() else {}
    families = found.get("families", {}) if found.get("seed") == options.seed else {}
    for name in options.family:
        before = families.get(name, {})
        if before.get("inputs") != options.inputs or before.get("crashes"):
            families[name] = {**apart(name, options.inputs, options.seed), "commit": about["commit"]}
            command = shlex.join(["python", "benchmarks/reliability/fuzz.py", *sys.argv[1:]])
            write_text(out, json.dumps({"command": command, "seed": options.seed, **about, "families": families}, indent=1) + "\n")
        print(name, {k: v for k, v in families[name].items() if k != "modules"}, flush=True)
    return int(any(f["crashes"] for f in families.values()))


def only(name: str, number: int, seed: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        family = FAMILIES[name]
        family.prepare(Path(folder))
        kind, error = judge(family, Random(f"{seed}/{name}/{number}"), Path(folder))
        family.finish()
        print(kind)
        if error is not None:
            traceback.print_exception(error)
        return int(kind == "crash")


if __name__ == "__main__":
    sys.exit(main())
