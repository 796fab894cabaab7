"""Adapters change every path through the model alike, train alone, and leave in peft's and transformers' formats."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import fovea
from fovea.cli import main
from fovea.policies import lora
from fovea.policies.hf_vlm import HFVLM
from fovea.policies.lora import LoRA
from fovea.recipe import Recipe
from fovea.trainer import checkpoint as ckpt
from fovea.types import user
from tests.invariant.test_shared_prefix import LOOK, double, objective, scenes  # noqa: F401
from tests.policies.plain import Plain, batch_of, gradient_error
from tests.policies.tiny_checkpoints import FAMILIES, build, picture
from tests.runs import SHORT

peft = pytest.importorskip("peft")
torch.set_num_threads(1)


@pytest.fixture(scope="session", params=FAMILIES)
def folder(request, tmp_path_factory):
    return build(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session")
def one(tmp_path_factory):
    return build(tmp_path_factory.mktemp("one"), "qwen2_5_vl")


def adapted(folder, where="both", dtype="float32", scale=0.3, **options):
    """A policy whose adapters already do something."""
    policy = HFVLM.load(folder, dtype=dtype, lora=LoRA(rank=3, alpha=6, where=where), **options)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, p in policy.named_parameters():
            p.copy_(scale * torch.randn(p.shape, generator=draw, dtype=torch.float64) / p.shape[1] ** 0.5)
    return policy


class Peft(Plain):
    """The base as transformers loads it, under the adapter that the policy wrote, as peft loads it."""

    def __init__(self, base, adapter, dtype):
        super().__init__(base, dtype)
        self.model = peft.PeftModel.from_pretrained(self.model, str(adapter), is_trainable=True)

    def gradients(self):
        return named(self.model.named_parameters(), "base_model.model.")


def named(parameters, prefix):
    return {n.removeprefix(prefix): p.grad.clone() for n, p in parameters if p.grad is not None}


def compare(folder, tmp_path, where, dtype="float32", path="direct", **options):
    policy = adapted(folder, where, dtype, **options)
    policy.path, policy.temperature = path, 0.7
    policy.save(tmp_path)
    plain = Peft(folder, tmp_path, getattr(torch, dtype))
    for p in plain.model.parameters():
        p.data = p.data.to(getattr(torch, dtype))
    batch, images = scenes(policy)
    found, expected = policy.evaluate(batch, LOOK), plain.streams(batch, images, policy)
    objective(found, batch).backward()
    objective(expected, batch).backward()
    logp_error = max(float((found[k] - expected[k]).detach().abs().max()) for k in LOOK)
    gradient = named(policy.model.vlm.named_parameters(), "")
    assert gradient
    assert all(".lora_" in n for n in gradient)
    return logp_error, gradient_error(gradient, plain.gradients())


@pytest.mark.support("lora")
def test_float32_matches_peft_on_the_repeated_computation(folder, tmp_path):
    logp_error, grad_error = compare(folder, tmp_path, "both")
    assert logp_error <= 1e-5
    assert grad_error <= 1e-5


@pytest.mark.parametrize(("where", "path"), [("language", "direct"), ("tower", "direct"), ("both", "interface")])
def test_every_part_and_path_matches(one, tmp_path, where, path):
    assert max(compare(one, tmp_path, where, path=path)) <= 1e-5


def test_float64_matches_to_rounding(folder, tmp_path, double):  # noqa: F811
    assert max(compare(folder, tmp_path, "both", "float64")) <= 1e-10


def test_gradient_checkpointing_changes_nothing(one, tmp_path):
    assert max(compare(one, tmp_path, "both", gradient_checkpointing=True)) <= 1e-5


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_the_sampler_is_the_trainer(folder, dtype, limit):
    policy = adapted(folder, dtype=dtype)
    prefixes = [policy.encode(user("How many?"), [picture(0)]), policy.encode(user("a number", 0))]
    rows = torch.randint(20, 370, (4, 8), generator=torch.Generator().manual_seed(0))
    cohort, logits = policy.prefill(prefixes, [[()] * 2] * 2, room=8)
    logps = []
    for t in range(8):
        z = logits.index_fill(-1, torch.tensor(policy.banned_ids), float("-inf"))
        logps.append(z.log_softmax(-1).gather(-1, rows[:, t, None])[:, 0])
        (logits,) = policy.decode([cohort], [rows[:, t]])
    batch = batch_of([(p, rows[2 * n : 2 * n + 2].tolist()) for n, p in enumerate(prefixes)])
    with torch.no_grad():
        error = (torch.stack(logps, 1) - policy.evaluate(batch, frozenset({"logp"}))["logp"]).abs()
        bare = HFVLM.load(folder, dtype=dtype).evaluate(batch, frozenset({"logp"}))["logp"]
    assert float(error.mean() if dtype == "bfloat16" else error.max()) <= limit
    assert float((torch.stack(logps, 1) - bare).abs().mean()) > 0.1, "the adapters should matter"


def test_fresh_adapters_change_nothing_and_start_from_the_seed(one):
    base = HFVLM.load(one)
    batch, _ = scenes(base)
    start = [HFVLM.load(one, lora=LoRA(rank=2, where="both"), seed=s) for s in (1, 1, 2)]
    with torch.no_grad():
        assert torch.equal(start[0].evaluate(batch, LOOK)["logp"], base.evaluate(batch, LOOK)["logp"])
    a, b, c = (dict(p.named_parameters()) for p in start)
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert any(not torch.equal(a[n], c[n]) for n in a)


@pytest.mark.parametrize("where", ["language", "both"])
def test_the_reference_is_the_base_without_a_copy(one, where):
    policy, base = adapted(one, where), HFVLM.load(one)
    policy.set_reference()
    assert {p.data_ptr() for p in policy.reference.parameters()} == {p.data_ptr() for p in policy.model.parameters()}
    batch, _ = scenes(policy)
    with torch.no_grad():
        expected = base.evaluate(batch, LOOK)["logp"]
        before = policy.evaluate(batch, LOOK)["logp"]
        assert torch.equal(policy.evaluate(batch, LOOK, "reference")["logp"], expected)
        encoded = policy.counts["vision_encodings"]
        assert torch.equal(policy.evaluate(batch, LOOK, "reference")["logp"], expected)
        assert torch.equal(policy.evaluate(batch, LOOK)["logp"], before)
    assert policy.counts["vision_encodings"] == encoded, "neither variant forgets the other's pictures"
    assert (before - expected).abs().max() > 0.1
    found = policy.evaluate(batch, LOOK)["logp"]
    with torch.no_grad():
        policy.evaluate(batch, LOOK, "reference")
    found.sum().backward()
    assert all(p.grad is not None and p.requires_grad for p in policy.parameters()), "a reference pass in between takes no gradient away"


@pytest.mark.support("lora")
def test_both_exports_are_the_policy(folder, tmp_path):
    policy = adapted(folder)
    policy.save(tmp_path / "adapter")
    policy.save(tmp_path / "merged", merged=True)
    batch, images = scenes(policy)
    with torch.no_grad():
        expected = policy.evaluate(batch, LOOK)["logp"]
        merged = Plain(tmp_path / "merged").streams(batch, images, policy)["logp"]
        again = HFVLM.load(tmp_path / "adapter").evaluate(batch, LOOK)["logp"]
    assert (merged - expected).abs().max() <= 1e-5
    assert torch.equal(again, expected)
    original = AutoModelForImageTextToText.from_pretrained(folder)
    whole = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert {n: p.shape for n, p in whole.named_parameters()} == {n: p.shape for n, p in original.named_parameters()}
    assert set(load_file(tmp_path / "merged/model.safetensors")) == set(load_file(folder / "model.safetensors"))
    small = sum(f.stat().st_size for f in (tmp_path / "adapter").glob("*.safetensors"))
    assert small == pytest.approx(4 * sum(p.numel() for p in policy.parameters()), rel=0.5)


def test_targets_choose_layers_and_wrong_ones_list_what_there_is(one):
    policy = HFVLM.load(one, lora=LoRA(rank=2, targets=("q_proj", "v_proj")))
    assert {n.split(".")[-4] for n, _ in policy.named_parameters()} == {"q_proj", "v_proj"}
    assert not any("visual" in n for n, _ in policy.named_parameters())
    with pytest.raises(ValueError, match=r"no linear layer of language is called qkv, query; found: down_proj, gate_proj, k_proj, o_proj"):
        HFVLM.load(one, lora=LoRA(rank=2, targets=("query", "qkv", "q_proj")))
    with pytest.raises(ValueError, match=r"of tower is called q_proj; found: .*qkv"):
        HFVLM.load(one, lora=LoRA(rank=2, targets=("q_proj",), where="tower"))
    tower = HFVLM.load(one, lora=LoRA(rank=2, where="tower"))
    assert not any("language" in n or "merger" in n or "patch" in n for n, _ in tower.named_parameters())


def test_wrong_settings_and_folders_are_named(one, tmp_path):
    with pytest.raises(ValueError, match="rank = -1"):
        LoRA(rank=-1)
    with pytest.raises(ValueError, match=r"lora\.where = 'both', expected 'language', because freeze names the tower"):
        Recipe(lora=LoRA(rank=2, where="both"), freeze=("tower",))
    adapted(one).save(tmp_path / "a")
    with pytest.raises(ValueError, match="found adapters, expected a whole checkpoint"):
        HFVLM.load(tmp_path / "a", lora=LoRA(rank=2))
    config = json.loads((tmp_path / "a" / lora.CONFIG).read_text())
    (tmp_path / "a" / lora.CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "elsewhere"}))
    with pytest.raises(FileNotFoundError, match="belong to 'elsewhere', but elsewhere holds no checkpoint"):
        HFVLM.load(tmp_path / "a")
    assert HFVLM.load(tmp_path / "a", base=one).model.adapters
    (tmp_path / "a" / lora.CONFIG).write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(ValueError, match="use_dora True"):
        HFVLM.load(tmp_path / "a")
    (tmp_path / "a" / lora.CONFIG).write_text(json.dumps(config | {"target_modules": ["q_proj"]}))
    with pytest.raises(ValueError, match="tensors, expected"):
        HFVLM.load(tmp_path / "a")
    (tmp_path / "a" / lora.CONFIG).write_text(json.dumps(config | {"target_modules": ["lm_head"]}))
    with pytest.raises(ValueError, match="found one on lm_head"):
        HFVLM.load(tmp_path / "a")


# -- QLoRA ----------------------------------------------------------------------------------------------------------------------


def test_four_bit_weights_are_those_of_their_unpacked_matrices(one, tmp_path):
    """The trainer, the sampler and the merged export all compute with the same numbers; only the decoder's matrices are packed."""
    pytest.importorskip("bitsandbytes")
    policy = HFVLM.load(one, lora=LoRA(rank=3, alpha=6, nf4=True), nf4=True)
    with torch.no_grad():
        for _, p in policy.named_parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    packed = {n for n, p in policy.model.vlm.named_parameters() if p.dtype == torch.uint8}
    assert packed
    assert all("language_model.layers" in n and n.endswith("proj.base_layer.weight") for n in packed)
    assert len(packed) == 7 * len(policy.model.text.layers)
    policy.save(tmp_path / "m", merged=True)
    batch, images = scenes(policy)
    out = policy.evaluate(batch, LOOK)
    out["logp"].sum().backward()
    assert all(p.grad is not None for p in policy.parameters())
    with torch.no_grad():
        merged = Plain(tmp_path / "m").streams(batch, images, policy)["logp"]
        bare = HFVLM.load(one).evaluate(batch, LOOK)["logp"]
    assert (out["logp"].detach() - merged).abs().max() <= 1e-5
    assert (out["logp"].detach() - bare).abs().max() > 0.01
    question = (picture(0), "How many?", 6)
    assert policy.predict(*question) == HFVLM.load(tmp_path / "m").predict(*question)


def test_four_bits_without_adapters_or_bitsandbytes_are_refused(one, monkeypatch):
    with pytest.raises(ValueError, match="cannot be trained themselves"):
        LoRA(nf4=True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"lora\.nf4 needs bitsandbytes .*fovea-rl\[gpu\]"):
        HFVLM.load(one, lora=LoRA(rank=2, nf4=True), nf4=True)


# -- whole runs -----------------------------------------------------------------------------------------------------------------

SMALL = {**SHORT, "method__beta": 0.05, "lora__rank": 2, "lora__where": "both", "steps": 3, "learning_rate": 1e-2, "checkpoint_every": 1}


def weights(folder):
    last = ckpt.latest(folder / "checkpoints")
    return {k: v for k, v in last.state["files"].items() if k.endswith(".safetensors")}


@pytest.mark.support("lora", family="qwen2_5_vl", trained=True)
def test_a_run_trains_and_keeps_adapters_only_and_resumes_bit_equal(tmp_path, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run = fovea.train("grpo", out=whole, **SMALL)
    fovea.train("grpo", out=cut, on_step=lambda step, _: step == 1, **SMALL)
    assert weights(cut) != weights(whole)
    fovea.train("grpo", out=cut, **SMALL)
    assert weights(cut) == weights(whole)
    model = whole / "checkpoints/step-000003/model"
    assert [f.name for f in model.glob("*.safetensors")] == ["adapter_model.safetensors"]
    assert len(load_file(model.parent / "optimizer.safetensors")) == 3 * len(list(run.policy.parameters()))
    base = HFVLM.load("tiny").model.vlm.state_dict()
    trained = {n.replace(".base_layer", ""): p for n, p in run.policy.model.vlm.state_dict().items() if ".lora_" not in n}
    assert all(torch.equal(base[n], p) for n, p in trained.items())
    assert any(p.abs().max() > 0 for n, p in run.policy.named_parameters() if ".lora_B" in n)
    loaded = fovea.load_policy(whole)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), run.policy.parameters(), strict=True))

    assert main(["export", str(whole), "--merged", str(tmp_path / "m"), "--adapter", str(tmp_path / "a")]) == 0
    question = (picture(0), "How many circles?", 4)
    assert fovea.load_policy(tmp_path / "m").predict(*question) == loaded.predict(*question)
    assert fovea.load_policy(tmp_path / "a").predict(*question) == loaded.predict(*question)
    assert main(["export", str(whole), "--merged", str(tmp_path / "m")]) == 1
    assert main(["export", "tiny", "--adapter", str(tmp_path / "b")]) == 1
    assert main(["train", "--model", str(tmp_path / "a"), "--quiet"]) == 1
    said = capsys.readouterr().err
    assert "is not empty" in said
    assert "tiny has no adapters" in said
    assert "merge them first" in said
    with pytest.raises(ckpt.CheckpointError, match=r"lora: \{.*'rank': 2.*then.*'rank': 4"):
        fovea.train("grpo", out=whole, **{**SMALL, "lora__rank": 4})
