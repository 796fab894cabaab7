"""Tiny random checkpoints of the three Qwen-VL families, written to a folder as a real one would be, and pictures to show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "system user assistant How many circles are in the picture? Answer with a number.",
    "red green blue square 0 1 2 3 4 5 6 7 8 9",
] * 50


def build(folder: Path, family: str, scale: float = 6.0, seed: int = 0, **sizes: Any) -> Path:
    """Write a checkpoint whose weight matrices are `scale` times the usual initialisation, so that its distributions are peaky."""
    tokenizer, ids = _tokenizer()
    images = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=448 * 448)
    if family == "qwen3_vl":
        images.patch_size = 16
    torch.manual_seed(seed)
    model = _model(family, (len(tokenizer) + 63) // 64 * 64, ids, **sizes)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.mul_(scale if p.ndim > 1 and "visual" not in name else 1.0)
            if p.ndim == 1:
                p.add_(0.1 * torch.randn_like(p))
    model.generation_config = GenerationConfig(eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]], pad_token_id=ids["<|endoftext|>"])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    images.save_pretrained(folder)
    return folder


def picture(seed: int, width: int = 112, height: int = 112) -> Image.Image:
    """Noise in blocks of 8 pixels: every patch differs from every other."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((blocks.shape[1] * 8, blocks.shape[0] * 8), Image.Resampling.NEAREST).crop((0, 0, width, height))


def _tokenizer() -> tuple[PreTrainedTokenizerFast, dict[str, int]]:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", additional_special_tokens=SPECIAL[1:2] + SPECIAL[3:]
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer, {s: tokenizer.convert_tokens_to_ids(s) for s in SPECIAL}


def _model(family: str, vocab: int, ids: dict[str, int], hidden: int = 64, layers: int = 3, vision_hidden: int = 32) -> Any:
    text = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": hidden * 3,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 16,
        "num_key_value_heads": hidden // 32,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    }
    special = {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": True,
    }
    vision = {"depth": 3, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_heads": 2}
    wide = {"hidden_size": vision_hidden, "intermediate_size": vision_hidden * 3, "out_hidden_size": hidden}
    if family == "qwen2_vl":
        vision |= {"embed_dim": vision_hidden, "hidden_size": hidden, "mlp_ratio": 3}
        return _make("Qwen2VL", text, vision, special)
    if family == "qwen2_5_vl":
        return _make("Qwen2_5_VL", text, vision | wide | {"window_size": 56, "fullatt_block_indexes": [1]}, special)
    text |= {"head_dim": 32, "rope_parameters": {**text["rope_parameters"], "mrope_section": [6, 5, 5]}}
    vision |= wide | {"patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 2]}
    return _make("Qwen3VL", text, vision, special)


def _make(name: str, text: dict[str, Any], vision: dict[str, Any], special: dict[str, Any]) -> Any:
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=vision, **special)
    return getattr(transformers, f"{name}ForConditionalGeneration")(config)
