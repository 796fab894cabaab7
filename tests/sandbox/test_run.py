"""What `sandbox.run` promises to its caller; the ways out are in test_escapes.py."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fovea import doctor, sandbox
from fovea.sandbox import filter

needs = pytest.mark.skipif(bool(sandbox.problem()), reason=sandbox.problem() or "-")


@needs
def test_a_program_gets_what_it_is_given_and_returns_what_is_asked_for():
    code = (
        "import sys\n"
        "open('deep/out.txt', 'w').write(sys.stdin.read() + open('deep/in.txt').read())\n"
        "open('other.bin', 'wb').write(b'x')\n"
        "print('said'); print('complained', file=sys.stderr); sys.exit(3)"
    )
    result = sandbox.run(code, files={"deep/in.txt": "given"}, stdin="typed ", keep=("*.txt",))
    assert (result.returncode, result.stdout, result.stderr, result.reason) == (3, "said\n", "complained\n", "")
    assert result.files == {"deep/in.txt": b"given", "deep/out.txt": b"typed given"}
    assert not result.ok


@needs
def test_a_command_runs_too_and_a_missing_one_is_said():
    assert sandbox.run(["/bin/echo", "a", "b c"]).stdout == "a b c\n"
    assert sandbox.run(["/bin/sh", "-c", "kill -9 $$"]).returncode == -9
    missing = sandbox.run(["/bin/no-such-program"])
    assert missing.returncode == 127
    assert "No such file" in missing.stderr


@needs
def test_links_pipes_and_large_files_do_not_come_back():
    code = (
        "import os\nos.symlink('/etc/passwd', 'link.txt'); os.mkfifo('pipe.txt'); os.symlink('/', 'folder')\n"
        "open('sparse.txt', 'w').truncate(9 << 20)\nopen('more.txt', 'w').truncate(9 << 20); open('fine.txt', 'w').write('x')"
    )
    result = sandbox.run(code, keep=("*",), disk_mb=16)
    assert result.stderr == ""
    assert sorted(result.files) == ["fine.txt", "main.py", "more.txt"]  # the second of two that are too large together is left out


@needs
def test_the_installed_packages_are_there():
    assert sandbox.run("import numpy, PIL; print(numpy.ones(3).sum())").stdout == "3.0\n"


@needs
def test_a_program_does_not_see_the_one_before():
    assert sandbox.run("open('/tmp/left', 'w'); open('left', 'w')").ok
    assert sandbox.run("import os; print(os.listdir('.'), os.listdir('/tmp'))").stdout == "['main.py'] []\n"


@needs
def test_what_is_said_until_a_limit_is_kept():
    result = sandbox.run("print('so far', flush=True)\nimport time; time.sleep(60)", timeout_s=1.5)
    assert (result.returncode, result.reason, result.stdout) == (None, "time", "so far\n")
    flood = sandbox.run("while True: print('x' * 1000)", output_kb=10)
    assert (flood.reason, len(flood.stdout)) == ("output", 10 * 1024)


@needs
def test_several_at_a_time_do_not_mix():
    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(lambda n: sandbox.run(f"import os; print({n}, len(os.listdir('.')))").stdout, range(8)))
    assert said == [f"{n} 1\n" for n in range(8)]


@needs
def test_nothing_is_left_when_the_caller_is_killed():
    """The parent gets no chance to clean up; the kernel does."""
    name = f"fovea-orphan-{os.getpid()}"
    code = f"from fovea import sandbox; sandbox.run(['/bin/sh', '-c', 'exec -a {name} sleep 60'], timeout_s=60)".replace(
        "/bin/sh", "/bin/bash"
    )
    caller = subprocess.Popen([sys.executable, "-c", code])
    assert until(lambda: running(name))
    caller.kill()
    caller.wait()
    assert until(lambda: not running(name))


def running(name):
    return subprocess.run(["pgrep", "-f", f"^{name}"], capture_output=True).returncode == 0


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"files": {"../x": ""}}, "relative path inside"),
        ({"files": {"/etc/x": ""}}, "relative path inside"),
        ({"files": {"a/../../x": ""}}, "relative path inside"),
        ({"files": {"main.py": ""}}, "another name"),
        ({"timeout_s": 0}, "timeout_s = 0, expected more than 0"),
        ({"memory_mb": float("nan")}, "memory_mb = nan"),
    ],
)
def test_wrong_arguments_are_said(given, said):
    with pytest.raises(ValueError, match=said):
        sandbox.run("", **given)
    with pytest.raises(ValueError, match="absolute path"):
        sandbox.run(["python", "x.py"])


# -- where the system does not isolate ------------------------------------------------------------------------------------------


@pytest.fixture
def afresh():
    sandbox.problem.cache_clear()
    yield
    sandbox.problem.cache_clear()


def broken(monkeypatch, how):
    if how == "another system":
        monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    elif how == "an old kernel":
        monkeypatch.setattr(sandbox.platform, "release", lambda: "4.18.0-513.el8.x86_64")
    elif how == "no filter":
        monkeypatch.setattr(filter, "compiled", lambda: (_ for _ in ()).throw(OSError("libseccomp.so.2: cannot open")))
    else:
        monkeypatch.setattr(sandbox, "LAUNCHER", how)


@pytest.mark.parametrize(
    ("how", "said"),
    [("another system", "expected Linux"), ("an old kernel", "expected 5.14"), ("no filter", "install libseccomp")],
)
def test_it_is_refused_with_what_is_missing(how, said, monkeypatch, afresh):
    broken(monkeypatch, how)
    with pytest.raises(sandbox.Unavailable, match=said):
        sandbox.run("print(1)")
    found = doctor._sandbox(sandbox.problem())
    assert said in found
    assert "refused" in found


@needs
@pytest.mark.parametrize("call", ["unshare", "mount", "pivot_root", "capset", "prctl"])
def test_every_step_that_fails_refuses_and_nothing_runs(call, monkeypatch, afresh, tmp_path):
    """A launcher one of whose calls the system denies, as containers do."""
    launcher = tmp_path / "launch.py"
    text = sandbox.LAUNCHER.read_text()
    check = f'    if name == {call!r} and args[0] != PR_SET_PDEATHSIG:\n        raise OSError(1, f"{{name}}: Operation not permitted")\n'
    launcher.write_text(text.replace("    result = getattr(LIBC, name)(*words)\n", check + "    result = getattr(LIBC, name)(*words)\n"))
    monkeypatch.setattr(sandbox, "LAUNCHER", launcher)
    with pytest.raises(sandbox.Unavailable, match=rf"{call}.*not permitted.*docker run"):
        sandbox.run("print(1)")
