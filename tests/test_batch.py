import pytest
import torch

from fovea.batch import Batch, Streams, collate, to_units
from fovea.types import Episode, Group, Prefix, Score, Segment, Task, user


def segment(key, n, *, turn=None, reward=(), extras=None, mask=None, **more):
    return Segment(
        Prefix(key),
        torch.arange(n),
        torch.tensor(mask) if mask else torch.ones(n, dtype=torch.bool),
        -torch.arange(n).double(),
        torch.tensor(turn) if turn else torch.zeros(n, dtype=torch.long),
        torch.full((n,), 3),
        reward=reward,
        extras=extras or {},
        **more,
    )


def group(name, *episodes):
    task = Task(name, "test", user("?"))
    return Group(task, [Episode(f"{name}/{i}", task, role, rows, score=score) for i, (role, rows, score) in enumerate(episodes)])


@pytest.fixture
def batch() -> Batch:
    return collate(
        [
            group(
                "a",
                ("sample", [segment("pa", 2), segment("pb", 4, turn=[1, 1, 2, 2], reward=[0.5, 2.0])], Score(1.0, {"iou": 0.5})),
                ("greedy", [segment("pa", 3)], Score(0.25)),
                ("sample", [segment("pa", 5)], Score.failed("timeout")),
            ),
            group("b", ("sample", [segment("pb", 3, mask=[True, False, True])], Score(0.0)), ("sample", [segment("pa", 1)], None)),
        ],
        dtype=torch.float64,
    )


def test_baselines_and_failed_episodes_are_in_the_tables_but_give_no_rows(batch):
    assert batch.episode_B.tolist() == [0, 0, 3, 4]
    assert batch.role_E == ("sample", "greedy", "sample", "sample", "sample")
    assert batch.ok_E.tolist() == [True, True, False, True, False]
    assert batch.score_E[[0, 1, 3]].tolist() == [1.0, 0.25, 0.0] and batch.score_E[[2, 4]].isnan().all()
    assert batch.parts_E["iou"][0] == 0.5 and batch.parts_E["iou"][1:].isnan().all()


def test_rows_point_to_shared_prefixes_and_groups(batch):
    assert [p.key for p in batch.prefixes] == ["pa", "pb"]
    assert batch.prefix_B.tolist() == [0, 1, 1, 0]
    assert batch.group_B.tolist() == [0, 0, 1, 1]
    assert batch.length_E.tolist() == [6, 3, 5, 2, 1]


def test_streams_are_padded_with_mask_zero_and_turns_count_from_the_row(batch):
    assert batch.mask_BT.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 1, 0], [1, 0, 0, 0]]
    assert batch.actions_BT[1].tolist() == [0, 1, 2, 3] and batch.actions_BT[0].tolist() == [0, 1, 0, 0]
    assert batch.turn_BT[1].tolist() == [0, 0, 1, 1]
    assert torch.equal(batch.logp_behaviour_BT, batch.logp_old_BT)
    assert batch.logp_old_BT.dtype == torch.float64


def test_turn_rewards_land_on_the_last_chosen_unit_of_their_turn(batch):
    assert batch.reward_at_units().tolist() == [[0] * 4, [0, 0.5, 0, 2.0], [0] * 4, [0] * 4]
    turn, mask = torch.tensor([[0, 0, 1, 1, 2]]), torch.tensor([[1.0, 1, 1, 0, 0]])
    assert to_units(torch.tensor([[1.0, 2.0, 4.0]]), turn, mask).tolist() == [[0, 1, 2, 0, 0]]
    assert to_units(torch.zeros(1, 0), turn, mask).tolist() == [[0] * 5]


def test_per_row_tables(batch):
    assert batch.per_row(torch.tensor([1.0, 2, 3, 4, 5])).tolist() == [[1], [1], [4], [5]]


def test_totals_count_trained_units_rows_and_groups(batch):
    totals = batch.count(max_tokens=7)
    assert (totals.tokens, totals.rows, totals.groups, totals.max_tokens) == (9, 4, 2, 7)
    batch.drop(torch.tensor([False, False, True, True]))
    totals = batch.count(max_tokens=7)
    assert (totals.tokens, totals.rows, totals.groups) == (6, 2, 1)


def test_rows_keeps_tables_and_trims_time(batch):
    batch.stored = Streams({"value": torch.arange(16.0).reshape(4, 4), "next_value": torch.arange(4.0)}, "before")
    batch.adv_BT = torch.arange(16.0).reshape(4, 4)
    part = batch.rows(torch.tensor([3, 0]))
    assert part.mask_BT.shape == (2, 2) and part.actions_BT.shape == (2, 2)
    assert part.adv_BT.tolist() == [[12, 13], [0, 1]] and part.stored["value"].tolist() == [[12, 13], [0, 1]]
    assert part.stored["next_value"].tolist() == [3, 0]
    assert part.episode_B.tolist() == [4, 0] and part.group_B.tolist() == [1, 0]
    assert part.score_E.shape == (5,) and part.prefixes == batch.prefixes


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_micro_batches_hold_every_row_once_with_equal_prefixes_side_by_side(batch, size):
    parts = batch.micro_batches(size)
    assert max(p.B for p in parts) <= size
    assert sorted(e for p in parts for e in p.episode_B.tolist()) == [0, 0, 3, 4]
    prefixes = [i for p in parts for i in p.prefix_B.tolist()]
    assert prefixes == sorted(prefixes)


def test_a_group_never_straddles_micro_batches_when_it_is_the_unit(batch):
    assert [p.group_B.tolist() for p in batch.micro_batches(1, "group")] == [[0, 0], [1, 1]]
    assert [p.group_B.tolist() for p in batch.micro_batches(3, "group")] == [[0, 0], [1, 1]]
    assert [p.group_B.tolist() for p in batch.micro_batches(4, "group")] == [[0, 0, 1, 1]]


def test_a_next_observation_is_kept_even_when_the_first_row_has_none():
    ended, cut = segment("p", 2), segment("p", 1, extras={"next_obs": torch.tensor([[7.0, 8.0]])}, bootstrap=True)
    batch = collate([group("a", ("sample", [ended], Score(1.0)), ("sample", [cut], Score(0.0)))])
    assert batch.extras["next_obs"].tolist() == [[[0, 0]], [[7, 8]]] and batch.bootstrap_B.tolist() == [False, True]
    assert batch.rows(torch.tensor([1])).extras["next_obs"].tolist() == [[[7, 8]]]


def test_extras_are_padded_and_an_incomplete_one_is_named():
    rows = [segment("p", n, extras={"obs": torch.ones(n, 3)}) for n in (2, 4)]
    batch = collate([group("a", ("sample", rows, Score(1.0)))])
    assert batch.extras["obs"].shape == (2, 4, 3) and batch.extras["obs"][0, 2:].sum() == 0
    rows[1].extras.clear()
    with pytest.raises(ValueError, match="extra 'obs' is on 1 of 2 segments; expected on all, missing in 'a/0'"):
        collate([group("a", ("sample", rows, Score(1.0)))])


def test_continuous_actions_keep_their_last_axis():
    s = segment("p", 3)
    s.actions = torch.randn(3, 2)
    assert collate([group("a", ("sample", [s, segment_like(s)], Score(1.0)))]).actions_BT.shape == (2, 3, 2)


def segment_like(s):
    return Segment(None, s.actions[:1], s.mask[:1], s.logp_old[:1], s.turn[:1], s.version[:1])


def test_rows_without_a_prefix_have_index_minus_one():
    s = segment_like(segment("p", 3))
    assert collate([group("a", ("sample", [s], Score(1.0)))]).prefix_B.tolist() == [-1]


def test_nothing_to_collate_says_what_was_expected():
    with pytest.raises(ValueError, match="none of 2 episodes in 1 groups has a segment to train on"):
        collate([group("a", ("greedy", [segment("p", 2)], Score(1.0)), ("sample", [segment("p", 2)], Score.failed("x")))])


def test_an_undeclared_stream_names_the_phase_and_what_was_declared():
    with pytest.raises(KeyError, match=r"'value' was read but not declared in needs\.loss; declared: logp"):
        Streams({"logp": torch.zeros(1)})["value"]
    with pytest.raises(KeyError, match=r"needs\.before; declared: nothing"):
        Streams({}, "before")["reference/logp"]
