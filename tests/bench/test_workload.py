"""Cells, pictures, reward: both sides of the benchmark read them from here."""

import pytest

from fovea.bench import workload
from fovea.bench.workload import Cell


def test_a_cell_survives_its_name():
    assert Cell.parse(str(Cell(256, 32, 8))) == Cell(256, 32, 8)
    assert Cell.parse("1024+32") == Cell(1024, 32, 8)


@pytest.mark.parametrize("name", ["256", "256x8", "100+32x8", "", "256+32x"])
def test_a_wrong_cell_says_what_is_expected(name):
    with pytest.raises(ValueError, match=r"expected IMAGE\+NEWxGROUP"):
        workload.cells(name)


def test_all_is_headline_then_every_other_cell_once():
    cells = workload.cells("all")
    assert cells[: len(workload.HEADLINE)] == workload.HEADLINE
    assert len(set(cells)) == len(cells)
    assert set(cells) == set(workload.GRID) | set(workload.HEADLINE)
    assert len(workload.GRID) == 27


def test_pictures_are_seeded_and_never_repeat_between_steps():
    first, again, second = (workload.rows(step, 64) for step in (0, 0, 1))
    assert [r.image.tobytes() for r in first] == [r.image.tobytes() for r in again]
    assert not {r.image.tobytes() for r in first} & {r.image.tobytes() for r in second}
    assert first[0].image.size == (224, 224)


def test_reward_by_hand():
    assert workload.reward("5 circles", "5") == pytest.approx(1.0 + 0.01 * (sum(map(ord, "5 circles")) % 7))
    assert workload.reward("", "5") == 0.0
    assert workload.reward("a", "5") == pytest.approx(0.06)  # ord("a") = 97 = 13 * 7 + 6
