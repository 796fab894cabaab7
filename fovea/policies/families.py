"""What sets one family of vision-language models apart, one line per `model_type`; everything else is read from the model's own modules.

transformers builds every family from three parts: an image encoder (`get_encoder("image")`), a decoder (`get_decoder()`) and, in between,
a projector. `get_image_features` turns pictures into the decoder's tokens; they take the places of the placeholder `image_token_id`.
Positions are M-RoPE where the model has `get_rope_index` and plain otherwise.

A new family needs a line here, a decoder layer that `fovea.policies.decoder` knows, and its pictures and prompts in
`fovea.policies.looks`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fovea.policies import vision
from fovea.policies.processor import Picture
from fovea.policies.vision import Features


@dataclass(frozen=True)
class Family:
    """How one family departs from the rule.

    Attributes:
      model: the class in transformers.
      encode: (model, pictures, direct) -> the features of each picture.
      first: position of a prompt's first token.
      prefix_lm: a prompt attends to itself in both directions; answers are causal all the same.
      capped: logits pass the tanh of the text config's `final_logit_softcapping`, if it names one.
    """

    model: str
    encode: Callable[[Any, Sequence[Picture], bool], list[Features]]
    first: int = 0
    prefix_lm: bool = False
    capped: bool = False


FAMILIES = {
    "qwen2_vl": Family("Qwen2VLForConditionalGeneration", vision.packed),
    "qwen2_5_vl": Family("Qwen2_5_VLForConditionalGeneration", vision.packed),
    "qwen3_vl": Family("Qwen3VLForConditionalGeneration", vision.packed),
    "llava": Family("LlavaForConditionalGeneration", vision.tiles),
    "llava_onevision": Family("LlavaOnevisionForConditionalGeneration", vision.any_resolution),
    "idefics3": Family("Idefics3ForConditionalGeneration", vision.sample_tiles),
    "smolvlm": Family("SmolVLMForConditionalGeneration", vision.sample_tiles),
    "internvl": Family("InternVLForConditionalGeneration", vision.tiles),
    "paligemma": Family("PaliGemmaForConditionalGeneration", vision.tiles, first=1, prefix_lm=True, capped=True),
}
