"""The set-up of `make`, with a pip that only writes down what it was asked for."""

import os
import shutil
import subprocess

import pytest

from tests.docs.blocks import ROOT

PIP = """#!/bin/sh
echo "$@" >> "{log}"
"""
PYTHON = """#!/bin/sh
sed -n 's/.* \\(torch==[0-9.+a-z]*\\)$/\\1/p' "{log}" | tail -1
"""
VENV = """#!/bin/sh
mkdir -p "$3/bin" && cp "{here}/pip" "{here}/python" "$3/bin/"
"""


@pytest.fixture
def make(tmp_path):
    """``make("demo", "TORCH=...")`` -> what pip was asked for by this call."""
    if not shutil.which("make"):
        pytest.skip("no make")
    log = tmp_path / "log"
    for name, text in (("pip", PIP), ("python", PYTHON), ("venv", VENV)):
        (tmp_path / name).write_text(text.format(log=log, here=tmp_path))
        (tmp_path / name).chmod(0o755)

    def call(target, *settings):
        log.write_text("") if not log.exists() else None
        before = log.read_text()
        command = ["make", f"{tmp_path}/env/.{target}", f"VENV={tmp_path}/env", f"PYTHON={tmp_path}/venv", *settings]
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "TORCH"))}
        subprocess.run(command, cwd=ROOT, env=clean, check=True, capture_output=True)
        return log.read_text().removeprefix(before).splitlines()

    return call


def constraints(folder):
    return (folder / "env/constraints.txt").read_text().splitlines()


def test_torch_comes_first_and_stays(make, tmp_path):
    first, second = make("demo")
    assert first.endswith(" torch==2.13.0") and "-c" not in first.split()
    assert f"-c {tmp_path}/env/constraints.txt" in second and "torch==2.13.0" in constraints(tmp_path)
    (tests,) = make("test")
    assert tests.endswith(".[test]")
    assert make("demo") == make("test") == []


def test_another_torch_is_not_undone_by_the_second_install(make, tmp_path):
    first, second = make("test", "TORCH=torch==2.9.1+cpu")
    assert first.endswith(" torch==2.9.1+cpu") and "-c" in second.split()
    kept = constraints(tmp_path)
    assert [line for line in kept if line.startswith("torch==")] == ["torch==2.9.1+cpu"]
    assert "torchvision<0" in kept and any(line.startswith("transformers==") for line in kept)


def test_a_change_of_torch_is_taken_up(make, tmp_path):
    make("demo")
    again = make("demo", "TORCH=torch==2.10.0")
    assert [line.split()[-1] for line in again] == ["torch==2.10.0", ".[math,data,tensorboard]"]
    assert make("demo", "TORCH=torch==2.10.0") == []
