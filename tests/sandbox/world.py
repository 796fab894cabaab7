"""What is planted outside the sandbox, and how an attempt is run: in it, and as an ordinary process for its control.

Runs as a script too, for the attempts of a user without privileges: JSON in, JSON out.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

from fovea import sandbox

DEFAULTS = {"timeout_s": 10.0, "cpu_s": 5, "memory_mb": 512, "disk_mb": 32, "processes": 32}


@contextlib.contextmanager
def planted():
    """Names and numbers of what lies outside, readable by everyone, so that nothing but the sandbox keeps it."""
    folder = Path(tempfile.mkdtemp(prefix="outside"))
    folder.chmod(0o777)
    (folder / "secret.txt").write_text("planted")
    tcp, udp = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    unix, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    name = f"fovea-{uuid.uuid4().hex}"
    unix.bind(str(folder / "socket"))
    (folder / "socket").chmod(0o777)
    abstract.bind(f"\0{name}")
    for s in (unix, abstract):
        s.listen()
    opened = os.open(folder / "secret.txt", os.O_RDONLY)
    os.set_inheritable(opened, True)
    victim = subprocess.Popen(["/bin/sleep", "600"], cwd=folder, env={"SECRET": "planted"})
    os.environ["FOVEA_PLANTED"] = "planted"
    try:
        yield {
            "secret": str(folder / "secret.txt"),
            "folder": str(folder),
            "tcp": tcp.getsockname()[1],
            "udp": udp.getsockname()[1],
            "unix": str(folder / "socket"),
            "abstract": name,
            "victim": victim.pid,
            "parent": os.getpid(),
            "opened": opened,
            "host": socket.gethostname(),
            "token": name,
            "control": False,
        }
    finally:
        os.environ.pop("FOVEA_PLANTED")
        victim.kill()
        victim.wait()
        os.close(opened)
        for s in (tcp, udp, unix, abstract):
            s.close()
        shutil.rmtree(folder, ignore_errors=True)


def source(code, world):
    return f"C = {world!r}\n{code}\n"


def inside(attempt, world):
    return vars(sandbox.run(source(attempt["code"], world), **{**DEFAULTS, **attempt["limits"]}))


def outside(attempt, world):
    """What the same code says where nothing keeps it. Its own victim is there to be killed."""
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(["/bin/sleep", "60"], cwd=world["folder"], env={"S": "planted"}) as victim,
    ):
        file = Path(folder) / "main.py"
        file.write_text(source(attempt["code"], {**world, "victim": victim.pid, "control": True}))
        done = subprocess.run(
            [sys.executable, "-B", "-s", str(file)],
            cwd=folder,
            input="planted",
            pass_fds=[world["opened"]],
            capture_output=True,
            text=True,
            timeout=60,
        )
        victim.kill()
    with contextlib.suppress(FileNotFoundError):
        (Path(world["folder"]) / "written").unlink()
    return done.stdout + done.stderr


if __name__ == "__main__":
    given = json.loads(sys.stdin.readline())
    print(json.dumps([{**inside(a, given["world"]), "files": {}} for a in given["attempts"]]))
