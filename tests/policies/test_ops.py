"""The gated MLP with a backward of its own against the module it stands for."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fovea.policies.ops import mlp


class Gated(nn.Module):
    def __init__(self, bias: bool, act: nn.Module):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(5, 7, bias), nn.Linear(5, 7, bias)
        self.down_proj, self.act_fn = nn.Linear(7, 5, bias), act

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", ["", "down_proj", "gate_proj"])
def test_output_and_gradients_are_those_of_the_module(bias, frozen):
    torch.manual_seed(0)
    plain = Gated(bias, nn.SiLU()).double()
    if frozen:
        getattr(plain, frozen).requires_grad_(False)
    fused, x = copy.deepcopy(plain), torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    y, z = x.detach().clone().requires_grad_(), torch.randn(4, 5, dtype=torch.float64)
    expected, found = plain(x), mlp(fused, y)
    (expected * z).sum().backward()
    (found * z).sum().backward()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(y.grad, x.grad, rtol=0, atol=1e-12)
    for p, q in zip(plain.parameters(), fused.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, rtol=0, atol=1e-12)


def test_another_activation_or_wrapped_layers_go_through_the_module():
    called = SimpleNamespace(times=0)

    class Other(Gated):
        def forward(self, x):
            called.times += 1
            return super().forward(x)

    wrapped = Other(True, nn.SiLU())
    wrapped.up_proj = nn.Sequential(wrapped.up_proj)
    for module in (Other(True, nn.GELU()), wrapped):
        mlp(module, torch.randn(2, 5))
    assert called.times == 2
