from types import SimpleNamespace

import pytest

from fovea import waits
from fovea.trainer import session


@pytest.fixture
def at(monkeypatch):
    """A function that sets the time in seconds."""
    now = [0.0]
    for module in (waits, session):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return lambda seconds: now.__setitem__(0, seconds)


def test_what_waits_at_the_same_time_counts_once(at):
    w = waits.Waits()
    with w:
        at(1.0)
        with w:
            at(3.0)
        at(5.0)
    at(7.0)
    with w:
        at(8.0)
    assert w.seconds == 6.0


def test_the_phases_of_a_step_add_up_and_waiting_is_one_of_them(at):
    w = waits.Waits()
    w.seconds = 100.0  # of earlier steps
    clock = session._Clock(lambda: w.seconds)
    with w:
        at(2.0)
    at(6.0)
    clock.lap("generate")
    clock.move("generate", "score", 1.0)
    at(7.0)
    clock.lap("prepare")
    with w:
        at(7.5)
    at(10.0)
    clock.lap("update")
    assert clock.seconds == {"generate": 3.0, "wait": 2.5, "score": 1.0, "prepare": 1.0, "update": 2.5}
    assert sum(clock.seconds.values()) == clock.total == 10.0
