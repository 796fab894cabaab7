"""Clips: a video file, or pictures in the order of time. Reading a file needs PyAV (`pip install 'fovea-rl[video]'`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

CONTAINERS = (
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "gif", "apng", "mpegts", "mpeg", "mpegvideo", "flv", "ogg"),
    *("asf", "mjpeg", "h264", "hevc", "av1", "obu", "ivf", "m4v", "yuv4mpegpipe"),
)
"""FFmpeg's names of the file formats that are opened."""
MAX_PIXELS = 89_478_485
"""Largest frame, in pixels."""


@dataclass(frozen=True)
class Video:
    """A clip for a ``{"type": "video"}`` part of a message; it stands among the images, in the order of the parts.

    Attributes:
      source: a file, or the frames themselves, which are all shown.
      fps: file: frames to take per second. Frames: how many of them were one second, 24 where it is not said.
      frames: file: how many frames to take in all, instead of `fps`. With neither the checkpoint decides.
    """

    source: str | Path | tuple[Image.Image, ...]
    fps: float | None = None
    frames: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.source, str | Path | tuple):
            raise TypeError(f"Video: found a source of type {type(self.source).__name__}; expected a path or a tuple of pictures")
        if self.source == ():
            raise ValueError("Video: found no frames; expected at least one")
        if self.fps is not None and self.frames is not None:
            raise ValueError(f"Video: found both fps={self.fps} and frames={self.frames}; expected one of them")
        if self.frames is not None and isinstance(self.source, tuple):
            raise ValueError(f"Video: found frames={self.frames} for a list of pictures; expected a file (pictures are all shown)")
        for name, value in (("fps", self.fps), ("frames", self.frames)):
            if value is not None and value <= 0:
                raise ValueError(f"Video: found {name}={value}; expected a positive number")


def still(shown: Image.Image | Video) -> Image.Image:
    """A picture as it is; the first frame of a clip."""
    if not isinstance(shown, Video):
        return shown
    return shown.source[0] if isinstance(shown.source, tuple) else read_frames(shown.source, [0])[0]


@dataclass(frozen=True)
class Stream:
    """What a file says of its first video stream: number of frames, frames per second, width and height in pixels."""

    total: int
    fps: float
    size: tuple[int, int]

    @property
    def seconds(self) -> float:
        return self.total / self.fps

    def frames_at(self, fps: float) -> float:
        """How many frames `fps` a second are, not rounded."""
        return self.total / self.fps * fps


def probe(path: str | Path) -> Stream:
    """Read a file's header; frames are counted where the header does not say how many there are."""
    with _open(path) as container:
        try:
            stream = container.streams.video[0]
            total = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
            rate, size = float(stream.average_rate or 0), (int(stream.width), int(stream.height))
        except Exception as e:  # what a damaged file leads a decoder to
            raise ValueError(f"{path}: found a video that cannot be read ({type(e).__name__}: {e}); the file is damaged") from e
        if total <= 0 or rate <= 0:
            raise ValueError(f"{path}: found {total} frames at {rate:g} per second; expected a clip (a still picture, perhaps)")
        return Stream(total, rate, size)


def read_frames(path: str | Path, indices: Sequence[int]) -> list[Image.Image]:
    """The frames of these rising indices, RGB, decoded from the start of the file."""
    wanted, found = set(indices), {}
    with _open(path) as container:
        try:
            for i, frame in enumerate(container.decode(video=0)):
                if frame.width * frame.height > MAX_PIXELS:
                    raise ValueError(f"{frame.width} x {frame.height} pixels, at most {MAX_PIXELS} can be read")
                if i in wanted:
                    found[i] = Image.fromarray(frame.to_ndarray(format="rgb24"))
                if i >= max(wanted):
                    break
        except Exception as e:  # what a damaged file leads a decoder to
            raise ValueError(f"{path}: frame {len(found)} of {len(wanted)} cannot be decoded ({e}); the file is damaged") from e
    if missing := sorted(wanted - set(found)):
        raise ValueError(
            f"{path}: frame {missing[0]} is missing, found {len(found)} of the {len(wanted)} frames asked for; expected frames up to "
            f"{max(wanted)} as the file's header says (a likely cause is a recording or a copy that was cut off)"
        )
    return [found[i] for i in indices]


def existing(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: found no file; expected a video")
    return Path(path)


def _open(path: str | Path) -> Any:
    existing(path)
    try:
        # an absolute path names no protocol, and a playlist that calls itself a video could name files and addresses of its own
        options = {"protocol_whitelist": "file", "format_whitelist": ",".join(CONTAINERS)}
        container = _av().open(str(Path(path).resolve()), options=options)
    except (_av().FFmpegError, ValueError) as e:
        raise ValueError(f"{path}: found no video that can be read ({e}); expected mp4, webm, mkv, avi, gif or the like") from e
    if not container.streams.video:
        container.close()
        raise ValueError(f"{path}: found no video stream; expected one (a sound file, perhaps)")
    container.streams.video[0].codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return container


def _av() -> Any:
    try:
        import av
    except ImportError as e:
        raise ImportError("reading video files needs PyAV: pip install 'fovea-rl[video]' (a tuple of pictures needs nothing)") from e
    return av
