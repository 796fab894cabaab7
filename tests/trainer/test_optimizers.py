"""Kinds of AdamW: offloaded is bit-equal, quantised ones are near and resume bit-equal, impossible ones are refused."""

import sys

import pytest
import torch

from fovea.recipe import Recipe
from fovea.trainer import checkpoint as ckpt
from fovea.trainer.update import Adam, trained_weights


class Weights:
    """Two tensors that are pulled to targets; the larger is big enough to be kept in 8 bits."""

    def __init__(self, dtype=torch.float32):
        draw = torch.Generator().manual_seed(0)
        shapes = (96, 64), (5,)
        self.weights = [torch.nn.Parameter(torch.randn(s, generator=draw).to(dtype)) for s in shapes]
        self.targets = [torch.randn(s, generator=draw).to(dtype) for s in shapes]

    def parameters(self):
        return iter(self.weights)

    def save(self, folder):
        folder.mkdir()

    def train(self, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            sum((w - t).square().sum() for w, t in zip(self.weights, self.targets)).backward()
            optimizer.step()
        return torch.cat([w.detach().flatten() for w in self.weights])

    def distance(self):
        return float(sum((w - t).detach().float().square().sum() for w, t in zip(self.weights, self.targets)))


def made(dtype=torch.float32, **options):
    weights = Weights(dtype)
    return weights, Adam(1e-2, weight_decay=0.1, **options).build(weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_offloaded_moments_give_the_same_parameters_to_the_bit(dtype):
    plain, moved = made(dtype), made(dtype, offload=True)
    assert torch.equal(plain[0].train(plain[1], 5), moved[0].train(moved[1], 5))
    assert moved[0].distance() < Weights(dtype).distance()
    assert [w.shape for w in trained_weights(moved[1])] == [w.shape for w in moved[0].weights]


@pytest.mark.parametrize("options", [{"offload": True}, {"kind": "adamw_8bit"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_are_saved_and_put_back_to_the_bit(tmp_path, options, dtype):
    if "kind" in options:
        pytest.importorskip("bitsandbytes")
    weights, optimizer = made(dtype, **options)
    weights.train(optimizer, 3)
    saved = ckpt.save(tmp_path, 3, weights, optimizer, {})
    other, fresh = made(dtype, **options)
    for mine, theirs in zip(other.weights, weights.weights):
        mine.data.copy_(theirs)
    ckpt.load_optimizer(saved, fresh)
    assert torch.equal(weights.train(optimizer, 2), other.train(fresh, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eight_bit_moments_stay_near_the_full_ones(dtype):
    pytest.importorskip("bitsandbytes")
    exact, small = made(dtype), made(dtype, kind="adamw_8bit")
    start = Weights(dtype).train(None, 0)
    moved, error = exact[0].train(exact[1], 10), small[0].train(small[1], 10)
    assert (error - moved).float().norm() < 0.05 * (moved - start).float().norm()
    states = [small[1].state[p] for p in small[1].param_groups[0]["params"]]
    assert states[0]["state1"].dtype == torch.uint8
    assert states[1]["state1"].dtype == torch.float32, "a small tensor keeps whole moments"


def test_moments_of_another_shape_are_refused(tmp_path):
    pytest.importorskip("bitsandbytes")
    weights, optimizer = made(kind="adamw_8bit")
    weights.train(optimizer, 1)
    saved = ckpt.save(tmp_path, 1, weights, optimizer, {})
    weights.weights[0] = torch.nn.Parameter(torch.zeros(97, 64))
    with pytest.raises(ckpt.CheckpointError, match=r"state1 of parameter 0 is \(96, 64\), expected torch.Size\(\[97, 64\]\)"):
        ckpt.load_optimizer(saved, Adam(1e-2, kind="adamw_8bit").build(weights))


def test_what_cannot_work_is_named(monkeypatch):
    with pytest.raises(ValueError, match="pages GPU memory and the weights are on cpu"):
        made(kind="paged_adamw_8bit")
    with pytest.raises(ValueError, match="with offload of the optimizer: expected 'adamw'"):
        made(kind="adamw_8bit", offload=True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"pip install 'fovea-rl\[gpu\]'"):
        made(kind="adamw_8bit")
    with pytest.raises(ValueError, match=r"offload = \('disk',\), expected any of"):
        Recipe(offload=("disk",))
    with pytest.raises(ValueError, match="optimizer = 'sgd', expected one of"):
        Recipe(optimizer="sgd")  # type: ignore[arg-type]
