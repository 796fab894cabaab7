"""What both sides of the speed benchmark are given: the cells, the pictures, the reward and a small random checkpoint."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from fovea.bench.flops import Shape

TASKS_PER_STEP = 4
LEARNING_RATE = 1e-5
QUESTION = "How many circles are in the picture? Answer with a number."
PIXELS = {64: (224, 224), 256: (448, 448), 1024: (896, 896), 2048: (1792, 896)}  # 28 x 28 pixels per visual token: nothing is resized


@dataclass(frozen=True, order=True)
class Cell:
    """One point of the benchmark: `image_tokens` visual tokens, exactly `new_tokens` per answer, `group_size` answers per task."""

    image_tokens: int
    new_tokens: int
    group_size: int = 8

    def __str__(self) -> str:
        return f"{self.image_tokens}+{self.new_tokens}x{self.group_size}"

    @classmethod
    def parse(cls, text: str) -> Cell:
        """`256+32x8` or `256+32` (group size 8)."""
        found = re.fullmatch(r"(\d+)\+(\d+)(?:x(\d+))?", text.strip())
        if not found or int(found[1]) not in PIXELS:
            sizes = ", ".join(map(str, PIXELS))
            raise ValueError(f"cell {text!r}; expected IMAGE+NEWxGROUP such as 256+32x8, IMAGE one of {sizes}")
        return cls(int(found[1]), int(found[2]), int(found[3] or 8))


HEADLINE = (Cell(256, 32), Cell(1024, 32), Cell(256, 128), Cell(64, 256))
SCALING = (Cell(1024, 32, 4), Cell(1024, 32, 16))
GRID = tuple(sorted(Cell(i, n, g) for i in (64, 256, 1024) for n in (32, 128, 512) for g in (4, 8, 16)))


def cells(names: str) -> tuple[Cell, ...]:
    """`headline`, `grid`, `all` (headline first), or a comma list of cells."""
    named = {"headline": HEADLINE, "grid": GRID, "all": HEADLINE + SCALING + tuple(c for c in GRID if c not in HEADLINE + SCALING)}
    return named.get(names) or tuple(Cell.parse(part) for part in names.split(","))


@dataclass(frozen=True)
class Row:
    """One question about one picture."""

    id: str
    image: Image.Image
    answer: str


def picture(seed: int, image_tokens: int) -> Row:
    """One to nine circles at seeded places; the answer is their number."""
    r = random.Random(seed)
    width, height = PIXELS[image_tokens]
    image = Image.new("RGB", (width, height), "white")
    pen, count = ImageDraw.Draw(image), r.randint(1, 9)
    for _ in range(count):
        x, y, radius = r.randrange(width), r.randrange(height), r.randint(width // 30, width // 10)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(r.randrange(200) for _ in range(3)))
    return Row(f"circles-{image_tokens}-{seed}", image, str(count))


def rows(step: int, image_tokens: int) -> list[Row]:
    """The tasks of one step. No two steps share a picture, so no cache can carry work from one step to the next."""
    return [picture(step * TASKS_PER_STEP + i, image_tokens) for i in range(TASKS_PER_STEP)]


def reward(text: str, answer: str) -> float:
    """One for an answer that contains the number, plus a small term so that random text never earns equal scores in a whole group."""
    return float(answer in text) + 0.01 * (sum(map(ord, text)) % 7)


# -- the checkpoint -----------------------------------------------------------------------------------------------------------

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CORPUS = (f"system user assistant {QUESTION}", "0 1 2 3 4 5 6 7 8 9 10 circles red green blue square <think> </think> <answer> </answer>")
TEMPLATE = """{%- for m in messages -%}
{{- '<|im_start|>' + m['role'] + '\\n' -}}
{%- if m['content'] is string -%}{{- m['content'] -}}{%- else -%}
{%- for part in m['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}
{%- endfor -%}{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""

SMALL = Shape(
    hidden=256, layers=4, heads=8, kv_heads=2, head_dim=32, inner=768, vocab=384, v_hidden=128, v_layers=2, v_full_layers=1, v_inner=384
)


def build_checkpoint(folder: Path, shape: Shape = SMALL, seed: int = 0, gain: float = 1.0) -> Path:
    """Write a random Qwen2.5-VL (3.1 M text and 1.0 M vision parameters by default) with tokenizer and image processor.

    Args:
      gain: factor on every weight matrix; above one the distribution over tokens is peaked, so that a numerical error would show.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from fovea.policies.tiny_vlm.build import ends, picture_tokens

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, initial_alphabet=alphabet, special_tokens=list(SPECIAL), show_progress=False)
    bpe.train_from_iterator(CORPUS * 50, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[t for t in SPECIAL if t not in ("<|im_end|>", "<|endoftext|>")],
        padding_side="left",
        model_max_length=32768,
    )
    tokenizer.chat_template = TEMPLATE
    if len(tokenizer) > shape.vocab:
        raise ValueError(f"the tokenizer has {len(tokenizer)} entries, the model {shape.vocab}; expected no more entries than embeddings")
    ids = {token: i for i, token in enumerate(SPECIAL)}  # the trainer numbers special tokens first, in their order
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=shape.vocab,
            hidden_size=shape.hidden,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            max_position_embeddings=32768,
            rms_norm_eps=1e-6,
            bos_token_id=ids["<|endoftext|>"],
            eos_token_id=ids["<|im_end|>"],
            pad_token_id=ids["<|endoftext|>"],
            rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=_mrope(shape.head_dim)),
        ),
        vision_config=dict(
            depth=shape.v_layers,
            hidden_size=shape.v_hidden,
            intermediate_size=shape.v_inner,
            num_heads=shape.v_hidden // shape.head_dim,
            out_hidden_size=shape.hidden,
            patch_size=14,
            spatial_merge_size=2,
            temporal_patch_size=2,
            window_size=112,
            fullatt_block_indexes=list(range(shape.v_layers - shape.v_full_layers, shape.v_layers)),
        ),
        **picture_tokens(ids),
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(gain if p.ndim > 1 else 1.0)
    model.generation_config = ends(ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=28 * 28 * 4096).save_pretrained(folder)
    return folder


def _mrope(head_dim: int) -> Sequence[int]:
    """Rotary frequencies for (time, height, width); they sum to half of the head."""
    time = head_dim // 8
    rest = head_dim // 2 - time
    return [time, rest - rest // 2, rest // 2]
