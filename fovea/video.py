"""Clips: a video file, or pictures in the order of time. Reading a file needs PyAV (`pip install 'fovea-rl[video]'`)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

CONTAINERS = (
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "gif", "apng", "mpegts", "mpeg", "mpegvideo", "flv", "ogg"),
    *("asf", "mjpeg", "h264", "hevc", "av1", "obu", "ivf", "m4v", "yuv4mpegpipe", "wav", "mp3", "flac", "aac", "aiff"),
)
"""FFmpeg's names of the file formats that are opened; those of sound, because there is a better message for them."""
MAX_PIXELS = 89_478_485
"""Largest frame, in pixels."""
MOST_BYTES = 1 << 30
"""What the frames taken of one file may fill before they are resized."""


@dataclass(frozen=True)
class Video:
    """A clip for a ``{"type": "video"}`` part of a message; it stands among the images, in the order of the parts.

    Attributes:
      source: a file, or the frames themselves, which are all shown.
      fps: file: frames to take per second. Frames: how many of them were one second, 24 where it is not said.
      frames: file: how many frames to take in all, instead of `fps`. With neither the checkpoint decides, which may mean every frame of a
        short clip (`MOST_BYTES`).
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
            if value is not None and not (isinstance(value, int | float) and 0 < value < float("inf")):
                raise ValueError(f"Video: found {name}={value!r}; expected a positive number")
        if self.frames is not None and self.frames != int(self.frames):
            raise ValueError(f"Video: found frames={self.frames!r}; expected a whole number")


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
    """The frames of these rising indices, RGB. Only what lies between each one and the key frame before it is decoded."""
    wanted = sorted(set(indices))
    found = _sought(path, wanted)
    if len(found) < len(wanted):
        found = _from_the_start(path, wanted)
    if missing := [i for i in wanted if i not in found]:
        raise ValueError(
            f"{path}: frame {missing[0]} is missing, found {len(found)} of the {len(wanted)} frames asked for; expected frames up to "
            f"{wanted[-1]} as the file's header says (a likely cause is a recording or a copy that was cut off)"
        )
    return [found[i] for i in indices]


def _sought(path: str | Path, wanted: Sequence[int]) -> dict[int, Image.Image]:
    """The wanted frames by index, found by the times of the packets; some or all are left out where these do not tell."""
    found: dict[int, Image.Image] = {}
    try:
        with _open(path) as container:
            packets = [(p.pts, p.is_keyframe) for p in container.demux(video=0) if p.size and not p.is_discard]
        times = [] if any(time is None for time, _ in packets) else sorted(time for time, _ in packets)
        if len(set(times)) < max(len(packets), wanted[-1] + 1):
            return {}
        index_of = {time: i for i, time in enumerate(times)}
        keys = sorted(index_of[time] for time, key in packets if key)
        with _open(path) as container:
            stream = container.streams.video[0]
            frames, at = container.decode(stream), -1
            for i in wanted:
                start = keys[max(0, bisect_right(keys, i) - 1)] if keys else 0
                if start > at + 1:
                    container.seek(times[start], stream=stream)
                    frames = container.decode(stream)
                for frame in frames:
                    if frame.width * frame.height > MAX_PIXELS:
                        return {}
                    at = index_of.get(frame.pts, at)
                    if at == i:
                        found[i] = Image.fromarray(frame.to_ndarray(format="rgb24"))
                    if at >= i:
                        break
    except Exception:  # what a damaged file leads a decoder to
        return {}  # reading from the start says where the damage is
    return found


def _from_the_start(path: str | Path, wanted: Sequence[int]) -> dict[int, Image.Image]:
    """The wanted frames by index, counted while the file is decoded."""
    last, among, found = wanted[-1], set(wanted), {}
    with _open(path) as container:
        try:
            for i, frame in enumerate(container.decode(video=0)):
                if frame.width * frame.height > MAX_PIXELS:
                    raise ValueError(f"{frame.width} x {frame.height} pixels, at most {MAX_PIXELS} can be read")
                if i in among:
                    found[i] = Image.fromarray(frame.to_ndarray(format="rgb24"))
                if i >= last:
                    break
        except Exception as e:  # what a damaged file leads a decoder to
            raise ValueError(f"{path}: frame {len(found)} of {len(wanted)} cannot be decoded ({e}); the file is damaged") from e
    return found


def check_frames(path: str | Path) -> None:
    """Decode the whole file.

    Raises:
      ValueError: at the first frame that cannot be decoded.
    """
    with _open(path) as container:
        count = 0
        try:
            for _ in container.decode(video=0):
                count += 1
        except Exception as e:  # what a damaged file leads a decoder to
            raise ValueError(f"{path}: frame {count} cannot be decoded ({e}); the file is damaged") from e


def affordable(path: str | Path, stream: Stream, count: int) -> None:
    """Refuse to take so many frames of a file that they would not fit.

    Raises:
      ValueError: with the number of frames that would.
    """
    each = 3 * stream.size[0] * stream.size[1]
    if count * each > MOST_BYTES:
        raise ValueError(
            f"{path}: found {count} frames to take of {stream.total}, {stream.size[0]}x{stream.size[1]} each, "
            f"{count * each / 1e9:.1f} GB; expected at most {MOST_BYTES // each} of this size (say how many: "
            "Video(file, fps=...) or Video(file, frames=...))"
        )


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
    codec = container.streams.video[0].codec_context
    if codec is None:
        container.close()
        raise ValueError(f"{path}: found a video stream of a codec that cannot be read; expected one that this build of FFmpeg decodes")
    codec.options = {"max_pixels": str(MAX_PIXELS)}
    return container


def _av() -> Any:
    try:
        import av
    except ImportError as e:
        raise ImportError("video files need PyAV: pip install 'fovea-rl[video]' (a tuple of pictures needs nothing)") from e
    return av


def read_span(path: str | Path, start_s: float, count: int, fps: float) -> Any:
    """`count` frames from the time `start_s` on, uint8 (count, H, W, 3). Found by seeking: nothing after them is read.

    Raises:
      ValueError: a frame that should be there is not, with its time.
    """
    import numpy as np

    found: dict[int, Any] = {}
    with _open(path) as container:
        stream = container.streams.video[0]
        try:
            container.seek(round(start_s / float(stream.time_base)), stream=stream)
            for frame in container.decode(stream):
                i = round((float(frame.time) - start_s) * fps)
                if i >= count:
                    break
                if i >= 0:
                    found[i] = frame.to_ndarray(format="rgb24")
                if len(found) == count:
                    break
        except Exception as e:  # what a damaged file leads a decoder to
            raise ValueError(f"{path}: at {start_s:.3f} s, frame {len(found)} of {count} cannot be decoded ({e}); is it damaged?") from e
    if missing := [i for i in range(count) if i not in found]:
        at = start_s + missing[0] / fps
        raise ValueError(
            f"{path}: no frame at {at:.3f} s, found {len(found)} of {count} from {start_s:.3f} s on; expected one every {1 / fps:.4f} s "
            "(a file that was cut off, or one that belongs to another table of episodes)"
        )
    return np.stack([found[i] for i in range(count)])


def write_clip(path: str | Path, frames: Any, fps: float, quality: int = 18, every: int = 10) -> None:
    """Frames, uint8 (T, H, W, 3), as H.264 in MP4, which browsers play.

    Args:
      quality: of libx264, 0 (lossless) to 51. every: frames from one key frame to the next; a seek decodes at most so many.
    """
    rate = Fraction(fps).limit_denominator(1001)
    _, height, width, _ = frames.shape
    with _av().open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as out:
        stream = out.add_stream("libx264", rate=rate)
        # colours at half the resolution need even sides
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p" if height % 2 or width % 2 else "yuv420p"
        stream.time_base = 1 / rate
        stream.options = {"crf": str(quality), "g": str(every), "bf": "0", "preset": "veryfast", "threads": "1"}
        for t, picture in enumerate(frames):
            frame = _av().VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = t, 1 / rate
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def join_clips(parts: Sequence[str | Path], out: str | Path, fps: float) -> None:
    """Clips that `write_clip` wrote with the same settings, one after another, without encoding them again."""
    with _av().open(str(out), "w", format="mp4", options={"movflags": "+faststart"}) as joined:
        stream, before = None, 0
        for part in parts:
            with _open(part) as container:
                given = container.streams.video[0]
                stream = joined.add_stream_from_template(given) if stream is None else stream
                shift, count = round(before / fps / float(given.time_base)), 0
                for packet in container.demux(given):
                    if packet.size:
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                        joined.mux(packet)
                        count += 1
                before += count
