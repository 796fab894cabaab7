"""`fovea bench step` on tiny cells: the file it writes, what voids it, what it keeps."""

import json

import pytest

from fovea import bench
from fovea.bench import exact, ours, step, workload
from fovea.bench.exact import Exactness
from fovea.bench.workload import Cell

TINY = Cell(64, 2, 2)
KEYS = {"image_tokens", "new_tokens", "group_size", "cpu_s_ours", "cpu_s_peer", "ratio", "mem_ours_mb", "mem_peer_mb"}


@pytest.fixture
def small(monkeypatch):
    """The same run with every fixed cell replaced by a tiny one."""
    monkeypatch.setattr(step, "ANCHOR", TINY)
    monkeypatch.setattr(step, "SCALING", (TINY, Cell(64, 2, 4)))
    monkeypatch.setattr(step.measure, "matmul_rate", lambda shapes: 5e10)


def run(out, *more):
    return bench.main(["step", "--cells", str(TINY), "--repeats", "1", "--no-memory", "--json", "--out", str(out), *more])


def test_the_file_and_standard_output_hold_the_same_result(small, tmp_path, capsys):
    out = tmp_path / "speed.json"
    assert run(out) == 0
    result = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == result
    assert result["exact"] is True
    assert result["physics_ratio"] > 0 and result["g16_over_g4"] > 0
    (cell,) = result["cells"]
    assert set(cell) >= KEYS
    assert (cell["image_tokens"], cell["new_tokens"], cell["group_size"]) == (64, 2, 2)
    assert cell["cpu_s_ours"] > 0 and cell["ratio"] is None
    assert result["command"].startswith("fovea bench step")
    assert {"commit", "hardware", "versions"} <= set(result)
    assert [p.name for p in tmp_path.iterdir()] == ["speed.json"]


def test_resume_keeps_what_was_measured(small, tmp_path):
    out = tmp_path / "speed.json"
    run(out)
    first = json.loads(out.read_text())
    run(out, "--resume")
    second = json.loads(out.read_text())
    assert second["cells"] == first["cells"] and second["g16_over_g4"] == first["g16_over_g4"]
    assert second["command"].split(" && ")[0] == first["command"] and "--resume" in second["command"]


def test_an_inexact_step_is_not_timed(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(exact, "check", lambda folder, cell: Exactness(logp=1e-3, sampler_logp=0, gradient=0, parameters=1))
    out = tmp_path / "speed.json"
    assert run(out) == 1
    result = json.loads(out.read_text())
    assert result["exact"] is False and result["cells"] == []
    assert "void" in capsys.readouterr().err


def test_a_wrong_cell_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main(["step", "--cells", "three"])
    assert stopped.value.code == 2
    assert "IMAGE+NEWxGROUP" in capsys.readouterr().err
    assert bench.main(["leap"]) == 2


def test_exactness_sees_a_wrong_gradient_and_a_wrong_log_prob(checkpoint, monkeypatch):
    """The check must be able to fail: a temperature that the reference does not share moves both."""
    good = exact.check(checkpoint, TINY)
    assert good.exact and good.parameters > 50
    build = ours.Trainer.__init__

    def warmer(self, *args, **kwargs):
        build(self, *args, **kwargs)
        self.policy.temperature = 1.01

    monkeypatch.setattr(ours.Trainer, "__init__", warmer)
    bad = exact.check(checkpoint, TINY)
    assert bad.logp > exact.LOGP_LIMIT and bad.gradient > exact.GRADIENT_LIMIT


def test_bfloat16_is_near_the_plain_computation_in_the_mean(checkpoint, monkeypatch):
    found = exact.check_bfloat16(checkpoint, TINY)
    assert found["logp_mean"] <= 0.02 and found["sampler_mean"] <= 0.02
    assert all(0 < found[f"{name}_mean"] <= found[f"{name}_max"] for name in ("logp", "plain"))
    plain = exact.repeated_logp
    monkeypatch.setattr(exact, "repeated_logp", lambda *a: plain(*a) + 0.05)
    assert exact.check_bfloat16(checkpoint, TINY)["logp_mean"] > 0.02


def test_the_table_has_a_row_per_cell():
    cells = [dict.fromkeys(KEYS) | {"image_tokens": c.image_tokens, "new_tokens": c.new_tokens, "group_size": 8} for c in workload.HEADLINE]
    text = step.table({"cells": cells, "exact": True, "physics_ratio": 1.5, "g16_over_g4": None})
    assert text.count("\n| ") == 4
