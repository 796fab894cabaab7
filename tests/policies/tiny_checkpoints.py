"""Tiny random checkpoints of every family, written to a folder as a real one would be, and pictures to show them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from fovea.policies.tiny_vlm.build import picture_tokens

QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
FAMILIES = (*QWEN, "llava", "llava_onevision", "idefics3", "smolvlm", "internvl", "paligemma")
CLIPS = (*QWEN, "llava_onevision", "smolvlm", "internvl")
"""Families that take clips."""
VARIANTS = ("llava+mistral", "internvl+qwen3", "paligemma+gemma2")
"""Families with another text model than the usual one."""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = (20, 370)
"""From and up to which id tokens are text in every family."""
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% elif part['type'] == 'video' %}VIDEO"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "system user assistant How many circles are in the picture? Answer with a number.",
    "red green blue square 0 1 2 3 4 5 6 7 8 9",
] * 50


class Kind(NamedTuple):
    """How a family's checkpoint is written.

    Attributes:
      tokens: its special tokens; the first is the placeholder.
      shown: what the chat template writes for an image.
      images: makes its image processor.
      fields: of `processor_config.json`.
      clip: of `video_preprocessor_config.json`, for families that take clips.
    """

    tokens: tuple[str, ...]
    shown: str
    images: Callable[[], Any]
    fields: Mapping[str, Any] = MappingProxyType({})
    clip: Mapping[str, Any] = MappingProxyType({})


SIDE = 28
"""Pixels along a tile; 16 patches of 7 pixels."""
TILE = {"height": SIDE, "width": SIDE}
IDEFICS3 = ("<image>", "<fake_token_around_image>", "<global-img>", *(f"<row_{r}_col_{c}>" for r in range(1, 4) for c in range(1, 4)))
GRIDS = [[SIDE * r, SIDE * c] for r in range(1, 4) for c in range(1, 4)]


def _qwen_kind(patch: int = 14) -> Kind:
    tokens = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    make = partial(Qwen2VLImageProcessorPil, min_pixels=56 * 56, max_pixels=448 * 448, patch_size=patch)
    clip = {"patch_size": patch, "size": {"shortest_edge": 56 * 56, "longest_edge": 224 * 224}}
    return Kind(tokens, "<|vision_start|><|image_pad|><|vision_end|>", make, clip=clip)


def _idefics3_kind(make: Any, clip: Mapping[str, Any] = MappingProxyType({})) -> Kind:
    settings = {"size": {"longest_edge": 3 * SIDE}, "max_image_size": {"longest_edge": SIDE}}
    return Kind(IDEFICS3, "<image>", partial(make, **settings), {"image_seq_len": 4}, clip)


KINDS = {
    "qwen2_vl": _qwen_kind(),
    "qwen2_5_vl": _qwen_kind(),
    "qwen3_vl": _qwen_kind(16),
    "llava": Kind(
        ("<image>",),
        "<image>\n",
        partial(CLIPImageProcessorPil, size={"shortest_edge": SIDE}, crop_size=TILE),
        {"patch_size": 7, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    "llava_onevision": Kind(
        ("<image>", "<video>"),
        "<image>\n",
        partial(LlavaOnevisionImageProcessorPil, size=TILE, image_grid_pinpoints=GRIDS),
        {"num_image_tokens": 16, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9"},
        {"size": TILE},
    ),
    "idefics3": _idefics3_kind(Idefics3ImageProcessorPil),
    "smolvlm": _idefics3_kind(SmolVLMImageProcessorPil, {"size": {"longest_edge": SIDE}, "max_image_size": {"longest_edge": SIDE}}),
    "internvl": Kind(
        ("<IMG_CONTEXT>", "<img>", "</img>", "<video>"),
        "<IMG_CONTEXT>\n",
        partial(GotOcr2ImageProcessorPil, size=TILE, min_patches=1, max_patches=4),
        {"image_seq_length": 4},
        {"size": TILE},
    ),
    "paligemma": Kind(("<image>",), "<image>", partial(SiglipImageProcessorPil, size=TILE, image_seq_length=16)),
}


def build(folder: Path, family: str, scale: float = 6.0, seed: int = 0, **sizes: Any) -> Path:
    """Write a checkpoint whose weight matrices are `scale` times the usual initialisation, so that its distributions are peaky.

    Args:
      family: one of `FAMILIES` or `VARIANTS`.
    """
    kind = KINDS[family.partition("+")[0]]
    tokenizer, ids = _tokenizer(kind)
    torch.manual_seed(seed)
    model = _model(family, (len(tokenizer) + 63) // 64 * 64, ids, **sizes)
    text = {id(p) for p in model.model.get_decoder().parameters()} | {id(model.lm_head.weight)}
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale if p.ndim > 1 and id(p) in text else 1.0)
            if p.ndim == 1:
                p.add_(0.1 * torch.randn_like(p))
    model.generation_config = GenerationConfig(eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]], pad_token_id=ids["<|endoftext|>"])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    kind.images().save_pretrained(folder)
    for name, fields in (("processor_config.json", kind.fields), ("video_preprocessor_config.json", kind.clip)):
        if fields:
            (folder / name).write_text(json.dumps(dict(fields)))
    return folder


def picture(seed: int, width: int = 112, height: int = 112) -> Image.Image:
    """Noise in blocks of 8 pixels: every patch differs from every other."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((blocks.shape[1] * 8, blocks.shape[0] * 8), Image.Resampling.NEAREST).crop((0, 0, width, height))


def _tokenizer(kind: Kind) -> tuple[PreTrainedTokenizerFast, dict[str, int]]:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), [*SPECIAL, *kind.tokens]
    bpe.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special[1:2] + special[3:],
    )
    video = kind.shown.replace("<|image_pad|>", "<|video_pad|>").replace("<image>", "<video>").replace("<IMG_CONTEXT>", "<video>")
    tokenizer.chat_template = TEMPLATE.replace("IMAGE", kind.shown).replace("VIDEO", video)
    return tokenizer, {s: tokenizer.convert_tokens_to_ids(s) for s in special}


def _decoder(vocab: int, hidden: int, layers: int) -> dict[str, int]:
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": hidden * 3,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 16,
        "num_key_value_heads": hidden // 32,
    }


def _model(family: str, vocab: int, ids: dict[str, int], hidden: int = 64, layers: int = 3, vision_hidden: int = 32) -> Any:
    name, _, text_model = family.partition("+")
    if name in QWEN:
        return _qwen(name, vocab, ids, hidden, layers, vision_hidden)
    text = {
        "model_type": text_model or TEXTS[name],
        **_decoder(vocab, hidden, layers),
        "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        **QUIRKS.get(text_model, {}),
    }
    side: Any = [SIDE, SIDE] if name == "internvl" else SIDE
    vision = {
        "hidden_size": vision_hidden,
        "intermediate_size": vision_hidden * 2,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": [7, 7] if name == "internvl" else 7,
        **TOWERS[name],
    }
    special = {"image_token_id": ids[KINDS[name].tokens[0]], "tie_word_embeddings": name != "llava", **PLACES[name]}
    if name == "paligemma":
        special |= {"projection_dim": hidden, "hidden_size": hidden, "vocab_size": vocab}
    return _make(CLASSES[name], text, vision, special)


CLASSES = {
    "llava": "Llava",
    "llava_onevision": "LlavaOnevision",
    "idefics3": "Idefics3",
    "smolvlm": "SmolVLM",
    "internvl": "InternVL",
    "paligemma": "PaliGemma",
}
TEXTS = {
    "llava": "llama",
    "llava_onevision": "qwen2",
    "idefics3": "llama",
    "smolvlm": "llama",
    "internvl": "qwen2",
    "paligemma": "gemma",
}
QUIRKS: dict[str, dict[str, Any]] = {
    "phi3": {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "mistral": {"sliding_window": 24},
    "gemma2": {
        "sliding_window": 24,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 12.0,
        "query_pre_attn_scalar": 24,
    },
}
TOWERS: dict[str, dict[str, Any]] = {
    "llava": {"model_type": "clip_vision_model"},
    "llava_onevision": {"model_type": "siglip_vision_model", "vision_use_head": False},
    "idefics3": {},
    "smolvlm": {},
    "internvl": {},
    "paligemma": {"model_type": "siglip_vision_model", "vision_use_head": False},
}
PLACES: dict[str, dict[str, Any]] = {
    "llava": {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"},
    "llava_onevision": {
        "video_token_id": 4,
        "image_grid_pinpoints": GRIDS,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    },
    "idefics3": {"scale_factor": 2},
    "smolvlm": {"scale_factor": 2},
    "internvl": {"downsample_ratio": 0.5},
    "paligemma": {},
}


def _qwen(family: str, vocab: int, ids: dict[str, int], hidden: int, layers: int, vision_hidden: int) -> Any:
    text = {
        **_decoder(vocab, hidden, layers),
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    }
    special = {**picture_tokens(ids), "tie_word_embeddings": True}
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
