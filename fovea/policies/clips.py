"""How each model family shows a clip: which frames are taken, their pixels, number of visual tokens, and the text around them.

Frames are resized by torch's own interpolation of bytes, as the families' video processors do through torchvision, and normalised in one
step, which differs from the two steps for still pictures in the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.smolvlm.image_processing_pil_smolvlm import get_resize_output_image_size

from fovea.policies.pictures import Grid, Settings, Shown, overview
from fovea.video import Stream, Video, affordable, probe, read_frames

FILTERS = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic", Image.Resampling.LANCZOS: "lanczos"}
USUAL_FPS = 24.0
"""What transformers assumes of frames whose rate it is not told."""


@dataclass(frozen=True)
class Clip:
    """Frames that were taken.

    Attributes:
      frames: (T, C, H, W) uint8.
      indices: of the frames in their source.
      total, fps: number of frames of the source, and how many are one second.
      file: whether the source is a file.
    """

    frames: Tensor
    indices: tuple[int, ...]
    total: int
    fps: float
    file: bool

    @property
    def times(self) -> list[float]:
        return [i / self.fps for i in self.indices]


Take = Callable[[Mapping[str, Any], Stream, int | None, float | None], Sequence[int]]


def load(video: Video, take: Take, settings: Mapping[str, Any]) -> Clip:
    """Take the frames of a clip as its family does."""
    if isinstance(video.source, tuple):
        total = len(video.source)
        return Clip(_stack(video.source, "Video"), tuple(range(total)), total, video.fps or USUAL_FPS, False)
    stream = probe(video.source)
    own = settings if video.fps is None and video.frames is None else {}
    frames, fps = video.frames or own.get("num_frames"), video.fps or own.get("fps")
    try:
        indices = tuple(int(i) for i in take(settings, stream, frames, fps))
    except ValueError as e:
        raise ValueError(f"{video.source}: {e}") from e
    affordable(video.source, stream, len(indices))
    return Clip(_stack(read_frames(video.source, indices), str(video.source)), indices, stream.total, stream.fps, True)


def normalisation(video: Mapping[str, Any]) -> tuple[float, Tensor, Tensor]:
    """As `pictures.normalisation`, rescaling folded into mean and deviation."""
    factor = 1.0 / video.get("rescale_factor", 1 / 255)
    mean, std = (torch.tensor(video[name]) * factor for name in ("image_mean", "image_std"))
    return 1.0, mean[:, None], std[:, None]


def _stack(frames: Sequence[Image.Image], source: str) -> Tensor:
    arrays = [np.asarray(f if f.mode == "RGB" else f.convert("RGB")) for f in frames]
    for i, (frame, array) in enumerate(zip(frames, arrays)):
        if array.shape != arrays[0].shape:
            raise ValueError(
                f"{source}: frame {i} is {frame.width}x{frame.height}; expected {frames[0].width}x{frames[0].height} as frame 0 "
                "(the frames of a clip are of one size)"
            )
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def _resize(frames: Tensor, height: int, width: int, resample: int) -> Tensor:
    if frames.shape[-2:] == (height, width):
        return frames
    return F.interpolate(frames, (height, width), mode=FILTERS[Image.Resampling(resample)], align_corners=False, antialias=True)


# -- which frames -------------------------------------------------------------------------------------------------------------


def take_pairs(video: Mapping[str, Any], stream: Stream, frames: int | None, fps: float | None) -> Sequence[int]:
    """Qwen2-VL, Qwen2.5-VL: evenly from the start, a multiple of the frames that one step merges."""
    step = video["temporal_patch_size"]
    if frames is not None:
        n = round(frames / step) * step
    elif fps is not None:
        most = min(video["max_frames"], stream.total) // step * step
        n = math.floor(min(max(stream.frames_at(fps), video["min_frames"]), most) / step) * step
    else:
        return range(stream.total)
    return torch.arange(0, stream.total, stream.total / _within(n, stream)).int().tolist()


def take_ends(video: Mapping[str, Any], stream: Stream, frames: int | None, fps: float | None) -> Sequence[int]:
    """Qwen3-VL: evenly, first and last frame included."""
    n = frames
    if n is None:
        wanted = stream.total if fps is None else int(stream.frames_at(fps))
        n = min(max(wanted, video["min_frames"]), video["max_frames"], stream.total)
    return np.linspace(0, stream.total - 1, _within(n, stream)).round().astype(int).tolist()


def take_evenly(video: Mapping[str, Any], stream: Stream, frames: int | None, fps: float | None) -> Sequence[int]:
    """LLaVA-OneVision: evenly from the start."""
    n = frames if frames is not None else stream.total if fps is None else max(1, int(stream.frames_at(fps)))
    return [i * stream.total // _within(n, stream) for i in range(n)]


def take_middles(video: Mapping[str, Any], stream: Stream, frames: int | None, fps: float | None) -> Sequence[int]:
    """InternVL: the middle frame of equal pieces."""
    n = frames if frames is not None else stream.total if fps is None else int(stream.frames_at(fps))
    piece = stream.total / _within(n, stream)
    shift = video.get("initial_shift", True)
    return torch.arange(piece / 2 if shift is True else shift, stream.total, piece).int().tolist()


def take_at_most(video: Mapping[str, Any], stream: Stream, frames: int | None, fps: float | None) -> Sequence[int]:
    """SmolVLM: `fps` a second but at most `frames`; a clip that is longer than they cover loses its first and last second."""
    own = video.get("video_sampling", {})
    frames, fps = frames or video.get("num_frames") or own.get("max_frames"), fps or video.get("fps") or own.get("fps")
    if frames is None or fps is None:
        raise ValueError("found no video_sampling in the checkpoint's settings; expected fps and max_frames there")
    n = max(1, min(round(fps * stream.seconds), frames))
    first, last = 0, stream.total - 1
    if stream.seconds - 2 > frames * fps:
        inner = max(0, int(stream.fps)), min(int(stream.total - stream.fps), last)
        first, last = inner if inner[0] < inner[1] else (first, last)
    return np.unique(np.linspace(first, last, n, dtype=int)).tolist()


def _within(n: int, stream: Stream) -> int:
    if not 1 <= n <= stream.total:
        raise ValueError(f"found {stream.total} frames ({stream.seconds:.2f} s); expected at least the {n} to be shown, and one")
    return n


# -- pixels and text ----------------------------------------------------------------------------------------------------------


def qwen(settings: Settings, clip: Clip, token: str) -> Shown:
    """Every frame within the limits of a picture."""
    v = settings.video
    low, high = v["size"]["shortest_edge"], v["size"]["longest_edge"]
    factor = v["patch_size"] * v["merge_size"]
    if v.get("cap_pixels_per_frame"):
        budget = int(v["max_video_tokens"] * factor**2 * 0.9) * v["temporal_patch_size"] // len(clip.frames)
        high = max(min(high, budget), int(low * 1.05))
    height, width = clip.frames.shape[-2:]
    patches, grid, tokens = _patches(clip.frames, smart_resize(height, width, factor, low, high), v)
    return Shown(patches, grid, tokens, token, v["temporal_patch_size"] / (len(clip.indices) / clip.total * clip.fps))


def qwen3(settings: Settings, clip: Clip, token: str) -> Shown:
    """All frames together within the limits; each step is announced by its time."""
    v = settings.video
    low, high, step = v["size"]["shortest_edge"], v["size"]["longest_edge"], v["temporal_patch_size"]
    factor = v["patch_size"] * v["merge_size"]
    if v.get("cap_pixels_per_frame"):
        share = min(v["max_video_tokens"] * factor**2, high // len(clip.frames))
        high = max(share, int(low * 1.05)) * len(clip.frames)
    patches, grid, tokens = _patches(clip.frames, fit_volume(tuple(clip.frames.shape), step, factor, low, high), v)
    times = clip.times + clip.times[-1:] * (-len(clip.times) % step)
    middles = [(a + b) / 2 for a, b in zip(times[::step], times[step - 1 :: step])]
    text = "".join(f"<{t:.1f} seconds><|vision_start|>{token}<|vision_end|>" for t in middles)
    return Shown(patches, grid, tokens, text, step / (len(clip.indices) / clip.total * clip.fps))


def fit_volume(shape: tuple[int, ...], step: int, factor: int, low: int, high: int) -> tuple[int, int]:
    """(height, width), multiples of `factor`, that bring a (T, C, H, W) clip to between `low` and `high` pixels in all."""
    frames, _, height, width = shape
    if frames < step:
        raise ValueError(f"found a clip of {frames} frames; expected at least {step}, which one step of the tower merges")
    if min(height, width) < factor:
        grow = max(factor / height, factor / width)
        height, width = int(height * grow), int(width * grow)
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f"found frames of {width}x{height}; expected sides that differ less than 200 to 1")
    rows, columns, steps = round(height / factor), round(width / factor), round(frames / step) * step
    volume = steps * rows * columns * factor**2
    if volume > high:
        shrink = math.sqrt(frames * height * width / high)
        rows, columns = (max(1, math.floor(side / shrink / factor)) for side in (height, width))
    elif volume < low:
        grow = math.sqrt(low / (frames * height * width))
        rows, columns = (math.ceil(side * grow / factor) for side in (height, width))
    return rows * factor, columns * factor


def _patches(frames: Tensor, size: tuple[int, int], v: Mapping[str, Any]) -> tuple[Tensor, Grid, int]:
    """(S, C, T*h*w) patches of `temporal_patch_size` frames each, the last frame repeated to fill the last; their grid and tokens."""
    x = _resize(frames, *size, v.get("resample", Image.Resampling.BICUBIC))
    step, side, merge = v["temporal_patch_size"], v["patch_size"], v["merge_size"]
    x = torch.cat([x, x[-1:].expand(-len(x) % step, -1, -1, -1)])
    grid = (len(x) // step, size[0] // side, size[1] // side)
    x = x.view(grid[0], step, 3, grid[1] // merge, merge, side, grid[2] // merge, merge, side)
    x = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(math.prod(grid), 3, -1)
    return x, grid, len(x) // merge**2


def llava_onevision(settings: Settings, clip: Clip, token: str) -> Shown:
    """Frames of half the tokens along each side, and one line break for the clip."""
    v = settings.video
    tiles = _resize(clip.frames, v["size"]["height"], v["size"]["width"], v.get("resample", Image.Resampling.BICUBIC))
    side = math.ceil(math.isqrt(settings.need("num_image_tokens")) / 2)
    return Shown(tiles, (len(tiles), 0, 0), len(tiles) * side**2 + 1, token, _spacing(clip))


def internvl(settings: Settings, clip: Clip, token: str) -> Shown:
    v = settings.video
    tiles = _resize(clip.frames, v["size"]["height"], v["size"]["width"], v.get("resample", Image.Resampling.BICUBIC))
    text = "\n".join(f"Frame{i + 1}: <img>{token}</img>" for i in range(len(tiles)))
    return Shown(tiles, (len(tiles), 0, 0), len(tiles) * settings.need("image_seq_length"), text, _spacing(clip))


def smolvlm(settings: Settings, clip: Clip, token: str) -> Shown:
    """Frames as whole pictures, each announced by its time."""
    v = settings.video
    resample = v.get("resample", Image.Resampling.LANCZOS)
    size = v.get("size") or v["video_sampling"]["video_size"]
    whole = _resize(clip.frames, *get_resize_output_image_size(clip.frames[0].numpy(), size["longest_edge"]), resample)
    tiles = _resize(whole, v["max_image_size"]["longest_edge"], v["max_image_size"]["longest_edge"], resample)
    lasts = timedelta(seconds=int(clip.total / clip.fps if clip.file else clip.times[-1]))
    text = f"You are provided the following series of {in_words(len(tiles))} frames from a {lasts} [H:MM:SS] video.\n"
    text += "".join(f"\nFrame from {int(t // 60):02d}:{int(t % 60):02d}:{overview(token)}" for t in clip.times)
    return Shown(tiles, (len(tiles), 0, 0), len(tiles) * settings.need("image_seq_len"), text + "\n\n", _spacing(clip))


def _spacing(clip: Clip) -> float:
    return clip.total / len(clip.indices) / clip.fps


ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def in_words(n: int) -> str:
    """A number below a thousand in English words, as SmolVLM counts frames."""
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10 - 2] + (f"-{ONES[n % 10]}" if n % 10 else "")
    if n < 1000:
        return f"{ONES[n // 100]} hundred" + (f" and {in_words(n % 100)}" if n % 100 else "")
    raise ValueError(f"found {n} frames; expected fewer than a thousand")
