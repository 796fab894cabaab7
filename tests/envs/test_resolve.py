"""Environments by name: options, errors, what is missing here."""

import pytest

from fovea.envs.resolve import ENVIRONMENTS, Listed, environment
from fovea.registry import registry


def test_a_name_makes_a_factory_with_its_options():
    make = environment("cards:ezpoints,side=96,slips=.25")
    assert (make().kind, make().side, make().slips) == ("ezpoints", 96, 0.25) and make() is not make()
    assert environment(print) is print and environment(None) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("card", r"environment = 'card'; expected FILE.py:NAME or one of cards, .*; did you mean 'cards'\?"),
        ("cards:points", "no game 'points'; there are: numberline"),
        ("cards:points24,size=3", "no option 'size'; there are: game, side, reply, slips"),
        ("cards:points24,side=big", "side = 'big'; expected int"),
        ("cards:points24,ezpoints", "found 2 words"),
        ("cards:points24,side=8", "expected at least 32 pixels"),
    ],
)
def test_wrong_names_are_explained(name, message):
    with pytest.raises(ValueError, match=message):
        environment(name)


def test_what_is_missing_is_said_with_what_brings_it(monkeypatch):
    monkeypatch.setitem(ENVIRONMENTS, "far", Listed("no.such:thing", "far away", "far", extra="sim", packages=("no_such_package",)))
    with pytest.raises(ImportError, match=r"missing no_such_package: pip install 'fovea-rl\[sim\]'"):
        environment("far:x")
    row = next(r for r in registry("envs") if r["name"] == "far")
    assert row["state"] == "missing" and row["needs"] == ["no_such_package"] and row["extra"] == "sim"
    assert next(r for r in registry("envs") if r["name"] == "cards")["state"] == "ready"


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_examples_of_names_work(name):
    if problem := ENVIRONMENTS[name].problem():
        pytest.skip(problem)
    made = environment(ENVIRONMENTS[name].example)()
    if hasattr(made, "close"):
        made.close()
