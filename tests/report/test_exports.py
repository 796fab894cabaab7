"""Exported evaluations hold what was asked, said and judged, in the columns and keys that the other tools look for."""

import base64
import csv
import io
import json
import math
import re

import pytest
from PIL import Image

from fovea import api, cli
from fovea.report.exports import export
from fovea.trainer.evaluation import Evaluation
from fovea.types import Episode, Group, Score, Task, Turn, user

RED, BLUE = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 4), "blue")


def group(task, *answers):
    """Answers as (text, score)."""
    return Group(task, [Episode(f"{task.id}-{i}", task, turns=[Turn(text)], score=score) for i, (text, score) in enumerate(answers)])


def right(correct):
    return Score(float(correct), correct=correct)


def evaluation(*groups):
    return Evaluation({}, {}, 0, list(groups))


COUNT = Task("c0", "count things", user("How many?"), (RED,), answer=3)
TABBED = Task("c1", "count things", user('A\t"quoted"\nline?', 2), (RED, BLUE), answer=[1, 2])
CHOICE = Task("m0", "choose", user("Which?"), (BLUE,), answer=1, verifier="choice", params={"options": ["red", "blue"]})
THOUGHT = "<think>one, two, three</think><answer>3</answer>"


def read_tsv(file):
    with file.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f, delimiter="\t"))


def test_lmms_eval_samples_and_results_by_hand(tmp_path):
    result = evaluation(
        group(COUNT, (THOUGHT, right(True)), ("4", right(False))),
        group(TABBED, ("7", right(False)), ("8", Score.failed("broken"))),
        group(CHOICE, ("B", right(True))),
    )
    files = export("lmms-eval", result, tmp_path, "/home/someone/runs/mine", {"temperature": 0.5})
    stem = re.fullmatch(r"(\d{8}_\d{6})_results\.json", files[0].name)
    assert stem and files[0].parent == tmp_path / "runs__mine"
    assert [f.name for f in files[1:]] == [f"{stem[1]}_samples_fovea_count_things.jsonl", f"{stem[1]}_samples_fovea_choose.jsonl"]
    first, second = map(json.loads, files[1].read_text().splitlines())
    hashed = first.pop("doc_hash")
    assert first == {
        "doc_id": 0,
        "input": "How many?",
        "target": "3",
        "resps": [THOUGHT, "4"],
        "filtered_resps": ["3", "4"],
        "score": 0.5,
    }
    assert re.fullmatch("[0-9a-f]{64}", hashed) and hashed != second["doc_hash"]
    assert "resps" not in second  # what was judged is what was said
    assert second["target"] == "[1, 2]" and second["score"] == 0.0
    content = json.loads(files[0].read_text())
    row = content["results"]["fovea_count_things"]
    assert row["score,none"] == 0.25 and row["samples"] == 2
    assert row["score_stderr,none"] == pytest.approx(math.sqrt(2 * 0.25**2 / 1) / math.sqrt(2))
    assert content["results"]["fovea_choose"]["score_stderr,none"] == "N/A"
    assert set(content["task_hashes"]) == set(content["versions"]) == set(content["n-shot"]) == set(content["results"])
    assert content["config"]["gen_kwargs"] == {"temperature": 0.5}
    assert "/home" not in files[0].read_text()


def test_lmms_eval_leaves_out_what_could_not_be_scored(tmp_path):
    files = export("lmms-eval", evaluation(group(COUNT, ("3", Score.failed("broken")))), tmp_path, "tiny")
    (row,) = map(json.loads, files[1].read_text().splitlines())
    assert "score" not in row and row["filtered_resps"] == [] and row["resps"] == ["3"], "or lmms-eval would compare it with the target"
    content = json.loads(files[0].read_text())
    assert content["n-samples"]["fovea_count_things"] == {"original": 1, "effective": 0}
    assert content["results"]["fovea_count_things"]["score,none"] == "N/A"


def test_vlmevalkit_tables_by_hand(tmp_path):
    result = evaluation(
        group(COUNT, (THOUGHT, right(True))), group(TABBED, ("", right(False))), group(CHOICE, ("<answer>B</answer>", right(True)))
    )
    export("vlmevalkit", result, tmp_path, "runs/mine")
    (run,) = (tmp_path / "runs__mine").iterdir()
    assert re.fullmatch(r"T\d{8}-\d{6}", run.name)
    rows = read_tsv(run / "runs__mine_fovea_count_things.tsv")
    assert rows[0] == {"index": "0", "id": "c0", "question": "How many?", "answer": "3", "prediction": "3", "thinking": THOUGHT}
    assert rows[1] == {"index": "1", "id": "c1", "question": 'A\t"quoted"\nline?', "answer": "[1, 2]", "prediction": "", "thinking": ""}
    (choice,) = read_tsv(run / "runs__mine_fovea_choose.tsv")
    assert (choice["A"], choice["B"], choice["answer"], choice["prediction"]) == ("red", "blue", "B", "B")
    asked = read_tsv(tmp_path / "LMUData" / "fovea_count_things.tsv")
    assert [r["index"] for r in asked] == ["0", "1"] and "prediction" not in asked[0]
    assert Image.open(io.BytesIO(base64.b64decode(asked[0]["image"]))).tobytes() == RED.tobytes()
    second = json.loads(asked[1]["image"])
    assert [Image.open(io.BytesIO(base64.b64decode(s))).size for s in second] == [(8, 8), (8, 4)]


def test_options_named_by_letter_or_text(tmp_path):
    for answer in ("B", "blue", 1):
        task = Task("m", "s", user("?"), (RED,), answer=answer, verifier="choice", params={"options": ["red", "blue"]})
        export("vlmevalkit", evaluation(group(task, ("x", right(False)))), tmp_path / str(answer), "tiny")
        (row,) = read_tsv(tmp_path / str(answer) / "LMUData" / "fovea_s.tsv")
        assert row["answer"] == "B"


def test_what_cannot_be_exported_is_named(tmp_path):
    two = evaluation(group(COUNT, ("3", right(True)), ("4", right(False))))
    with pytest.raises(ValueError, match="task c0 has 2 answers, expected one"):
        export("vlmevalkit", two, tmp_path, "tiny")
    with pytest.raises(ValueError, match="found format 'helm', expected one of lmms-eval, vlmevalkit"):
        export("helm", two, tmp_path, "tiny")
    with pytest.raises(ValueError, match="holds no answers"):
        export("lmms-eval", evaluation(), tmp_path, "tiny")
    alike = [group(Task("a", source, user("?"), (), answer=1), ("1", right(True))) for source in ("a b", "a/b")]
    with pytest.raises(ValueError, match="'a b', 'a/b' differ only"):
        export("lmms-eval", evaluation(*alike), tmp_path, "tiny")
    assert not list(tmp_path.iterdir())


def test_the_command_writes_files_and_refuses_other_formats(tmp_path, monkeypatch, capsys):
    result = Evaluation({"count things": 1.0}, {"count things": 1}, 0, [group(COUNT, ("3", right(True)))])
    monkeypatch.setattr(api, "evaluate", lambda *a, **k: result)
    words = ["eval", "tiny", "--json", "--export"]
    assert cli.main([*words, "lmms-eval", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["sources"]["count things"]["count"] == 1
    assert sorted(line.split(" ", 1)[1] for line in shown.err.splitlines()) == sorted(map(str, (tmp_path / "tiny").iterdir()))
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words, "helm", str(tmp_path)])
    assert stopped.value.code == 2 and "expected one of lmms-eval, vlmevalkit" in capsys.readouterr().err
