"""Stable Diffusion's steps, with small random parts of the real library where it is installed."""

import pytest
import torch

from fovea.batch import collate
from fovea.policies import generators
from fovea.rollout.denoise import DenoiseEngine
from fovea.types import Task, user

torch.set_num_threads(1)
TASKS = [Task(f"t{i}", "prompts", user(text, images=0), verifier="brightness") for i, text in enumerate(("a hare", "a fox in snow"))]


class Words:
    model_max_length = 8

    def __call__(self, texts, **_):
        rows = [[len(w) for w in t.split()][:8] + [0] * (8 - len(t.split()[:8])) for t in texts]
        return type("Encoded", (), {"input_ids": torch.tensor(rows)})


class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(32, 16)

    def forward(self, ids):
        return (self.table(ids),)


@pytest.fixture(scope="module")
def policy():
    library = pytest.importorskip("diffusers", reason="the extra diffusers brings it")
    from fovea.policies.pipeline import Pipeline

    torch.manual_seed(0)
    blocks = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    unet = library.UNet2DConditionModel(
        sample_size=4, in_channels=4, out_channels=4, cross_attention_dim=16, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **blocks
    )  # fmt: skip
    vae = library.AutoencoderKL(
        latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **blocks
    )
    scheduler = library.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)
    return Pipeline(unet, vae.eval(), Encoder(), Words(), scheduler, base="random", steps=5, guidance=3.0)


def test_a_step_is_the_librarys_own(policy):
    scheduler = policy.rest["scheduler"]
    x, noise = torch.randn(2, 64), torch.randn(2, 64)
    for s, t in enumerate(scheduler.timesteps):
        own = scheduler.step(noise, t, x, generator=torch.Generator().manual_seed(1)).prev_sample
        draw = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
        mean = policy.schedule.mean(x, noise, torch.tensor([s, s]))
        assert torch.allclose(own, mean + policy.sigma_S[s] * draw, atol=1e-4)
    assert (policy.sigma_S[:-1] > 0).all() and policy.sigma_S[-1] == 0


def test_chains_pictures_and_log_probabilities(policy):
    groups = DenoiseEngine(policy, max_rows=3).rollout(TASKS, 2)
    batch = collate(groups)
    assert batch.mask_BT.tolist() == [[1.0] * 4 + [0.0]] * 4 and len(batch.prefixes) == 2
    assert {e.drawn.size for g in groups for e in g.episodes} == {(8, 8)}
    for kept in (False, True):
        policy.gradient_checkpointing = kept
        logp = policy.evaluate(batch, frozenset({"logp"}))["logp"]
        assert torch.allclose(logp, batch.logp_old_BT, atol=1e-3) and logp.requires_grad
    logp.sum().backward()
    assert all(p.grad is not None for p in policy.unet.conv_out.parameters())


def test_guidance_moves_away_from_the_empty_prompt(policy):
    prefix = policy.encode(TASKS[0].prompt)
    x, step, both = torch.randn(1, 64), torch.tensor([0]), prefix.data[None]
    guided, empty = policy.mean(x, step, both), policy.mean(x, step, both[:, [0, 0]])
    policy.guidance = 1.0
    plain = policy.mean(x, step, both)
    policy.guidance = 3.0
    assert torch.allclose(guided - empty, 3 * (plain - empty), atol=1e-4)


def test_the_reference_stays_and_a_checkpoint_brings_the_weights_back(policy, tmp_path):
    batch = collate(DenoiseEngine(policy).rollout(TASKS[:1], 1))
    policy.set_reference()
    policy.save(tmp_path)
    assert generators.kind(tmp_path) == "diffusers" and not list(tmp_path.rglob("*.bin"))
    with torch.no_grad():
        policy.unet.conv_out.bias.add_(0.5)

    def logp(variant):
        return policy.evaluate(batch, frozenset({"logp"}), variant)["logp"]

    moved, before = logp("policy"), logp("reference")
    assert (moved - before).abs().max() > 1e-2 and not before.requires_grad
    policy.load_weights(tmp_path)
    assert torch.allclose(logp("policy"), before, atol=1e-4)
    assert not any(p is q for p in policy.parameters() for q in policy.reference[0].parameters())


def test_what_is_missing_is_said(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"needs the package diffusers .*; expected `pip install 'fovea-rl\[diffusers\]'`"):
        generators.load("diffusers:somewhere")
