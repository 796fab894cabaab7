"""The small denoiser and its schedule by hand, given chains, pictures, and what it refuses."""

import math

import pytest
import torch

from fovea.math.diffusion import Schedule, normal_logp
from fovea.policies import generators
from fovea.policies.denoiser import Canvas, Denoiser
from fovea.rollout.denoise import DenoiseEngine
from fovea.types import Context, Task, user

torch.set_num_threads(1)


def denoiser(*shape, prompts=3):
    torch.manual_seed(0)
    policy = Denoiser(Canvas(shape, prompts), width=16, steps=4)
    torch.nn.init.normal_(policy.leave.weight, std=0.1)
    return policy


def test_the_log_density_of_a_step():
    one, zero, sigma = torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([1.0])
    gain = normal_logp(one, torch.tensor([[0.5]]), sigma) - normal_logp(one, zero, sigma)
    assert gain.item() == pytest.approx(0.375)
    assert normal_logp(zero.expand(1, 3), zero.expand(1, 3), 2 * sigma).item() == pytest.approx(-3 * math.log(2 * math.sqrt(2 * math.pi)))


def test_two_steps_by_hand():
    schedule = Schedule.linear(2, 0.19, 0.36)  # next to the sample, next to noise
    assert schedule.sigma_S.tolist() == pytest.approx([0.6, math.sqrt(0.19)])
    assert schedule.signal_S.tolist() == pytest.approx([0.9 * 0.8, 0.9])
    x, noise = torch.tensor([[0.5]]), torch.tensor([[0.2]])
    for s, (alpha, kept) in enumerate(((0.64, 0.81 * 0.64), (0.81, 0.81))):
        want = (0.5 - (1 - alpha) / math.sqrt(1 - kept) * 0.2) / math.sqrt(alpha)  # Ho et al., algorithm 2
        assert schedule.mean(x, noise, torch.tensor([s])).item() == pytest.approx(want, abs=1e-6)


def test_a_given_sample_ends_a_chain_of_the_noising_process():
    policy = denoiser(2)
    chains = [policy.noised("0.5 -1.25", key) for key in range(400)]
    assert all(c["actions"][-1].tolist() == [0.5, -1.25] for c in chains)
    assert torch.equal(chains[0]["x"][1:], chains[0]["actions"][:-1])
    start = torch.stack([c["x"][0] for c in chains])
    kept = float(policy.schedule.signal_S[0])
    assert start.mean(0).tolist() == pytest.approx([0.5 * kept, -1.25 * kept], abs=0.15)
    assert start.var(0).tolist() == pytest.approx([1 - kept**2] * 2, abs=0.25)
    with pytest.raises(ValueError, match="a given sample of 3 numbers; expected 2"):
        policy.noised("1 2 3", 0)


def test_pictures_are_drawn_and_prompts_make_a_difference():
    policy = denoiser(4, 5, 3)
    tasks = [Task(f"t{i}", "pictures", user(f"picture {i}", images=0)) for i in range(2)]
    groups = DenoiseEngine(policy).rollout(tasks, 3, context=Context())
    drawn = [e.drawn for g in groups for e in g.episodes]
    assert {p.size for p in drawn} == {(5, 4)} and len({p.tobytes() for p in drawn}) == 6
    assert groups[0].episodes[0].text == "" and groups[0].episodes[0].segments[0].prefix.key != groups[1].episodes[0].segments[0].prefix.key
    white = policy.show(torch.full((1, 60), 3.0))[0]
    assert white.getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize("text", ["a hare", "spot 3"])
def test_a_prompt_that_it_was_not_made_for_is_refused(text):
    with pytest.raises(ValueError, match=rf"prompt '{text}'; expected one that ends with a number below 3"):
        denoiser(2).encode(user(text, images=0))


def test_what_was_saved_comes_back(tmp_path):
    policy = denoiser(2)
    policy.save(tmp_path)
    again = generators.load(tmp_path)
    assert generators.kind(tmp_path) == "denoiser" == generators.kind("denoiser") and generators.kind(tmp_path / "none") == ""
    x, step, prompt = torch.randn(5, 2), torch.arange(5) % 4, torch.arange(5) % 3
    assert torch.equal(policy.mean(x, step, prompt), again.mean(x, step, prompt))
    with pytest.raises(ValueError, match="no value head"):
        policy.value(x, step, prompt)
