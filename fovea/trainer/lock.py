"""One process at a time writes a run folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None

NAME = ".lock"


class InUse(RuntimeError):
    """Another process writes this run folder."""


@contextlib.contextmanager
def held(run: Path) -> Iterator[None]:
    """Hold the lock of a run folder, made if missing. The system lets go of it when the process ends, however it ends.

    Raises:
      InUse: with the number of the process that holds it.
    """
    made = [p for p in (run, *run.parents) if not p.exists()]
    run.mkdir(parents=True, exist_ok=True)
    file = _locked(run) if fcntl is not None else None
    try:
        yield
    finally:
        if file is not None:
            (run / NAME).unlink(missing_ok=True)
            os.close(file)
        for folder in made:  # a run that never began leaves nothing
            with contextlib.suppress(OSError):
                folder.rmdir()


def _locked(run: Path) -> int | None:
    """Descriptor of the locked file; None on a file system that has no locks."""
    assert fcntl is not None
    while True:
        file = os.open(run / NAME, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(file, 20).decode(errors="replace").strip() or "unknown"
            os.close(file)
            raise InUse(
                f"{run} is being written by process {holder}; expected one process per run folder: wait for it, or choose another --out"
            ) from None
        except OSError:
            os.close(file)
            return None
        if (run / NAME).exists() and os.fstat(file).st_ino == (run / NAME).stat().st_ino:
            os.truncate(file, 0)
            os.write(file, str(os.getpid()).encode())
            return file
        os.close(file)  # its holder removed it just before we got it
