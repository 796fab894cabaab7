"""Chat messages, pictures and clips -> token ids, pixels and positions, for every family of `fovea.policies.families.FAMILIES`.

The picture side follows the checkpoint's image processor, the text side its own tokenizer and chat template, so token ids and pixels are
those of the family's processor. Everything is cached by content: the same picture is resized and cut once.

What a model reads of a prompt is `Prompt`: `ids`; `places`, where the features of `pictures`, one after the other, replace embeddings;
`positions`; and of each picture `pixels`, `grid`, `size`, `seconds` (clips) and `tokens` (its number of features). No other tensor of a
stock processor is needed: attention masks are all ones, tiles are never padded to the tile count of another picture.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer

from fovea.images import rgb
from fovea.policies import clips
from fovea.policies.families import FAMILIES
from fovea.policies.pictures import Picture, normalisation, read_settings
from fovea.types import Message, Prefix, begun
from fovea.video import Video, existing

ANSWER = "\x00answer\x00"


@dataclass(frozen=True)
class Prompt:
    """What a `Prefix` of a language policy holds in `data`.

    Attributes:
      ids: (P,) token ids, image placeholders expanded.
      places: (S,) increasing positions in `ids` of the visual tokens: those of pictures[0] first, then pictures[1], ...
      positions: (3, P) temporal, height and width position of each token (M-RoPE); for models with plain positions 0, 1, 2, ... thrice.
      next_position: position of the first token after the prompt, equal on all three axes.
      pictures: the images in the order of their placeholders.
      images: what they were made from.
    """

    ids: Tensor
    places: Tensor
    positions: Tensor
    next_position: int
    pictures: tuple[Picture, ...]
    images: tuple[Image.Image | Video, ...] = ()

    @property
    def nbytes(self) -> int:
        pixels = sum(3 * x.width * x.height for x in self.images if not isinstance(x, Video))
        return self.ids.nbytes + self.places.nbytes + self.positions.nbytes + sum(p.patches.nbytes for p in self.pictures) + pixels


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

    def __len__(self) -> int:
        return len(self._items)

    def clear(self) -> None:
        self._items.clear()
        self.bytes = 0

    def _drop(self, key: str) -> None:
        if key in self._items:
            self.bytes -= self._items.pop(key)[1]


def picture_hash(image: Image.Image) -> str:
    """Content hash of the RGB pixels."""
    pixels = rgb(image)
    salt = f"{pixels.width}x{pixels.height}".encode()[:16]
    return hashlib.blake2b(pixels.tobytes(), digest_size=16, person=b"fovea-img", salt=salt).hexdigest()


def clip_hash(video: Video) -> str:
    """Content hash of a clip and of what is taken of it; a file counts as the same while its size and its time of change stand."""
    if isinstance(video.source, tuple):
        content: list[Any] = [picture_hash(frame) for frame in video.source]
    else:
        file = existing(video.source)
        content = [str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns]
    return hashlib.blake2b(json.dumps([content, video.fps, video.frames]).encode(), digest_size=16, person=b"fovea-clip").hexdigest()


class Processor:
    """Tokenizer, chat template and image processor of one checkpoint folder.

    Args:
      folder: checkpoint folder with `config.json`, `tokenizer.json`, a chat template, `preprocessor_config.json` and, for the families that
        read it, `processor_config.json`.
      image_token_id: the placeholder that each visual token replaces, from the model's config.
      rope_index: the model's rule for M-RoPE positions, ((1, P) ids, (1, P) token types, (n, 3) grids or None) -> ((3, 1, P), delta);
        None for models with plain positions.
      cache_bytes: how much memory preprocessed pictures may take.
    """

    def __init__(
        self,
        folder: Path,
        image_token_id: int,
        rope_index: Callable[..., tuple[Tensor, Tensor]] | None = None,
        cache_bytes: int = 256 << 20,
    ):
        self.folder, self.image_token_id, self.rope_index = folder, image_token_id, rope_index
        self.kind = _kind(folder)
        self.family = FAMILIES[self.kind]
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.placeholder: str = self.tokenizer.convert_ids_to_tokens(image_token_id)
        self.settings = read_settings(folder, self.placeholder, self.family.clip.defaults if self.family.clip else {})
        for name in self.family.needs:
            self.settings.need(name)
        self.images = self.settings.images
        self.tokenizer.chat_template = self.tokenizer.chat_template or _template_file(folder) or self.family.template
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"{folder}: found no chat template; expected one in tokenizer_config.json, chat_template.jinja or chat_template.json "
                "(a base model without one cannot be prompted with chat messages)"
            )
        self.normalisation = normalisation(self.images)
        clip = self.family.clip
        self.video_token_id: int | None = self.tokenizer.get_vocab().get(clip.slot) if clip and clip.own else None
        self.visual_ids = torch.tensor([i for i in (image_token_id, self.video_token_id) if i is not None])
        self.preprocessed, self.cache_bytes = 0, cache_bytes
        self._pictures: Cache[Picture] = Cache(cache_bytes, lambda p: p.patches.nbytes)
        self._prompts: Cache[Prefix] = Cache(cache_bytes, lambda p: p.data.nbytes)

    @property
    def never_ids(self) -> tuple[int, ...]:
        """Ids that stand for pictures, or around them, in a prompt: a policy must not emit them."""
        vocabulary = self.tokenizer.get_vocab()
        return tuple(sorted({self.image_token_id, *(vocabulary[t] for t in self.family.never if t in vocabulary)}))

    def encode(self, messages: Sequence[Message], images: Sequence[Image.Image | Video]) -> Prefix:
        """The prompt up to and including the generation prompt, as a `Prefix` whose `data` is a `Prompt`.

        Args:
          images: images and clips, in the order of the messages' "image" and "video" parts.
        """
        text = self.render(messages)
        keys = [clip_hash(x) if isinstance(x, Video) else picture_hash(x) for x in images]
        key = hashlib.blake2b(json.dumps([text, keys]).encode(), digest_size=16).hexdigest()
        if (found := self._prompts.get(key)) is not None:
            return found
        alone = sum(not isinstance(x, Video) for x in images) == 1
        self._check_placeholders(text, images)
        pictures = tuple(self.clip(x, k) if isinstance(x, Video) else self.picture(x, alone, k) for x, k in zip(images, keys, strict=True))
        return self._prefix(key, self._ids(text, pictures), pictures, images)

    def redraw(self, prefix: Prefix, change: Callable[[int, Image.Image], Image.Image]) -> Prefix:
        """The same prompt with other pictures of the same sizes, kept in no cache; `prefix` itself where it has no picture.

        Args:
          change: takes the place of a picture in the prompt, from 0, and the picture.
        Raises:
          ValueError: a clip, or a picture that has changed its size.
        """
        old: Prompt = prefix.data
        pictures = tuple(self._redrawn(i, p, x, change, len(old.images) == 1) for i, (p, x) in enumerate(zip(old.pictures, old.images)))
        if not pictures:
            return prefix
        key = hashlib.blake2b(json.dumps([prefix.key, [p.key for p in pictures]]).encode(), digest_size=16).hexdigest()
        return Prefix(key, replace(old, pictures=pictures), prefix.length)

    def _redrawn(self, i: int, old: Picture, image: Any, change: Callable[[int, Image.Image], Image.Image], alone: bool) -> Picture:
        if isinstance(image, Video):
            raise ValueError(f"redraw: image {i} of the prompt is a clip; only pictures can be shown otherwise")
        new = change(i, image)
        if new.size != image.size:
            raise ValueError(f"redraw: image {i} of the prompt is {new.size} pixels now; expected {image.size}, as it was")
        key = picture_hash(new) + ("" if alone else "+")
        if key == old.key:
            return old
        patches, grid, tokens, text, _ = self.family.show(self.settings, rgb(new), alone)
        return replace(old, key=key, patches=patches, grid=grid, tokens=tokens, text=text)

    def compact_ids(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of the prompt with one placeholder per image, as generation servers take them."""
        text = self.render(messages)
        return self._tokens(text, text)

    def encode_ids(self, ids: Sequence[int], images: Sequence[Image.Image]) -> Prefix:
        """As `encode`, for a prompt given as token ids with one placeholder per image; clips cannot be given so."""
        keys = [picture_hash(image) for image in images]
        key = hashlib.blake2b(json.dumps([list(ids), keys]).encode(), digest_size=16).hexdigest()
        if (found := self._prompts.get(key)) is not None:
            return found
        if (count := sum(i == self.image_token_id for i in ids)) != len(images):
            raise ValueError(f"prompt: found {count} image placeholders but {len(images)} images; expected one placeholder per image")
        pictures = tuple(self.picture(image, len(images) == 1, k) for image, k in zip(images, keys, strict=True))
        own = iter([self._run_out(self._tokens(p.text), [p]) for p in pictures])
        whole = [j for i in ids for j in (next(own) if i == self.image_token_id else [i])]
        return self._prefix(key, whole, pictures, images)

    def _prefix(self, key: str, tokens: Sequence[int], pictures: tuple[Picture, ...], images: Sequence[Image.Image | Video]) -> Prefix:
        ids = torch.tensor(tokens)
        positions, next_position = self._positions(ids, pictures)
        places = torch.isin(ids, self.visual_ids).nonzero()[:, 0]
        return self._prompts.put(key, Prefix(key, Prompt(ids, places, positions, next_position, pictures, tuple(images)), len(ids)))

    def encode_append(self, messages: Sequence[Message]) -> list[int]:
        """Text-only tokens that follow an assistant answer: the end of its turn, `messages`, the next generation prompt."""
        if any(part.get("type") in ("image", "video") for m in messages if not isinstance(m["content"], str) for part in m["content"]):
            raise ValueError(
                "encode_append: found an image or video part; expected text only (a new image needs a new prefix: "
                "Observation(append=False))"
            )
        opening = [{"role": "user", "content": [{"type": "text", "text": "."}]}]
        closed = {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]}
        text = self.render([*opening, closed, *messages]) if messages else self._rendered([*opening, closed])
        return self.tokenizer(text.split(ANSWER, 1)[1], add_special_tokens=False)["input_ids"]

    def render(self, messages: Sequence[Message]) -> str:
        """The chat template's text, one placeholder per image, ending with the generation prompt and the answer that is begun, if any."""
        opened = begun(messages)
        return self._rendered(messages[:-1], opened) if opened else self._rendered(messages)

    def _rendered(self, messages: Sequence[Message], opened: str = "") -> str:
        parts = [{**m, "content": _parts(m["content"])} for m in messages]
        text = self.tokenizer.apply_chat_template(parts, tokenize=False, add_generation_prompt=True) + opened
        return self.family.frame(text, self.placeholder, self.tokenizer.bos_token) if self.family.frame else text

    def picture(self, image: Image.Image, alone: bool = True, key: str | None = None) -> Picture:
        """The image's pixels and how its family shows it, made once per content.

        Args:
          alone: whether it is the only image of its prompt; LLaVA-OneVision cuts only such into tiles.
        """
        key = (key or picture_hash(image)) + ("" if alone else "+")
        if (found := self._pictures.get(key)) is not None:
            return found
        self.preprocessed += 1
        patches, grid, tokens, text, _ = self.family.show(self.settings, rgb(image), alone)
        return self._pictures.put(key, Picture(key, patches, *self.normalisation, grid, tokens, (image.height, image.width), text))

    def clip(self, video: Video, key: str | None = None) -> Picture:
        """The clip's frames and how its family shows them, made once per content."""
        assert self.family.clip is not None, self.kind
        key = key or clip_hash(video)
        if (found := self._pictures.get(key)) is not None:
            return found
        self.preprocessed += 1
        taken = clips.load(video, self.family.clip.take, self.settings.video)
        patches, grid, tokens, text, seconds = self.family.clip.show(self.settings, taken, self._token(clip=True))
        height, width = taken.frames.shape[-2:]
        norm = clips.normalisation(self.settings.video)
        return self._pictures.put(key, Picture(key, patches, *norm, grid, tokens, (height, width), text, seconds))

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        self.images.save_pretrained(folder)
        for name in ("processor_config.json", "video_preprocessor_config.json"):
            if (self.folder / name).exists() and folder.resolve() != self.folder.resolve():
                shutil.copy(self.folder / name, folder)

    def _token(self, clip: bool) -> str:
        """The visual token of images or of clips."""
        return self.family.clip.slot if clip and self.family.clip and self.family.clip.own else self.placeholder

    def _slots(self, text: str, media: bool) -> list[str]:
        """The text cut at its placeholders, these in the odd places; a clip's counts where there are clips, or where it is a token."""
        clip = self.family.clip
        names = [self.placeholder, *([clip.slot] if clip and (clip.own or media) else [])]
        return re.split("(" + "|".join(map(re.escape, names)) + ")", text)

    def _check_placeholders(self, text: str, images: Sequence[Image.Image | Video]) -> None:
        """One placeholder of the right kind for each image and clip."""
        if self.family.clip is None and (at := [i for i, x in enumerate(images) if isinstance(x, Video)]):
            able = ", ".join(name for name, family in FAMILIES.items() if family.clip)
            raise ValueError(f"prompt: images[{at[0]}] is a clip; {self.kind} takes none (those that do: {able})")
        slots = self._slots(text, any(isinstance(x, Video) for x in images))[1::2]
        if len(slots) != len(images):
            raise ValueError(
                f"prompt: found {len(slots)} image placeholders but {len(images)} images; expected one image per "
                f'{{"type": "image"}} part, one Video per {{"type": "video"}} part (likely causes: a placeholder typed into the text, '
                f"a chat template that leaves videos out). Prompt begins {text[:160]!r}"
            )
        for i, (slot, image) in enumerate(zip(slots, images)):
            if isinstance(image, Video) != (slot != self.placeholder):
                kind = "a clip" if isinstance(image, Video) else "an image"
                raise ValueError(
                    f"prompt: images[{i}] is {kind} but the message has {slot!r} in its place; "
                    "expected images and clips in the order of the message's parts"
                )

    def _ids(self, text: str, pictures: Sequence[Picture]) -> list[int]:
        """Each placeholder of the text gives way to its picture's own text, whose placeholders then become runs of visual tokens."""
        first, *rest = self._slots(text, any(p.seconds is not None for p in pictures))[::2]
        whole = first + "".join(p.text + after for p, after in zip(pictures, rest, strict=True))
        return self._run_out(self._tokens(whole, text), pictures)

    def _tokens(self, whole: str, text: str | None = None) -> list[int]:
        """Token ids of `whole`; where it is a prompt, `text` is how it begins, which decides whether the tokenizer adds its opening."""
        bos = self.tokenizer.bos_token
        special = text is not None and self.family.frame is None and not (bos and text.startswith(bos))
        return self.tokenizer(whole, add_special_tokens=special)["input_ids"]

    def _run_out(self, ids: Sequence[int], pictures: Sequence[Picture]) -> list[int]:
        """Each placeholder as a run of visual tokens."""
        visual = set(self.visual_ids.tolist())
        runs = iter([n for p in pictures for n in _runs(p, self._token(p.seconds is not None))])
        return [j for i in ids for j in ([i] * next(runs) if i in visual else [i])]

    def _positions(self, ids: Tensor, pictures: Sequence[Picture]) -> tuple[Tensor, int]:
        if self.rope_index is None or not pictures:
            return torch.arange(len(ids)).expand(3, -1), len(ids)
        kinds = (ids == self.image_token_id).int() + 2 * (ids == self.video_token_id).int()
        stills, moving = ([p for p in pictures if (p.seconds is None) == still] for still in (True, False))
        positions, delta = self.rope_index(
            ids[None],
            mm_token_type_ids=kinds[None],
            image_grid_thw=torch.tensor([p.grid for p in stills]) if stills else None,
            video_grid_thw=torch.tensor([p.grid for p in moving]) if moving else None,
            second_per_grid_ts=torch.tensor([p.seconds for p in moving]) if moving else None,
        )
        return positions[:, 0], len(ids) + int(delta)


def _runs(picture: Picture, placeholder: str) -> list[int]:
    n = picture.text.count(placeholder)
    return [picture.tokens // n] * n


def _kind(folder: Path) -> str:
    file = folder / "config.json"
    kind = json.loads(file.read_text()).get("model_type")
    if kind not in FAMILIES:
        raise ValueError(f"{file}: found model_type {kind!r}; expected one of {', '.join(FAMILIES)}")
    return kind


def _parts(content: Any) -> Any:
    """Content as a list of parts: some families' templates read nothing else."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _template_file(folder: Path) -> Any:
    """The chat template of checkpoints that keep it in `chat_template.json`."""
    file = folder / "chat_template.json"
    return json.loads(file.read_text())["chat_template"] if file.exists() else None
