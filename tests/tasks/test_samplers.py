"""Samplers deal by position alone; gates look at scored samples only."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fovea.tasks.gates import AccuracyRange, All, DynamicSampling
from fovea.tasks.samplers import Mixture, Sequential, Shuffled
from fovea.types import Context, Episode, Group, Score, Task, user


class Numbers:
    """Tasks 0..n-1, or without end."""

    def __init__(self, name="n"):
        self.name = name

    def __getitem__(self, i):
        return Task(f"{self.name}{i}", self.name, user("?", images=0))


class Finite(Numbers):
    def __init__(self, n, name="n"):
        super().__init__(name)
        self.n = n

    def __len__(self):
        return self.n


def deal(sampler, n):
    return [sampler.next(Context(step=i)).id for i in range(n)]


def test_sequential_starts_again():
    assert deal(Sequential(Finite(3)), 7) == ["n0", "n1", "n2", "n0", "n1", "n2", "n0"]


def test_an_infinite_source_is_read_in_order():
    assert deal(Shuffled(Numbers()), 3) == ["n0", "n1", "n2"]


@given(st.integers(1, 40), st.integers(0, 5))
def test_every_epoch_deals_every_task_once(n, seed):
    dealt = deal(Shuffled(Finite(n), seed), 3 * n)
    for epoch in range(3):
        assert sorted(dealt[epoch * n : (epoch + 1) * n]) == sorted(f"n{i}" for i in range(n))


def test_epochs_and_seeds_differ():
    dealt = deal(Shuffled(Finite(50), 0), 100)
    assert dealt[:50] != dealt[50:]
    assert dealt[:50] != deal(Shuffled(Finite(50), 1), 50)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Sequential(Finite(7)),
        lambda: Shuffled(Finite(7), seed=3),
        lambda: Shuffled(Numbers()),
        lambda: Mixture([(Finite(7, "a"), 1), (Finite(5, "b"), 3), (Sequential(Numbers("c")), 2)], seed=4),
    ],
)
def test_a_saved_state_goes_on_where_it_was(make):
    whole = deal(make(), 30)
    first = make()
    assert deal(first, 11) == whole[:11]
    state = json.loads(json.dumps(first.state_dict()))
    second = make()
    second.load_state_dict(state)
    assert deal(second, 19) == whole[11:]


def test_a_mixture_keeps_its_weights():
    dealt = deal(Mixture([(Numbers("a"), 1), (Numbers("b"), 3), (Numbers("z"), 0)]), 2000)
    share = sum(i.startswith("b") for i in dealt) / 2000
    assert 0.72 < share < 0.78
    assert not any(i.startswith("z") for i in dealt)


def test_changed_data_and_wrong_weights_are_named():
    sampler = Shuffled(Finite(7))
    with pytest.raises(ValueError, match="7 tasks, this one has 8"):
        Shuffled(Finite(8)).load_state_dict(sampler.state_dict())
    with pytest.raises(ValueError, match="seed 0, this one has seed 1"):
        Shuffled(Finite(7), seed=1).load_state_dict(sampler.state_dict())
    with pytest.raises(ValueError, match="empty"):
        Sequential(Finite(0))
    for weights in ([], [0.0], [-1.0, 2.0], [float("nan")]):
        with pytest.raises(ValueError, match="mixture weights"):
            Mixture([(Finite(3), w) for w in weights])


def group_of(*scores):
    task = Task("t", "s", user("?", images=0))
    return Group(task, [Episode(str(i), task, score=s) for i, s in enumerate(scores)])


RIGHT, WRONG, FAILED = Score(1.0, correct=True), Score(0.0, correct=False), Score.failed("x")


@pytest.mark.parametrize(
    ("scores", "admitted"),
    [
        ([RIGHT, WRONG], True),
        ([RIGHT, RIGHT], False),
        ([WRONG, WRONG], False),
        ([RIGHT, FAILED], False),
        ([FAILED, FAILED], False),
        ([], False),
        ([Score(0.2), Score(0.3)], True),
        ([Score(0.2), Score(0.2)], False),
        ([Score(1.1, correct=True), Score(1.0, correct=True)], False),
        ([Score(0.2), RIGHT], True),
    ],
)
def test_dynamic_sampling(scores, admitted):
    assert DynamicSampling().admit(group_of(*scores)) is admitted
    assert All().admit(group_of(*scores)) is True


def test_baselines_do_not_count():
    group = group_of(RIGHT, RIGHT, WRONG)
    group.episodes[2].role = "greedy"
    assert DynamicSampling().admit(group) is False


def test_accuracy_range():
    gate = AccuracyRange(0.25, 0.5)
    assert gate.admit(group_of(RIGHT, WRONG)) is True
    assert gate.admit(group_of(RIGHT, WRONG, WRONG, WRONG)) is True
    assert gate.admit(group_of(RIGHT, RIGHT, WRONG)) is False
    assert gate.admit(group_of(Score(0.3), Score(0.4))) is True
    assert gate.admit(group_of(FAILED)) is False
    with pytest.raises(ValueError, match="lo <= hi"):
        AccuracyRange(0.9, 0.1)
