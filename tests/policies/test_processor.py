"""Prompts are encoded as the family's own processor encodes them, once per content, and bad ones are named."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from PIL import Image
from transformers.processing_utils import ProcessorMixin

from fovea.policies.hf_vlm import HFVLM
from fovea.policies.processor import Cache
from fovea.types import user
from tests.policies.tiny_checkpoints import QWEN, build, picture

PROCESSORS = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor"}


@pytest.fixture(scope="module", params=QWEN)
def checkpoint(request, tmp_path_factory):
    return request.param, build(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def policy(checkpoint):
    return HFVLM.load(checkpoint[1])


def family_processor(family, policy):
    """The family's processor without its video part, which needs torchvision."""
    base = getattr(transformers, PROCESSORS[family])
    tokenizer = policy.processor.tokenizer

    class ImagesOnly(base):
        def __init__(self, image_processor, tokenizer, chat_template=None):
            self.video_processor = None
            for kind in ("image", "video"):
                setattr(self, f"{kind}_token", f"<|{kind}_pad|>")
                setattr(self, f"{kind}_token_id", tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>"))
            for edge in ("vision_start", "vision_end"):
                setattr(self, f"{edge}_token", f"<|{edge}|>")
                setattr(self, f"{edge}_token_id", tokenizer.convert_tokens_to_ids(f"<|{edge}|>"))
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    return ImagesOnly(policy.processor.images, tokenizer, tokenizer.chat_template)


def messages_with(images):
    return [{"role": "system", "content": "You look."}, *user("How many red circles? <answer>", len(images))]


SIZES = [[(112, 112)], [(140, 84), (61, 200)], [(500, 333), (30, 30), (448, 448)], []]


@pytest.mark.parametrize("sizes", SIZES)
def test_token_ids_with_one_placeholder_per_image_give_the_same_prompt(policy, sizes):
    images = [picture(i, *size) for i, size in enumerate(sizes)]
    messages = messages_with(images)
    compact, expected = policy.compact_ids(messages), policy.encode(messages, images)
    assert compact.count(policy.processor.image_token_id) == len(images)
    found = policy.encode_ids(compact, images)
    assert policy.prompt_ids(found) == policy.prompt_ids(expected) and found.length == expected.length
    assert torch.equal(found.data.positions, expected.data.positions)
    assert found is policy.encode_ids(compact, images)
    with pytest.raises(ValueError, match=f"found {len(images)} image placeholders but {len(images) + 1} images"):
        policy.encode_ids(compact, [*images, picture(9)])


@pytest.mark.parametrize("sizes", SIZES)
def test_ids_and_pixels_are_the_family_processors(checkpoint, policy, sizes):
    images = [picture(i, *size) for i, size in enumerate(sizes)]
    messages = messages_with(images)
    reference = family_processor(checkpoint[0], policy)
    text = reference.apply_chat_template([dict(m) for m in messages], tokenize=False, add_generation_prompt=True)
    expected = reference(text=[text], images=images or None, return_tensors="pt")
    prompt = policy.encode(messages, images).data
    assert prompt.ids.tolist() == expected["input_ids"][0].tolist()
    if images:
        pixels = torch.cat([p.pixels for p in prompt.pictures])
        both = expected["pixel_values"].view(len(pixels), 3, 2, -1)
        assert torch.equal(both[:, :, 0], both[:, :, 1])
        assert torch.equal(pixels.view(len(pixels), 3, -1), both[:, :, 0])
        assert [list(p.grid) for p in prompt.pictures] == expected["image_grid_thw"].tolist()


def test_positions_are_the_models_own_and_go_on_after_the_largest(policy):
    prompt = policy.encode(user("red or blue?", 2), [picture(1, 140, 112), picture(2, 168, 56)]).data
    kinds = (prompt.ids == policy.processor.image_token_id).int()
    grids = torch.tensor([p.grid for p in prompt.pictures])
    expected, _ = policy.model.vlm.model.get_rope_index(prompt.ids[None], mm_token_type_ids=kinds[None], image_grid_thw=grids)
    assert torch.equal(prompt.positions, expected[:, 0])
    assert prompt.next_position == int(expected.max()) + 1 < len(prompt.ids)


def test_the_same_content_is_processed_once(policy):
    before = policy.counts["preprocessed"]
    first = policy.encode(user("a"), [picture(50)])
    assert policy.encode(user("a"), [picture(50)]) is first
    assert policy.encode(user("b"), [picture(50)]).data.pictures[0] is first.data.pictures[0]
    assert policy.encode(user("a"), [picture(51)]).key != first.key
    assert policy.counts["preprocessed"] == before + 2


def test_pictures_of_equal_bytes_and_other_shape_differ(policy):
    image = picture(3, 56, 112)
    turned = Image.frombytes("RGB", (112, 56), image.tobytes())
    assert policy.encode(user("a"), [image]).key != policy.encode(user("a"), [turned]).key


@pytest.mark.parametrize(("placeholders", "images"), [(2, 1), (0, 1), (1, 0)])
def test_a_wrong_number_of_images_is_named(policy, placeholders, images):
    with pytest.raises(ValueError, match=f"found {placeholders} image placeholders but {images} images"):
        policy.encode(user("How many?", placeholders), [picture(i) for i in range(images)])


def test_a_placeholder_typed_into_the_text_is_named(policy):
    with pytest.raises(ValueError, match="typed into the text"):
        policy.encode(user("what is <|image_pad|>?", 1), [picture(0)])


def test_an_appended_turn_is_what_the_template_would_have_written(policy):
    opening, reply = user("one", 0), user("two", 0)
    answer = {"role": "assistant", "content": [{"type": "text", "text": "red"}]}
    whole = policy.encode([*opening, answer, *reply]).data.ids.tolist()
    parts = [*policy.encode(opening).data.ids.tolist(), *policy.encode_text("red"), *policy.encode_append(reply)]
    assert policy.decode_text(whole, skip_special=False) == policy.decode_text(parts, skip_special=False)
    assert parts[-len(policy.encode_append(reply)) :][0] in policy.eos_ids


def test_an_answer_that_is_begun_goes_on_where_it_is(policy):
    asked, opened = user("q", 0), ({"role": "assistant", "content": [{"type": "text", "text": "<think>so</think><answer>"}]},)
    begun = policy.encode((*asked, *opened)).data.ids.tolist()
    assert begun == [*policy.encode(asked).data.ids.tolist(), *policy.encode_text("<think>so</think><answer>")]
    assert policy.encode_append((*asked, *opened)) == [*policy.encode_append(asked), *policy.encode_text("<think>so</think><answer>")]
    closed = policy.encode((*asked, *opened, *asked)).data.ids.tolist()
    assert closed[: len(begun)] == begun and closed[len(begun)] in policy.eos_ids


def test_an_appended_image_is_refused(policy):
    with pytest.raises(ValueError, match="new prefix"):
        policy.encode_append(user("look", 1))


def test_caches_stay_within_their_bytes():
    cache = Cache(100, len)
    for i in range(50):
        cache.put(str(i), b"x" * 30)
        assert cache.bytes <= 100
    assert cache.get("49") is not None and cache.get("0") is None
    cache.get("47")
    cache.put("50", b"x" * 30)
    assert cache.get("47") is not None and cache.get("48") is None
    assert cache.put("51", b"x" * 500) and cache.bytes == 500, "one value may exceed the capacity, alone"


def test_a_cached_prompt_counts_the_pictures_that_it_holds(policy):
    prompt = policy.encode(user("a", 2), [picture(60), picture(61)]).data
    assert prompt.nbytes > sum(p.patches.nbytes for p in prompt.pictures) == 2 * prompt.pictures[0].pixels.nbytes // 4


def test_text_round_trips(policy):
    text = "Größe: 3 < 5 — ok\n<answer>4</answer>"
    assert policy.decode_text(policy.encode_text(text)) == text


def test_folders_that_are_no_checkpoint_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        HFVLM.load(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"found notes\.txt; expected a checkpoint folder"):
        HFVLM.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="found model_type 'llama'; expected one of qwen2_vl"):
        HFVLM.load(tmp_path)
