"""Sharing a prefix changes no number: log-probabilities, entropies and gradients equal the plain repeated computation."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers.models.gemma import modeling_gemma
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen2_vl import modeling_qwen2_vl
from transformers.models.qwen3 import modeling_qwen3
from transformers.models.qwen3_vl import modeling_qwen3_vl

from fovea.policies.hf_vlm import HFVLM
from fovea.policies.shared_prefix import Layout, Scoring, two_streams
from fovea.types import user
from fovea.video import Video
from tests.policies.plain import Plain, batch_of, gradient_error, gradients
from tests.policies.tiny_checkpoints import CLIPS, FAMILIES, VARIANTS, WORDS, build, picture

torch.set_num_threads(1)
LOOK = frozenset({"logp", "entropy"})


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Family or variant -> its checkpoint folder, written once."""
    return cache(lambda name: build(tmp_path_factory.mktemp(name), name))


@pytest.fixture(params=FAMILIES)
def folder(request, checkpoint):
    return checkpoint(request.param)


@pytest.fixture(params=(*FAMILIES, *VARIANTS))
def any_folder(request, checkpoint):
    return checkpoint(request.param)


@pytest.fixture(params=("qwen3_vl", "llava", "paligemma"))
def sample(request, checkpoint):
    """M-RoPE and features for several layers, a plain decoder, prompts in both directions: enough for what no family decides."""
    return checkpoint(request.param)


def scenes(policy: HFVLM, seed: int = 0):
    """Three unequal prompts (one image, two images of other shapes, none) with answers of unequal length, one of a single token."""
    images = [[picture(0)], [picture(1, 140, 112), picture(2, 168, 56)], []]
    prompts = [policy.encode(user("How many circles?"), images[0]), policy.encode(user("red or blue?", 2), images[1])]
    prompts.append(policy.encode(user("a number", 0), []))
    draw = torch.Generator().manual_seed(seed)
    lengths = [(7, 1, 12), (5, 5), (9, 2, 3, 30)]
    answers = [[torch.randint(*WORDS, (t,), generator=draw).tolist() for t in ts] for ts in lengths]
    batch = batch_of(list(zip(prompts, answers)), masks={(0, 2): [3, 4], (2, 0): [8]})
    return batch, images


def objective(streams, batch):
    weights = torch.randn(batch.mask_BT.shape, generator=torch.Generator().manual_seed(1)).to(streams["logp"].dtype)
    return ((weights * streams["logp"] + 0.3 * weights.flip(0) * streams["entropy"]) * batch.mask_BT).sum()


def compare(folder, dtype, path="direct", **options):
    policy = HFVLM.load(folder, dtype=dtype, **options)
    policy.path, policy.temperature = path, 0.7
    plain = Plain(folder, getattr(torch, dtype))
    for (_, p), (_, r) in zip(policy.model.vlm.named_parameters(), plain.model.named_parameters(), strict=True):
        r.requires_grad_(p.requires_grad)
    batch, images = scenes(policy)
    found, expected = policy.evaluate(batch, LOOK), plain.streams(batch, images, policy)
    assert float(expected["logp"].detach().min()) < -9, "the yardstick should be peaky, so that errors show"
    objective(found, batch).backward()
    objective(expected, batch).backward()
    return worst(found, expected), gradient_error(gradients(policy.model.vlm), plain.gradients())


def worst(found, expected):
    """Largest difference of any stream; NaN if there is one."""
    return float(torch.stack([(found[k] - expected[k]).detach().abs().max() for k in LOOK]).max())


@pytest.mark.support("shared_prefix", "multi_image")
@pytest.mark.parametrize("path", ["direct", "interface"])
def test_float32_matches_the_repeated_computation(folder, path):
    logp_error, grad_error = compare(folder, "float32", path)
    assert logp_error <= 1e-5
    assert grad_error <= 1e-5


@pytest.mark.support("video")
@pytest.mark.parametrize("path", ["direct", "interface"])
@pytest.mark.parametrize("family", CLIPS)
def test_clips_beside_images_match_the_repeated_computation(checkpoint, family, path):
    policy, plain = HFVLM.load(checkpoint(family)), Plain(checkpoint(family))
    policy.path = path
    clip = Video(tuple(picture(10 + i, 56, 56) for i in range(4)), fps=2.0)
    images = [[picture(0), clip], [clip], [picture(0)]]
    contents = [[{"type": "video" if x is clip else "image"} for x in shown] + [{"type": "text", "text": "How many?"}] for shown in images]
    prefixes = [policy.encode([{"role": "user", "content": c}], shown) for c, shown in zip(contents, images)]
    draw = torch.Generator().manual_seed(3)
    batch = batch_of([(p, torch.randint(*WORDS, (2, 6), generator=draw).tolist()) for p in prefixes])
    found, expected = policy.evaluate(batch, LOOK), plain.streams(batch, images, policy)
    objective(found, batch).backward()
    objective(expected, batch).backward()
    assert worst(found, expected) <= 1e-5
    assert gradient_error(gradients(policy.model.vlm), plain.gradients()) <= 1e-5
    with torch.no_grad():
        _, logits = policy.prefill([prefixes[0]], [[()]], room=1)
        assert (logits[0] - plain.logits(prefixes[0], images[0], [WORDS[0]])[0]).abs().max() <= 2e-5


@pytest.mark.parametrize("layers", [1, 2])
def test_features_for_more_layers_than_there_are(tmp_path, layers):
    """Qwen3-VL adds to the first layers, of which the last one is run only where something is read: a prompt may end there."""
    folder = build(tmp_path / "short", "qwen3_vl", layers=layers)
    assert max(compare(folder, "float32")) <= 1e-5
    policy, plain = HFVLM.load(folder), Plain(folder)
    shown = [policy.processor.image_token_id]
    prefix = policy.encode_ids([30, 31, *shown], [picture(0)])
    batch = batch_of([(prefix, [[40, 41], [42]])])
    assert worst(policy.evaluate(batch, LOOK), plain.streams(batch, [[picture(0)]], policy)) <= 1e-5


@pytest.fixture
def double(monkeypatch):
    """transformers computes norms, the towers' rotations and an eager softmax in float32 whatever the weights are; that would cost 1e-6."""
    towers = (modeling_qwen2_vl, modeling_qwen2_5_vl, modeling_qwen3_vl)
    for module in towers:
        monkeypatch.setattr(module, "apply_rotary_pos_emb_vision", _rotate)
    for module in (*towers, modeling_llama, modeling_mistral, modeling_qwen2, modeling_qwen3, modeling_gemma, modeling_gemma2):
        for name in [n for n in vars(module) if n.endswith("RMSNorm")]:
            monkeypatch.setattr(getattr(module, name), "forward", _gemma_norm if name.startswith("Gemma") else _rms_norm)
    monkeypatch.setattr(modeling_gemma2, "eager_attention_forward", _capped_attention)


def _rotate(q, k, cos, sin):
    def turn(x):
        a, b = x.chunk(2, -1)
        return x * cos[:, None].to(x.dtype) + torch.cat((-b, a), -1) * sin[:, None].to(x.dtype)

    return turn(q), turn(k)


def _gemma_norm(self, x):
    return (1 + self.weight) * x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()


def _capped_attention(module, query, key, value, attention_mask, scaling, softcap, **kwargs):
    k, v = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (key, value))
    s = softcap * ((query @ k.transpose(2, 3)) * scaling / softcap).tanh() + attention_mask
    return (s.softmax(-1) @ v).transpose(1, 2), None


def _rms_norm(self, x):
    return self.weight * x * (x.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()


@pytest.mark.support("shared_prefix", "multi_image")
@pytest.mark.parametrize("path", ["direct", "interface"])
def test_float64_gradients_match_to_rounding(any_folder, path, double):
    logp_error, grad_error = compare(any_folder, "float64", path)
    assert logp_error <= 1e-10
    assert grad_error <= 1e-10


@pytest.mark.parametrize("freeze", [("tower",), ("tower", "projector"), ("text",)])
def test_frozen_parts_get_no_gradient_and_the_rest_the_right_one(folder, freeze):
    logp_error, grad_error = compare(folder, "float32", freeze=freeze)
    assert logp_error <= 1e-5
    assert grad_error <= 1e-5


def test_gradient_checkpointing_changes_nothing(folder):
    logp_error, grad_error = compare(folder, "float32", gradient_checkpointing=True)
    assert logp_error <= 1e-5
    assert grad_error <= 1e-5


def test_any_micro_batching_adds_up_to_the_same_gradient(sample, double):
    policy = HFVLM.load(sample, dtype="float64")
    batch, _ = scenes(policy)
    objective(policy.evaluate(batch, LOOK), batch).backward()
    whole = gradients(policy.model.vlm)
    weights = torch.randn(batch.mask_BT.shape, generator=torch.Generator().manual_seed(1)).double()
    entropy_weights = 0.3 * weights.flip(0)
    rows = torch.tensor([8, 0, 4, 2, 6, 1, 3, 7, 5])
    for part in rows.split(4):
        out, T = policy.evaluate(batch.rows(part), LOOK), batch.rows(part).mask_BT.shape[1]
        ((weights[part, :T] * out["logp"] + entropy_weights[part, :T] * out["entropy"]) * batch.rows(part).mask_BT).sum().backward()
    assert gradient_error(gradients(policy.model.vlm), whole) <= 1e-10


def test_bfloat16_stays_close_to_its_own_repeated_computation(sample):
    policy, plain = HFVLM.load(sample, dtype="bfloat16"), Plain(sample, torch.bfloat16)
    batch, images = scenes(policy)
    with torch.no_grad():
        found, expected = policy.evaluate(batch, LOOK)["logp"], plain.streams(batch, images, policy)["logp"]
    error = (found - expected).abs()[batch.mask_BT > 0]
    assert float(error.mean()) <= 0.02, f"mean {error.mean():.4f}, largest {error.max():.4f}"


def test_what_the_environment_inserted_is_context_without_a_log_probability(sample):
    policy = HFVLM.load(sample)
    batch, _ = scenes(policy)
    with torch.no_grad():
        before = policy.evaluate(batch, LOOK)
        changed = batch.actions_BT.clone()
        changed[0 + 2, 3] = 9 if int(changed[2, 3]) != 9 else 10
        batch.actions_BT = changed
        after = policy.evaluate(batch, LOOK)
    assert before["logp"][2, 3] == 0 == after["logp"][2, 3]
    assert torch.equal(before["logp"][2, :3], after["logp"][2, :3])
    assert (before["logp"][2, 5:12] - after["logp"][2, 5:12]).abs().max() > 1e-3
    others = torch.arange(batch.B) != 2
    assert torch.allclose(before["logp"][others], after["logp"][others], atol=1e-6)


def test_the_value_before_each_unit_and_after_the_last(sample):
    policy = HFVLM.load(sample, value_head=True)
    batch, images = scenes(policy)
    want = frozenset({"value", "next_value"})
    assert all(float(x.detach().abs().max()) == 0 for x in policy.evaluate(batch, want).values()), "the head starts at zero"
    torch.nn.init.normal_(policy.model.value.weight)
    found = {k: x.detach() for k, x in policy.evaluate(batch, want).items()}
    plain = Plain(sample)
    for b in range(batch.B):
        n, T = int(batch.prefix_B[b]), int(batch.length_B[b])
        seen = []
        hook = plain.model.model.get_decoder().norm.register_forward_hook(lambda m, i, out, seen=seen: seen.append(out))
        with torch.no_grad():
            plain.logits(batch.prefixes[n], images[n], batch.actions_BT[b, :T].tolist())
            value = policy.model.value(seen[0][0, batch.prefixes[n].length - 1 :])[:, 0]
        hook.remove()
        chosen = batch.mask_BT[b, :T] > 0
        assert (found["value"][b, :T] - value[:T])[chosen].abs().max() <= 2e-5
        assert abs(float(found["next_value"][b] - value[T])) <= 2e-5


def test_the_reference_stays_where_it_was_set(sample):
    policy = HFVLM.load(sample)
    batch, _ = scenes(policy)
    policy.set_reference()
    with torch.no_grad():
        start = policy.evaluate(batch, LOOK)["logp"]
        for p in policy.parameters():
            p.mul_(1.03)
        assert torch.equal(policy.evaluate(batch, LOOK, "reference")["logp"], start)
        assert (policy.evaluate(batch, LOOK)["logp"] - start).abs().max() > 1e-2


@pytest.mark.parametrize(("freeze", "encodings"), [((), 2), (("tower", "projector"), 1)])
def test_the_work_per_step_is_counted(folder, freeze, encodings):
    """A rollout, two passes without gradient and one update over two micro-batches, all of one prompt's rows together."""
    policy = HFVLM.load(folder, freeze=freeze)
    images = [picture(0), picture(3)]
    prefixes = [policy.encode(user("How many?"), [i]) for i in (*images, images[0])]
    assert prefixes[0] is prefixes[2]
    policy.prefill(prefixes[:2], [[()] * 4] * 2, room=2)
    batch = batch_of([(p, [[20, 21]] * 4) for p in prefixes[:2]])
    with torch.no_grad():
        policy.evaluate(batch, LOOK)
        policy.evaluate(batch, LOOK)
    for part in batch.micro_batches(4):
        policy.evaluate(part, LOOK)["logp"].sum().backward()
    assert policy.counts == {
        "vision_encodings": encodings * len(images),
        "preprocessed": len(images),
        "prefix_tokens_update": sum(p.length for p in prefixes[:2]),
    }


def test_long_completions_cost_no_dense_mask():
    """The largest tensor that the attention keeps grows linearly with the answers, not with their square."""
    layout = Layout((64,), ((256,) * 8,))
    saved = []
    q, k, v = (torch.randn(h, 64 + 8 * 256, 16, requires_grad=True) for h in (4, 2, 2))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        two_streams(q, k, v, layout, Scoring(0.25))
    assert max(saved) == q.numel()
