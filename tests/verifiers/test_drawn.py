"""Rewards of pictures and points that a policy made."""

import numpy as np
import pytest
from PIL import Image

from fovea.types import Context, Episode, Group, Task, Turn
from fovea.verifiers import build, function
from fovea.verifiers.drawn import nearness


def judged(name, drawn=None, text="", answer=None, **params):
    task = Task("t", "drawn", (), answer=answer)
    verifier = nearness(**params) if name == "nearness" else build(name, params)
    return verifier.score(Group(task, [Episode("t/0", task, turns=[Turn(text, drawn=drawn)])]), Context())[0]


def plain(*colour):
    return Image.new("RGB", (16, 16), colour)


def test_brightness_is_the_mean_of_all_values():
    assert judged("brightness", plain(0, 0, 0)).value == 0
    assert judged("brightness", plain(255, 255, 0)).value == pytest.approx(2 / 3)


def test_the_colour_that_is_asked_for_earns_one_and_its_opposite_nothing():
    assert judged("colour_target", plain(255, 0, 0)).value == 1
    assert judged("colour_target", plain(0, 255, 255)).value == pytest.approx(0)
    assert judged("colour_target", plain(0, 0, 0), colour=(0, 0, 255)).value == pytest.approx(1 - 255 / np.sqrt(3 * 255**2))


def test_noise_compresses_worse_than_a_plain_picture():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    small, large = judged("compressibility", plain(9, 9, 9)).value, judged("compressibility", noise).value
    assert large < small < 0 and large < judged("compressibility", noise, quality=10).value


def test_nearness_is_the_squared_distance_with_weight_and_bias():
    score = judged("nearness", text="1 2", answer=[1.0, 4.0], weight=0.5, bias=3.0)
    assert (score.value, score.parts["nearness"]) == (1.0, -2.0)


def test_any_function_of_the_picture_is_a_reward():
    reward = function(lambda answer, task, episode: episode.drawn.getpixel((0, 0))[0] > 100)
    assert judged(reward, plain(200, 0, 0)).correct is True


@pytest.mark.parametrize(
    ("name", "more", "reason"),
    [
        ("brightness", {"text": "a hare"}, "the episode has no picture"),
        ("nearness", {"text": "1 2 3", "answer": [0, 0]}, "the sample has 3 numbers, the gold answer 2"),
        ("nearness", {"text": "here", "answer": [0, 0]}, "could not convert string to float"),
    ],
)
def test_what_cannot_be_judged_is_a_failure_with_a_reason(name, more, reason):
    score = judged(name, **more)
    assert not score.ok and reason in score.reason


@pytest.mark.parametrize(("name", "params"), [("colour_target", {"colour": (1, 2)}), ("compressibility", {"quality": 0})])
def test_impossible_parameters_are_refused(name, params):
    with pytest.raises(ValueError, match=f"{name}: "):
        build(name, params)
