import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fovea
from fovea.report.metrics import GLOSSARY, batch_metrics, bootstrap, explain, family, group_metrics, interval, time_metrics
from fovea.types import Episode, Group, Score, Segment, Task, Turn, user
from tests.report import fake_run


def attempt(task, score, tokens=3, stop="eos", role="sample", turns=1):
    T = torch.zeros(tokens, dtype=torch.long)
    segment = Segment(None, T, torch.ones(tokens, dtype=torch.bool), torch.zeros(tokens), T, T)
    return Episode("e", task, role, [segment], [Turn("x")] * turns, stop, score=score)


def grouped(source, scores, **options):
    task = Task("t", source, user("?"), answer="x")
    return Group(task, [attempt(task, s, **options) for s in scores])


def yes(value=1.0, **parts):
    return Score(value, parts, correct=True)


def no(value=0.0, **parts):
    return Score(value, parts, correct=False)


def test_wilson_worked_by_hand():
    # z = 1.959964: 8 of 10 -> centre .992073/1.384146 = .716740, half 1.416009 * sqrt(.025604) = .226576
    assert interval(8, 10) == pytest.approx((0.490164, 0.943316), abs=1e-5)
    # none of 10 -> (0, z²/(n + z²)) = 3.841459/13.841459
    assert interval(0, 10) == pytest.approx((0.0, 0.277533), abs=1e-6)
    assert interval(10, 10) == pytest.approx((1 - 0.277533, 1.0), abs=1e-6)
    assert interval(0, 0) == (0.0, 1.0)


@given(n=st.integers(1, 5000), share=st.floats(0, 1), level=st.floats(0.5, 0.999))
def test_wilson_holds_the_proportion_and_narrows(n, share, level):
    k = round(share * n)
    low, high = interval(k, n, level)
    assert 0 <= low <= k / n + 1e-12 and k / n - 1e-12 <= high <= 1
    assert interval(n - k, n, level) == pytest.approx((1 - high, 1 - low), abs=1e-9)
    wider = interval(k, n, min(0.9999, level + 0.0005))
    assert wider[0] <= low + 1e-12 and wider[1] >= high - 1e-12
    more = interval(4 * k, 4 * n, level)
    assert more[1] - more[0] < high - low


def test_bootstrap():
    assert bootstrap([0.5] * 7) == (0.5, 0.5)
    assert all(math.isnan(x) for x in bootstrap([]))
    low, high = bootstrap([0.0, 1.0] * 200)
    # the standard error of the mean is .5/20 = .025
    assert low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.008) and high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.008)
    assert bootstrap([0.1, 0.9, 0.4]) == bootstrap([0.1, 0.9, 0.4])


def test_group_metrics_by_hand():
    groups = [
        grouped("a", [yes(1.0, answer=1.0, style=0.0), no(0.0, answer=0.0, style=1.0)]),
        grouped("a", [yes(1.0, answer=1.0, style=1.0), yes(1.0, answer=1.0, style=1.0)], stop="length"),
        grouped("b", [no(0.0, answer=0.0, style=0.0), no(0.0, answer=0.0, style=0.0)], tokens=9),
    ]
    assert group_metrics(groups) == pytest.approx(
        {
            "reward/mean": 0.5,
            "reward/std": 0.5,
            "reward/unscored_frac": 0.0,
            "reward/answer": 0.5,
            "reward/style": 0.5,
            "accuracy/mean": 0.5,
            "accuracy/a": 0.75,
            "accuracy/b": 0.0,
            "length/mean_tokens": 5.0,
            "length/max_tokens": 9.0,
            "length/cut_frac": 1 / 3,
            "length/mean_turns": 1.0,
            "group/degenerate_frac": 2 / 3,
            "group/solved_frac": 1 / 3,
            "group/failed_frac": 1 / 3,
        }
    )


def test_an_unscored_episode_is_no_zero():
    found = group_metrics([grouped("a", [yes(), yes(), Score.failed("timed out"), None])])
    assert found["reward/mean"] == 1.0 and found["accuracy/mean"] == 1.0 and found["reward/unscored_frac"] == 0.5


def test_baselines_and_given_answers_are_left_out():
    group = grouped("a", [yes(), no()])
    task = group.task
    with_others = Group(task, [*group.episodes, attempt(task, yes(5.0), role="greedy"), attempt(task, yes(9.0), role="gold")])
    assert group_metrics([with_others]) == group_metrics([group])


def test_without_a_notion_of_correct_there_is_no_accuracy():
    found = group_metrics([grouped("a", [Score(0.2), Score(0.4)])])
    assert not [k for k in found if k.startswith("accuracy") or k in ("group/solved_frac", "group/failed_frac")]
    assert found["reward/mean"] == pytest.approx(0.3)


def test_names_that_collide_get_a_suffix():
    found = group_metrics([grouped("mean", [yes(2.0, mean=7.0), no(0.0, mean=5.0)]), grouped("b", [no()])])
    assert found["reward/mean"] == pytest.approx(2 / 3) and found["reward/mean_part"] == 6.0
    assert found["accuracy/mean"] == pytest.approx(1 / 3) and found["accuracy/mean_source"] == 0.5


def test_nothing_and_all_unscored():
    assert group_metrics([]) == {}
    found = group_metrics([grouped("a", [None, None])])
    assert math.isnan(found["reward/mean"]) and found["reward/unscored_frac"] == 1.0


def test_batch_metrics_by_hand():
    batch = fake_run.credited([grouped("a", [yes(1.0), no(0.0)], tokens=4)], step=3)
    batch.logp_behaviour_BT = batch.logp_old_BT + 0.25
    batch.mask_BT[1, 2:] = 0
    # advantages: .5 on four units, -.5 on two
    assert batch_metrics(batch) == pytest.approx(
        {
            "batch/rows": 2.0,
            "batch/tokens": 6.0,
            "policy/truncation_nats": 0.25,
            "policy/staleness": 3.0,
            "adv/mean": 1 / 6,
            "adv/std": math.sqrt(0.25 - 1 / 36),
            "adv/zero_frac": 0.0,
        }
    )


def test_time_metrics():
    assert time_metrics({"generate": 2.0, "update": 1.0, "step": 4.0}, tokens=100, episodes=8) == {
        "time/generate_s": 2.0,
        "time/update_s": 1.0,
        "time/step_s": 4.0,
        "speed/tokens_per_s": 50.0,
        "speed/episodes_per_s": 2.0,
    }
    assert "speed/tokens_per_s" not in time_metrics({"generate": 0.0}, tokens=5)


def test_family_gives_free_names_only():
    row = {"step": 1, "accuracy/mean": 0.5, "accuracy/a/b": 0.25, "eval/accuracy": 0.1, "eval/accuracy/a": 0.2, "accuracyx/c": 1.0}
    assert family(row, "accuracy") == {"a/b": 0.25} and family(row, "eval/accuracy") == {"a": 0.2}


def test_every_number_of_a_run_is_explained(finished):
    names = {k for row in finished.read_metrics() for k in row} - {"step"}
    assert len(names) > 40
    assert not [n for n in names if not explain(n)]


METRIC = re.compile(r'f?"((?:reward|accuracy|length|group|adv|eval|policy|loss|value|optim|batch|time|speed|memory)/[a-z_0-9]+)"')


@pytest.mark.parametrize("part", ["methods", "trainer", "report"])
def test_every_metric_named_in_the_code_has_its_own_line(part):
    files = (Path(fovea.__file__).parent / part).glob("*.py")
    names = {n for f in files for n in METRIC.findall(f.read_text(encoding="utf-8"))}
    assert names and not {n for n in names if n not in GLOSSARY}


def test_glossary_lines_are_sentences_and_say_why_the_loss_is_zero():
    assert all(text.endswith(".") and "\n" not in text for text in GLOSSARY.values())
    assert "0 on-policy by construction" in explain("loss/total")
    assert explain("reward/my part") == GLOSSARY["reward/<part>"] and explain("eval/accuracy/count") == GLOSSARY["eval/accuracy/<source>"]
    assert explain("unknown/thing") == ""
