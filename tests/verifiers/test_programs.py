import pytest

from fovea import Context, Episode, Group, Task, sandbox, user
from fovea.types import Turn
from fovea.verifiers import Scorer, build
from fovea.verifiers.programs import code_block, same

needs = pytest.mark.skipif(bool(sandbox.problem()), reason=sandbox.problem() or "-")


def episode(text, answer="42", **params):
    task = Task("t", "code", user("Print it.", images=0), answer=answer, verifier="program", params=params)
    return Episode("e", task, turns=[Turn(text)])


def judge(text, answer="42", **params):
    e = episode(text, answer, **params)
    return build("program", params).score(Group(e.task, [e]), Context())[0]


def fenced(code):
    return f"Let me compute.\n```python\n{code}\n```\n"


@needs
@pytest.mark.parametrize(
    ("text", "right", "ran"),
    [
        (fenced("print(6 * 7)"), True, True),
        (fenced("print(41)") + fenced("print(42.0)"), True, True),
        (fenced("print(41)"), False, True),
        (fenced("print(42); 1 / 0"), False, False),
        ("print(42)", False, False),
        ("42", False, False),
    ],
)
def test_what_the_last_block_prints_is_the_answer(text, right, ran):
    score = judge(text)
    assert (score.ok, score.correct, score.value, score.parts["ran"]) == (True, right, float(right), float(ran))


@needs
def test_it_reads_what_the_task_gives():
    assert judge(fenced("print(int(input()) + 1)"), stdin="41\n").correct


@needs
def test_an_empty_gold_cannot_be_scored():
    assert not judge(fenced("print()"), answer=" ").ok


@needs
def test_it_scores_beside_the_others():
    e = episode(fenced("print(42)"))
    with Scorer() as scorer:
        scorer.score([Group(e.task, [e])])
    assert e.score.correct


def test_it_is_refused_where_nothing_isolates(monkeypatch):
    monkeypatch.setattr(sandbox, "problem", lambda: "sandbox: found Windows; expected Linux")
    with pytest.raises(sandbox.Unavailable, match="verifier 'program': sandbox: found Windows"):
        build("program")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\na\n```", "a\n"),
        ("```py\r\na\r\n```\r\n", "a\r\n"),
        ("```python\na\n```\n```text\nb\n```", "a\n"),
        ("```python\na", None),
        ("```text\n```python\na\n```", None),
        ("x ```python\na\n```", None),
    ],
)
def test_code_block(text, code):
    assert code_block(text) == code


@pytest.mark.parametrize(
    ("said", "gold", "equal"), [("a  b\n", "a b", True), ("1e2", "100", True), ("A", "a", False), ("4 2", "42", False)]
)
def test_same(said, gold, equal):
    assert same(said, gold) is equal
