"""Demonstrations are made once, whoever makes them."""

import contextlib

import pytest

from fovea.trainer import lock

pytest.importorskip("gymnasium")
pytest.importorskip("pyarrow")

from fovea.tasks import demos


def test_a_set_that_somebody_else_finished_before_the_lock_is_taken_as_it_is(tmp_path, monkeypatch):
    @contextlib.contextmanager
    def held(place):
        place.with_suffix("").mkdir(parents=True)
        yield

    def play(*args):
        raise AssertionError("it is there")

    monkeypatch.setenv("FOVEA_CACHE", str(tmp_path))
    monkeypatch.setattr(lock, "held", held)
    monkeypatch.setattr(demos, "play", play)
    assert demos.made("scene:reach", None, 1, 0.0).parent == tmp_path / "demos"
