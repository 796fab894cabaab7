"""How many episodes a task gets, how long they are, which success joins them: by hand."""

import json

import pytest

from fovea.tasks.curation import Curation, Curator, Recorded, rollouts
from fovea.types import Episode, Group, Score, Task, Turn

A, B = (Task(f"{kind}/0", kind, ()) for kind in "ab")


def group(task, *outcomes, role="sample"):
    """Episodes of (won, turns)."""
    episodes = [
        Episode(f"{task.id}/{i}", task, role, turns=[Turn(f"say {k}") for k in range(n)], score=Score(float(won), correct=bool(won)))
        for i, (won, n) in enumerate(outcomes)
    ]
    return Group(task, episodes)


def places(g):
    return {e.id: (0, "x", i) for i, e in enumerate(g.episodes)}


def seen(curation, *groups):
    curator = Curator(curation, 8)
    for g in groups:
        curator.observe(g, places(g))
    return curator


@pytest.mark.parametrize(("success", "count"), [(0.0, 8), (0.5, 8), (0.6, 8), (0.8, 4), (0.95, 2), (1.0, 2)])
def test_rollouts_by_hand(success, count):
    assert rollouts(success, 8) == count


def test_easy_tasks_get_fewer_episodes_and_others_do_not_care():
    curator = seen(Curation(rollouts=True), group(A, (1, 2), (1, 2), (1, 3), (1, 3), (0, 4)), group(B, (0, 2), (1, 2)))
    assert (curator.size(A), curator.size(B), curator.size(Task("c", "c", ()))) == (4, 8, 8)
    assert seen(Curation(), group(A, (1, 2))).size(A) == 8
    old = seen(Curation(rollouts=True), group(A, *[(1, 1)] * 32), group(A, *[(0, 1)] * 32))
    assert old.size(A) == 8  # what was long ago does not count


def test_the_length_cap_is_the_longest_success():
    both = group(A, (1, 6), (1, 9), (0, 15))
    assert seen(Curation(turns=True), both).turns(A) == 9
    assert seen(Curation(turns=True, margin=1.5), both).turns(A) == 14
    assert seen(Curation(turns=True), group(A, (1, 2))).turns(A) == 5
    assert seen(Curation(turns=True), group(A, (0, 2))).turns(A) == 0
    assert seen(Curation(), both).turns(A) == 0


def test_counts_may_be_those_of_a_source():
    curator = seen(Curation(turns=True, by="source"), group(A, (1, 7)))
    assert curator.turns(Task("a/1", "a", ())) == 7 and curator.turns(B) == 0


def test_the_pool_keeps_the_latest_success_of_a_task():
    failed = group(A, (0, 3), (0, 4))
    assert seen(Curation(pool="own"), failed).rescue(failed) is None
    assert seen(Curation(pool="demonstrations"), failed).rescue(failed) == Recorded()
    curator = seen(Curation(pool="own"), group(A, (1, 1), (1, 2)), failed)
    assert curator.rescue(failed) == Recorded(("say 0", "say 1"), (0, "x", 1))
    assert curator.rescue(group(B, (0, 1))) is None and curator.rescue(group(A, (1, 1), (0, 1))) is None
    assert seen(Curation(), group(A, (1, 1))).rescue(failed) is None


def test_groups_that_agree_do_not_train_and_given_episodes_are_members():
    curator, plain = Curator(Curation(mixed=True), 8), Curator(Curation(), 8)
    won, lost, both = group(A, (1, 1), (1, 1)), group(A, (0, 1), (0, 1)), group(A, (1, 1), (0, 1))
    assert [curator.admit(g) for g in (won, lost, both)] == [False, False, True] and plain.admit(won)
    assert curator.admit(Group(A, lost.episodes + group(A, (1, 1), role="gold").episodes))


def test_its_state_is_plain_json():
    curator = seen(Curation(rollouts=True, turns=True, pool="own"), group(A, (1, 6), (1, 9)), group(B, (0, 1)))
    again = Curator(curator.curation, 8)
    again.load_state_dict(json.loads(json.dumps(curator.state_dict())))
    assert again.state_dict() == curator.state_dict() and again.pool == curator.pool and again.size(A) == curator.size(A) == 2


@pytest.mark.parametrize("wrong", [{"easy": 1.0}, {"least": 0}, {"margin": 0.5}, {"pool": "all"}, {"by": "day"}])
def test_curation_refuses_what_cannot_be(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Curation(**wrong)
