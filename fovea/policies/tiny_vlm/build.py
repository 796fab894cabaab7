"""An untrained tiny Qwen2.5-VL: configuration, byte-level tokenizer, chat template, image processor.

Text 4 layers x 192, vision 4 blocks x 128 with full attention, patches of 8 pixels merged 2x2: a 64x64 picture is 16 visual tokens.
Every picture is resized to about 64x64 pixels of area (sides are multiples of 16), because that is what the base has seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
PATCH, MERGE, SIDE = 8, 2, 64
PIECES = r" ?\p{Lu}?\p{Ll}+| ?\p{L}| ?\p{N}| ?[^\s\p{L}\p{N}]|\s"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(corpus: Iterable[str], vocab_size: int = 640) -> PreTrainedTokenizerFast:
    """Byte-level BPE: words of the corpus become single tokens, digits and capitals stay single, any text can be encoded."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PIECES), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(TAGS), special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(corpus, trainer)
    core.add_tokens([AddedToken(t, special=False, normalized=False) for t in TAGS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[s for s in SPECIAL if s not in ("<|im_end|>", "<|endoftext|>")],
        padding_side="left",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_processor() -> Any:
    """Resizes to about SIDE x SIDE pixels of area and cuts patches."""
    area = SIDE * SIDE
    return Qwen2VLImageProcessorPil(min_pixels=area, max_pixels=area, patch_size=PATCH, merge_size=MERGE)


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """A randomly initialised model with tied embeddings.

    Matrices start at 1/sqrt(fan-in): with the usual 0.02 a width of 192 leaves the attention logits near zero, and looking things up
    in the context is then not learned within thousands of steps.
    """
    ids = {t: int(tokenizer.convert_tokens_to_ids(t)) for t in SPECIAL}  # pyright: ignore[reportArgumentType]
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": (len(tokenizer) + 15) // 16 * 16,
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        },
        vision_config={
            "depth": 4,
            "hidden_size": 128,
            "intermediate_size": 320,
            "num_heads": 4,
            "out_hidden_size": 192,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [0, 1, 2, 3],
        },
        **picture_tokens(ids),
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    for name, p in model.named_parameters():
        if p.ndim == 2 and "embed_tokens" not in name:
            torch.nn.init.normal_(p, std=p.shape[1] ** -0.5)
    model.generation_config = ends(ids)
    return model


def picture_tokens(ids: Mapping[str, int]) -> dict[str, Any]:
    """Fields of a Qwen configuration that name the tokens around pictures."""
    named = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    return {f"{field}_token_id": ids[f"<|{token}|>"] for field, token in named.items()}


def ends(ids: Mapping[str, int]) -> GenerationConfig:
    """An answer ends with the turn or with the text."""
    end, pad = ids["<|im_end|>"], ids["<|endoftext|>"]
    return GenerationConfig(eos_token_id=[end, pad], pad_token_id=pad, bos_token_id=pad)


def save(model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, out: Path, dtype: torch.dtype) -> None:
    """Write a checkpoint folder with weights of `dtype`; the model in memory keeps its own."""
    out.mkdir(parents=True, exist_ok=True)
    copy: Any = Qwen2_5_VLForConditionalGeneration(model.config)
    copy.load_state_dict(model.state_dict())
    copy.generation_config = model.generation_config
    copy.to(dtype).save_pretrained(out)
    tokenizer.save_pretrained(out)
    build_processor().save_pretrained(out)
