"""The recipes of ViSurf and Vision-SR1: full size, claim, and two steps of the small one."""

import dataclasses
import json

import pytest

import fovea
from fovea.ledger import Lowest
from fovea.ledger.claim import arm_recipe, measured_recipe
from fovea.ledger.measures import Finished
from fovea.recipes import vision_sr1, visurf
from fovea.tasks.bars import Bars
from fovea.types import Context, Episode, Group, Turn

SMALL = {"steps": 2, "tasks_per_step": 3, "group_size": 2, "eval_tasks": 0, "model": "tiny", "sampling__max_new_tokens": 24, "quiet": True}


def episodes(folder):
    """What the run page shows."""
    files = sorted((folder / "rollouts").glob("*.jsonl"))
    return [e for file in files for line in file.read_text().splitlines() for e in json.loads(line)["episodes"]]


@pytest.mark.parametrize("module", [visurf, vision_sr1])
def test_the_small_recipe_is_the_full_one_but_for_size(module):
    """Hyperparameters of the method that differ: no reference model, and ViSurf's smaller weight of thinking."""
    small, full = dataclasses.asdict(module.tiny.method), dataclasses.asdict(module.real.method)
    assert type(module.tiny.method) is type(module.real.method)
    assert {k for k in small if small[k] != full[k]} <= {"beta", "thinking"}
    assert module.real.method.beta > 0 and set(module.tiny.reward.parts) == set(module.real.reward.parts)


@pytest.mark.parametrize("module", [visurf, vision_sr1])
def test_all_arms_answer_the_same_tasks_and_are_judged_alike(module):
    measured = [measured_recipe(module.tiny, module.CLAIM, arm_recipe(module.tiny, c)) for c in module.CLAIM.arms.values()]
    assert len({(str(m.data), str(m.heldout), repr(m.reward)) for m in measured}) == 1


def test_a_visurf_run_trains_on_its_labels_and_counts_drawn_answers_only(tmp_path):
    run = fovea.train(visurf.tiny, out=tmp_path, log_every=1, **SMALL)
    last = run.metrics[-1]
    assert last["length/episodes"] == 6 and last["batch/rows"] == 9  # two drawn answers to three tasks; three labels train too
    assert 0 < last["policy/label_frac"] <= 1 and last["policy/ratio_mean"] == pytest.approx(1, abs=1e-4)
    assert abs(last["policy/kl"]) < 1e-5  # the labels' old log-probabilities are the policy's own
    labels = [e for e in episodes(tmp_path) if e["role"] == "gold"]
    assert len(labels) == 6 and all(sum(s["logp"]) < -1 for e in labels for s in e["segments"])  # as the trainer read it off


def test_a_vision_sr1_run_reads_its_descriptions(tmp_path):
    run = fovea.train(vision_sr1.tiny, out=tmp_path, log_every=1, **SMALL)
    assert {"reward/answer", "reward/visual", "reward/visual/read", "reward/format"} <= set(run.metrics[-1])
    assert run.metrics[-1]["length/mean_turns"] == 1
    read = [e for e in episodes(tmp_path) if "branches" in e]
    for e in read:
        (turn,) = e["branches"]["reader"]
        assert [part["type"] for part in turn["messages"][0]["content"]] == ["text"]
    assert read


def test_a_shortcut_is_a_right_answer_that_the_description_does_not_give():
    task = Bars()[0]
    asked, true = task.meta["asked"], task.answer
    wrong = true % 8 + 1

    def parts(text):
        (score,) = vision_sr1.MEASURED.of(task).score(Group(task, [Episode("e", task, turns=[Turn(text)])]), Context())
        return score.correct, score.parts["shortcut"], score.parts["described"], score.parts["described/facts"]

    caption = task.meta["caption"]
    assert parts(f"<think>{caption}</think><answer>{true}</answer>") == (True, 0.0, 1.0, 1.0)
    assert parts(f"<think>{caption}</think><answer>{wrong}</answer>") == (False, 0.0, 1.0, 1.0)
    assert parts(f"<think>{caption.replace(f'{asked} {true}', f'{asked} {wrong}')}</think><answer>{true}</answer>") == (
        True, 1.0, 0.0, pytest.approx(2 / 3),
    )  # fmt: skip
    assert parts(f"<answer>{true}</answer>") == (True, 1.0, 0.0, 0.0)


def test_the_worst_source_counts():
    answers = [{"task": f"{s}{i}", "source": s, "correct": c} for s, c in (("a", 1.0), ("b", 0.5), ("c", 0.75)) for i in range(2)]
    assert Lowest()(Finished([], answers)) == 0.5
