"""Checkpoint folders without weights: small tokenizers and chat templates of our own, the picture settings of published checkpoints.

The settings are those of Qwen2-VL-2B, Qwen2.5-VL-3B, Qwen3-VL-2B, LLaVA-1.5-7B, LLaVA-OneVision-7B, Idefics3-8B, SmolVLM2-500M,
InternVL3-1B and PaliGemma-3B-224, with fewer tiles and pixels where that changes nothing but the cost. Tokenizers have the families'
special tokens and pre-tokenisation; their merges are written down, so that ids do not depend on a training algorithm.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from fovea.video import Video

CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
STEPS = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True, "rescale_factor": 1 / 255, "resample": 3}

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% elif part['type'] == 'video' %}VIDEO{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
USER = (
    "{% for message in messages %}{{ message['role'] | upper }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
CAPITAL = (
    "BEGIN{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% elif part['type'] == 'video' %}<video>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
QWEN_TOKENS = "<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>".split()
QWEN_TEMPLATE = CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>").replace(
    "VIDEO", "<|vision_start|><|video_pad|><|vision_end|>"
)
ROW_COL = [f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)]
SPLIT_TOKENS = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *ROW_COL]

QWEN = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, **STEPS, **CLIP}
QWEN_VIDEO = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "min_frames": 4, "max_frames": 768, **STEPS, **CLIP}
SPLIT_VIDEO = {"do_pad": True, **STEPS, **HALF, "resample": 1}
QWEN_SIZE = {"shortest_edge": 3136, "longest_edge": 448 * 448}
SPLIT = {"do_image_splitting": True, "do_pad": True, **STEPS, **HALF, "resample": 1}
PINPOINTS = [[384 * r, 384 * c] for r in range(1, 7) for c in range(1, 7) if r * c <= 9]


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Integer arithmetic only: slopes, edges and fine stripes, the same on every machine."""
    y, x, c = np.ogrid[:height, :width, : {"RGB": 3, "RGBA": 4, "L": 1}[mode]]
    pixels = (x * 5 + y * 3 + c * 67 + (x * y // 37) % 90 + ((x // 17 + y // 23 + c) % 2) * 80).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if mode == "L" else pixels)


def moving(frames: int, width: int, height: int) -> list[Image.Image]:
    """A view that slides over a picture, a bright square that goes the other way."""
    scene = picture(width + 9 * frames, height)
    shots = [scene.crop((9 * t, 0, 9 * t + width, height)) for t in range(frames)]
    for t, shot in enumerate(shots):
        shot.paste((255, 240, 10 * t), (width - 20 - 3 * t, 10 + 2 * t, width - 4 - 3 * t, 26 + 2 * t))
    return shots


IMAGES: dict[str, dict[str, Any]] = {
    "qwen2_vl": {**QWEN, "size": QWEN_SIZE},
    "qwen2_5_vl": {**QWEN, "size": QWEN_SIZE},
    "qwen3_vl": {**QWEN, **HALF, "patch_size": 16, "size": {"shortest_edge": 65536, "longest_edge": 512 * 512}},
    "llava": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 336},
        "crop_size": {"height": 336, "width": 336},
        "do_center_crop": True,
        **STEPS,
        **CLIP,
    },
    "llava_onevision": {
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "size": {"height": 384, "width": 384},
        "image_grid_pinpoints": PINPOINTS,
        "do_pad": True,
        **STEPS,
        **CLIP,
    },
    "idefics3": {
        "image_processor_type": "Idefics3ImageProcessor",
        "size": {"longest_edge": 4 * 364},
        "max_image_size": {"longest_edge": 364},
        **SPLIT,
    },
    "smolvlm": {
        "image_processor_type": "SmolVLMImageProcessor",
        "size": {"longest_edge": 2 * 512},
        "max_image_size": {"longest_edge": 512},
        **SPLIT,
    },
    "internvl": {
        "image_processor_type": "GotOcr2ImageProcessor",
        "size": {"height": 448, "width": 448},
        "crop_to_patches": False,
        "min_patches": 1,
        "max_patches": 6,
        **STEPS,
        **IMAGENET,
    },
    "paligemma": {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": 224, "width": 224},
        "image_seq_length": 256,
        **STEPS,
        **HALF,
    },
}
VIDEOS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {**QWEN_VIDEO, "size": {"shortest_edge": 3136, "longest_edge": 224 * 224}},
    "qwen2_5_vl": {**QWEN_VIDEO, "size": {"shortest_edge": 3136, "longest_edge": 224 * 224}, "fps": 2.0},
    "qwen3_vl": {**QWEN_VIDEO, **HALF, "patch_size": 16, "size": {"shortest_edge": 4096, "longest_edge": 6 * 256 * 256}, "fps": 2},
    "llava_onevision": {"size": {"height": 384, "width": 384}, **STEPS, **CLIP},
    "smolvlm": {
        "size": {"longest_edge": 512},
        "max_image_size": {"longest_edge": 512},
        "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 512}},
        **SPLIT_VIDEO,
    },
    "internvl": {"size": {"height": 448, "width": 448}, "initial_shift": True, **STEPS, **IMAGENET},
}
FIELDS: dict[str, dict[str, Any]] = {
    "llava": {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    "llava_onevision": {"num_image_tokens": 729, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9"},
    "idefics3": {"image_seq_len": 169},
    "smolvlm": {"image_seq_len": 64},
    "internvl": {"image_seq_length": 256},
}
CASES: dict[str, list[Any]] = {
    "landscape": [(640, 427), "How many the red?"],
    "tall, after the text": ["Read it.\n", (90, 400), "\n\nin the picture"],
    "small gray": [(30, 26, "L"), "Größe?"],
    "wide": [(1300, 500), "thing"],
    "two, one with alpha": ["First ", (300, 500, "RGBA"), "then ", (64, 48), " red or blue?"],
    "square, of one tile": [(448, 448), "2 < 3"],
}
"""What the user says: text, and pictures as (width, height[, mode])."""

CLIP_FILE = Path(__file__).parents[1] / "fixtures" / "processors" / "clip.mp4"
"""3 seconds of 10 frames of 160 x 120."""
CLIPS: dict[str, list[Any]] = {
    "five pictures": [Video(tuple(moving(5, 130, 96)), fps=4.0), "What moves?"],
    "pictures of no known rate": ["Look: ", Video(tuple(moving(2, 64, 90)))],
    "a file, 4 a second": [Video(CLIP_FILE, fps=4.0), "What moves?"],
    "six frames of a file": ["Before. ", Video(CLIP_FILE, frames=6), "in the middle"],
    "a picture and two clips": [
        "A ",
        (90, 64),
        "B ",
        Video(tuple(moving(4, 80, 60)), fps=2.0),
        "C ",
        Video(tuple(moving(4, 60, 80)), fps=1.0),
    ],
}
"""What the user says: text, pictures and clips."""
OWN_CHOICE = {"a file, as the checkpoint says": [Video(CLIP_FILE), "thing"]}

IMAGE_TOKEN = {family: "<image>" for family in IMAGES} | {family: "<|image_pad|>" for family in IMAGES if "qwen" in family}
IMAGE_TOKEN["internvl"] = "<IMG_CONTEXT>"


def build(family: str, folder: Path) -> int:
    """Write the folder; returns the id of the image placeholder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, config = TOKENIZERS[family]()
    tokenizer.save(str(folder / "tokenizer.json"))
    image = tokenizer.token_to_id(IMAGE_TOKEN[family])
    files = {
        "config": {"model_type": family, "image_token_id": image},
        "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast", **config},
        "preprocessor_config": IMAGES[family],
        "video_preprocessor_config": VIDEOS.get(family, {}),
        "processor_config": FIELDS.get(family, {}),
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return image


def clips(family: str) -> dict[str, list[Any]]:
    """The cases that the family's stock processor can do: SmolVLM's takes pictures or clips, and not all checkpoints choose frames."""
    own = OWN_CHOICE if family in ("qwen2_5_vl", "qwen3_vl", "smolvlm") else {}
    return {n: c for n, c in (CLIPS | own).items() if family != "smolvlm" or "picture and" not in n}


def said(case: list[Any]) -> tuple[list[dict[str, Any]], list[Image.Image | Video]]:
    """One user message, its pictures and clips."""
    kinds = {str: "text", tuple: "image", Video: "video"}
    content = [{"type": kinds[type(part)]} | ({"text": part} if isinstance(part, str) else {}) for part in case]
    images = [part if isinstance(part, Video) else picture(*part) for part in case if not isinstance(part, str)]
    return [{"role": "user", "content": content}], images


def _byte_level(special: list[str], merges: str = "Ċ Ċ|i n|Ġ i|t h|Ġ th|Ġth e|e d|r ed|Ġ c|Ġc o|: Ċ|. Ċ|? Ċ") -> Tokenizer:
    pairs = [tuple(m.split(" ")) for m in merges.split("|")]
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(p) for p in pairs)]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    return tokenizer


def _sentence_piece(special: list[str], prefix: str, bos: str) -> Tokenizer:
    """Spaces written as ▁, unknown characters as bytes, a start token that the tokenizer adds itself."""
    pairs = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("r", "e"), ("re", "d"), ("i", "n")]
    letters = [chr(i) for i in range(33, 127)] + ["▁", "\n"]
    pieces = ["<unk>", bos, *(f"<0x{i:02X}>" for i in range(256)), *letters, *("".join(p) for p in pairs)]
    vocabulary = {p: i for i, p in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(prefix), spaces]) if prefix else spaces
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ["<unk>", bos, *special]])
    return _starting(tokenizer, bos)


def _starting(tokenizer: Tokenizer, bos: str) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


def _qwen() -> tuple[Tokenizer, dict[str, Any]]:
    return _byte_level(QWEN_TOKENS), {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": QWEN_TEMPLATE}


def _llava() -> tuple[Tokenizer, dict[str, Any]]:
    tokenizer = _sentence_piece(["</s>", "<image>", "<pad>"], "▁", "<s>")
    return tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "chat_template": USER}


def _onevision() -> tuple[Tokenizer, dict[str, Any]]:
    tokenizer = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"])
    template = CHATML.replace("IMAGE", "<image>").replace("VIDEO", "<video>")
    return tokenizer, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": template}


def _idefics3() -> tuple[Tokenizer, dict[str, Any]]:
    bos = "<|begin_of_text|>"
    tokenizer = _starting(_byte_level([bos, "<|end_of_text|>", *SPLIT_TOKENS]), bos)
    names = {"bos_token": bos, "eos_token": "<|end_of_text|>", "pad_token": "<|end_of_text|>"}
    return tokenizer, {**names, "chat_template": CAPITAL.replace("BEGIN", bos)}


def _smolvlm() -> tuple[Tokenizer, dict[str, Any]]:
    tokenizer = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *SPLIT_TOKENS])
    names = {"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "pad_token": "<|im_end|>"}
    return tokenizer, {**names, "chat_template": CAPITAL.replace("BEGIN", "<|im_start|>")}


def _internvl() -> tuple[Tokenizer, dict[str, Any]]:
    marks = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *marks.values()])
    template = CHATML.replace("IMAGE", "<IMG_CONTEXT>\n").replace("VIDEO", "<video>\n")
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "extra_special_tokens": marks}
    return tokenizer, {**names, "chat_template": template}


def _paligemma() -> tuple[Tokenizer, dict[str, Any]]:
    tokenizer = _sentence_piece(["<eos>", "<pad>", "<image>"], "", "<bos>")
    return tokenizer, {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}


TOKENIZERS = {
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
    "llava": _llava,
    "llava_onevision": _onevision,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "internvl": _internvl,
    "paligemma": _paligemma,
}
