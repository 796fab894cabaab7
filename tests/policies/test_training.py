"""Every family trains by the one recipe, and what is written is a checkpoint of the family again."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText

import fovea
from fovea.policies.hf_vlm import HFVLM
from fovea.trainer import checkpoint
from tests.policies.tiny_checkpoints import FAMILIES, build
from tests.runs import ODD_LENGTH, SHORT

torch.set_num_threads(1)


@pytest.mark.support("full")
@pytest.mark.parametrize("family", FAMILIES)
def test_two_steps_of_training_change_the_model_and_leave_its_format(family, tmp_path):
    folder = build(tmp_path / "start", family, scale=1.0)
    run = fovea.train("grpo", model=str(folder), micro_batch=3, learning_rate=1e-3, out=tmp_path / "run", **SHORT, **ODD_LENGTH)
    assert len(run.metrics) == 2
    before, after = HFVLM.load(folder), run.policy
    moved = {n for (n, p), (_, q) in zip(before.named_parameters(), after.named_parameters(), strict=True) if not torch.equal(p, q)}
    assert any("embed_tokens" in n for n in moved) and any("vision" in n or "visual" in n for n in moved)
    saved = AutoModelForImageTextToText.from_pretrained(checkpoint.latest(run.path / "checkpoints").model)
    assert type(saved) is type(after.model.vlm)
    for (name, p), (_, q) in zip(saved.named_parameters(), after.model.vlm.named_parameters(), strict=True):
        assert torch.equal(p, q), name
