"""Tokens that stand for pictures are never said, and are counted if they are."""

from types import SimpleNamespace

import torch

from fovea.rollout.engine import Engine
from fovea.rollout.sampling import Sampling
from fovea.trainer.on_policy import placeholders
from fovea.types import Task, user
from tests.rollout.fake_policy import IMAGE, FakePolicy


def eager(sequence):
    """Logits that want nothing but image tokens."""
    logits = torch.zeros(260)
    logits[IMAGE] = 50.0
    return logits


def test_image_tokens_cannot_be_sampled_and_are_counted():
    engine = Engine(FakePolicy(eager))
    groups = engine.rollout([Task("t", "test", user("a", images=0))], 4, Sampling(max_new_tokens=30))
    assert placeholders(engine, groups) == {"length/image_tokens": 0.0}
    segment = groups[0].episodes[0].segments[0]
    segment.actions = torch.tensor([IMAGE, 65, IMAGE, IMAGE])
    segment.mask = torch.tensor([True, True, True, False])  # the last one was inserted, not said
    assert placeholders(engine, groups) == {"length/image_tokens": 2.0}
    assert placeholders(SimpleNamespace(policy=None), groups) == {}
