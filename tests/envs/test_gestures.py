"""Calls are read in time that grows with the text and no faster."""

import time

import pytest

from fovea.envs.gestures import last_call


@pytest.mark.parametrize("text", ["click(" + " " * 20_000, "click" + " " * 20_000, 'type("' + "\\" * 20_001, "a" * 20_000])
def test_a_reply_that_goes_on_and_on_is_read_at_once(text):
    began = time.process_time()
    assert last_call(text, ("click", "type")) is None
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("click( 1, 2 )", ("click", "1, 2")),
        ("type ( 'it is' )", ("type", "it is")),
        (r'type("say \"yes\"")', ("type", 'say "yes"')),
        ("wait()", ("wait", "")),
        ("click(1,2) then type(3)", ("type", "3")),
        ("press(1)", None),
    ],
)
def test_calls_and_what_stands_in_their_brackets(text, found):
    assert last_call(text, ("click", "type", "wait")) == found
