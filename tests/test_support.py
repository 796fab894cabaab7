"""The support table says what the marked tests showed, and nothing else."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fovea import doctor, support

ROOT = Path(__file__).resolve().parents[1]
CASES = """
import pytest

@pytest.fixture(params=["llava", "qwen2_vl"])
def folder(request):
    return request.param

@pytest.mark.support("full", "lora")
def test_small(folder):
    pass

@pytest.mark.support("full", family="llava", trained=True)
def test_trained():
    pass

@pytest.mark.support("lora")
@pytest.mark.parametrize("family", ["qwen2_vl"])
def test_broken(family):
    raise RuntimeError

@pytest.mark.support("video", family="llava")
def test_skipped():
    pytest.skip("no decoder")

@pytest.mark.support("remote", family="llava")
@pytest.mark.xfail
def test_expected_to_fail():
    raise RuntimeError

@pytest.fixture
def torn():
    yield
    raise RuntimeError

@pytest.mark.support("fsdp2", family="llava")
def test_that_cannot_clean_up(torn):
    pass
"""


def session(folder, text, *options):
    """The exit status and output of a session of its own over `text`, with this repository's conftest."""
    (folder / "test_it.py").write_text(text)
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "xdist", "--rootdir", str(folder), *options, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=600)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("workers", ["0", "2"])
def test_cells_are_what_passed_and_nothing_that_failed(tmp_path, workers):
    file = tmp_path / "support.json"
    status, output = session(tmp_path, CASES, "--support", str(file), "-n", workers)
    found = json.loads(file.read_text())
    assert status == 1
    assert {(f, k): v for f, row in found.items() for k, v in row.items() if v not in ("untested", "n/a")} == {
        ("llava", "full"): "tested",
        ("llava", "lora"): "shrunken",
        ("qwen2_vl", "full"): "shrunken",
    }
    assert list(found) == list(support.FAMILIES)
    assert all(list(row) == list(support.FEATURES) for row in found.values())
    assert "3 of 60 cells shown by tests; failed: llava fsdp2, qwen2_vl lora" in output


def test_a_file_that_is_there_is_added_to(tmp_path):
    file = tmp_path / "support.json"
    before = {"llava": {"lora": "tested", "remote": "shrunken"}, "qwen2_vl": {"lora": "tested", "full": "tested"}}
    file.write_text(json.dumps(before))
    session(tmp_path, CASES, "--support", str(file))
    found = json.loads(file.read_text())
    assert found["llava"] | {"full": "tested", "lora": "tested", "remote": "shrunken"} == found["llava"]
    assert found["qwen2_vl"] | {"lora": "untested", "full": "tested"} == found["qwen2_vl"]


def test_without_the_option_nothing_is_written(tmp_path):
    session(tmp_path, CASES)
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ('"vidoe", family="llava"', "found feature 'vidoe', expected one of .*; 'video'?"),
        ('"video", family="lava"', "found family 'lava', expected one of .*; 'llava'?"),
        ('"video"', "names no family= and no parameter is one of qwen2_vl"),
        ('family="llava"', "expected at least one feature"),
        ('"video", family="llava", on="gpu"', "expected at least one feature"),
    ],
)
def test_a_mark_that_names_no_cell_stops_the_session(tmp_path, mark, message):
    text = f"import pytest\n\n@pytest.mark.support({mark})\ndef test_it():\n    pass\n"
    status, output = session(tmp_path, text, "--support", "support.json")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert re.search(message, output) and "test_it.py::test_it" in output
    assert not (tmp_path / "support.json").exists()


def test_a_session_that_was_cut_short_writes_nothing(tmp_path):
    status, output = session(tmp_path, "import nothing_of_this_name", "--support", "support.json")
    assert status == pytest.ExitCode.INTERRUPTED
    assert "support.json is not written" in output and not (tmp_path / "support.json").exists()


def test_reading_names_what_is_unknown_and_misses_nothing(tmp_path):
    file = tmp_path / "support.json"
    assert {v for row in support.read([file]).values() for v in row.values()} == {"untested", "n/a"}
    file.write_text('{"llava": {"full": "shrunken"}}')
    assert support.read([file])["llava"] == {**dict.fromkeys(support.FEATURES, "untested"), "full": "shrunken", "video": "n/a"}
    file.write_text('{"llava": {"full": "perfect"}}')
    with pytest.raises(ValueError, match="found level 'perfect'"):
        support.read([file])


def test_the_doctor_shows_the_table_of_this_checkout():
    found = json.loads((ROOT / "benchmarks" / "support.json").read_text())
    examined = doctor.examine()
    assert examined["support"] == found
    lines = doctor.render(examined).splitlines()
    (row,) = [line.split() for line in lines if line.startswith("  qwen2_5_vl ")]
    assert row[1:] == list(found["qwen2_5_vl"].values())


def test_families_that_take_no_clips_have_no_cell_for_them():
    found = support.table({("llava", "video"): "shrunken", ("smolvlm", "video"): "shrunken"})
    assert {family for family, row in found.items() if row["video"] == "n/a"} == {"llava", "idefics3", "paligemma"}
    assert found["smolvlm"]["video"] == "shrunken"
