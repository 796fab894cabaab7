import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from fovea.ledger import Accuracy, Area, Last, Length, runs
from fovea.ledger import rows as ledger
from fovea.ledger.plot import plot
from fovea.ledger.reproduce import Progress, build_row, judge, table, trials, uncommitted, uncounted
from fovea.ledger.runs import Job, RunsFailed, finished, run_all, watch
from tests.ledger.claims import CLAIM, claim, results, run


def row(**changes):
    return build_row("mine", CLAIM, "hash", results(**changes))


def test_a_row_by_hand():
    found = row()
    assert found["arms"]["more"]["values"] == [0.75, 0.75]
    assert found["arms"]["less"]["values"] == [0.25, 0.25]
    assert found["effect"] == 0.5
    assert found["interval"][0] > -1 and found["arms"]["random"]["effect"] == 0
    assert found["controlled"] == {"arm": "random", "against": "start", "margin": 0.1, "effect": 0, "interval": [0, 0]}
    assert found["control"] == "behaves"
    assert found["arms"]["more"]["curve"] == [{"step": 1, "mean": 0.5, "low": 0.5, "high": 0.5}]
    assert json.loads(json.dumps(found)) == found


EVEN = {"less": ((0, 0, 0, 0),) * 2, "start": ((0, 0, 0, 0),) * 2, "random": ((0, 0, 0, 0),) * 2}


def test_verdicts_of_rows():
    assert row(more=((1, 1, 1, 1),) * 2, **EVEN)["verdict"] == "reproduced"
    assert row(more=((0, 0, 0, 0),) * 2, **EVEN)["verdict"] == "not reproduced"
    helped = row(more=((1, 1, 1, 1),) * 2, **{**EVEN, "random": ((1, 1, 1, 1),) * 2})
    assert (helped["control"], helped["verdict"]) == ("fails", "not reproduced")
    graded = row(more=((0.1, 0.1, 0.1, 0.1),) * 2, **EVEN)
    assert (graded["effect"], graded["verdict"]) == (0.1, "weaker")


def test_less_can_be_the_aim():
    found = row(more=((1, 1, 1, 1),) * 2, **EVEN)
    down = judge({**found, "expected": {**found["expected"], "direction": "less"}})
    assert down == {"control": "behaves", "verdict": "not reproduced"}
    swapped = {**found, "effect": -1.0, "interval": [-1.0, -1.0], "expected": {**found["expected"], "direction": "less"}}
    assert judge(swapped)["verdict"] == "reproduced"


def test_one_number_per_run():
    entropy = claim(metric=Last("policy/entropy", steps=1), margin=0.5)
    arms = {a: {s: run([1], entropy=[2.0, 1.0 + (a == "more") + 0.1 * s]) for s in (0, 1)} for a in CLAIM.arms}
    found = build_row("mine", entropy, "hash", arms)
    assert found["arms"]["more"]["values"] == pytest.approx([2.0, 2.1]) and found["effect"] == pytest.approx(1.0)
    assert found["metric"] == "policy/entropy, mean of the last 1 steps"
    assert found["verdict"] == "reproduced"


def test_only_tasks_of_a_kind():
    arms = results(more=((0, 1, 1, 1), (0, 0, 1, 1)))
    assert build_row("mine", claim(metric=Length(of="wrong")), "hash", arms)["arms"]["more"]["values"] == [10, 10]
    with pytest.raises(ValueError, match=r"length of wrong .* has no value in more, seed 1"):
        build_row("mine", claim(metric=Length(of="wrong")), "hash", results(more=((0, 1, 1, 1), (1, 1, 1, 1))))


def test_without_an_arm_there_is_no_verdict():
    assert row(less=())["verdict"] is None and row(less=())["effect"] is None
    assert row(random=())["verdict"] is None and row(random=())["effect"] == 0.5


def test_too_few_scored_answers_give_no_verdict(tmp_path):
    arms = results(more=((1, 1, 1, 1),) * 2, **EVEN)
    assert build_row("mine", CLAIM, "hash", arms)["unscored"] is None
    arms["more"][1] = replace(arms["more"][1], unscored=1)
    found = build_row("mine", claim(max_unscored=0.2), "hash", arms)
    assert found["arms"]["more"]["unscored"] == [0, 1] and found["arms"]["less"]["unscored"] == [0, 0]
    assert found["unscored"] == {"arm": "more", "seed": 1, "share": 0.2, "allowed": 0.2}
    assert found["verdict"] == "reproduced"
    strict = build_row("mine", CLAIM, "hash", arms)
    assert (strict["verdict"], strict["control"]) == (None, None)
    said = "20.0% of the held-out answers of more, seed 1, were not scored; the claim allows 1.0%"
    assert uncounted(CLAIM, strict, 2, False, tmp_path / "mine.py") == said and said in table(strict)


def test_what_does_not_count(tmp_path):
    full, file = row(), tmp_path / "mine.py"
    assert uncounted(CLAIM, full, 2, False, file) == ""
    assert "--quick" in uncounted(CLAIM, full, 2, True, file)
    assert uncounted(CLAIM, row(start=()), 2, False, file) == "only 3 of 4 arms ran"
    assert uncounted(CLAIM, full, 1, False, file) == "1 seeds ran, the claim asks for 2"
    asks = claim(condition=(Area("accuracy/mean"), "less", 0.6))
    assert "accuracy/mean, mean over training of less is 0.500, it asks for 0.6" in uncounted(
        asks, build_row("mine", asks, "hash", results()), 2, False, file
    )


def test_a_condition_may_be_a_mean_over_held_out_tasks():
    """Arm "less" is right in 1 of 4 tasks with both seeds."""
    found = build_row("mine", claim(condition=(Accuracy(), "less", 0.2)), "hash", results())["condition"]
    assert (found["found"], found["holds"]) == (0.25, True)


def test_a_claim_is_committed_first(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    file = tmp_path / "mine.py"
    file.write_text("1")
    assert not uncommitted(file)  # no repository
    subprocess.run([*git, "init", "-q"], check=True)
    assert uncommitted(file)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "m"], check=True)
    assert not uncommitted(file)
    file.write_text("2")
    assert uncommitted(file)


def test_every_counted_comparison_stays_in_its_row(tmp_path):
    file, come = tmp_path / "mine.json", {"date": "2026-01-01", "commit": "c"}
    first, second = row() | come, row(more=((1, 1, 1, 1),) * 2) | come
    first["trials"] = trials(file, first)
    file.write_text(json.dumps(first))
    assert len(first["trials"]) == 1
    assert len(trials(file, {**first, "date": "later"})) == 1  # the same runs, looked at again
    assert [t["effect"] for t in trials(file, second)] == [0.5, 0.75]
    assert len(trials(file, {**first, "arms_hash": "other"})) == 2


def test_the_table_says_it_all():
    text = table(row(more=((1, 1, 1, 1),) * 2, **EVEN))
    assert "expected: more more by at least 0.25" in text
    assert "control behaves: random less start: +0.000 [+0.000, +0.000], must stay below 0.1" in text
    assert text.splitlines()[-1] == "effect +1.000 [+1.000, +1.000]: reproduced"


def test_the_plot_is_the_same_for_the_same_row(tmp_path):
    pytest.importorskip("matplotlib")
    one, two = plot(row(), tmp_path / "a.svg").read_text(), plot(row(), tmp_path / "b.svg").read_text()
    assert one == two and one.startswith("<?xml")


# -- processes ------------------------------------------------------------------------------------------------------------------


def jobs(home, names, **changes):
    return [replace(Job("mine", n, 0, home / n, 3), **changes) for n in names]


@pytest.fixture
def processes(monkeypatch):
    """Processes that write a result at once; those called "bad" fail, and every start is noted."""
    started = []

    def start(job, results):
        started.append(job.arm)
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / runs.LOG).write_text("ValueError: the lens is dirty\n")
        program = 'import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(\'{"answers": [], "unscored": 0, "train_seconds": 5}\')'
        return subprocess.Popen(
            [sys.executable, "-S", "-c", "import sys; sys.exit(3)" if job.arm == "bad" else program, str(job.folder / runs.RESULT)]
        )

    monkeypatch.setattr(runs, "_start", start)
    return started


def test_runs_that_are_complete_do_not_run_again(processes, tmp_path):
    said = []
    run_all(jobs(tmp_path, ["a", "b"]), 2, said.append)
    run_all(jobs(tmp_path, ["a", "b", "c"]), 1, said.append)
    assert sorted(processes) == ["a", "b", "c"]
    assert "2 of 3 runs are complete already" in said and said[-1].startswith("[3/3] c, seed 0: ")


def test_a_run_that_fails_is_named_and_the_others_go_on(processes, tmp_path):
    with pytest.raises(RunsFailed, match=r"1 of 3 runs failed.*\n.*bad, seed 0 ended with status 3: ValueError: the lens is dirty"):
        run_all(jobs(tmp_path, ["bad", "a", "b"]), 1, lambda _: None)
    assert processes == ["bad", "a", "b"]
    assert finished(jobs(tmp_path, ["bad"])[0]) is None


def test_equal_seconds_wait_for_the_other_arm(processes, tmp_path):
    waiting = jobs(tmp_path, ["sft"], waits_for="a")
    run_all([*waiting, *jobs(tmp_path, ["a"])], 2, lambda _: None)
    assert processes == ["a", "sft"]
    with pytest.raises(RunsFailed, match="late, seed 0: bad with this seed has no result"):
        run_all([*jobs(tmp_path, ["late"], waits_for="bad"), *jobs(tmp_path, ["bad"])], 2, lambda _: None)


def test_a_time_limit_counts_the_steps_before_an_interruption(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1, "time/step_s": 2.0}\n{"step": 2, "time/step_s": 2.0}\n')
    on_step = watch(tmp_path, 6.5, os.getppid())
    assert not on_step(3, {"time/step_s": 2.0})
    assert on_step(4, {"time/step_s": 1.0})
    assert not watch(tmp_path, None, os.getppid())(3, {"time/step_s": 1e9})


def test_a_run_whose_comparison_has_ended_ends(tmp_path):
    with pytest.raises(SystemExit, match="has ended"):
        watch(tmp_path, None, os.getppid() + 1)(1, {"time/step_s": 1.0})


def test_a_run_whose_comparison_ended_while_it_was_measured_leaves_its_folder_to_the_next_one(tmp_path, monkeypatch):
    def measured(recipe, asked, folder, *rest):
        (folder / "checkpoints").mkdir()
        parent = os.getppid()
        monkeypatch.setattr(os, "getppid", lambda: parent + 1)

    monkeypatch.setattr(runs, "one", measured)
    with pytest.raises(SystemExit, match="has ended"):
        runs.main(["grpo", "start", "0", str(tmp_path)])
    assert [f.name for f in tmp_path.iterdir()] == ["checkpoints"]


def test_progress_writes_over_itself_on_a_terminal_only(capsys):
    Progress().tick("working")
    Progress().note("done")
    assert capsys.readouterr().out == "done\n"


# -- the ledger -----------------------------------------------------------------------------------------------------------------


def test_a_broken_row_is_named(tmp_path):
    (tmp_path / "x.json").write_text('{"slug": "x", "verdict": "splendid"}')
    with pytest.raises(ValueError, match=r"x.json: found verdict 'splendid' and no .*arms_hash"):
        ledger.read_all([tmp_path])
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match="expected the JSON that fovea reproduce writes"):
        ledger.read_all([tmp_path])
