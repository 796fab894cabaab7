"""Every named verifier on worked examples, verdicts of plain functions, and weighted sums."""

import builtins
import json
import sys

import pytest
from PIL import Image

from fovea.types import Context, Episode, Group, Score, Task, Turn, user
from fovea.verifiers import VERIFIERS, as_score, build, function, resolve, weighted
from fovea.verifiers.form import follows_tags


def task_of(answer, verifier="exact", images=(), **params):
    return Task("t1", "s", user("?", images=len(images)), images, answer=answer, verifier=verifier, params=params)


def score(task, text, verifier=None, step=0, episode="e"):
    verifier = resolve(task) if verifier is None else build(verifier, task.params)
    return verifier.score(Group(task, [Episode(episode, task, turns=[Turn(text)])]), Context(step=step))[0]


IMAGE = Image.new("RGB", (200, 100))


@pytest.mark.parametrize(
    ("verifier", "gold", "params", "text", "value"),
    [
        ("exact", "cat", {}, "<answer>Cat.</answer>", 1),
        ("exact", "cat", {"case": True}, "Cat", 0),
        ("exact", ["cat", "kitten"], {}, "kitten", 1),
        ("exact", True, {}, "Yes", 1),
        ("exact", 7, {}, "7", 1),
        ("exact", "cat", {}, "", 0),
        ("choice", "B", {}, "(b)", 1),
        ("choice", 1, {"options": ["red", "blue"]}, "B.", 1),
        ("choice", "blue", {"options": ["red", "blue"]}, "blue", 1),
        ("choice", "B", {"options": ["red", "blue"]}, "red", 0),
        ("number", 3, {}, "three", 1),
        ("number", "1,000", {}, "about 1000", 1),
        ("number", 10, {"tolerance": 0.5}, "10.5", 1),
        ("number", 10, {"tolerance": 0.5}, "10.51", 0),
        ("number", 200, {"relative": 0.05}, "210", 1),
        ("number", 200, {"relative": 0.05}, "189", 0),
        ("number", 0.3, {}, "3/10", 1),
        ("number", 50, {}, "50%", 1),
        ("number", "50%", {}, "0.5", 1),
        ("number", "50%", {}, "50", 1),
        ("number", 5, {}, "50%", 0),
        ("number", 3, {}, "cat", 0),
        ("set", ["a", "b", "b"], {}, "b, a", 2 * 2 / 5),
        ("set", "red, blue", {}, "blue and red", 1),
        ("count", {"cat": 2, "dog": 1}, {}, "cat: 2, dog: 2", 2 * 3 / 7),
        ("count", {"cat": 2}, {}, "no idea", 0),
        ("text_distance", "hello", {}, "hallo", 0.8),
        ("text_distance", ["hello", "hallo"], {}, "hallo", 1),
        ("box_iou", [0, 0, 10, 10], {}, "[0, 0, 10, 5]", 1),
        ("box_iou", [0, 0, 10, 10], {"threshold": 0.51}, "[0, 0, 10, 5]", 0),
        ("box_iou", [0, 0, 10, 10], {"graded": True}, "[0, 0, 10, 5]", 0.5),
        ("box_iou", [20, 10, 100, 50], {"scale": 1000}, "[100, 100, 500, 500]", 1),
        ("box_iou", [20, 10, 100, 50], {"scale": 1, "graded": True}, "[0.1, 0.1, 0.5, 0.5]", 1),
        ("box_iou", [0, 0, 10, 10], {}, "nowhere", 0),
        ("box_iou", [0, 0, 10, 10], {}, "[0, 0, 1e999, 10]", 0),
        ("box_iou", [0, 0, 10, 10], {"graded": True}, "[5, 0, 15, 10]", 1 / 3),
        ("box_iou", [0, 0, 10, 10], {"graded": True}, "[9, 0, 19, 10]", 10 / 190),
        ("box_iou", [0, 0, 10, 10], {"graded": True, "least": 1}, "[9, 0, 19, 10]", 0),  # as VLM-R1's code has it
        ("box_iou", [0, 0, 10, 10], {"graded": True, "least": 1}, "[5, 0, 15, 10]", 1 / 3),
        ("point_in_box", [0, 0, 10, 10], {}, "(9.9, 0)", 1),
        ("point_in_box", [0, 0, 10, 10], {}, "(10, 0)", 0),
        ("point_in_box", [20, 10, 100, 50], {"scale": 1000}, "(499, 499)", 1),
        ("format", None, {}, "<think>a</think><answer>b</answer>", 1),
        ("length", None, {"unit": "words", "max": 2}, "one two", 1),
        ("length", None, {"unit": "words", "min": 3}, "one two", 0),
        ("length", None, {"unit": "chars", "max": 4, "soft": 4}, "12345", 0.75),
        ("length", None, {"unit": "chars", "max": 4, "soft": 4}, "123456789", 0),
    ],
)
def test_worked_examples(verifier, gold, params, text, value):
    s = score(task_of(gold, verifier, (IMAGE,), **params), text)
    assert s.ok, s.reason
    assert s.value == pytest.approx(value)


def test_a_graded_box_logs_its_overlap_and_is_correct_by_threshold():
    s = score(task_of([0, 0, 10, 10], "box_iou", graded=True, threshold=0.6), "[0,0,10,5]")
    assert (s.value, s.parts["iou"], s.correct) == (0.5, 0.5, False)


def test_graded_scores_are_correct_only_at_their_threshold():
    assert score(task_of(["a", "b"], "set"), "a").correct is False
    assert score(task_of(["a", "b"], "set", threshold=0.6), "a").correct is True


@pytest.mark.parametrize(
    ("verifier", "gold", "said"),
    [
        ("exact", None, "no answer"),
        ("exact", "", "not empty"),
        ("number", "cat", "holds no number"),
        ("choice", "9", "neither a letter"),
        ("box_iou", [10, 0, 0, 10], "x1 < x2"),
        ("point_in_box", "somewhere", "x1 < x2"),
        ("count", "cats", "holds no counts"),
    ],
)
def test_an_unreadable_gold_answer_is_a_failure_and_no_zero(verifier, gold, said):
    s = score(task_of(gold, verifier), "5")
    assert not s.ok and said in s.reason
    assert s.value != s.value


def test_coordinates_in_another_scale_need_the_image():
    assert "0 image(s)" in score(task_of([0, 0, 10, 10], "box_iou", scale=1000), "[1,2,3,4]").reason


@pytest.mark.parametrize(
    ("text", "strict", "good"),
    [
        ("<think>a</think><answer>b</answer>", True, True),
        ("hm <think>a</think> so <answer>b</answer>", False, True),
        ("hm <think>a</think><answer>b</answer>", True, False),
        ("<think>a</think><answer>b</answer> bye", True, False),
        ("<answer>b</answer><think>a</think>", False, False),
        ("<think>a<answer>b</answer></think>", False, False),
        ("<think>a</think><answer>b</answer><answer>c</answer>", False, False),
        ("<think>a</think><answer>b", False, False),
        ("<think> </think><answer>b</answer>", False, False),
        ("</think>a<think><answer>b</answer>", False, False),
    ],
)
def test_tag_grammar(text, strict, good):
    assert follows_tags(text, ("think", "answer"), strict) is good


def test_length_in_tokens_refuses_episodes_without_a_record():
    assert "token record" in score(task_of(None, "length"), "abc").reason


def test_random_is_addressed_fair_and_without_a_notion_of_correct():
    task = task_of("x", "random", p=0.25)
    draws = [score(task, "a", episode=f"e{i}").value for i in range(2000)]
    assert 0.21 < sum(draws) / 2000 < 0.29
    assert draws == [score(task, "another text", episode=f"e{i}").value for i in range(2000)]
    assert draws != [score(task, "a", episode=f"e{i}", step=1).value for i in range(2000)]
    assert score(task, "a").correct is None


def test_return_sums_the_rewards_of_the_turns():
    task = task_of(None, "return", success=1.0)
    episode = Episode("e", task, turns=[Turn("a", reward=0.25), Turn("b", reward=0.75)])
    s = resolve(task).score(Group(task, [episode]), Context())[0]
    assert (s.value, s.correct) == (1.0, True)


# -- verdicts -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (True, Score(1.0, correct=True)),
        (0.5, Score(0.5)),
        (2, Score(2.0)),
        ({"a": 1, "b": 0.5}, Score(1.5, {"a": 1.0, "b": 0.5})),
        ({"overall": 0.9, "format": 1.0, "accuracy": 0.8}, Score(0.9, {"format": 1.0, "accuracy": 0.8})),
        ({"score": 0.5, "correct": False}, Score(0.5, {"correct": 0.0}, correct=False)),
        (Score(3.0, {"x": 1.0}), Score(3.0, {"x": 1.0})),
    ],
)
def test_verdicts(verdict, expected):
    assert as_score(verdict) == expected


def test_scalars_of_numpy_and_torch_are_numbers():
    import numpy as np
    import torch

    assert as_score(np.float32(0.5)).value == 0.5
    assert as_score(np.bool_(True)).correct is True
    assert as_score(torch.tensor(0.25)).value == 0.25


@pytest.mark.parametrize(
    "verdict",
    [None, "1", float("nan"), float("inf"), [1.0], {}, {"a": None}, {"a": float("nan")}, {"a": "1"}, Score(float("nan")), object()],
)
def test_anything_else_is_a_failure_with_a_reason(verdict):
    s = as_score(verdict)
    assert not s.ok and s.reason


def test_a_threshold_makes_numbers_right_or_wrong():
    assert as_score(0.5, threshold=0.5).correct is True
    assert as_score(0.49, threshold=0.5).correct is False
    assert as_score(0.49).correct is None


# -- plain functions ------------------------------------------------------------------------------------------------------------


def test_a_plain_function_gets_the_extracted_answer_and_the_task():
    seen = []

    def mine(answer, task):
        seen.append((answer, task.id))
        return answer == task.answer

    assert score(task_of("5"), "<think>7</think><answer>5</answer>", mine).correct is True
    assert seen == [("5", "t1")]


def test_a_plain_function_gets_what_it_names():
    def mine(answer, task, *, weight, episode, context):
        return {"long": weight * len(episode.text), "step": context.step}

    s = score(task_of("5", weight=2.0), "abc", mine, step=4)
    assert s.parts == {"long": 6.0, "step": 4.0}


def test_an_async_function_runs_with_or_without_an_event_loop():
    import asyncio

    async def mine(answer, task):
        await asyncio.sleep(0)
        return 0.75

    async def notebook():
        return score(task_of("x"), "a", mine)

    assert score(task_of("x"), "a", mine).value == 0.75
    assert asyncio.run(notebook()).value == 0.75


def test_a_raising_function_names_the_error_and_the_line():
    def mine(answer, task):
        return task.meta["label"]

    s = score(task_of("x"), "a", mine)
    assert not s.ok and s.reason.startswith("mine: KeyError: 'label' at test_verifiers.py:")


def test_a_function_over_batches_is_refused_with_the_expected_signature():
    with pytest.raises(TypeError, match=r"reward\(completions\).*f\(answer, task\)"):

        def reward(completions):
            return [0.0]

        function(reward)


def test_unknown_names_and_parameters_are_named():
    with pytest.raises(ValueError, match="'numbr'; did you mean 'number'"):
        build("numbr")
    with pytest.raises(TypeError, match="'number' takes no parameter 'tol'; it takes: tolerance, relative"):
        build("number", {"tol": 1})
    with pytest.raises(TypeError, match="not a verifier"):
        build(3)


def test_every_factory_explains_itself():
    assert all((factory.__doc__ or "").strip() for factory in VERIFIERS.values())


# -- weighted -------------------------------------------------------------------------------------------------------------------


def test_a_weighted_sum_logs_every_part_unweighted():
    v = weighted({"correct": (1.0, "task"), "form": (0.1, "format", {"tags": ["answer"]}), "box": (0.0, "box_iou")})
    task = task_of([0, 0, 10, 10], "point_in_box")
    s = v.score(Group(task, [Episode("e", task, turns=[Turn("<answer>[0, 0, 5, 5]</answer>")])]), Context())[0]
    assert s.value == pytest.approx(1.0 + 0.1)
    assert s.parts == {"correct": 1.0, "form": 1.0, "box": 0.0, "box/iou": 0.25, "box/correct": 0.0}
    assert s.correct is True


def test_weighted_can_be_named_by_a_task_from_json():
    params = json.loads('{"parts": {"correct": [1.0, "exact"], "form": [0.5, "format", {"tags": ["answer"]}]}, "correct_from": "form"}')
    s = score(task_of("cat", "weighted", **params), "cat")
    assert (s.value, s.correct) == (1.0, False)


def test_one_unscorable_part_makes_the_whole_unscored():
    s = score(task_of("cat", "weighted", parts={"n": (1.0, "number"), "e": (1.0, "exact")}), "cat")
    assert not s.ok and s.reason.startswith("part 'n': number: gold answer 'cat'")


@pytest.mark.parametrize("parts", [{}, {"a": "exact"}, {"a": ("exact", 1.0)}, {"a": (1.0,)}])
def test_malformed_parts_are_refused(parts):
    with pytest.raises(ValueError, match="weighted"):
        weighted(parts)


# -- mathematics ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "text", "value"),
    [
        ("1/2", "<answer>\\frac{1}{2}</answer>", 1),
        ("$x^2+1$", "\\boxed{1+x^2}", 1),
        ("\\sqrt{8}", "$2\\sqrt{2}$", 1),
        ("3", "hello", 0),
        ("3", "4", 0),
    ],
)
def test_mathematics(gold, text, value):
    pytest.importorskip("math_verify")
    assert score(task_of(gold, "math", timeout_s=60), text) == Score(float(value), correct=bool(value))


def test_an_unreadable_gold_formula_is_a_failure():
    pytest.importorskip("math_verify")
    assert "no mathematics" in score(task_of("", "math", timeout_s=60), "4").reason


def test_a_hung_worker_is_replaced_and_the_next_answer_is_scored():
    pytest.importorskip("math_verify")
    from fovea.verifiers.mathematics import Pool

    pool = Pool(1)
    try:
        assert pool.compare("4", "4", 6, 60)
        with pytest.raises(ValueError, match=r"no answer within 0\.01 s"):
            pool.compare("$\\int_0^1 x^x dx$", "$\\int_0^1 x^x dx + 0.1$", 6, 0.01)
        assert pool.compare("4", "4", 6, 60)
    finally:
        pool.close()


def test_a_missing_extra_is_named(monkeypatch):
    from fovea.verifiers import mathematics, workers

    monkeypatch.setattr(workers.Worker, "_read", lambda self, seconds, what: {"missing": "No module named 'math_verify'"})
    pool = mathematics.Pool(1)
    with pytest.raises(ModuleNotFoundError, match=r"fovea-rl\[math\]"):
        pool.compare("4", "4", 6, 5)


def test_verifiers_import_without_torch():
    import subprocess

    code = "import sys, fovea.verifiers; sys.exit('torch' in sys.modules or 'math_verify' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert builtins.format is not VERIFIERS["format"]
