import json

import pytest

from fovea.cli import main
from fovea.report.compare import compare, flatten, table
from fovea.report.records import Reader
from fovea.report.run import RunFolder


def run(path, seed, accuracy, **config):
    folder = RunFolder(path, tensorboard=False)
    folder.describe({"name": "a", "seed": seed, "method": {"type": "GRPO", "eps": 0.2}, **config}, ["fovea", "train"])
    folder.log(0, {"eval/accuracy": 0.25, "eval/n": 100.0, "eval/accuracy/count": 0.25, "eval/n/count": 100.0})
    for step, a in enumerate(accuracy, 1):
        folder.log(step, {"reward/mean": a, "length/tokens": 10.0, "speed/tokens_per_s": 100.0 * step})
        folder.log(step, {"eval/accuracy": a, "eval/n": 100.0, "eval/accuracy/count": a, "eval/n/count": 100.0})
    return Reader(path)


def test_final_numbers_with_intervals_and_what_differs(tmp_path):
    found = compare([run(tmp_path / "a", 0, [0.5, 0.75]), run(tmp_path / "b", 1, [0.9, 0.8, 0.7], group_size=4)])
    a, b = found["runs"]
    assert (a["final"]["eval/accuracy"]["value"], a["final"]["eval/accuracy"]["first"], a["steps"], a["tokens"]) == (0.75, 0.25, 2, 20)
    # Wilson interval of 75 of 100
    assert (a["final"]["eval/accuracy"]["low"], a["final"]["eval/accuracy"]["high"]) == pytest.approx((0.6570, 0.8246), abs=1e-3)
    assert (b["final"]["eval/accuracy"]["best"], b["final"]["eval/accuracy"]["best_step"]) == (0.9, 1) and b["tokens_per_s"] == 200
    assert found["config"] == [{"field": "seed", "values": [0, 1]}, {"field": "group_size", "values": [None, 4]}]
    assert (
        found["sources"][0]["source"] == "count"
        and found["sources"][0]["values"][1]["value"] == 0.7
        and "low" in found["sources"][0]["values"][1]
    )
    text = table(found)
    assert "0.750 [0.657, 0.825]" in text and "best 0.900 at 1" in text and "group_size" in text and "method.eps" not in text


def test_equal_settings_are_said(tmp_path):
    assert "no setting differs" in table(compare([run(tmp_path / "a", 0, [0.5]), run(tmp_path / "b", 0, [0.5])]))


def test_a_run_of_nothing(tmp_path):
    found = compare([Reader(tmp_path / "none"), run(tmp_path / "a", 0, [0.5])])
    assert found["runs"][0]["final"] == {} and found["runs"][0]["seconds"] is None and "–" in table(found)


def test_nested_settings_are_flat():
    assert dict(flatten({"a": 1, "b": {"c": 2, "d": {}}})) == {"a": 1, "b.c": 2, "b.d": {}}


def test_the_command(tmp_path, capsys):
    a, b = run(tmp_path / "a", 0, [0.5]).path, run(tmp_path / "b", 1, [0.6]).path
    (b / "metrics.jsonl").open("a").write("broken\n")
    assert main(["compare", str(a), str(b), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["config"][0]["field"] == "seed" and "metrics.jsonl, line 3" in err
    assert main(["compare", str(a), str(tmp_path / "gone")]) == 1 and "gone: expected a run folder" in capsys.readouterr().err
