"""Every family of vision-language models, one entry per `model_type`: what sets it apart; everything else is read from its own modules.

transformers builds every family from three parts: an image encoder (`get_encoder("image")`), a decoder (`get_decoder()`) and, in between,
a projector. `get_image_features` turns pictures into the decoder's tokens; they take the places of the placeholder `image_token_id`.
Positions are M-RoPE where the model has `get_rope_index` and plain otherwise.

A new family needs an entry here and a decoder layer that `fovea.policies.decoder` knows. Functions are named, and looked up when they are
used, so that this file loads nothing heavy. Every entry is compared with the family's stock processors (`tests/policies/test_families.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pkgutil import resolve_name
from typing import Any


def _named(module: str, attribute: str) -> cached_property[Callable[..., Any]]:
    """The function of `fovea.policies.<module>` whose name an attribute holds, looked up when it is first needed."""
    return cached_property(lambda self: resolve_name(f"fovea.policies.{module}:{getattr(self, attribute)}"))


@dataclass(frozen=True)
class Clips:
    """How one family shows clips; functions are those of `fovea.policies.clips`.

    Attributes:
      taker: name of (video settings, stream, number of frames, frames per second) -> indices of the frames to show.
      shower: name of (settings, clip, placeholder) -> pixels, grid, tokens and text.
      slot: the clip's placeholder in a prompt.
      own: whether the visual tokens are the slot's, not those of images.
      defaults: settings of checkpoints that do not name them.
    """

    taker: str
    shower: str
    slot: str
    own: bool
    defaults: Mapping[str, Any] = field(default_factory=dict)

    take = _named("clips", "taker")
    show = _named("clips", "shower")


@dataclass(frozen=True)
class Family:
    """How one family departs from the rule.

    Attributes:
      title: its name for people.
      model: the class in transformers.
      encoder: name in `fovea.policies.vision` of (model, pictures, direct) -> the features of each picture.
      shower: name in `fovea.policies.pictures` of (settings, RGB image, whether it is the only one of its prompt) -> pixels, grid, tokens
        and text.
      clip: how it shows clips; None where it takes none.
      needs: fields of `processor_config.json`, or of the image processor, without which its pictures cannot be shown.
      never: tokens that a policy must never emit, besides the placeholder.
      template: chat template of checkpoints that have none.
      frame: (text, placeholder, bos) -> the text with its special tokens; without it the tokenizer adds its own.
      first: position of a prompt's first token.
      prefix_lm: a prompt attends to itself in both directions; answers are causal all the same.
      capped: logits pass the tanh of the text config's `final_logit_softcapping`, if it names one.
    """

    title: str
    model: str
    encoder: str
    shower: str
    clip: Clips | None = None
    needs: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    template: str = ""
    frame: Callable[[str, str, str], str] | None = None
    first: int = 0
    prefix_lm: bool = False
    capped: bool = False

    encode = _named("vision", "encoder")
    show = _named("pictures", "shower")


def frame_paligemma(text: str, placeholder: str, bos: str) -> str:
    """The start of the sequence follows the last picture; a line break ends the prompt."""
    before, found, after = text.rpartition(placeholder)
    return f"{before}{found}{bos}{after}\n"


FAKE = "<fake_token_around_image>"
"""Idefics3 and SmolVLM set it before and after every tile."""
CLIP_NORM = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
HALF_NORM = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
STEPS = {"temporal_patch_size": 2, "merge_size": 2, "min_frames": 4, "max_frames": 768}
QWEN2_CLIP = {"patch_size": 14, "size": {"shortest_edge": 128 * 28**2, "longest_edge": 768 * 28**2}, "max_video_tokens": 128000}
QWEN3_CLIP = {"patch_size": 16, "size": {"shortest_edge": 128 * 32**2, "longest_edge": 768 * 32**2}, "max_video_tokens": 768, "fps": 2}
QWEN_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>")
SPLIT_TOKENS = (FAKE, "<global-img>", *(f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)))
ONLY_PICTURES_AND_TEXT = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)
QWEN2_CLIPS = Clips("take_pairs", "qwen", "<|video_pad|>", True, {**STEPS, **QWEN2_CLIP, **CLIP_NORM})

FAMILIES = {
    "qwen2_vl": Family("Qwen2-VL", "Qwen2VLForConditionalGeneration", "packed", "qwen", QWEN2_CLIPS, never=QWEN_TOKENS),
    "qwen2_5_vl": Family("Qwen2.5-VL", "Qwen2_5_VLForConditionalGeneration", "packed", "qwen", QWEN2_CLIPS, never=QWEN_TOKENS),
    "qwen3_vl": Family(
        "Qwen3-VL",
        "Qwen3VLForConditionalGeneration",
        "packed",
        "qwen",
        Clips("take_ends", "qwen3", "<|video_pad|>", True, {**STEPS, **QWEN3_CLIP, **HALF_NORM}),
        never=QWEN_TOKENS,
    ),
    "llava": Family("LLaVA", "LlavaForConditionalGeneration", "tiles", "llava", needs=("patch_size", "vision_feature_select_strategy")),
    "llava_onevision": Family(
        "LLaVA-OneVision",
        "LlavaOnevisionForConditionalGeneration",
        "any_resolution",
        "llava_onevision",
        Clips("take_evenly", "llava_onevision", "<video>", True, CLIP_NORM),
        needs=("num_image_tokens", "vision_feature_select_strategy"),
        never=("<video>",),
    ),
    "smolvlm": Family(
        "SmolVLM",
        "SmolVLMForConditionalGeneration",
        "sample_tiles",
        "idefics3",
        Clips("take_at_most", "smolvlm", "<video>", False, HALF_NORM),
        needs=("image_seq_len",),
        never=SPLIT_TOKENS,
    ),
    "idefics3": Family(
        "Idefics3", "Idefics3ForConditionalGeneration", "sample_tiles", "idefics3", needs=("image_seq_len",), never=SPLIT_TOKENS
    ),
    "internvl": Family(
        "InternVL (HF format)",
        "InternVLForConditionalGeneration",
        "tiles",
        "internvl",
        Clips("take_middles", "internvl", "<video>", False, CLIP_NORM),
        needs=("image_seq_length",),
        never=("<img>", "</img>", "<video>"),
    ),
    "paligemma": Family(
        "PaliGemma",
        "PaliGemmaForConditionalGeneration",
        "tiles",
        "paligemma",
        needs=("image_seq_length",),
        template=ONLY_PICTURES_AND_TEXT,
        frame=frame_paligemma,
        first=1,
        prefix_lm=True,
        capped=True,
    ),
}
