"""The shipped base is an ordinary checkpoint: it loads by itself, its hash is the recorded one, its tokenizer loses nothing."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from fovea.policies.tiny_vlm import BASE_DIR, BASE_SHA256, data, folder_sha256, pretrain
from fovea.policies.tiny_vlm.evaluate import Sampler, is_right, question
from fovea.tasks.worlds import FAMILIES, glance_response, gold_response, make, split_of

IDS = {
    "<|endoftext|>": 0,
    "<|im_start|>": 1,
    "<|im_end|>": 2,
    "<|vision_start|>": 3,
    "<|vision_end|>": 4,
    "<|image_pad|>": 5,
    "<|video_pad|>": 6,
}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE_DIR)


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return AutoModelForImageTextToText.from_pretrained(BASE_DIR, dtype=torch.float32).eval()


def test_hash_and_size_are_the_recorded_ones():
    assert folder_sha256(BASE_DIR) == BASE_SHA256
    assert sum(p.stat().st_size for p in BASE_DIR.iterdir()) <= 12e6
    assert json.loads((BASE_DIR / "card.json").read_text())["command"].startswith("python -m fovea.policies.tiny_vlm.pretrain")


def test_importing_the_package_does_not_import_torch():
    code = "import sys, fovea.policies.tiny_vlm; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_it_is_a_plain_qwen(model):
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert 2e6 < sum(p.numel() for p in model.parameters()) < 5e6
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_special_tokens_are_single_and_tags_are_ordinary(tokenizer):
    for token, expected in IDS.items():
        assert tokenizer(token).input_ids == [expected]
    for tag in ("<think>", "</think>", "<answer>", "</answer>"):
        ids = tokenizer(tag).input_ids
        assert len(ids) == 1 and tokenizer.decode(ids, skip_special_tokens=True) == tag
    assert len(tokenizer("<answer>407</answer>").input_ids) == 5


def test_images_of_64_pixels_stay_and_others_shrink_to_that_area():
    processor = AutoImageProcessor.from_pretrained(BASE_DIR)
    picture = make("count", 0).images[0]
    out = processor([picture, picture.resize((640, 320))], return_tensors="pt")
    assert out.image_grid_thw.tolist()[0] == [1, 8, 8] and out.image_grid_thw[1].prod() <= 96
    ours = pretrain.patchify(np.asarray(picture)[None])[0]
    assert torch.equal(ours, out.pixel_values[:64])


def test_the_pretraining_forward_is_the_models(model, tokenizer):
    """Features, positions and log-probabilities agree with Transformers' own forward."""
    codec, processor = pretrain.Codec(tokenizer), AutoImageProcessor.from_pretrained(BASE_DIR)
    task = make("count", 1)
    prompt, response = question(task), gold_response(task)
    images = processor(list(task.images), return_tensors="pt")
    ids = torch.tensor([[*codec.prompt(prompt, True), *tokenizer(response).input_ids, codec.end]])
    kinds = (ids == codec.image_pad).int()
    with torch.no_grad():
        logits = model(input_ids=ids, mm_token_type_ids=kinds, attention_mask=torch.ones_like(ids), **images).logits[0]
        features = pretrain.encode(model, pretrain.patchify(np.asarray(task.images[0])[None]))
        rows = [data.Row(0, prompt, response), data.Row(-1, "How are you?", "red")]
        loss, _ = pretrain.speak_loss(model, codec, features, rows[:1], buckets=1)
        both, _ = pretrain.speak_loss(model, codec, features, rows, buckets=1)
    n = len(tokenizer(response).input_ids) + 1
    expected = torch.nn.functional.cross_entropy(logits[-n - 1 : -1], ids[0, -n:])
    assert abs(loss - expected) < 1e-4
    assert both != loss


def test_training_rows_are_a_pure_function_of_their_address_and_never_held_out():
    a, b = (data.step_rows(0, 1, 5, pretrain.LOOK) for _ in range(2))
    assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1], equal_nan=True) and a[2] == b[2]
    assert not np.array_equal(a[0], data.step_rows(0, 1, 6, pretrain.LOOK)[0])
    texts = {r.response for r in a[2] if r.prompt == data.LETTERS}
    assert all(split_of(("text", t.replace(" ", ""))) == "train" for t in texts if len(t) > 3)


def test_blurts_are_as_frequent_and_as_hasty_as_stated():
    rows = [r for s in range(20) for r in data.step_rows(0, 9, s, pretrain.BLURT)[2] if r.image >= 0 and "<answer>" in r.response]
    blurts = [r for r in rows if r.response.startswith("<answer>")]
    assert abs(len(blurts) / len(rows) - pretrain.BLURT.blurt) < 0.08


def test_rules_of_the_evaluation():
    for family in FAMILIES:
        task = make(family, 3, "heldout")
        assert is_right(task, gold_response(task)) and not is_right(task, glance_response(task)) and not is_right(task, "")


def test_the_base_describes_and_answers_after_a_look(tokenizer):
    sampler = Sampler(BASE_DIR)
    tasks = [make("count", i, "heldout", level=1) for i in range(8)]
    images = [t.images[0] for t in tasks]
    captions = sampler(images, [data.DESCRIBE] * 8, limit=24)
    assert np.mean([c[0] == t.meta["caption"] for c, t in zip(captions, tasks, strict=True)]) >= 0.75
    looks = sampler(images, [question(t) for t in tasks], "<think>", limit=32)
    assert np.mean([is_right(t, r[0]) for r, t in zip(looks, tasks, strict=True)]) >= 0.75
