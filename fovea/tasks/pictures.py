"""Images and clips of a data set: found inside its folder, checked by their header, decoded only when they are needed."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fovea.images import rgb
from fovea.video import Video, check_frames, probe

MAX_PIXELS = 89_478_485
"""Pillow's own limit for a picture that is not suspected to be a decompression bomb."""

MAX_DEPTH = 8
"""Levels of lists and mappings around a picture."""
EDGE = 1 << 16
"""Bytes of a clip's beginning and end that tell it from others."""

_PILLOW = threading.Lock()


class BadImage(ValueError):
    """A picture or a clip that cannot be used: what was found and what was expected, and the field of the row, "image" or "video"."""

    def __init__(self, found: str, expected: str, field: str = "image"):
        super().__init__(f"found {found}; expected {expected}")
        self.found, self.expected, self.field = found, expected, field


class DataChanged(RuntimeError):
    """Data are no longer what they were when the run began."""


@dataclass(frozen=True)
class Picture:
    """An image that has not been decoded: a file, or a function that gives the encoded bytes."""

    kind = "image"
    name: str
    place: Path | Callable[[], bytes]

    def encoded(self) -> bytes:
        return self.place.read_bytes() if isinstance(self.place, Path) else self.place()

    def held(self) -> Picture:
        """The same picture with its encoded bytes in memory."""
        try:
            content = self.encoded()
        except OSError as error:
            raise BadImage(f"{self.name!r}, {error.strerror}", "an image file in the data folder") from None
        return Picture(self.name, lambda: content)

    def digest(self) -> str:
        return hashlib.blake2b(self.encoded(), digest_size=16).hexdigest()

    def check(self, max_pixels: int = MAX_PIXELS, full: bool = False) -> None:
        """Raise `BadImage` unless the header is an image's, its size is allowed and the file does not end early.

        A file whose format has an end mark and lacks it is decoded to be sure; `full` decodes every file.
        """
        image = self._open(max_pixels)
        if full or not _ends_well(self, image.format or ""):
            self.decode(max_pixels)

    def decode(self, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """RGB pixels; the EXIF orientation is applied, transparency is laid on white."""
        from PIL import ImageOps

        image: Image.Image = self._open(max_pixels)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of metadata that nothing here reads
                image.load()
                _small_enough(self.name, image, max_pixels)  # a container may hold another size than its header says
                return rgb(ImageOps.exif_transpose(image))
        except BadImage:
            raise
        except Exception as error:  # decoders raise whatever a damaged file leads them to
            raise BadImage(f"{self.name}, damaged or cut short ({type(error).__name__}: {error})"[:200], "a complete image file") from None

    def _open(self, max_pixels: int) -> Image.Image:
        try:
            place = self.place if isinstance(self.place, Path) else io.BytesIO(self.place())
            with _PILLOW, warnings.catch_warnings():
                # Pillow's limit is a module variable; the pixels are counted right below with the caller's own limit.
                limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
                try:
                    image = Image.open(place)
                finally:
                    Image.MAX_IMAGE_PIXELS = limit
        except FileNotFoundError:
            raise BadImage(f"{self.name!r}, no such file", "an image file in the data folder") from None
        except IsADirectoryError:
            raise BadImage(f"{self.name!r}, a folder", "an image file") from None
        except Exception as error:  # decoders raise whatever a damaged file leads them to
            kind = "an empty file" if isinstance(self.place, Path) and self.place.stat().st_size == 0 else "not an image"
            raise BadImage(f"{self.name!r}, {kind} ({type(error).__name__})", "an image file") from None
        if image.format == "EPS":
            raise BadImage(f"{self.name!r}, a PostScript program, which another program would run", "an image file")
        _small_enough(self.name, image, max_pixels)
        return image


def _small_enough(name: str, image: Image.Image, max_pixels: int) -> None:
    if len(image.size) != 2 or min(image.size) < 1:
        raise BadImage(f"{name!r}, of size {image.size}", "a picture with a width and a height")
    width, height = image.size
    if width * height > max_pixels:
        found = f"{name!r}, {width} x {height} = {width * height / 1e6:.0f} megapixels"
        raise BadImage(found, f"at most {max_pixels / 1e6:.0f} megapixels (max_pixels)")


@dataclass(frozen=True)
class Footage:
    """A clip that has not been decoded: a file and how much of it is taken."""

    kind = "video"
    name: str
    place: Path
    fps: float | None = None
    frames: int | None = None

    def digest(self) -> str:
        """By size, beginning and end: clips are long."""
        with self.place.open("rb") as f:
            first = f.read(EDGE)
            size = f.seek(0, io.SEEK_END)
            f.seek(max(0, size - EDGE))
            return hashlib.blake2b(first + f.read(), digest_size=16, salt=size.to_bytes(16)).hexdigest()

    def check(self, max_pixels: int = MAX_PIXELS, full: bool = False) -> None:
        """Raise `BadImage` unless the header is a clip's and its frames are of an allowed size; `full` decodes all of them.

        Raises:
          ImportError: PyAV is not installed.
        """
        try:
            stream = probe(self.place)
            if full:
                check_frames(self.place)
        except ValueError as error:
            said = str(error).removeprefix(f"{self.place}: ").removeprefix("found ")
            raise BadImage(f"{self.name!r}, {said}", "a whole clip that can be read", "video") from None
        if (pixels := stream.size[0] * stream.size[1]) > max_pixels:
            found = f"{self.name!r}, frames of {pixels / 1e6:.0f} megapixels"
            raise BadImage(found, f"at most {max_pixels / 1e6:.0f} megapixels (max_pixels)", "video")

    def decode(self) -> Video:
        """What a policy decodes when it first sees the clip."""
        if not self.place.is_file():
            raise BadImage(f"{self.name!r}, no such file", "a clip in the data folder", "video")
        return Video(self.place, self.fps, self.frames)


def _ends_well(picture: Picture, picture_format: str) -> bool:
    """Whether a file of a format with an end mark has it near its end; True for other formats."""
    mark = {"PNG": b"IEND", "JPEG": b"\xff\xd9", "GIF": b"\x3b"}.get(picture_format)
    if mark is None:
        return True
    if isinstance(picture.place, Path):
        with picture.place.open("rb") as f:
            f.seek(0, io.SEEK_END)
            f.seek(max(0, f.tell() - 64))
            return mark in f.read()
    return mark in picture.place()[-64:]


# -- from a cell to pictures ----------------------------------------------------------------------------------------------------


def pictures_of(cell: Any, roots: list[Path], depth: int = 0) -> list[Picture]:
    """The pictures that a cell names: a path, a data URI, encoded bytes, ``{"bytes", "path"}``, ``{"image": ...}``, or a list of these."""
    if cell is None or cell == "" or cell == []:
        return []
    if depth > MAX_DEPTH:
        raise BadImage(f"lists and mappings {depth} deep", f"at most {MAX_DEPTH}")
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            raise BadImage(repr(cell[:60]), "a path, or a JSON list of paths") from None
    if isinstance(cell, list | tuple):
        return [p for one in cell for p in pictures_of(one, roots, depth + 1)]
    if callable(cell):
        try:
            content = cell()
        except Exception as error:
            raise BadImage(f"a cell that cannot be read ({type(error).__name__}: {error})"[:200], "encoded bytes") from None
        return [_lazy(p, cell, i) for i, p in enumerate(pictures_of(content, roots, depth + 1))]
    if isinstance(cell, dict):
        inner = next((cell[k] for k in ("bytes", "path", "image", "url") if cell.get(k) is not None), None)
        if inner is None:
            raise BadImage(f"a mapping with {', '.join(map(str, cell)) or 'nothing'}", "'bytes', 'path' or 'image'")
        return pictures_of(inner, roots, depth + 1)
    if isinstance(cell, bytes):
        return [Picture(f"{len(cell)} bytes", lambda: cell)]
    if isinstance(cell, str):
        return [_from_text(cell, roots)]
    if isinstance(cell, Path):
        return [_from_text(str(cell), roots)]
    raise BadImage(f"{cell!r:.60} ({type(cell).__name__})", "a path, a data URI, encoded bytes or a list of these")


def clips_of(cell: Any, roots: list[Path], depth: int = 0) -> list[Footage]:
    """The clips that a cell names: a path, ``{"path", "fps" or "frames"}``, or a list of these."""
    if cell is None or cell == "" or cell == []:
        return []
    if isinstance(cell, str) and cell.lstrip().startswith(("[", "{")):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            raise BadImage(repr(cell[:60]), "a path, or a JSON list of paths", "video") from None
    if depth > MAX_DEPTH:
        raise BadImage(f"lists {depth} deep", f"at most {MAX_DEPTH}", "video")
    if isinstance(cell, list | tuple):
        return [p for one in cell for p in clips_of(one, roots, depth + 1)]
    given = cell if isinstance(cell, dict) else {"path": cell}
    place: Any = given.get("path")
    taken: dict[str, Any] = {k: given[k] for k in ("fps", "frames") if given.get(k) is not None}
    if not isinstance(place, str | Path) or set(given) - {"path", "fps", "frames", "bytes"}:
        expected = 'a path, {"path": ..., "fps" or "frames": ...}, or a list of these'
        raise BadImage(f"{cell!r:.60} ({type(cell).__name__})", expected, "video")
    try:
        picture = _from_text(str(place), roots, "a clip")
        Video(str(place), **taken)
    except BadImage as error:
        raise BadImage(error.found, error.expected, "video") from None
    except (TypeError, ValueError) as error:
        raise BadImage(str(error).removeprefix("Video: found "), "fps or frames, a positive number, one of them", "video") from None
    if not isinstance(picture.place, Path):
        raise BadImage(f"{picture.name}, embedded", "a file in the data folder", "video")
    return [Footage(picture.name, picture.place, **taken)]


def _lazy(picture: Picture, cell: Callable[[], Any], index: int) -> Picture:
    """The same picture without its bytes: the cell is read again when they are needed."""
    if isinstance(picture.place, Path):
        return picture
    return Picture(picture.name, lambda: pictures_of(cell(), [])[index].encoded())


def _from_text(text: str, roots: list[Path], what: str = "an image") -> Picture:
    if text.startswith("data:"):
        head, _, body = text.partition(",")
        try:
            encoded = base64.b64decode(body, validate=True)
        except (ValueError, binascii.Error):
            raise BadImage(f"{text[:40]!r}... (not base64)", "a data URI data:image/...;base64,...") from None
        return Picture(f"{head}, {len(encoded)} bytes", lambda: encoded)
    if "://" in text:
        raise BadImage(f"{text[:80]!r}, an address", "a file in the data folder (remote files are not fetched)")
    if not roots:
        raise BadImage(f"{text[:80]!r}, a path without a folder to start from", "embedded images, or load(..., images=FOLDER)")
    try:
        for root in roots:
            file = (root / text).resolve()
            if not file.is_relative_to(root.resolve()):
                raise BadImage(f"{text[:200]!r}, outside the data folder", "a path inside it (or load(..., images=FOLDER))")
            if file.is_file():
                return Picture(text, file)
        kind = "a folder" if (roots[0] / text).is_dir() else "no such file"
    except BadImage:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL in it, a loop of links
        raise BadImage(f"{text[:80]!r}, no path ({type(error).__name__}: {error})"[:200], f"{what} file in the data folder") from None
    raise BadImage(f"{text[:200]!r}, {kind}", f"{what} file under {' or '.join(dict.fromkeys((r.name or '.') + '/' for r in roots))}")


def unchanged(shown: Picture | Footage, digest: str | None) -> None:
    """Raise `DataChanged` if what is shown has another digest than before; None knows of none."""
    if digest is not None and shown.digest() != digest:
        raise DataChanged(
            f"{shown.name}: the {shown.kind} has been replaced since the run began (its bytes have another hash); put the old one back and "
            "run the same command again, or start a new run"
        )


class Decoded:
    """The last few decoded pictures by content, shared by the rows that show the same one; safe in threads."""

    def __init__(self, size: int = 64):
        self.size, self._kept, self._lock = size, OrderedDict(), threading.Lock()

    def get(self, key: Any, picture: Picture, max_pixels: int, digest: str | None = None) -> Image.Image:
        """The decoded picture; one whose encoded bytes have another digest than expected is a `DataChanged` error."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        if digest is not None:
            picture = picture.held()
            unchanged(picture, digest)
        image = picture.decode(max_pixels)
        with self._lock:
            self._kept[key] = image
            while len(self._kept) > self.size:
                self._kept.popitem(last=False)
        return image
