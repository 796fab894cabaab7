import math

import pytest
import torch

from fovea.math.entropy import categorical, gaussian


def test_a_fair_choice_among_n_has_log_n_nats_and_banned_actions_do_not_count():
    assert categorical(torch.zeros(4)).item() == pytest.approx(math.log(4))
    logits = torch.tensor([0.0, 0.0, -math.inf], requires_grad=True)
    entropy = categorical(logits)
    assert entropy.item() == pytest.approx(math.log(2))
    entropy.backward()
    assert logits.grad.isfinite().all()


def test_gaussian_entropy_is_that_of_torch():
    log_std = torch.tensor([[0.3, -1.0], [0.0, 0.5]])
    want = torch.distributions.Normal(torch.zeros(2, 2), log_std.exp()).entropy().sum(-1)
    assert torch.allclose(gaussian(log_std), want)
