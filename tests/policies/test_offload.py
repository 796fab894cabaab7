"""Activations that waited elsewhere come back as they were; weights never travel."""

import pytest
import torch

from fovea.policies import offload
from fovea.policies.hf_vlm import HFVLM
from fovea.types import user
from tests.policies.plain import batch_of, gradients
from tests.policies.tiny_checkpoints import build, picture


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return HFVLM.load(build(tmp_path_factory.mktemp("m"), "qwen2_5_vl"))


@pytest.mark.parametrize("moves", [False, True])
def test_gradients_are_the_same_to_the_bit(policy, monkeypatch, moves):
    """On this machine host and device are one; calling the device by another name sends everything on the way."""
    batch = batch_of([(policy.encode(user("How many?"), [picture(0)]), [[20, 21, 22], [23]])])
    policy.offload_activations = False
    policy.evaluate(batch, {"logp"})["logp"].sum().backward()
    expected = gradients(policy.model)
    if moves:
        monkeypatch.setattr(offload, "HOST", "elsewhere")
        monkeypatch.setattr(offload, "SMALL", 0)
    copied = []
    empty = torch.empty
    monkeypatch.setattr(offload.torch, "empty", lambda *a, **k: copied.append(empty(*a, **k)) or copied[-1])
    policy.offload_activations = True
    loss = policy.evaluate(batch, {"logp"})["logp"].sum()
    monkeypatch.setattr(offload.torch, "empty", empty)
    loss.backward()
    found = gradients(policy.model)
    assert all(torch.equal(found[n], g) for n, g in expected.items())
    assert set(found) == set(expected)
    assert (len(copied) > 20) == moves


def test_weights_and_small_tensors_stay(monkeypatch):
    monkeypatch.setattr(offload, "HOST", "elsewhere")
    monkeypatch.setattr(offload, "SMALL", 4 * 32 * 8)
    weight, x = torch.nn.Parameter(torch.randn(64, 64)), torch.randn(32, 64)
    copied = []
    empty = torch.empty
    monkeypatch.setattr(offload.torch, "empty", lambda *a, **k: copied.append(a[0]) or empty(*a, **k))
    with offload.activations([weight]):
        (torch.tanh(x @ weight.t()).sum() + torch.tanh(x[:2] @ weight.t()).sum()).backward()
    assert copied == [(32, 64), (32, 64)], "the input and the output of tanh, neither the weight nor the two rows"
