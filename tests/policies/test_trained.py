"""What the tests of small random weights show, on weights that were trained: the model that ships with the package."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

import fovea
from fovea.policies.hf_vlm import HFVLM
from fovea.policies.tiny_vlm import BASE_DIR
from fovea.tasks.worlds import make
from fovea.trainer import checkpoint
from fovea.types import user
from tests.policies.plain import Plain, batch_of, gradient_error, gradients
from tests.runs import ODD_LENGTH, SHORT

torch.set_num_threads(1)
LOOK = frozenset({"logp", "entropy"})


@pytest.mark.support("shared_prefix", "multi_image", family="qwen2_5_vl", trained=True)
def test_sharing_a_prefix_changes_no_number():
    """Its own answers, and some of another task, to prompts with two pictures, one and none."""
    policy, plain = HFVLM.load("tiny", dtype="float64"), Plain(BASE_DIR, torch.float64)
    tasks = [make(name, 0, "heldout") for name in ("count", "odd", "find")]
    images = [[tasks[0].images[0], tasks[1].images[0]], [tasks[2].images[0]], []]
    prompts = [policy.encode(user(t.prompt[0]["content"][-1]["text"], len(shown)), shown) for t, shown in zip(tasks, images, strict=True)]
    said = [policy.encode_text(policy.predict(shown, "Describe the picture.", 24)) for shown in images]
    batch = batch_of([(prompt, [said[n], said[n - 1][:5]]) for n, prompt in enumerate(prompts)])
    weights = torch.randn(batch.mask_BT.shape, generator=torch.Generator().manual_seed(1)) * batch.mask_BT
    found, expected = policy.evaluate(batch, LOOK), plain.streams(batch, images, policy)
    logp = expected["logp"].detach()[weights != 0]
    assert float(logp.min()) < -5 < -0.1 < float(logp.max()), "some of the answers should be likely and some not"
    for streams in (found, expected):
        (weights * (streams["logp"] + 0.3 * streams["entropy"])).sum().backward()
    errors = [float((found[k] - expected[k]).detach()[weights != 0].abs().max()) for k in LOOK]
    errors.append(gradient_error(gradients(policy.model.vlm), plain.gradients()))
    assert max(errors) <= 1e-5, f"{errors}: more than the norms cost, which transformers computes in float32 whatever the weights are"


@pytest.mark.support("full", family="qwen2_5_vl", trained=True)
def test_a_run_moves_all_parts_and_leaves_a_checkpoint_of_the_family(tmp_path):
    run = fovea.train("grpo", out=tmp_path / "run", **{**SHORT, **ODD_LENGTH, "group_size": 4})
    before = dict(HFVLM.load("tiny").named_parameters())
    moved = {name for name, p in run.policy.named_parameters() if not torch.equal(p, before[name])}
    assert any("visual" in name for name in moved) and any("embed_tokens" in name for name in moved)
    saved = AutoModelForImageTextToText.from_pretrained(checkpoint.find(run.path).model)
    for (name, p), (_, q) in zip(saved.named_parameters(), run.policy.model.vlm.named_parameters(), strict=True):
        assert torch.equal(p, q), name
