"""Servers are for this machine and ask for a token, unless they are told otherwise."""

import inspect

import pytest

from fovea import cli, serve
from fovea.report import view
from fovea.rollout import http

SERVERS = {"serve": (serve, "serve", ["serve", "tiny"]), "view": (view, "view", ["view", "runs/x"])}


@pytest.mark.parametrize("name", SERVERS)
def test_they_listen_on_this_machine(name, monkeypatch):
    module, function, args = SERVERS[name]
    signature, given = inspect.signature(getattr(module, function)), {}
    monkeypatch.setattr(module, function, lambda *a, **options: given.update(signature.bind(*a, **options).arguments))
    assert cli.main(args) in (0, None)
    assert given["host"] == "127.0.0.1"
    assert given["token"] == ""


def test_they_ask_for_a_token_of_their_own(monkeypatch):
    monkeypatch.delenv(http.TOKEN_ENV, raising=False)
    first, second = http.secret("", "127.0.0.1", "x"), http.secret("", "127.0.0.1", "x")
    assert len(first) >= 20
    assert first != second
    monkeypatch.setenv(http.TOKEN_ENV, "of the environment")
    assert http.secret("", "0.0.0.0", "x") == "of the environment"
    assert http.secret("given", "0.0.0.0", "x") == "given"


def test_no_token_is_for_this_machine_only():
    assert http.secret("none", "localhost", "x") == ""
    with pytest.raises(ValueError, match="other machines could use this"):
        http.secret("none", "0.0.0.0", "use this")
