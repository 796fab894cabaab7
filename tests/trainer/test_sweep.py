"""The short form of benchmarks/reliability/resume.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_runs_killed_at_random_instants_end_equal(tmp_path):
    command = [sys.executable, "benchmarks/reliability/resume.py", "--kills", "4", "--per-run", "2", "--steps", "12"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["kills"] == result["equal"] == 4 and sum(result["by_phase"].values()) == 4
