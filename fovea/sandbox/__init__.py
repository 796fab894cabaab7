"""Runs a program that a model wrote, where it can harm nothing.

    result = run("print(6 * 7)")
    result.stdout                                   "42\\n"
    run(code, files={"data.csv": table}, keep=("*.png",)).files["chart.png"]

A process of its own in new user, mount, PID, network and IPC namespaces (Linux 5.14 or later): no network, no other process, no file but
the system's programs and this Python, read-only, and a scratch folder in memory that is gone afterwards. Processor time, memory,
processes, files, output and time have limits; no privilege is left or can be had; system calls are filtered (libseccomp). Where one of
these is missing `run` refuses: there is no weaker sandbox, and no way to run a program without it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import platform
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from fovea.sandbox import filter

SCRATCH = "/scratch"
LAUNCHER = Path(__file__).with_name("launch.py")
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
SETTINGS = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/fonts", "/etc/localtime")
NOBODY, USER = 65534, 1000
SETUP_S, LOOK_S = 30.0, 0.02
MiB = 1 << 20


class Unavailable(RuntimeError):
    """The system does not isolate programs; the message says what is missing and how to get it. Nothing was run."""


@dataclass(frozen=True)
class Result:
    """How the program ended.

    Attributes:
      returncode: its exit status, minus the number of the signal that ended it; None where the sandbox was ended as a whole.
      stdout, stderr: what it said, undecodable bytes replaced; cut at the limit.
      files: the files of the scratch folder that were asked for, by their path in it.
      reason: the limit that ended it: "time", "cpu", "memory", "output"; "killed" where the sandbox ended for another cause; else "".
      seconds: wall-clock time, without the sandbox's own start.
    """

    returncode: int | None
    stdout: str = ""
    stderr: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.returncode == 0 and not self.reason


def run(
    program: str | Sequence[str],
    *,
    files: Mapping[str, bytes | str] | None = None,
    stdin: bytes | str = b"",
    keep: Sequence[str] = (),
    timeout_s: float = 10.0,
    cpu_s: int = 10,
    memory_mb: int = 1024,
    disk_mb: int = 64,
    processes: int = 16,
    output_kb: int = 256,
) -> Result:
    """Run a program and return how it ended. Nothing that the program does raises.

    Args:
      program: Python source, run by this Python with its installed packages; or the words of a command, the first an absolute path.
      files: what the scratch folder (the working directory) holds: relative path -> contents. "main.py" is the source's.
      stdin: what the program reads.
      keep: patterns of the files to bring back, as "*.png" ("*" crosses folders).
      timeout_s: wall-clock seconds of the whole.
      cpu_s: processor seconds of each process.
      memory_mb: address space of each process, and resident memory of all together, looked at every 20 ms.
      disk_mb: size of the scratch folder with /tmp and /dev/shm, and of the files brought back. It is memory.
      processes: processes and threads at a time.
      output_kb: each of stdout and stderr; more ends the program.
    Raises:
      Unavailable: the system does not isolate.
      ValueError: a limit that is not positive, or a file outside the scratch folder.
    """
    limits = {"timeout_s": timeout_s, "cpu_s": cpu_s, "memory_mb": memory_mb, "disk_mb": disk_mb, "processes": processes}
    for name, value in {**limits, "output_kb": output_kb}.items():
        if not value > 0:
            raise ValueError(f"sandbox: {name} = {value!r}, expected more than 0")
    given = {_inside(name): _bytes(data) for name, data in (files or {}).items()}
    argv = list(program) if not isinstance(program, str) else [sys.executable, "-B", "-s", f"{SCRATCH}/main.py"]
    if isinstance(program, str):
        if "main.py" in given:
            raise ValueError("sandbox: found a file 'main.py'; expected another name, because the program itself has this one")
        given["main.py"] = program.encode("utf-8", errors="replace")
    if not argv or not argv[0].startswith("/"):
        raise ValueError(f"sandbox: program {argv!r:.80}; expected Python source, or words of which the first is an absolute path")
    if said := problem():
        raise Unavailable(said)
    order = _order(argv, given, _bytes(stdin), keep, cpu_s, memory_mb, disk_mb, processes)
    return _run(order, list(given.values()), timeout_s, memory_mb * MiB, output_kb * 1024)


@cache
def problem() -> str:
    """What keeps programs from being isolated on this system and how to mend it; "" where nothing does. Found by running an empty one."""
    if sys.platform != "linux":
        return f"sandbox: found {platform.system()}; expected Linux, whose namespaces isolate a program (a container or a virtual machine)"
    release = platform.release()
    if [int(x) for x in release.split("-")[0].split(".")[:2] if x.isdigit()] < [5, 14]:
        return f"sandbox: found Linux {release}; expected 5.14 or later, whose limits hold in namespaces"
    try:
        filter.compiled()
    except OSError as e:
        return f"sandbox: system calls cannot be filtered ({e}); install libseccomp (Debian and Ubuntu: apt install libseccomp2)"
    try:
        result = _run(_order([sys.executable, "-c", ""], {}, b"", (), 5, 1024, 1, 4), [], SETUP_S, 1 << 30, 1024)
    except Unavailable as e:
        return str(e)
    return "" if result.ok else f"sandbox: a program that does nothing ended with {result}"


# -- the order ----------------------------------------------------------------------------------------------------------------


def _order(
    argv: Sequence[str],
    files: Mapping[str, bytes],
    stdin: bytes,
    keep: Sequence[str],
    cpu_s: int,
    memory_mb: int,
    disk_mb: int,
    processes: int,
) -> dict[str, Any]:
    root = os.geteuid() == 0
    shown, links = _system()
    limits = [
        ("RLIMIT_CPU", int(cpu_s), int(cpu_s) + 1),
        ("RLIMIT_AS", memory_mb * MiB, memory_mb * MiB),
        # launcher and process 1 count where they have the program's user id
        ("RLIMIT_NPROC", *[processes + (0 if root else 2)] * 2),
        ("RLIMIT_FSIZE", *[disk_mb * MiB] * 2),
        ("RLIMIT_NOFILE", 256, 256),
        # 1, not 0: a handler of core dumps outside the sandbox is started for 0 but not for 1
        ("RLIMIT_CORE", 1, 1),
        ("RLIMIT_MSGQUEUE", 0, 0),
        ("RLIMIT_MEMLOCK", 0, 0),
        ("RLIMIT_SIGPENDING", 256, 256),
    ]
    user = NOBODY if root else USER
    return {
        "argv": list(argv),
        "env": _environment(),
        "uid": user,
        "gid": user,
        "scratch": SCRATCH,
        "shown": shown,
        "links": links,
        "written": [
            ("/etc/passwd", f"sandbox:x:{user}:{user}::{SCRATCH}:/bin/sh\n"),
            ("/etc/group", f"sandbox:x:{user}:\n"),
        ],
        "files": [(name, len(data)) for name, data in files.items()],
        "stdin": base64.b64encode(stdin).decode(),
        "keep": list(keep),
        "disk_mb": disk_mb,
        "limits": limits,
        "filter": base64.b64encode(filter.compiled()).decode(),
    }


def _system() -> tuple[list[str], list[tuple[str, str]]]:
    """(paths that are shown read-only, links): the system's programs and this Python.

    Raises:
      Unavailable: this Python lives where all of a home folder would be shown.
    """
    links = [(p, str(Path(p).readlink())) for p in SYSTEM if Path(p).is_symlink()]
    shown = [p for p in SYSTEM if Path(p).is_dir() and not Path(p).is_symlink()] + [p for p in SETTINGS if Path(p).exists()]
    for prefix in dict.fromkeys(str(Path(p).resolve()) for p in (sys.base_prefix, sys.prefix)):
        if (
            any(Path(home).is_relative_to(prefix) for home in (Path.home().resolve(), "/home", "/root", "/etc", "/tmp"))
            and prefix != "/usr"
        ):
            raise Unavailable(
                f"sandbox: this Python lies in {prefix}, with which private files would be shown; expected a folder of its own (a venv)"
            )
        if any(Path(prefix).is_relative_to(hidden) for hidden in ("/tmp", "/dev", SCRATCH)):
            raise Unavailable(f"sandbox: this Python lies in {prefix}, and programs get a /tmp of their own; expected a venv outside /tmp")
        if not any(Path(prefix).is_relative_to(s) for s in shown):
            shown.append(prefix)
    return shown, links


def _environment() -> dict[str, str]:
    """All that the program sees of an environment; nothing is passed on. One thread per library, and the same hashes in every run."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    own = {"PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin", "HOME": SCRATCH, "TMPDIR": "/tmp", "LANG": "C.UTF-8"}
    return {**own, **threads, "PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1", "MPLBACKEND": "Agg"}


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or str(path) == "." or "\0" in name:
        raise ValueError(f"sandbox: found a file {name!r}; expected a relative path inside the scratch folder")
    return str(path)


def _bytes(data: bytes | str) -> bytes:
    return data.encode("utf-8", errors="replace") if isinstance(data, str) else data


# -- outside ------------------------------------------------------------------------------------------------------------------


def _run(order: Mapping[str, Any], contents: Sequence[bytes], timeout_s: float, memory: int, output: int) -> Result:
    report_r, report_w = os.pipe()
    command = [sys.executable, "-I", "-S", "-B", str(LAUNCHER), str(report_w)]
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, pass_fds=[report_w], env={}, cwd="/", start_new_session=True
        )
    finally:
        os.close(report_w)
    try:
        return _Watch(process, report_r, timeout_s, memory, output).follow(order, contents)
    finally:
        process.kill()  # process 1 asked the kernel to end with its parent, and every other ends with process 1
        process.wait()
        os.close(report_r)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


class _Watch:
    """Follows one sandbox from outside: collects what it says and looks after what the kernel does not limit."""

    def __init__(self, process: subprocess.Popen[bytes], report: int, timeout_s: float, memory: int, output: int):
        self.process, self.report = process, report
        self.timeout_s, self.memory, self.output = timeout_s, memory, output
        assert process.stdin and process.stdout and process.stderr
        self.orders, self.out, self.err = process.stdin, process.stdout.fileno(), process.stderr.fileno()
        self.said: dict[int, bytearray] = {self.report: bytearray(), self.out: bytearray(), self.err: bytearray()}

    def follow(self, order: Mapping[str, Any], contents: Sequence[bytes]) -> Result:
        self._start(order, contents)
        began = time.monotonic()
        reason = self._listen(began + self.timeout_s)
        seconds = time.monotonic() - began
        stdout, stderr = (bytes(self.said[fd][: self.output]).decode("utf-8", errors="replace") for fd in (self.out, self.err))
        head, _, rest = bytes(self.said[self.report]).partition(b"\n")
        if reason or not head:
            return Result(None, stdout, stderr, {}, reason or "killed", seconds)
        told = json.loads(head)
        if "error" in told:
            raise Unavailable(_explain(told["error"]))
        files, at = {}, 0
        for name, size in told["files"]:
            files[name] = rest[at : at + size]
            at += size
        cpu = told["status"] in (-24, -9) and seconds >= order["limits"][0][1] * 0.9
        return Result(told["status"], stdout, stderr, files, "cpu" if cpu else "", seconds)

    def _start(self, order: Mapping[str, Any], contents: Sequence[bytes]) -> None:
        """Hand over the order; map the ids of the new user namespace, which only a process outside of it may do."""
        try:
            self.orders.write(json.dumps(order).encode() + b"\n")
            for data in contents:
                self.orders.write(data)
            self.orders.flush()
            self._unshared(time.monotonic() + SETUP_S)
            self._map(order["uid"])
            self.orders.write(b"g")
            self.orders.flush()
        except BrokenPipeError:
            raise Unavailable(_explain(bytes(self.said[self.err]).decode(errors="replace") or "the launcher ended")) from None

    def _unshared(self, until: float) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(self.report, selectors.EVENT_READ)
            while b"\n" not in self.said[self.report]:
                if not ready.select(max(0.0, until - time.monotonic())):
                    raise Unavailable(f"sandbox: no namespaces within {SETUP_S:g} s")
                data = os.read(self.report, 65536)
                if not data:
                    break
                self.said[self.report] += data
        line, _, rest = bytes(self.said[self.report]).partition(b"\n")
        self.said[self.report] = bytearray(rest)
        if line != b"unshared":
            told = json.loads(line or b'{"error": "the launcher ended"}')
            raise Unavailable(_explain(told["error"]))

    def _map(self, user: int) -> None:
        folder = Path(f"/proc/{self.process.pid}")
        try:
            if os.geteuid() == 0:
                for name in ("uid_map", "gid_map"):
                    (folder / name).write_text(f"0 0 1\n{user} {NOBODY} 1\n")
            else:
                (folder / "setgroups").write_text("deny")
                (folder / "uid_map").write_text(f"{user} {os.geteuid()} 1\n")
                (folder / "gid_map").write_text(f"{user} {os.getegid()} 1\n")
        except OSError as e:
            raise Unavailable(_explain(f"{e}")) from None

    def _listen(self, until: float) -> str:
        """Read everything until the report ends; the reason where it had to be stopped."""
        with selectors.DefaultSelector() as ready:
            for fd in self.said:
                os.set_blocking(fd, False)
                ready.register(fd, selectors.EVENT_READ)
            while self.report in ready.get_map():
                if time.monotonic() > until:
                    return "time"
                if resident(self.process.pid) > self.memory:
                    return "memory"
                for key, _ in ready.select(LOOK_S):
                    self._read(ready, key.fd)
                if max(len(self.said[self.out]), len(self.said[self.err])) > self.output:
                    return "output"
            for fd in (self.out, self.err):
                while fd in ready.get_map() and self._read(ready, fd):
                    pass
        return "output" if max(len(self.said[self.out]), len(self.said[self.err])) > self.output else ""

    def _read(self, ready: selectors.BaseSelector, fd: int) -> bool:
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return False
        self.said[fd] += data
        if not data:
            ready.unregister(fd)
        return bool(data)


def resident(pid: int) -> int:
    """Bytes of anonymous memory that a process and all below it hold; what several share counts for each."""
    total, todo = 0, [pid]
    while todo:
        folder = f"/proc/{todo.pop()}"
        with contextlib.suppress(OSError, ValueError, IndexError):
            _, pages, shared, *_ = Path(f"{folder}/statm").read_text().split()
            total += (int(pages) - int(shared)) * PAGE
            for thread in os.listdir(f"{folder}/task"):  # noqa: PTH208
                todo += map(int, Path(f"{folder}/task/{thread}/children").read_text().split())
    return total


PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def _explain(error: str) -> str:
    advice = (
        "programs of a model are run in new user, mount, PID and network namespaces. The usual causes: a container without them "
        "(docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined, or --cap-add SYS_ADMIN), or a system that "
        "forbids them (as root: sysctl user.max_user_namespaces=10000; Ubuntu 24.04: sysctl kernel.apparmor_restrict_unprivileged_userns=0)"
    )
    return f"sandbox: the system does not isolate ({error}); {advice}"


__all__ = ["Result", "Unavailable", "problem", "run"]
