"""A few hundred of the inputs of benchmarks/reliability/fuzz.py per reader, drawn by hypothesis, and the inputs that once got through."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.reliability.fuzz import is_clean, judge
from benchmarks.reliability.inputs import FAMILIES
from fovea import api
from fovea.rollout import wire
from fovea.rollout.sampling import Sampling
from fovea.serve import Refused, conversation
from fovea.tasks.pictures import BadImage, _small_enough

EXAMPLES = {"checkpoints": 60, "video": 60, "parquet": 100, "images": 150}
NEEDS = {"parquet": "pyarrow", "video": "av"}


@pytest.fixture
def family(request, tmp_path):
    if request.param in NEEDS:
        pytest.importorskip(NEEDS[request.param])
    found = FAMILIES[request.param]
    found.prepare(tmp_path)
    yield request.param, found, tmp_path
    found.finish()


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_bad_input_is_refused_cleanly(family):
    name, reader, folder = family

    @settings(max_examples=EXAMPLES.get(name, 200), deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**64))
    def check(seed):
        kind, error = judge(reader, random.Random(seed), folder)
        if kind == "crash":
            raise error

    check()


def raised_by(function):
    try:
        function()
    except Exception as e:
        return e
    raise AssertionError("nothing was raised")


def test_an_error_is_clean_when_it_is_ours_and_says_where_and_what():
    family = FAMILIES["recipes"]
    assert is_clean(raised_by(lambda: api.resolve("grpo", steps="x")), family)
    assert not is_clean(raised_by(lambda: int("x")), family)  # raised elsewhere
    assert not is_clean(raised_by(lambda: api.resolve("grpo", steps="x")), FAMILIES["jsonl"])  # names no file
    assert not is_clean(raised_by(lambda: api.resolve("grpo", steps="x")), FAMILIES["answers"])  # may raise nothing


def test_a_crash_is_seen(tmp_path):
    family = FAMILIES["jsonl"]
    broken = type(family)(**{**vars(family), "feed": lambda *_: [][0]})
    broken.prepare(tmp_path)
    kind, error = judge(broken, random.Random(0), tmp_path)
    assert kind == "crash"
    assert isinstance(error, IndexError)


# -- what once got through -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": "x"}, "steps = 'x', expected a whole number"),
        ({"steps": True}, "steps = True, expected a whole number"),
        ({"sampling__temperature": None}, "sampling.temperature = None, expected a number"),
        ({"method__beta": "0.1"}, "method.beta = '0.1', expected a number"),
        ({"betas": (0.9,)}, r"betas = \(0.9,\), expected a tuple"),
        ({"lora": None}, "lora = None, expected LoRA"),
        ({"method": 3}, "method = 3, expected a name or an instance of fovea.methods"),
        ({"sampling__temperature": float("nan")}, "temperature = nan"),
        ({"learning_rate": 10**400}, "learning_rate = 1000.*, expected a number"),
    ],
)
def test_a_field_of_another_type_is_named(change, said):
    with pytest.raises(ValueError, match=said):
        api.resolve("grpo", **change)


def test_lists_for_tuples_and_whole_numbers_for_numbers_are_fine():
    recipe = api.resolve("grpo", freeze=["tower"], learning_rate=1, betas=(0, 0.5))
    assert recipe.learning_rate == 1


QUESTION = wire.Question("task", [10, 20], [10, 20], [], [], [], Sampling(), [1, 2], 2, [256], [257])
ROW = {"token_ids": [1, 2], "finish_reason": "length", "logprobs": {"token_logprobs": [-0.5, -0.5]}}


@pytest.mark.parametrize(
    "rows",
    [[{**ROW, "index": "a"}, {**ROW, "index": 1}], [{**ROW, "prompt_token_ids": 0.5}, ROW], [3, ROW]],
    ids=["index", "prompt", "row"],
)
def test_an_answer_of_another_form_is_named(rows):
    import json

    with pytest.raises(wire.BadAnswer, match="http://x/v1/completions, task 'task'"):
        wire.read_openai(wire.Exchange("/v1/completions", {}, QUESTION), json.dumps({"choices": rows}).encode(), "http://x")


@pytest.mark.parametrize("message", [{"role": 3, "content": "x"}, {"role": "user", "content": [{"type": "text", "text": {}}]}])
def test_a_message_of_another_form_is_refused(message):
    with pytest.raises(Refused, match="messages"):
        conversation([message])


@pytest.mark.parametrize("field", [b'"max_tokens": Infinity', b'"temperature": NaN', b'"temperature": "nan"', b'"temperature": 1e-320'])
def test_a_number_that_is_none_is_a_wrong_request(tmp_path, field):
    """A temperature of NaN would end what all other clients are waiting for, too."""
    reader = FAMILIES["wire"]
    reader.prepare(tmp_path)
    try:
        body = b'{"prompt": "hi", "max_tokens": 2, ' + field + b"}"
        head = b"POST /v1/completions HTTP/1.1\r\nAuthorization: Bearer secret\r\nContent-Length: %d\r\n\r\n" % len(body)
        assert not reader.feed(("request", head + body), tmp_path)
    finally:
        reader.finish()


def test_a_picture_of_three_sides_is_none(monkeypatch):
    odd = Image.new("RGB", (4, 4))
    monkeypatch.setattr(type(odd), "size", property(lambda self: (4, 4, 2)))
    with pytest.raises(BadImage, match=r"of size \(4, 4, 2\); expected a picture with a width and a height"):
        _small_enough("a.icns", odd, 100)
