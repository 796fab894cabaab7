"""Sharing a prefix changes no number: log-probabilities, entropies and gradients equal the plain repeated computation."""

from __future__ import annotations

import pytest
import torch
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen2_vl import modeling_qwen2_vl
from transformers.models.qwen3_vl import modeling_qwen3_vl

from fovea.policies.hf_vlm import HFVLM
from fovea.types import user
from tests.policies.plain import Plain, batch_of, gradient_error, gradients
from tests.policies.tiny_checkpoints import FAMILIES, build, picture

torch.set_num_threads(1)
LOOK = frozenset({"logp", "entropy"})


@pytest.fixture(scope="session", params=FAMILIES)
def folder(request, tmp_path_factory):
    return build(tmp_path_factory.mktemp(request.param), request.param)


def scenes(policy: HFVLM, seed: int = 0):
    """Three unequal prompts (one image, two images of other shapes, none) with answers of unequal length, one of a single token."""
    images = [[picture(0)], [picture(1, 140, 112), picture(2, 168, 56)], []]
    prompts = [policy.encode(user("How many circles?"), images[0]), policy.encode(user("red or blue?", 2), images[1])]
    prompts.append(policy.encode(user("a number", 0), []))
    draw = torch.Generator().manual_seed(seed)
    lengths = [(7, 1, 12), (5, 5), (9, 2, 3, 30)]
    answers = [[torch.randint(7, 370, (t,), generator=draw).tolist() for t in ts] for ts in lengths]
    batch = batch_of(list(zip(prompts, answers)), masks={(0, 2): [3, 4], (2, 0): [8]})
    return batch, images


def objective(streams, batch):
    weights = torch.randn(batch.mask_BT.shape, generator=torch.Generator().manual_seed(1)).to(streams["logp"].dtype)
    return ((weights * streams["logp"] + 0.3 * weights.flip(0) * streams["entropy"]) * batch.mask_BT).sum()


def compare(folder, dtype, path="direct", **options):
    policy = HFVLM.load(folder, dtype=dtype, **options)
    policy.path, policy.temperature = path, 0.7
    plain = Plain(folder, getattr(torch, dtype))
    for (_, p), (_, r) in zip(policy.model.vlm.named_parameters(), plain.model.named_parameters(), strict=True):
        r.requires_grad_(p.requires_grad)
    batch, images = scenes(policy)
    found, expected = policy.evaluate(batch, LOOK), plain.streams(batch, images, policy)
    assert float(expected["logp"].detach().min()) < -9, "the yardstick should be peaky, so that errors show"
    objective(found, batch).backward()
    objective(expected, batch).backward()
    logp_error = max(float((found[k] - expected[k]).detach().abs().max()) for k in LOOK)
    return logp_error, gradient_error(gradients(policy.model.vlm), plain.gradients())


@pytest.mark.parametrize("path", ["direct", "interface"])
def test_float32_matches_the_repeated_computation(folder, path):
    logp_error, grad_error = compare(folder, "float32", path)
    assert logp_error <= 1e-5
    assert grad_error <= 1e-5


@pytest.fixture
def double(monkeypatch):
    """transformers computes norms and the towers' rotations in float32 whatever the weights are; in float64 that alone would cost 1e-6."""
    for module in (modeling_qwen2_vl, modeling_qwen2_5_vl, modeling_qwen3_vl):
        monkeypatch.setattr(module, "apply_rotary_pos_emb_vision", _rotate)
        for name in [n for n in vars(module) if n.endswith("RMSNorm")]:
            monkeypatch.setattr(getattr(module, name), "forward", _rms_norm)


def _rotate(q, k, cos, sin):
    def turn(x):
        a, b = x.chunk(2, -1)
        return x * cos[:, None].to(x.dtype) + torch.cat((-b, a), -1) * sin[:, None].to(x.dtype)

    return turn(q), turn(k)


def _rms_norm(self, x):
    return self.weight * x * (x.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()


@pytest.mark.parametrize("path", ["direct", "interface"])
def test_float64_gradients_match_to_rounding(folder, path, double):
    logp_error, grad_error = compare(folder, "float64", path)
    assert logp_error <= 1e-10
    assert grad_error <= 1e-10
