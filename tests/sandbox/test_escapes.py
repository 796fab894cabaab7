"""None of the ways out of `attempts.py` leads anywhere, for the user who runs the tests and for one without privileges."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from fovea import sandbox
from tests.sandbox.attempts import ATTEMPTS, ROOT
from tests.sandbox.world import inside, outside, planted

HERE = Path(__file__).resolve()
pytestmark = pytest.mark.skipif(bool(sandbox.problem()), reason=sandbox.problem() or "-")
every = pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda a: a.name.replace(" ", "-"))


@pytest.fixture(scope="module")
def world():
    with planted() as found:
        yield found


def check(attempt, result, world):
    said = result["stdout"] + result["stderr"]
    assert "ESCAPED" not in result["stdout"], said
    assert "planted" not in result["stdout"]
    assert attempt.says in result["stdout"], result
    if attempt.reason is not None:
        assert result["reason"] == attempt.reason, result
    assert len(result["stdout"]) <= 256 * 1024
    assert sorted(p.name for p in Path(world["folder"]).iterdir()) == ["secret.txt", "socket"]
    assert Path(world["secret"]).read_text() == "planted"
    os.kill(world["victim"], 0)
    assert not alive(world["token"])


def alive(token):
    """Processes of this machine that were started under this name."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [process] if token.encode() in process.read_bytes().split(b"\0")[0] else []
        except OSError:
            continue
    return found


def test_the_list_is_long_and_most_of_it_has_a_control():
    assert len(ATTEMPTS) >= 40
    assert sum(a.control in (True, ROOT) for a in ATTEMPTS) >= 40
    assert len({a.name for a in ATTEMPTS}) == len(ATTEMPTS)


@every
def test_no_attempt_succeeds(attempt, world):
    check(attempt, inside(asdict(attempt), world), world)


@pytest.mark.parametrize("attempt", [a for a in ATTEMPTS if a.control in (True, ROOT)], ids=lambda a: a.name.replace(" ", "-"))
def test_the_attempt_succeeds_outside(attempt, world):
    if attempt.control == ROOT and os.geteuid() != 0:
        pytest.skip(ROOT)
    assert "ESCAPED" in (said := outside(asdict(attempt), world)), said


@pytest.fixture(scope="module")
def unprivileged(world):
    """Results of all attempts, run by a user without any privilege."""
    if os.geteuid() != 0:
        pytest.skip("the attempts above ran without privileges already")
    python = next((p for p in ("/usr/bin/python3", sys.executable) if works(p)), None)
    if python is None:
        pytest.skip("no Python of at least 3.11 that other users may run")
    given = json.dumps({"world": world, "attempts": [asdict(a) for a in ATTEMPTS]})
    done = subprocess.run([python, str(HERE.with_name("world.py"))], input=given + "\n", text=True, capture_output=True, **AS_NOBODY)
    assert done.returncode == 0, done.stderr
    return dict(zip([a.name for a in ATTEMPTS], json.loads(done.stdout)))


AS_NOBODY = {"user": 65534, "group": 65534, "extra_groups": [], "cwd": "/", "env": {"PYTHONPATH": str(HERE.parents[2])}}


def works(python):
    code = "import sys; assert sys.version_info >= (3, 11); import fovea.sandbox as s; sys.exit(bool(s.problem()))"
    try:
        return subprocess.run([python, "-c", code], capture_output=True, **AS_NOBODY).returncode == 0
    except OSError:
        return False


@pytest.mark.slow
@every
def test_no_attempt_succeeds_without_privileges(attempt, unprivileged, world):
    check(attempt, unprivileged[attempt.name], world)


def test_a_process_that_stays_is_one_that_would_be_found(world):
    process = subprocess.Popen([world["token"], "60"], executable="/bin/sleep")
    try:
        end = time.monotonic() + 10
        while not alive(world["token"]) and time.monotonic() < end:  # its name appears a moment after it has started
            time.sleep(0.01)
        assert alive(world["token"])
    finally:
        process.kill()
        process.wait()
