"""Chat messages and pictures -> token ids, patches and M-RoPE positions, for the Qwen-VL families, without torchvision.

The picture side follows the checkpoint's `preprocessor_config.json`, the text side its own tokenizer and chat template, so the token
ids are those of the family's processor. Everything is cached by content: the same picture is resized and cut into patches once.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from fovea.types import Message, Prefix

PLACEHOLDERS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>")
ANSWER = "\x00answer\x00"


@dataclass(frozen=True)
class Picture:
    """One preprocessed image.

    Attributes:
      key: content hash of the decoded pixels and the preprocessing settings.
      patches: (S, C, h*w) uint8, in the order that the vision tower reads. A still image is one frame: the second, identical frame of the
        checkpoint's two-frame patches is not stored.
      scale, mean, std: of the normalisation, pixel = (scale * patch - mean) / std; (C, 1) except `scale`.
      grid: (1, rows, columns) of patches.
      tokens: number of visual tokens that the language model sees.
    """

    key: str
    patches: Tensor
    scale: float
    mean: Tensor
    std: Tensor
    grid: tuple[int, int, int]
    tokens: int

    @property
    def pixels(self) -> Tensor:
        """(S, C*h*w) float32, normalised: to the last bit what transformers' processor gives, which rescales in float64."""
        return self.patches.double().mul_(self.scale).float().sub_(self.mean).div_(self.std).flatten(1)


@dataclass(frozen=True)
class Prompt:
    """What a `Prefix` of a language policy holds in `data`.

    Attributes:
      ids: (P,) token ids, image placeholders expanded.
      positions: (3, P) temporal, height and width position of each token (M-RoPE).
      next_position: position of the first token after the prompt, equal on all three axes.
      pictures: the images in the order of their placeholders.
    """

    ids: Tensor
    positions: Tensor
    next_position: int
    pictures: tuple[Picture, ...]

    @property
    def nbytes(self) -> int:
        return self.ids.nbytes + self.positions.nbytes + sum(p.patches.nbytes for p in self.pictures)


T = TypeVar("T")


class Cache(Generic[T]):
    """Least recently used values up to `capacity` bytes; `size` says how many bytes one value takes."""

    def __init__(self, capacity: int, size: Callable[[T], int]):
        self.capacity, self._size = capacity, size
        self._items: OrderedDict[str, tuple[T, int]] = OrderedDict()
        self.bytes = 0

    def get(self, key: str) -> T | None:
        if key not in self._items:
            return None
        self._items.move_to_end(key)
        return self._items[key][0]

    def put(self, key: str, value: T) -> T:
        self._drop(key)
        self._items[key] = (value, self._size(value))
        self.bytes += self._items[key][1]
        while self.bytes > self.capacity and len(self._items) > 1:
            self._drop(next(iter(self._items)))
        return value

    def clear(self) -> None:
        self._items.clear()
        self.bytes = 0

    def _drop(self, key: str) -> None:
        if key in self._items:
            self.bytes -= self._items.pop(key)[1]


def picture_hash(image: Image.Image) -> str:
    """Content hash of the decoded RGB pixels."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return hashlib.blake2b(rgb.tobytes(), digest_size=16, person=b"fovea-img", salt=f"{rgb.width}x{rgb.height}".encode()[:16]).hexdigest()


def cut(image: Image.Image, settings: Qwen2VLImageProcessorPil) -> tuple[Tensor, tuple[int, int, int]]:
    """Resize and cut one image as `settings` (the checkpoint's `preprocessor_config.json`) says.

    Returns:
      (S, C, h*w) uint8 patches, those that merge into one token side by side, and the grid (1, rows, columns).
    """
    image = image if image.mode == "RGB" else image.convert("RGB")
    side, merge = settings.patch_size, settings.merge_size
    if settings.do_resize:
        low, high = settings.size["shortest_edge"], settings.size["longest_edge"]
        height, width = smart_resize(image.height, image.width, side * merge, low, high)
        if (width, height) != image.size:
            image = image.resize((width, height), settings.resample)
    rows, columns = image.height // side, image.width // side
    units = np.asarray(image).reshape(rows // merge, merge, side, columns // merge, merge, side, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    return torch.from_numpy(units.reshape(rows * columns, 3, side**2)), (1, rows, columns)


def normalisation(settings: Qwen2VLImageProcessorPil) -> tuple[float, Tensor, Tensor]:
    """The settings' rescaling factor and (C, 1) mean and deviation; 1, 0 and 1 for steps that are switched off."""
    mean = torch.tensor(settings.image_mean if settings.do_normalize else [0.0] * 3)
    std = torch.tensor(settings.image_std if settings.do_normalize else [1.0] * 3)
    return settings.rescale_factor if settings.do_rescale else 1.0, mean[:, None], std[:, None]


class Processor:
    """Tokenizer, chat template and image processor of one checkpoint folder.

    Args:
      folder: checkpoint folder with `tokenizer.json`, a chat template and `preprocessor_config.json`.
      image_token_id: the placeholder that each visual token replaces.
      rope_index: the model's rule for M-RoPE positions, ((1, P) ids, (1, P) token types, (n, 3) grids or None) -> ((3, 1, P), delta).
      cache_bytes: how much memory preprocessed pictures may take.
    """

    def __init__(self, folder: Path, image_token_id: int, rope_index: Callable[..., tuple[Tensor, Tensor]], cache_bytes: int = 256 << 20):
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.images = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self.image_token_id, self.rope_index = image_token_id, rope_index
        self.tokenizer.chat_template = self.tokenizer.chat_template or _legacy_template(folder)
        self.normalisation = normalisation(self.images)
        self.preprocessed = 0
        self._pictures: Cache[Picture] = Cache(cache_bytes, lambda p: p.patches.nbytes)
        self._prompts: Cache[Prefix] = Cache(cache_bytes, lambda p: p.data.nbytes)

    def encode(self, messages: Sequence[Message], images: Sequence[Image.Image]) -> Prefix:
        """The prompt up to and including the generation prompt, as a `Prefix` whose `data` is a `Prompt`."""
        text = self.render(messages)
        keys = [picture_hash(image) for image in images]
        key = hashlib.blake2b(json.dumps([text, keys]).encode(), digest_size=16).hexdigest()
        if (found := self._prompts.get(key)) is not None:
            return found
        pictures = tuple(self.picture(image, k) for image, k in zip(images, keys, strict=True))
        ids = torch.tensor(self._expand(self.tokenizer(text, add_special_tokens=False)["input_ids"], pictures, text))
        positions, next_position = self._positions(ids, pictures)
        return self._prompts.put(key, Prefix(key, Prompt(ids, positions, next_position, pictures), len(ids)))

    def encode_append(self, messages: Sequence[Message]) -> list[int]:
        """Text-only tokens that follow an assistant answer: the end of its turn, `messages`, the next generation prompt."""
        if any(part.get("type") == "image" for m in messages if not isinstance(m["content"], str) for part in m["content"]):
            raise ValueError(
                "encode_append: found an image part; expected text only (a new image needs a new prefix: Observation(append=False))"
            )
        opening = [{"role": "user", "content": [{"type": "text", "text": "."}]}]
        text = self.render([*opening, {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]}, *messages])
        return self.tokenizer(text.split(ANSWER, 1)[1], add_special_tokens=False)["input_ids"]

    def render(self, messages: Sequence[Message]) -> str:
        """The chat template's text, one placeholder per image, ending with the generation prompt."""
        return self.tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False, add_generation_prompt=True)

    def picture(self, image: Image.Image, key: str | None = None) -> Picture:
        """The image's patches, made once per content."""
        key = key or picture_hash(image)
        if (found := self._pictures.get(key)) is not None:
            return found
        self.preprocessed += 1
        patches, grid = cut(image, self.images)
        return self._pictures.put(key, Picture(key, patches, *self.normalisation, grid, len(patches) // self.images.merge_size**2))

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        self.images.save_pretrained(folder)

    def _expand(self, ids: Sequence[int], pictures: Sequence[Picture], text: str) -> list[int]:
        found = sum(i == self.image_token_id for i in ids)
        if found != len(pictures):
            raise ValueError(
                f"prompt: found {found} image placeholders but {len(pictures)} images; expected one image per "
                f'{{"type": "image"}} part (a likely cause is a placeholder typed into the text). Prompt begins {text[:160]!r}'
            )
        tokens = iter(p.tokens for p in pictures)
        return [j for i in ids for j in ([i] * next(tokens) if i == self.image_token_id else [i])]

    def _positions(self, ids: Tensor, pictures: Sequence[Picture]) -> tuple[Tensor, int]:
        if not pictures:
            return torch.arange(len(ids)).expand(3, -1), len(ids)
        kinds = (ids == self.image_token_id).int()
        positions, delta = self.rope_index(
            ids[None], mm_token_type_ids=kinds[None], image_grid_thw=torch.tensor([p.grid for p in pictures])
        )
        return positions[:, 0], len(ids) + int(delta)


def _legacy_template(folder: Path) -> Any:
    """The chat template of checkpoints that keep it in `chat_template.json`."""
    file = folder / "chat_template.json"
    if file.exists():
        return json.loads(file.read_text())["chat_template"]
    raise ValueError(
        f"{folder}: found no chat template; expected one in tokenizer_config.json, chat_template.jinja or chat_template.json "
        "(a base model without one cannot be prompted with chat messages)"
    )
