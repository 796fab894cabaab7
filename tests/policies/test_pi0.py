"""π0's layout on a shrunken twin: published names, the published sampler's chunks, likelihoods that repeat, a step of reinforcement."""

import json

import numpy as np
import pytest
import torch

from fovea import api, recipes
from fovea.envs.parts import Part, pack
from fovea.policies import control
from fovea.policies.control import Flow, Spaces
from fovea.policies.pi0 import Pi0

transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.models.pi0")

PARTS = (Part("top", (32, 32, 3), "uint8"), Part("state", (6,)), Part("told", (96,), "uint8"))
SPACES = Spaces((sum(p.bytes for p in PARTS),), 8, False, PARTS, chunk=4)
NET = Flow(frozen=True)


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """A checkpoint folder as transformers writes one: 2 + 2 layers, chunks of 6 actions of 5 numbers."""
    from tests.policies import tiny_checkpoints

    folder = tmp_path_factory.mktemp("pi0")
    tokenizer, _ = tiny_checkpoints._tokenizer(tiny_checkpoints.KINDS["paligemma"])
    tokenizer.save_pretrained(folder)
    shared = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    text = {"model_type": "gemma", "hidden_size": 16, "intermediate_size": 24, "vocab_size": len(tokenizer) + 8, **shared}
    vision = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "patch_size": 8, "image_size": 16, "vision_use_head": False}
    vlm = {"model_type": "paligemma", "text_config": text, "vision_config": vision, "projection_dim": 16}
    vlm["image_token_id"] = tokenizer.convert_tokens_to_ids("<image>")
    dit = {"model_type": "gemma", "hidden_size": 12, "intermediate_size": 16, **shared}
    config = transformers.PI0Config(vlm_config=vlm, dit_config=dit, chunk_size=6, max_action_dim=5, max_state_dim=7)
    torch.manual_seed(0)
    model = transformers.PI0ForConditionalGeneration(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    model.save_pretrained(folder)
    return folder


def seen(n=3):
    rng = np.random.default_rng(0)
    told = [b"reach the red pad", b"reach", b"go to the blue one now"]
    rows = [
        pack(
            PARTS,
            {
                "top": rng.integers(0, 256, (32, 32, 3)),
                "state": rng.normal(size=6),
                "told": np.frombuffer(told[i % 3].ljust(96, b"\0"), np.uint8),
            },
        )
        for i in range(n)
    ]
    return torch.from_numpy(np.stack(rows))


def test_a_greedy_chunk_is_that_of_the_published_sampler(twin):
    made = Pi0.load(twin, SPACES, NET)
    obs = seen()
    uniform = torch.rand(3, made.draws, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    out = made.act(obs, uniform, torch.ones(3, dtype=torch.bool))
    assert out["actions"].shape == (3, 8) and out["chain"].shape == (3, 5, 30)
    context = made.context(obs)
    ids, mask = made._words(obs[:, -96:], 1)
    pixels = obs[:, : 32 * 32 * 3].view(3, 32, 32, 3).movedim(-1, 1).float() / 255
    pixels = torch.nn.functional.interpolate(pixels, (16, 16), mode="bilinear", antialias=True) * 2 - 1
    expected = made.model.sample_actions(
        state=context["state"],
        input_ids=ids,
        pixel_values=pixels[:, None],
        noise=out["chain"][:, 0].view(3, 6, 5),
        attention_mask=mask,
        pixel_attention_mask=torch.ones(3, 1, dtype=torch.bool),
        num_steps=4,
    )
    torch.testing.assert_close(out["chain"][:, -1].view(3, 6, 5), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out["actions"], expected[:, :4, :2].flatten(1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("noise", ["sde", "learned"])
def test_likelihoods_repeat_count_what_is_acted_on_and_reach_the_expert_alone(twin, noise):
    made = Pi0.load(twin, SPACES, Flow(frozen=True, noise=noise))
    obs = seen()
    uniform = torch.rand(3, made.draws, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    out = made.act(obs, uniform, torch.zeros(3, dtype=torch.bool))
    logp, _ = made._logp(out["chain"], out["step"], made.context(obs))
    torch.testing.assert_close(logp, out["logp"], atol=1e-4, rtol=0)
    beyond = out["chain"].clone()
    at = out["step"][0] if noise == "sde" else 3
    beyond[:, at + 1, 29] += 1.0
    if noise == "learned":
        torch.testing.assert_close(made._logp(beyond, out["step"], made.context(obs))[0], logp, atol=1e-4, rtol=0)
    logp.sum().backward()
    trained = {n for n, p in made.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained and not any(".vlm." in n for n in trained) and any(".dit." in n for n in trained)


def test_a_saved_policy_is_a_published_checkpoint_with_heads(twin, tmp_path):
    made = Pi0.load(twin, SPACES, NET)
    with torch.no_grad():
        made.heads["critic"][0].bias += 1.0
    made.save(tmp_path)
    plain = transformers.PI0ForConditionalGeneration.from_pretrained(tmp_path)
    before = transformers.PI0ForConditionalGeneration.from_pretrained(twin)
    assert plain.state_dict().keys() == before.state_dict().keys()
    assert control.saved(tmp_path)
    again = control.load(tmp_path)
    assert again.spaces == SPACES and again.network == NET
    assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_robot_that_does_not_fit_is_refused(twin):
    with pytest.raises(ValueError, match="takes 4 actions of 6 numbers; expected at most 6 of 5"):
        Pi0.load(twin, Spaces((10,), 24, False, (), chunk=4), NET)


def test_a_step_of_the_real_recipe_runs_on_the_twin(twin, tmp_path):
    pytest.importorskip("mujoco")
    real, tiny = recipes.get("pi-rl:real"), recipes.get("pi-rl")
    assert real.method == tiny.method and real.network.frozen and json.dumps(real.to_json())
    small = real.replace(
        model=f"pi0:{twin}", device="cpu", dtype="float32", data="robot:scene:reach", tasks_per_step=2, max_rows=2, updates_per_rollout=1,
        epochs_per_rollout=1, steps=2, eval_tasks=0, learning_rate=1e-3,
    )  # fmt: skip
    run = api.train(small, out=tmp_path / "run", quiet=True)
    steps = [m for m in run.metrics if "policy/ratio_mean" in m]
    assert len(steps) == 2 and steps[0]["policy/ratio_mean"] == pytest.approx(1.0, abs=1e-3)
