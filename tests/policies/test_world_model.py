"""The world model: convolutions as products, filtering step by step and at once, what is remembered."""

import pytest
import torch
from torch.nn import functional as F

from fovea.policies import control
from fovea.policies.control import Latents, Spaces, build
from fovea.policies.world_model import Decoder, Dynamics, Folded, Unfolded, halved

NET = Latents(width=6, stochastic=3, channels=2)


def made(shape=(16, 18, 3)):
    torch.manual_seed(0)
    return build("world-model", Spaces(shape, 2, False), NET)


def test_convolutions_are_those_of_torch_with_their_gradients():
    torch.manual_seed(0)
    x = torch.randn(2, 9, 12, 3, dtype=torch.float64, requires_grad=True)
    layer = Folded(3, 5).double()
    known = F.conv2d(x.permute(0, 3, 1, 2), layer.weight.view(5, 4, 4, 3).permute(0, 3, 1, 2), layer.bias, 2).permute(0, 2, 3, 1)
    alike(layer(x), known, x)
    for kernel in ((4, 4), (6, 5), (5, 6)):
        layer = Unfolded(3, 5, kernel).double()
        weight = layer.weight.view(*kernel, 5, 3).permute(3, 2, 0, 1)
        alike(layer(x), F.conv_transpose2d(x.permute(0, 3, 1, 2), weight, layer.bias, 2).permute(0, 2, 3, 1), x)


def alike(found, known, x):
    assert found.shape == known.shape and torch.allclose(found, known)
    a, b = (torch.autograd.grad((y**3).sum(), x, retain_graph=True)[0] for y in (found, known))
    assert torch.allclose(a, b)


@pytest.mark.parametrize("shape", [(32, 32, 3), (64, 64, 3), (84, 60, 1), (17, 22, 3), (5,)])
def test_what_is_decoded_has_the_shape_of_what_is_seen(shape):
    policy = made(shape)
    obs = torch.zeros(2, 3, *shape, dtype=torch.uint8 if len(shape) == 3 else torch.float32)
    pixels = policy.pixels(obs)
    latent = torch.zeros(2, 3, policy.features)
    assert policy.embed(pixels).shape[:2] == (2, 3) and Decoder(policy)(latent).shape == pixels.shape == (2, 3, *shape)


def test_a_picture_of_64_pixels_becomes_1024_numbers_as_published():
    assert halved((64, 64, 3))[1:] == [(31, 31), (14, 14), (6, 6), (2, 2)]
    policy = build("world-model", Spaces((64, 64, 3), 6, False), Latents(width=200, stochastic=30, channels=32))
    assert policy.dynamics.sizes == (200, 30, 6, 1024)
    assert policy.pixels(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).flatten().tolist() == [-1.0, 1.0]


def test_observing_a_window_at_once_is_observing_it_step_by_step():
    torch.manual_seed(0)
    T, B, D, S, A, E = 4, 3, 5, 2, 2, 7
    dynamics = Dynamics(D, S, A, E).double()
    seen, action, noise = (torch.randn(T, B, n, dtype=torch.float64) for n in (E, A, S))
    beliefs, states, (means, stds) = dynamics.observe(seen, action, noise)
    belief, state = torch.zeros(B, D, dtype=torch.float64), torch.zeros(B, S, dtype=torch.float64)
    for t in range(T):
        belief = dynamics.follow(belief, state, action[t])
        mean, std = dynamics.posterior(belief, seen[t])
        state = mean + std * noise[t]
        for found, known in zip((beliefs, states, means, stds), (belief, state, mean, std)):
            assert torch.allclose(found[t], known)
    assert float(stds.min()) > 0.1
    assert torch.allclose(dynamics.prior(beliefs)[0][2], dynamics.prior(beliefs[2])[0])


def test_acting_remembers_what_recall_finds_afterwards():
    policy, g = made(), torch.Generator().manual_seed(1)
    obs = torch.randint(0, 256, (2, 3, 16, 18, 3), generator=g, dtype=torch.uint8)
    memory, kept, done, noises = torch.zeros(2, policy.remembers), [], [], []
    for t in range(3):
        uniform = torch.rand(2, policy.draws, generator=g, dtype=torch.float64)
        out = policy.act(obs[:, t], uniform, torch.tensor([False, True]), memory_EM=memory)
        memory = out["memory"]
        kept.append(memory[:, : policy.features])
        done.append(out["actions"])
        noises.append(torch.special.ndtri(uniform).float()[:, :3])
    assert torch.allclose(memory[:, policy.features :], done[-1]) and float(torch.stack(done).abs().max()) <= 1
    assert torch.allclose(policy.recall(obs, torch.stack(done, 1), torch.stack(noises, 1)), torch.stack(kept, 1), atol=1e-6)
    quiet, _ = policy.decide(kept[-1], torch.zeros(2, 2))
    assert torch.allclose(done[-1][1], quiet[1]) and not torch.allclose(done[-1][0], quiet[0]), "greedy actions have no noise"


def test_what_is_saved_is_loaded(tmp_path):
    policy = made()
    policy.save(tmp_path)
    again = control.load(tmp_path)
    assert again.network == NET and all(torch.equal(a, b) for a, b in zip(policy.parameters(), again.parameters(), strict=True))
    with pytest.raises(ValueError, match="takes continuous actions, the simulator has discrete ones"):
        build("world-model", Spaces((3,), 2, True), NET)
