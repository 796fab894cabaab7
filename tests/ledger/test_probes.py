"""Linear probes by hand, and the numbers of an examination as a claim's metric."""

import pytest
import torch

from fovea.ledger.measures import Finished, Found
from fovea.ledger.probes import error, heard


def test_a_probe_hears_what_is_linear_and_nothing_else():
    g = torch.Generator().manual_seed(0)
    latent = torch.randn(40, 20, 6, generator=g)
    linear = latent @ torch.randn(6, 2, generator=g) + 3
    noise = torch.randn(40, 20, 2, generator=g)
    assert heard(latent[:20], linear[:20], latent[20:], linear[20:]) == pytest.approx(1, abs=1e-3)
    assert heard(latent[:20], noise[:20], latent[20:], noise[20:]) < 0.02
    both = torch.cat([linear[..., :1], noise[..., :1]], -1)
    assert heard(latent[:20], both[:20], latent[20:], both[20:]) == pytest.approx(0.5, abs=0.05)
    half = linear + linear.std() * noise
    assert heard(latent[:20], half[:20], latent[20:], half[20:]) == pytest.approx(0.5, abs=0.08)


def test_an_error_is_a_part_of_the_variance_of_the_reward():
    class Says:
        def expected_reward(self, latent):
            return latent[..., 0]

    reward = torch.tensor([[0.0, 2.0], [4.0, 6.0]])
    assert error(Says(), reward[..., None], reward) == 0
    assert error(Says(), torch.full((2, 2, 1), 3.0), reward) == pytest.approx(1.0)
    assert error(Says(), torch.full((2, 2, 1), 4.0), reward) == pytest.approx(1 + 1 / 5)


def test_what_was_found_is_a_metric():
    run = Finished([], [], found={"agent": 0.9, "background": 0.2})
    assert Found("agent")(run) == 0.9 and Found("agent", less="background")(run) == pytest.approx(0.7)
    with pytest.raises(ValueError, match="nothing named 'goal' was found; the examination gave agent, background"):
        Found("agent", less="goal")(run)
