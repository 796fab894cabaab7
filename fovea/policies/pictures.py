"""How each model family shows a still picture to its language model: pixels, number of visual tokens, and the text around them.

Pixels come from the checkpoint's own image processor in its Pillow form, which needs no
torchvision, with rescaling and normalisation held back: pictures are kept as bytes. The Qwen families, whose processor is the slowest,
have a shorter loop.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor
from transformers.image_processing_utils import select_best_resolution
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from fovea.policies.families import FAKE

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Picture:
    """One preprocessed image or clip.

    Attributes:
      key: content hash of the decoded pixels and of what else the preprocessing depends on.
      patches: uint8. Qwen: (S, C, h*w) patches in the order that the tower reads; a still image is one frame, the second, identical
        frame of the checkpoint's two-frame patches is not stored; a clip has (S, C, 2*h*w). Other families: (N, C, h, w) tiles of one
        size, for clips one per frame.
      scale, mean, std: of the normalisation, pixel = (scale * patch - mean) / std; mean and std are (C, 1).
      grid: Qwen: (steps, rows, columns) of patches, one step for an image. LLaVA-OneVision, Idefics3, SmolVLM: (1, rows, columns) of the
        tiles that a large picture was cut into. Else (1, 0, 0), for a clip (frames, 0, 0). The overview of a cut picture is one tile more:
        the first in LLaVA-OneVision, the last in Idefics3, SmolVLM and InternVL.
      tokens: number of visual tokens that the language model sees.
      size: (height, width) in pixels before any resizing; LLaVA-OneVision cuts its padding away by it.
      text: what replaces the picture's placeholder in the prompt, before each placeholder in it becomes an equal run of visual tokens.
      seconds: for a clip, from one step of `grid` to the next; None for an image.
    """

    key: str
    patches: Tensor
    scale: float
    mean: Tensor
    std: Tensor
    grid: Grid
    tokens: int
    size: tuple[int, int]
    text: str
    seconds: float | None = None

    @property
    def pixels(self) -> Tensor:
        """(S, C*h*w) patches or (N, C, h, w) tiles, float32, normalised: to the last bit what the family's own processor gives.

        Pillow processors rescale in float64 and normalise in float32.
        """
        x = self.patches.flatten(2).double().mul_(self.scale).float().sub_(self.mean).div_(self.std)
        return x.flatten(1) if self.patches.ndim == 3 else x.view(self.patches.shape)


class Shown(NamedTuple):
    """The part of a `Picture` that a family decides."""

    patches: Tensor
    grid: Grid
    tokens: int
    text: str
    seconds: float | None = None


@dataclass(frozen=True)
class Settings:
    """What a checkpoint folder says about its pictures.

    Attributes:
      images: the checkpoint's image processor, Pillow form.
      fields: `processor_config.json`, {} without one.
      image: the placeholder of an image, as text.
      video: settings of the checkpoint's video processor, which older checkpoints keep with those for images.
    """

    folder: Path
    images: Any
    fields: Mapping[str, Any]
    image: str
    video: Mapping[str, Any]

    def need(self, name: str) -> Any:
        """A field of the processor or of its image processor.

        Raises:
          ValueError: neither has it.
        """
        value = self.fields.get(name)
        if value is None and (value := getattr(self.images, name, None)) is None:
            file = self.folder / "processor_config.json"
            raise ValueError(
                f"{file}: found {f'no field {name!r}' if file.exists() else 'no such file'}, expected one with {name!r}, which the number "
                "of image tokens depends on; a likely cause is a checkpoint saved without its processor (processor.save_pretrained writes "
                "the file)"
            )
        return value


def read_settings(folder: Path, image: str, video: Mapping[str, Any]) -> Settings:
    """The folder's settings; `video` holds defaults.

    Raises:
      FileNotFoundError: nothing says how pictures are preprocessed.
    """
    fields, clips, stills = (
        _json(folder / f"{name}.json") for name in ("processor_config", "video_preprocessor_config", "preprocessor_config")
    )
    if not (stills or fields.get("image_processor")):
        raise FileNotFoundError(
            f"{folder / 'preprocessor_config.json'}: found no such file, expected the settings of the checkpoint's image processor "
            "(a likely cause is a checkpoint saved without its processor: processor.save_pretrained writes the file)"
        )
    images = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    return Settings(folder, images, fields, image, {**video, **(fields.get("video_processor") or clips or stills)})


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {}


def normalisation(images: Any) -> tuple[float, Tensor, Tensor]:
    """The image processor's rescaling factor and (C, 1) mean and deviation; 1, 0 and 1 for steps that are switched off."""
    mean = torch.tensor(images.image_mean if images.do_normalize else [0.0] * 3)
    std = torch.tensor(images.image_std if images.do_normalize else [1.0] * 3)
    return images.rescale_factor if images.do_rescale else 1.0, mean[:, None], std[:, None]


# -- the families -------------------------------------------------------------------------------------------------------------


def qwen(settings: Settings, image: Image.Image, alone: bool) -> Shown:
    patches, grid = cut(image, settings.images)
    return Shown(patches, grid, len(patches) // settings.images.merge_size**2, settings.image)


def llava(settings: Settings, image: Image.Image, alone: bool) -> Shown:
    """One tile of a fixed size; "default" drops the class token, which the tower counts beside its patches."""
    tiles = _tiles(settings, image)["pixel_values"]
    side = settings.need("patch_size")
    tokens = (tiles.shape[2] // side) * (tiles.shape[3] // side) + settings.fields.get("num_additional_image_tokens", 0)
    return Shown(tiles, (1, 0, 0), tokens - (settings.need("vision_feature_select_strategy") == "default"), settings.image)


def paligemma(settings: Settings, image: Image.Image, alone: bool) -> Shown:
    return Shown(_tiles(settings, image)["pixel_values"], (1, 0, 0), settings.need("image_seq_length"), settings.image)


def llava_onevision(settings: Settings, image: Image.Image, alone: bool) -> Shown:
    """A picture on its own: an overview and the tiles of the best fitting grid. One of several: padded to a square and shown whole."""
    base, drop = settings.need("num_image_tokens"), settings.need("vision_feature_select_strategy") == "default"
    if not alone:
        # the image processor sees that a picture is one of several only by its neighbour
        tiles = _tiles(settings, image, Image.new("RGB", (1, 1)))["pixel_values"][0][:1]
        return Shown(tiles, (1, 0, 0), base + 1 - drop, settings.image)
    tiles = _tiles(settings, image)["pixel_values"][0]
    height, width = select_best_resolution((image.height, image.width), settings.images.image_grid_pinpoints)
    grid = (1, height // tiles.shape[2], width // tiles.shape[3])
    limit = int(settings.fields.get("vision_aspect_ratio", "anyres_max_9").removeprefix("anyres_max_"))
    return Shown(tiles, grid, base + anyres_tokens(image.size, grid, math.isqrt(base), limit) - drop, settings.image)


def anyres_tokens(size: tuple[int, int], grid: Grid, side: int, limit: int) -> int:
    """Tokens of the tiles of a picture once its padding is cut away, one more per row for the line break.

    Args:
      size: (width, height) of the picture.
      grid: (1, rows, columns) of tiles.
      side: tokens along the side of a tile.
      limit: more than `limit` tiles' worth of tokens are scaled down to about that.
    """
    (width, height), rows, columns = size, grid[1] * side, grid[2] * side
    if width / height > columns / rows:
        rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
    else:
        columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
    ratio = math.sqrt(rows * columns / (limit * side**2))
    if ratio > 1.1:
        rows, columns = int(rows // ratio), int(columns // ratio)
    return rows * (columns + 1)


def idefics3(settings: Settings, image: Image.Image, alone: bool) -> Shown:
    """Tiles in rows, each announced by its place, then the overview; a small picture is its own overview."""
    found = _tiles(settings, image, return_row_col_info=True)
    tiles, rows, columns = found["pixel_values"][0], found["rows"][0][0], found["cols"][0][0]
    lines = ("".join(f"{FAKE}<row_{r + 1}_col_{c + 1}>{settings.image}" for c in range(columns)) + "\n" for r in range(rows))
    text = "".join(lines) + "\n" * (rows > 0) + overview(settings.image)
    return Shown(tiles, (1, rows, columns), len(tiles) * settings.need("image_seq_len"), text)


def overview(placeholder: str) -> str:
    return f"{FAKE}<global-img>{placeholder}{FAKE}"


def internvl(settings: Settings, image: Image.Image, alone: bool) -> Shown:
    """Tiles of the grid whose shape fits best, then an overview; `image_seq_length` tokens each."""
    tiles = _tiles(settings, image, crop_to_patches=True)["pixel_values"]
    return Shown(tiles, (1, 0, 0), len(tiles) * settings.need("image_seq_length"), f"<img>{settings.image}</img>")


# -- pixels -------------------------------------------------------------------------------------------------------------------


def cut(image: Image.Image, images: Any) -> tuple[Tensor, Grid]:
    """Resize and cut one image as a Qwen image processor does.

    Returns:
      (S, C, h*w) uint8 patches, those that merge into one token side by side, and the grid (1, rows, columns).
    """
    side, merge = images.patch_size, images.merge_size
    if images.do_resize:
        low, high = images.size["shortest_edge"], images.size["longest_edge"]
        height, width = smart_resize(image.height, image.width, side * merge, low, high)
        if (width, height) != image.size:
            image = image.resize((width, height), images.resample)
    rows, columns = image.height // side, image.width // side
    units = np.asarray(image).reshape(rows // merge, merge, side, columns // merge, merge, side, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    return torch.from_numpy(units.reshape(rows * columns, 3, side**2)), (1, rows, columns)


def _tiles(settings: Settings, *images: Image.Image, **options: Any) -> Any:
    """The image processor's output for the images of one prompt, its pixels as bytes."""
    return settings.images([list(images)], do_rescale=False, do_normalize=False, return_tensors="pt", **options)
