import itertools
import json
import math
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fovea import verifiers
from fovea.files import read_jsonl
from fovea.report.run import RunFolder, called, spread
from fovea.types import Context, Episode, Group, Score, Task, Turn, user
from tests.report import fake_run


def open_run(path, **options):
    return RunFolder(path, tensorboard=False, **options)


def untimed(rows):
    return [{k: v for k, v in row.items() if k != "time/wall_s"} for row in rows]


def picture_group(image, source="s", id="t"):
    task = Task(id, source, user("what?"), (image,), answer="x")
    return Group(task, [Episode("e", task, turns=[Turn("x")], score=Score(1.0, correct=True))])


def test_one_line_per_step(tmp_path):
    run = open_run(tmp_path)
    run.log(1, {"reward/mean": 0.5})
    run.log(2, {"reward/mean": 0.75})
    run.log(2, {"eval/accuracy": 0.25})
    run.log(3, {"reward/mean": 1.0})
    assert untimed(run.read_metrics()) == [
        {"step": 1, "reward/mean": 0.5},
        {"step": 2, "reward/mean": 0.75, "eval/accuracy": 0.25},
        {"step": 3, "reward/mean": 1.0},
    ]
    assert len(run.metrics_path.read_text().splitlines()) == 3


def test_a_step_can_be_added_to_after_reopening(tmp_path):
    open_run(tmp_path).log(4, {"a/b": 1.0})
    open_run(tmp_path).log(4, {"a/c": 2.0})
    assert untimed(open_run(tmp_path).read_metrics()) == [{"step": 4, "a/b": 1.0, "a/c": 2.0}]


def test_going_back_without_truncation_is_an_error(tmp_path):
    run = open_run(tmp_path)
    run.log(5, {})
    with pytest.raises(ValueError, match=r"step 3 logged after step 5.*truncate\(2\)"):
        run.log(3, {})


def test_not_a_number_survives_as_strict_json(tmp_path):
    run = open_run(tmp_path)
    run.log(1, {"reward/mean": math.nan, "loss/total": math.inf, "a/b": 1.0})

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    assert json.loads(run.metrics_path.read_text(), parse_constant=refuse)["loss/total"] is None
    assert math.isnan(run.read_metrics()[0]["reward/mean"])


def test_a_torn_last_line_is_dropped_and_written_over(tmp_path):
    run = open_run(tmp_path)
    run.log(1, {"a/b": 1.0})
    with run.metrics_path.open("ab") as f:
        f.write(b'{"step": 2, "a/b": 0.')
    again = open_run(tmp_path)
    assert [r["step"] for r in again.read_metrics()] == [1]
    assert again.last_step == 1
    again.log(2, {"a/b": 3.0})
    assert untimed(again.read_metrics()) == [{"step": 1, "a/b": 1.0}, {"step": 2, "a/b": 3.0}]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\nnot json\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2.*not json"):
        read_jsonl(file)


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 400), checkpoint=st.integers(0, 6))
def test_killed_anywhere_and_resumed_gives_the_same_lines(tmp_path_factory, cut, checkpoint):
    def train(run, start):
        for step in range(start, 9):
            run.log(step, {"reward/mean": step / 8})
            if step % 2 == 0:
                run.log(step, {"eval/accuracy": step / 10})

    whole, killed = open_run(tmp_path_factory.mktemp("a")), open_run(tmp_path_factory.mktemp("b"))
    train(whole, 1)
    train(killed, 1)
    data = killed.metrics_path.read_bytes()
    killed.metrics_path.write_bytes(data[: max(1, len(data) - cut)])
    resumed = open_run(killed.path)
    kept = resumed.last_step or 0
    # a checkpoint is never ahead of the log
    start = min(checkpoint, kept - 1) if kept else 0
    resumed.truncate(start)
    train(resumed, start + 1)
    assert untimed(resumed.read_metrics())[-(9 - start - 1) :] == untimed(whole.read_metrics())[-(9 - start - 1) :]
    assert [r["step"] for r in resumed.read_metrics()] == list(range(1, 9))


def test_truncation_forgets_later_steps_and_rollouts(finished, tmp_path):
    run = fake_run.write(tmp_path, steps=4, eval_every=2, rollout_every=1, tasks=2, group_size=2)
    run.truncate(2)
    assert [r["step"] for r in run.read_metrics()] == [0, 1, 2]
    assert [f.name for f in run.rollout_files()] == [
        "eval-000000.jsonl",
        "step-000001.jsonl",
        "step-000002.jsonl",
        "eval-000002.jsonl",
    ]
    run.log(3, {"reward/mean": 1.0})
    assert [r["step"] for r in run.read_metrics()] == [0, 1, 2, 3]


def test_the_clock_goes_on_over_a_resume(tmp_path):
    open_run(tmp_path).log(1, {})
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps({"step": 1, "time/wall_s": 100.0}) + "\n")
    run = open_run(tmp_path)
    run.log(2, {})
    assert 100.0 <= run.read_metrics()[1]["time/wall_s"] < 110.0


def test_opening_changes_nothing(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n{"st')
    open_run(tmp_path).read_metrics()
    assert file.read_bytes() == b'{"step": 1}\n{"st'


def test_description(tmp_path):
    @dataclass(frozen=True)
    class Recipe:
        name: str = "r"
        sizes: tuple = (1, 2)

    run = open_run(tmp_path)
    run.describe(Recipe(), ["fovea", "train", "--name", "two words"])
    run.describe({"name": "r"}, ["fovea", "train"])
    assert (tmp_path / "command.txt").read_text() == "fovea train --name 'two words'\nfovea train\n"
    assert json.loads((tmp_path / "config.json").read_text()) == {"name": "r"}
    env = json.loads((tmp_path / "env.json").read_text())
    assert env["versions"]["torch"] and env["cores"] >= 1 and env["python"].startswith("3.")


def test_groups_are_written_with_tokens_and_advantages(tmp_path):
    words = fake_run.Words()
    groups, batch, _ = fake_run.fake_step(1, 10, words, tasks=2, group_size=3)
    run = open_run(tmp_path)
    run.log_groups(1, groups, words, batch)
    records = list(run.read_groups())
    assert {r["task"] for r in records} == {g.task.id for g in groups}
    for record in records:
        group = next(g for g in groups if g.task.id == record["task"])
        rows = [b for b in range(batch.B) if batch.group_B[b] == groups.index(group)]
        for e, kept, b in zip(group.episodes, record["episodes"], rows, strict=True):
            segment = kept["segments"][0]
            assert "".join(segment["tokens"]).removesuffix("<|end|>") == e.text == kept["text"]
            assert segment["logp"] == pytest.approx(e.segments[0].logp_old.tolist(), abs=1e-4)
            assert segment["adv"] == pytest.approx(batch.adv_BT[b, : len(e.segments[0])].tolist(), abs=1e-4)
            assert kept["score"] == e.score.value and kept["parts"] == e.score.parts and kept["correct"] == e.score.correct


def test_a_batch_of_other_groups_is_refused(tmp_path):
    words = fake_run.Words()
    groups, batch, _ = fake_run.fake_step(1, 10, words, tasks=2, group_size=3)
    with pytest.raises(ValueError, match="6 rows but these groups make 3"):
        open_run(tmp_path).log_groups(1, groups[:1], words, batch)


def test_which_steps_keep_rollouts(tmp_path):
    groups = [picture_group(Image.new("RGB", (4, 4)))]
    run = open_run(tmp_path, rollout_every=5)
    written = [s for s in range(3, 12) if run.log_groups(s, groups)]
    assert written == [3, 5, 10]
    assert run.log_groups(12, groups, force=True) and run.log_groups(12, groups, split="eval").name == "eval-000012.jsonl"


def test_long_segments_are_cut(tmp_path):
    words = fake_run.Words()
    groups, batch, _ = fake_run.fake_step(1, 10, words, tasks=1, group_size=2)
    run = open_run(tmp_path, rollout_tokens=2)
    run.log_groups(1, groups, words, batch)
    for e, kept in zip(groups[0].episodes, next(run.read_groups())["episodes"], strict=True):
        s = kept["segments"][0]
        assert [len(s[k]) for k in ("tokens", "mask", "logp", "adv")] == [2] * 4 and s["units"] == e.length


def test_each_picture_is_stored_once(tmp_path):
    red, blue = Image.new("RGB", (8, 6), "red"), Image.new("RGB", (8, 6), "blue")
    run = open_run(tmp_path, rollout_groups=10)
    run.log_groups(1, [picture_group(red), picture_group(blue), picture_group(red.copy())], force=True)
    run.log_groups(2, [picture_group(red)], force=True)
    assert len(list((tmp_path / "rollouts" / "images").iterdir())) == 2


def test_large_pictures_are_reduced_and_keep_their_true_size(tmp_path):
    run = open_run(tmp_path, image_side=32)
    run.log_groups(1, [picture_group(Image.new("L", (100, 50)))])
    (image,) = next(run.read_groups())["images"]
    assert (image["width"], image["height"]) == (100, 50)
    with Image.open(tmp_path / "rollouts" / "images" / image["file"]) as stored:
        assert stored.size == (32, 16) and stored.mode == "RGB"


def test_unscored_episodes_carry_their_reason(tmp_path):
    group = picture_group(Image.new("RGB", (4, 4)))
    group.episodes[0].score = Score.failed("timed out after 10 s")
    run = open_run(tmp_path)
    run.log_groups(1, [group])
    (e,) = next(run.read_groups())["episodes"]
    assert e["score"] is None and e["reason"] == "timed out after 10 s"


def test_places_of_an_answer_are_written_as_its_verifier_saw_them(tmp_path):
    box, cat = {"bbox_2d": [1, 2, 30, 40], "label": "cat"}, {"bbox_2d": [100, 200, 300, 400], "label": "cat"}
    picture, run = Image.new("RGB", (50, 40)), open_run(tmp_path)
    for step, (verifier, answer, text, places) in enumerate(
        [
            ("box_iou", [1, 2, 30, 40], "<answer>500 500 1000 1000</answer>", {"at": [[25, 20, 50, 40]], "labels": [], "hits": []}),
            ("detection", [box], json.dumps([cat]), {"at": [[5, 8, 15, 16]], "labels": ["cat"], "hits": [False]}),
            ("criterion", [box], "none", {"at": [], "labels": [], "hits": []}),
            ("exact", "a", "<answer>a</answer>", None),
        ]
    ):
        params = {"scale": 1000} if places else {}
        task = Task("t", "s", user("?", images=1), images=(picture,), answer=answer, verifier=verifier, params=params)
        group = Group(task, [Episode("e", task, turns=[Turn(text)])])
        for judge in (verifiers.build(verifier, params), verifiers.weighted({"right": (1.0, "task"), "form": (0.1, "format")}).of(task)):
            group.episodes[0].score = judge.score(group, Context())[0]
            (record,) = run.read_groups([run.log_groups(step, [group], force=True)])
            assert record["episodes"][0]["places"] == (places and {"image": 0, **places})
            assert (record["expected"] or {}).get("at") == ([[1, 2, 30, 40]] if places else None)


def test_groups_that_lost_unscored_episodes_are_written_whole_and_each_reason_once(tmp_path):
    words = fake_run.Words()
    whole, _, _ = fake_run.fake_step(1, 10, words, tasks=5, group_size=3)
    for group, reasons in zip(whole, (["late"], ["late", "odd"], ["late"], ["broken"], []), strict=True):
        for e, reason in zip(group.episodes, reasons):
            e.score = Score.failed(reason)
    trained = [Group(g.task, [e for e in g.episodes if e.score.ok]) for g in (whole[0], whole[4])]
    run = open_run(tmp_path, rollout_every=5, rollout_groups=2)

    def written(step):
        run.log_groups(step, trained, words, unscored=whole[:4])
        return [(r["task"], [e["reason"] for e in r["episodes"]]) for r in run.read_groups([run.rollouts_path / f"step-{step:06d}.jsonl"])]

    first, last = (whole[0].task.id, ["late", "", ""]), (whole[4].task.id, ["", "", ""])
    others = [(whole[1].task.id, ["late", "odd", ""]), (whole[3].task.id, ["broken", "", ""])]
    assert sorted(written(1)) == sorted([first, last, *others])
    assert written(2) == [first, others[0]], "not due: only what could not be scored, at most `rollout_groups`"
    assert run.log_groups(3, trained, words) is None


def test_the_sample_goes_round_the_sources():
    image = Image.new("RGB", (2, 2))
    groups = [picture_group(image, s, f"{s}{i}") for s, n in (("a", 5), ("b", 1), ("c", 2)) for i in range(n)]
    assert [g.task.id for g in spread(groups, 5, 0)] == ["a0", "b0", "c0", "a1", "c1"]
    assert [g.task.id for g in spread(groups, 3, 1)] == ["b0", "c0", "a0"]
    assert len(spread(groups, 100, 7)) == len(groups) and spread([], 3, 0) == []


def test_tensorboard_repeats_no_step_after_a_resume(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunFolder(tmp_path, tensorboard=True) as run:
        for step in range(1, 6):
            run.log(step, {"reward/mean": float(step)})
        run.truncate(3)
        for step in range(4, 6):
            run.log(step, {"reward/mean": float(10 * step)})
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward/mean")] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0), (5, 50.0)]


def test_what_a_method_computes_of_each_token_is_kept(tmp_path):
    from fovea.batch import Streams

    groups, batch, _ = fake_run.fake_step(1, 1, words := fake_run.Words(), tasks=2, group_size=2)
    batch.stored = Streams({"masked/logp": batch.logp_old_BT - 0.5, "reference/logp": batch.logp_old_BT + 0.25}, "before")
    groups[0].episodes[0].segments[0].turn[2:] = 1
    run = RunFolder(tmp_path, tensorboard=False)
    run.log_groups(1, groups, words, batch, force=True)
    segments = [s for r in run.read_groups() for e in r["episodes"] for s in e["segments"]]
    assert all(s["streams"] == {"visual": [0.5] * s["units"], "reference": [-0.25] * s["units"]} for s in segments)
    turns = [s["turn"] for s in segments if "turn" in s]
    assert turns == [[0, 0] + [1] * (len(turns[0]) - 2)] and all(len(s["adv"]) == s["units"] for s in segments)


def test_the_report_is_written_whole(finished):
    assert (finished.path / "report.html").read_text().endswith("</html>")
    assert not list(itertools.chain(finished.path.glob("*.part"), (finished.rollouts_path / "images").glob("*.part")))


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["/venv/bin/fovea", "train", "--name", "two words"], ["fovea", "train", "--name", "two words"]),
        (["-c"], ["python"]),
        (["/x/ipykernel_launcher.py", "-f", "/home/me/kernel.json"], ["python"]),
    ],
)
def test_the_command_names_no_folder_of_this_machine(monkeypatch, argv, line):
    monkeypatch.setattr("sys.argv", argv)
    assert called() == line
