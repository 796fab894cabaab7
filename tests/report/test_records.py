import json
import random

import pytest

from fovea.report.records import Reader, columns, places, thin
from fovea.report.run import RunFolder
from tests.report import fake_run


@pytest.fixture
def run(tmp_path):
    return fake_run.write(tmp_path / "run", steps=3, eval_every=3, rollout_every=1, tasks=4, group_size=2)


def test_the_index_names_every_answer(run):
    reader = Reader(run.path)
    reader.refresh()
    index = reader.index()
    assert set(index) == {f.name for f in run.rollout_files()}
    for file, entries in index.items():
        for line, task, source, step, episodes in entries:
            record = reader.record(file, line)
            assert (record["task"], record["source"], record["step"]) == (task, source, step)
            assert [(e["score"], e["stop"], e["length"], e["role"]) for e in record["episodes"]] == [
                (s, stop, n, role) for s, _, stop, n, role in episodes
            ]
            assert [{True: 1, False: 0}.get(e["correct"]) for e in record["episodes"]] == [c for _, c, *_ in episodes]
    assert {reader.record(f, 0)["split"] for f in index} == {"train", "eval"}


def test_only_what_changed_is_told_again(run):
    reader = Reader(run.path)
    first = reader.refresh()
    assert reader.refresh() == first and reader.index(first) == {}
    groups, batch, _ = fake_run.fake_step(4, 4, words := fake_run.Words(), tasks=4, group_size=2)
    run.log_groups(4, groups, words, batch, force=True)
    (run.rollouts_path / "step-000001.jsonl").unlink()
    second = reader.refresh()
    changed = reader.index(first)
    assert second > first and set(changed) == {"step-000004.jsonl", "step-000001.jsonl"} and changed["step-000001.jsonl"] == []
    with pytest.raises(ValueError, match=r"step-000001.jsonl has no line 0"):
        reader.record("step-000001.jsonl", 0)


def test_numbers_arrive_in_parts(run):
    reader = Reader(run.path)
    rows = reader.rows()
    assert [r["step"] for r in rows] == [0, 1, 2, 3]
    assert reader.news(4, 3) == {"total": 4, "last": 3, "rows": rows[-1:]}
    run.log(3, {"eval/late": 0.5})
    run.log(4, {"reward/mean": 0.25})
    fresh = reader.news(4, 3)
    assert [r["step"] for r in fresh["rows"]] == [3, 4] and fresh["rows"][0]["eval/late"] == 0.5 and fresh["total"] == 5
    run.truncate(2)
    back = reader.news(5, 4)
    assert back["total"] == 3 and "rows" not in back and back["columns"]["series"]["reward/mean"][1]


def test_a_line_that_is_still_written_is_waited_for(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "a": 1}\n{"step": 2, "a"')
    reader = Reader(tmp_path)
    assert [r["step"] for r in reader.rows()] == [1] and not reader.problems
    file.write_text('{"step": 1, "a": 1}\n{"step": 2, "a": 2}\n')
    assert [r["step"] for r in reader.rows()] == [1, 2]


def test_damage_is_named_and_the_rest_is_read(run):
    lines = run.metrics_path.read_text().splitlines()
    run.metrics_path.write_text("\n".join([lines[0], "{ not json", "[1]", '{"step": 2, "reward/mean": NaN}', ""]))
    file = run.rollouts_path / "step-000002.jsonl"
    good = file.read_text().splitlines()
    deep = '{"a":' * 100_000
    file.write_text(
        "\n".join(
            [
                good[0],
                "garbage",
                '{"task": 1}',
                '{"episodes": 3}',
                deep,
                json.dumps({**json.loads(good[1]), "images": [{"file": "x"}]}),
                good[2],
                good[3][:50],
            ]
        )
    )
    (run.rollouts_path / "step-000003.jsonl").write_bytes(b"\xff\xfe\x00\n")
    (run.path / "config.json").write_text("{")
    reader = Reader(run.path)
    reader.refresh()
    assert [r["step"] for r in reader.rows()] == [0, 2] and reader.rows()[1]["reward/mean"] is None
    assert [e[0] for e in reader.index()["step-000002.jsonl"]] == [0, 6] and reader.index()["step-000003.jsonl"] == []
    assert reader.record("step-000002.jsonl", 6)["task"] == json.loads(good[2])["task"]
    named = [p.partition(":")[0] for p in reader.problems if not p.startswith("config")]
    assert reader.config == {} and any(p.startswith("config.json: expected") for p in reader.problems)
    assert named == [
        "metrics.jsonl, line 2",
        "metrics.jsonl, line 3",
        *(f"rollouts/step-000002.jsonl, line {n}" for n in (2, 3, 4, 5, 6, 8)),
        "rollouts/step-000003.jsonl, line 1",
    ]
    with pytest.raises(ValueError, match=r"line 2: not JSON"):
        reader.record("step-000002.jsonl", 1)


@pytest.mark.parametrize("seed", range(30))
def test_mutated_files_never_raise(run, seed):
    rng = random.Random(seed)
    for file in [*run.rollout_files(), run.metrics_path, run.path / "config.json", run.path / "env.json"]:
        data = bytearray(file.read_bytes())
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(data))
            data[at : at + rng.randint(0, 9)] = rng.randbytes(rng.randint(0, 9))
        file.write_bytes(data)
    from fovea.report.page import render

    render([reader := Reader(run.path)])
    assert all(": " in p for p in reader.problems)


def test_only_pictures_of_the_run_are_given(run):
    reader = Reader(run.path)
    name = next((run.rollouts_path / "images").iterdir()).name
    assert reader.picture(name).startswith(b"\x89PNG")
    for other in ("../../config.json", "/etc/passwd", "", "..", "abc.png/../x", "0000.png"):
        assert reader.picture(other) is None


def test_columns_share_their_steps_and_long_ones_become_means():
    found = columns([{"step": s, "a": float(s), "b": 1 / 3, **({"c": 1.0} if s % 2 else {}), "d": None} for s in range(10)], points=5)
    assert set(found["series"]) == {"a", "b", "c"} and found["series"]["a"][0] == found["series"]["b"][0]
    axis, values = found["series"]["a"]
    assert found["axes"][axis] == [1, 3, 5, 7, 9] and values == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert found["series"]["b"][1] == [0.33333] * 5 and found["axes"][found["series"]["c"][0]] == [1, 3, 5, 7, 9]
    assert thin([1, 2], [3.0, 4.0], 2) == ([1, 2], [3.0, 4.0])
    assert columns([{"step": 1, "kl": -5e-9}])["series"]["kl"][1] == [0.0]


def place_record(expected, *said):
    return {"images": [{"width": 200, "height": 100}], "expected": expected, "episodes": [{"places": p} for p in said]}


def placed(*at, **more):
    return {"image": 0, "at": list(at), "labels": [], "hits": [], **more}


def test_places_are_as_the_verifier_left_them():
    found = places(place_record(placed([1, 2, 3, 4]), placed([11.5, 2, 3, 1e300], [5, 6], labels=["cat"], hits=[True, False]), None))
    assert found == {
        "true": [{"image": 0, "at": [1, 2, 3, 4], "label": "", "hit": None}],
        "said": [
            [{"image": 0, "at": [11.5, 2, 3, 1e6], "label": "cat", "hit": True}, {"image": 0, "at": [5, 6], "label": "", "hit": False}],
            [],
        ],
    }


@pytest.mark.parametrize(
    "odd",
    [
        None,
        3,
        {},
        placed("x"),
        placed([1, 2, 3]),
        placed([1, 2, 3, None]),
        placed([1, 2], image=7),
        placed([1, 2], image="0"),
        {"image": 0},
    ],
)
def test_places_that_cannot_be_drawn_are_left_out(odd):
    assert places(place_record(odd, odd)) is None
    assert places(place_record(placed([1, 2]), odd))["said"] == [[]]
    assert len(places(place_record(placed(*[[1, 2]] * 1000)))["true"]) == 200


def test_a_run_without_a_folder_is_empty(tmp_path):
    reader = Reader(tmp_path / "none")
    assert (
        reader.refresh() == 0
        and reader.rows() == []
        and reader.index() == {}
        and reader.problems == []
        and not (tmp_path / "none").exists()
    )


def test_the_folder_writes_what_the_reader_reads(finished):
    assert isinstance(finished, RunFolder) and not Reader(finished.path).problems
