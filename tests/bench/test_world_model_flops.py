"""The operations of a world model's update, beside what torch counts while it runs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fovea.batch import Windows
from fovea.bench import flops
from fovea.methods.repo_mbrl import RePo
from fovea.policies.control import Latents, Spaces, build
from fovea.trainer.update import Adam


def test_the_operations_are_those_that_are_executed_but_for_a_few_in_a_hundred():
    torch.manual_seed(0)
    policy, method = build("world-model", Spaces((32, 32, 3), 2, False), Latents(width=24, stochastic=5, channels=4)), RePo(draw=False)
    state = method.init(policy, Adam(1e-3))
    batch = Windows(
        torch.zeros(3, 5, 32, 32, 3, dtype=torch.uint8), torch.zeros(3, 4, 2), torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.bool)
    )
    with FlopCounterMode(display=False) as counter:
        method.update(state, batch)
    needed = flops.operations(flops.world_model(policy, 3, 4, method.imagine))
    assert needed == pytest.approx(counter.get_total_flops(), rel=0.05)
