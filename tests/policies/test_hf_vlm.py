"""Loading, saving, bans and the front door of the language policy."""

from __future__ import annotations

import json
from functools import partial

import huggingface_hub
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer

from fovea.policies import hf_vlm
from fovea.policies.hf_vlm import HFVLM
from fovea.types import user
from tests.policies.plain import Plain, batch_of
from tests.policies.tiny_checkpoints import FAMILIES, KINDS, WORDS, build, picture


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return build(tmp_path_factory.mktemp(request.param), request.param)


def test_from_pretrained_loads_what_was_saved_and_agrees(folder, tmp_path):
    policy = HFVLM.load(folder, value_head=True)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.01 * torch.randn_like(p))
    policy.save(tmp_path)
    image, answer = picture(0), [20, 21, 22]
    prefix = policy.encode(user("How many?"), [image])
    plain = Plain(tmp_path)
    original = AutoModelForImageTextToText.from_pretrained(folder)
    assert {n: p.shape for n, p in plain.model.named_parameters()} == {n: p.shape for n, p in original.named_parameters()}
    with torch.no_grad():
        z = plain.logits(prefix, [image], answer).index_fill(-1, torch.tensor(policy.banned_ids), float("-inf"))
        expected = z.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None])[:, 0]
        found = policy.evaluate(batch_of([(prefix, [answer])]), frozenset({"logp"}))["logp"][0]
    assert (found - expected).abs().max() <= 1e-5
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == policy.processor.tokenizer.chat_template
    again = HFVLM.load(tmp_path, value_head=True)
    assert again.eos_ids == policy.eos_ids and torch.equal(again.model.value.weight, policy.model.value.weight)
    assert again.encode(user("How many?"), [image]).key == prefix.key
    assert not [p.name for p in tmp_path.iterdir() if p.suffix in {".bin", ".pt", ".pkl"}]


def test_placeholders_never_have_probability(folder):
    policy = HFVLM.load(folder)
    names = KINDS[policy.model.vlm.config.model_type].tokens
    assert set(policy.processor.tokenizer.convert_tokens_to_ids(list(names))) <= set(policy.banned_ids)
    prefix = policy.encode(user("a", 0))
    batch = batch_of([(prefix, [[i] for i in range(policy.vocab_size)])])
    with torch.no_grad():
        logp = policy.evaluate(batch, frozenset({"logp"}))["logp"][:, 0]
    assert logp[list(policy.banned_ids)].eq(float("-inf")).all()
    assert abs(float(logp.exp().sum()) - 1) <= 1e-5
    with torch.no_grad():
        policy.model.vlm.lm_head.weight[list(policy.banned_ids)] *= 50
    assert not set(policy.encode_text(policy.predict(picture(0), "?", 16))) & set(policy.banned_ids)


def test_entropy_and_temperature_on_a_uniform_model(folder):
    policy = HFVLM.load(folder)
    with torch.no_grad():
        policy.model.vlm.lm_head.weight.zero_()
    policy.temperature = 0.3
    out = policy.evaluate(batch_of([(policy.encode(user("a", 0)), [[20, 21]])]), frozenset({"logp", "entropy"}))
    allowed = torch.tensor(float(policy.vocab_size - len(policy.banned_ids)))
    assert torch.allclose(out["entropy"].detach(), allowed.log().expand(1, 2))
    assert torch.allclose(out["logp"].detach(), -allowed.log().expand(1, 2))


def test_greedy_prediction_is_the_plain_models_arg_max(folder):
    policy, plain = HFVLM.load(folder), Plain(folder)
    image = picture(4)
    prefix = policy.encode(user("How many?"), [image])
    ids: list[int] = []
    for _ in range(6):
        with torch.no_grad():
            z = plain.logits(prefix, [image], [*ids, 0])[-1].index_fill(-1, torch.tensor(policy.banned_ids), float("-inf"))
        if int(z.argmax()) in policy.eos_ids:
            break
        ids.append(int(z.argmax()))
    assert policy.predict(image, "How many?", max_new_tokens=6) == policy.decode_text(ids)


def test_sampling_in_bfloat16_agrees_with_the_trainer(folder):
    policy = HFVLM.load(folder, dtype="bfloat16")
    prefixes = [policy.encode(user("How many?"), [picture(0)]), policy.encode(user("a number", 0))]
    rows = torch.randint(*WORDS, (4, 12), generator=torch.Generator().manual_seed(0))
    cohort, logits = policy.prefill(prefixes, [[()] * 2] * 2, room=12)
    logps = []
    for t in range(12):
        z = logits.index_fill(-1, torch.tensor(policy.banned_ids), float("-inf"))
        logps.append(z.log_softmax(-1).gather(-1, rows[:, t, None])[:, 0])
        (logits,) = policy.decode([cohort], [rows[:, t]])
    batch = batch_of([(p, rows[2 * n : 2 * n + 2].tolist()) for n, p in enumerate(prefixes)])
    with torch.no_grad():
        trained = policy.evaluate(batch, frozenset({"logp"}))["logp"]
    error = (torch.stack(logps, 1) - trained).abs()
    assert float(error.mean()) <= 0.02, f"mean {error.mean():.4f}, largest {error.max():.4f}"


def test_wrong_requests_are_named(folder):
    policy = HFVLM.load(folder)
    batch = batch_of([(policy.encode(user("a", 0)), [[20]])])
    with pytest.raises(ValueError, match=r"found \['logits'\]"):
        policy.evaluate(batch, frozenset({"logits"}))
    with pytest.raises(ValueError, match=r"call policy\.set_reference"):
        policy.evaluate(batch, frozenset({"logp"}), "reference")
    with pytest.raises(ValueError, match="found variant 'masked'"):
        policy.evaluate(batch, frozenset({"logp"}), "masked")
    with pytest.raises(ValueError, match="value_head=True"):
        policy.evaluate(batch, frozenset({"value"}))
    with pytest.raises(ValueError, match="expected names among tower, projector, text"):
        HFVLM.load(folder, freeze=("vision",))
    batch.prefix_B[0] = -1
    with pytest.raises(ValueError, match="row 0 has no prefix"):
        policy.evaluate(batch, frozenset({"logp"}))


def test_a_text_model_that_the_loop_does_not_know_is_refused(tmp_path):
    build(tmp_path, "llava+phi3")
    with pytest.raises(ValueError, match=r"text model 'phi3': found Phi3DecoderLayer; expected decoder layers among Gemma2DecoderLayer"):
        HFVLM.load(tmp_path)


def test_a_processor_of_another_checkpoint_is_named(tmp_path):
    folder = build(tmp_path, "llava")
    file = folder / "processor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "patch_size": 14}))
    policy = HFVLM.load(folder)
    prefix = policy.encode(user("What?"), [picture(0)])
    with pytest.raises(ValueError, match=r"llava: found 16 features for 1 pictures, expected 4 as the processor counts them"):
        policy.prefill([prefix], [[()]], 1)


def test_a_hub_id_is_read_from_the_cache(tmp_path, monkeypatch):
    offline = partial(huggingface_hub.snapshot_download, cache_dir=tmp_path, local_files_only=True)
    monkeypatch.setattr(hf_vlm, "snapshot_download", offline)
    commit, repo = "0" * 40, tmp_path / "models--owner--name"
    build(repo / "snapshots" / commit, "llava")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    assert HFVLM.load("owner/name").model.vlm.config.model_type == "llava"
    with pytest.raises(FileNotFoundError, match=r'owner/other: no such folder, and no such model .*; expected "tiny", a checkpoint folder'):
        HFVLM.load("owner/other")


@pytest.mark.parametrize("made", [lambda: HFVLM.load("tiny", dtype="bfloat16"), lambda: HFVLM.load("tiny").twin("bfloat16")])
def test_half_precision_knows_where_a_token_stands(made):
    policy, exact = made(), HFVLM.load("tiny")
    assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}
    for name, x in exact.model.named_buffers():
        assert torch.equal(dict(policy.model.named_buffers())[name], x), name
    picture = Image.new("RGB", (56, 56), (200, 30, 30))
    _, logits_RV = policy.prefill([policy.encode(user("what is it?"), (picture,))], [[()]], 2)
    assert logits_RV.isfinite().all()
