"""How each model family shows pictures and clips to its language model, one entry of `LOOKS` per `model_type`.

Every entry is compared with the family's stock processors in `tests/policies/test_families.py`: token ids and pixels are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from fovea.policies import clips, pictures
from fovea.policies.clips import ClipLook
from fovea.policies.pictures import FAKE, Settings, Shown


@dataclass(frozen=True)
class Look:
    """How one family shows pictures.

    Attributes:
      show: (settings, RGB image, whether it is the only one of its prompt) -> pixels, grid, tokens and text.
      never: tokens that a policy must never emit, besides the placeholder.
      clip: how it shows clips; None where it takes none.
      template: chat template of checkpoints that have none.
      frame: (text, placeholder, bos) -> the text with its special tokens; without it the tokenizer adds its own.
    """

    show: Callable[[Settings, Image.Image, bool], Shown]
    never: tuple[str, ...] = ()
    clip: ClipLook | None = None
    template: str = ""
    frame: Callable[[str, str, str], str] | None = None


def frame_paligemma(text: str, placeholder: str, bos: str) -> str:
    """The start of the sequence follows the last picture; a line break ends the prompt."""
    before, found, after = text.rpartition(placeholder)
    return f"{before}{found}{bos}{after}\n"


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

QWEN2 = Look(
    pictures.qwen, QWEN_TOKENS, ClipLook(clips.take_pairs, clips.qwen, "<|video_pad|>", True, {**STEPS, **QWEN2_CLIP, **CLIP_NORM})
)
LOOKS = {
    "qwen2_vl": QWEN2,
    "qwen2_5_vl": QWEN2,
    "qwen3_vl": Look(
        pictures.qwen, QWEN_TOKENS, ClipLook(clips.take_ends, clips.qwen3, "<|video_pad|>", True, {**STEPS, **QWEN3_CLIP, **HALF_NORM})
    ),
    "llava": Look(pictures.llava),
    "llava_onevision": Look(
        pictures.llava_onevision, ("<video>",), ClipLook(clips.take_evenly, clips.llava_onevision, "<video>", True, CLIP_NORM)
    ),
    "idefics3": Look(pictures.idefics3, SPLIT_TOKENS),
    "smolvlm": Look(pictures.idefics3, SPLIT_TOKENS, ClipLook(clips.take_at_most, clips.smolvlm, "<video>", False, HALF_NORM)),
    "internvl": Look(
        pictures.internvl, ("<img>", "</img>", "<video>"), ClipLook(clips.take_middles, clips.internvl, "<video>", False, CLIP_NORM)
    ),
    "paligemma": Look(pictures.paligemma, template=ONLY_PICTURES_AND_TEXT, frame=frame_paligemma),
}
