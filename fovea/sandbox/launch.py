"""The trusted part of the sandbox, between the library and a program that nobody trusts. Standard library only; runs as a script.

    fd 0   in:   the order (one line of JSON), the contents of its files, then one byte once user and group ids are mapped
    fd N   out:  "unshared", then the report: one line of JSON {"status", "files"} or {"error"}, then the contents of the files

Three processes: the launcher makes the namespaces and the root folder and waits; its child is process 1 of the PID namespace, so that
everything ends with it; its child becomes the program, after the last privileges are gone.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import errno
import fcntl
import fnmatch
import json
import os
import resource
import signal
import stat
import sys
from typing import Any, BinaryIO

LIBC = ctypes.CDLL(None, use_errno=True)
NAMESPACES = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x02000000
"""New user, mount, PID, network, IPC, host name and cgroup namespaces."""
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE, MS_REMOUNT = 1, 2, 4, 8, 0x1000, 0x4000, 0x40000, 0x20
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
ROOT = "/tmp"
"""Where the new root is put together; only this process sees it there."""
DEVICES = ("null", "zero", "full", "random", "urandom")
MiB = 1 << 20


def main() -> None:
    orders, report = os.fdopen(0, "rb"), os.fdopen(int(sys.argv[1]), "wb")
    try:
        order = json.loads(orders.readline())
        files = [(name, orders.read(size)) for name, size in order["files"]]
        call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
        call("unshare", NAMESPACES)
        report.write(b"unshared\n")
        report.flush()
        if orders.read(1) != b"g":
            return
        build_root(order)
        child = os.fork()
        if child == 0:
            oversee(order, files, report)
            os._exit(0)
        report.close()
        os.waitpid(child, 0)
    except Exception as e:
        fail(report, f"{type(e).__name__}: {e}")


def call(name: str, *args: Any) -> int:
    """A function of the C library; its failure is an `OSError` that names it."""
    words = [a.encode() if isinstance(a, str) else ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    result = getattr(LIBC, name)(*words)
    if result < 0:
        number = ctypes.get_errno()
        said = " ".join(str(a) for a in args if isinstance(a, str))
        raise OSError(number, f"{name} {said}: {os.strerror(number)}")
    return result


def fail(report: BinaryIO, text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        report.write(json.dumps({"error": text}).encode() + b"\n")
        report.flush()
    os._exit(1)


# -- the file system ----------------------------------------------------------------------------------------------------------


def build_root(order: dict[str, Any]) -> None:
    """A root of the system's programs, read-only, and one small writable memory file system; then the old root is let go of."""
    owner = f"uid={order['uid']},gid={order['gid']}"
    call("sethostname", "sandbox", 7)
    call("mount", 0, "/", 0, MS_REC | MS_PRIVATE, 0)
    call("mount", "tmpfs", ROOT, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,nr_inodes=2k,mode=755")
    for source in order["shown"]:
        show(source)
    for path, target in order["links"]:
        os.symlink(target, ROOT + path)  # noqa: PTH211 - `pathlib` would be imported for this alone
    for device in DEVICES:
        show(f"/dev/{device}", device=True)
    for path, text in order["written"]:
        folder(os.path.dirname(ROOT + path))  # noqa: PTH120
        with open(ROOT + path, "w") as f:  # noqa: PTH123
            f.write(text)
    store = ROOT + "/.store"
    folder(store)
    size = f"size={order['disk_mb']}m,nr_inodes=8k,mode=755,{owner}"
    call("mount", "tmpfs", store, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, size)
    for name, place in (("scratch", order["scratch"]), ("tmp", "/tmp"), ("shm", "/dev/shm")):
        folder(f"{store}/{name}")
        os.chown(f"{store}/{name}", order["uid"], order["gid"])
        folder(ROOT + place)
        call("mount", f"{store}/{name}", ROOT + place, 0, MS_BIND, 0)
    call("umount2", store, 0)
    os.rmdir(store)  # noqa: PTH106
    os.chdir(ROOT)
    call("pivot_root", ".", ".")
    call("umount2", ".", 2)
    os.chdir("/")
    call("mount", 0, "/", 0, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV, 0)


def show(source: str, device: bool = False) -> None:
    """The same path in the new root, read-only with all that is mounted below it."""
    place = ROOT + source
    if os.path.isdir(source):  # noqa: PTH112
        folder(place)
    else:
        folder(os.path.dirname(place))  # noqa: PTH120
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o644))
    call("mount", source, place, 0, MS_BIND | MS_REC, 0)
    attributes = (ctypes.c_uint64 * 4)(ATTR_RDONLY | ATTR_NOSUID | (0 if device else ATTR_NODEV), 0, 0, 0)
    call("syscall", MOUNT_SETATTR, AT_FDCWD, place, AT_RECURSIVE, ctypes.byref(attributes), ctypes.sizeof(attributes))


def folder(path: str) -> None:
    os.makedirs(path, mode=0o755, exist_ok=True)  # noqa: PTH103


# -- process 1 ----------------------------------------------------------------------------------------------------------------


def oversee(order: dict[str, Any], files: list[tuple[str, bytes]], report: BinaryIO) -> None:
    """Start the program, wait for it, end what it has left behind, report."""
    try:
        call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
        call("prctl", PR_SET_DUMPABLE, 0)  # the program may have the same user id; it must not look into this process
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.umask(0o077)
        os.chdir(order["scratch"])
        put(files, order)
        trouble, told = os.pipe()
        program = os.fork()
        if program == 0:
            os.close(trouble)
            become(order, told)
        os.close(told)
        with os.fdopen(trouble, "rb") as f:
            said = f.read()
        if said:
            return fail(report, said.decode(errors="replace"))
        status = reap(program)
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        reap(None)
        found = collect(order["keep"], order["disk_mb"] * MiB)
        head = {"status": os.waitstatus_to_exitcode(status), "files": [[name, len(data)] for name, data in found]}
        report.write(json.dumps(head).encode() + b"\n")
        for _, data in found:
            report.write(data)
        report.flush()
    except Exception as e:
        fail(report, f"{type(e).__name__}: {e}")


def put(files: list[tuple[str, bytes]], order: dict[str, Any]) -> None:
    for name, data in files:
        at = ""
        for part in name.split("/")[:-1]:
            at = f"{at}{part}/"
            if not os.path.isdir(at):  # noqa: PTH112
                os.mkdir(at)  # noqa: PTH102
                give(at, order)
        with open(name, "xb") as f:  # noqa: PTH123
            f.write(data)
        give(name, order)


def give(path: str, order: dict[str, Any]) -> None:
    if os.geteuid() != order["uid"]:
        os.chown(path, order["uid"], order["gid"])


def reap(until: int | None) -> int:
    """Wait for children until that one has ended, or all; the status of the last."""
    status = 0
    while True:
        try:
            pid, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return status
        if pid == until:
            return status


def collect(patterns: list[str], limit: int) -> list[tuple[str, bytes]]:
    """Ordinary files whose path matches, up to `limit` bytes in all. Nobody but this process is left, so nothing changes meanwhile."""
    found: list[tuple[str, bytes]] = []
    for at, folders, names in os.walk("."):
        folders.sort()
        for name in sorted(names):
            path = os.path.relpath(os.path.join(at, name), ".")  # noqa: PTH118
            if not any(fnmatch.fnmatchcase(path, p) for p in patterns):
                continue
            info = os.lstat(path)
            if not stat.S_ISREG(info.st_mode) or not path.isprintable() or info.st_size > limit:
                continue
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as f:  # noqa: PTH123
                data = f.read()
            limit -= len(data)
            found.append((path, data))
    return found


# -- the program --------------------------------------------------------------------------------------------------------------


def become(order: dict[str, Any], told: int) -> None:
    """Give up everything and turn into the program. Does not return."""
    try:
        os.setsid()
        given = os.memfd_create("stdin", os.MFD_ALLOW_SEALING)
        os.write(given, base64.b64decode(order["stdin"])) if order["stdin"] else None
        os.lseek(given, 0, os.SEEK_SET)
        # an open memory file could be grown without limit
        fcntl.fcntl(given, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
        os.dup2(given, 0)
        os.dup2(told, 3)
        os.set_inheritable(3, False)
        os.closerange(4, 4096)
        told = 3
        for name, soft, hard in order["limits"]:
            resource.setrlimit(getattr(resource, name), (soft, hard))
        call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        drop_bounding_set()
        if os.geteuid() != order["uid"]:
            os.setgroups([])
            os.setresgid(order["gid"], order["gid"], order["gid"])
            os.setresuid(order["uid"], order["uid"], order["uid"])
        drop_capabilities()
        call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in (signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        install(base64.b64decode(order["filter"]))
    except BaseException as e:
        os.write(told, f"{type(e).__name__}: {e}".encode())
        os._exit(127)
    try:
        os.execve(order["argv"][0], order["argv"], order["env"])
    except OSError as e:
        os.write(2, f"{order['argv'][0]}: {e.strerror}\n".encode())
        os._exit(127)


def drop_bounding_set() -> None:
    for capability in range(64):
        try:
            call("prctl", PR_CAPBSET_DROP, capability, 0, 0, 0)
        except OSError as e:
            if e.errno not in (errno.EINVAL, errno.EPERM):  # beyond the last one; or there are none to drop any more
                raise


def drop_capabilities() -> None:
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    nothing = (ctypes.c_uint32 * 6)()
    call("capset", ctypes.byref(header), ctypes.byref(nothing))


def install(program: bytes) -> None:
    """The filter of system calls, 8 bytes per instruction."""

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]

    call("prctl", PR_SET_SECCOMP, 2, ctypes.byref(Program(len(program) // 8, program)), 0, 0)


if __name__ == "__main__":
    main()
