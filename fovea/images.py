"""Pictures as red, green and blue. Loads nothing heavy."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

SMALL = 160
"""Pictures whose sides are at most so many pixels are shown in pages without loss."""


def rgb(image: Image.Image) -> Image.Image:
    """The picture without transparency, which is laid on white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def data_uri(picture: Image.Image | Any) -> str:
    """A picture without transparency, or uint8 (H, W, 3), as an address that holds it: PNG where it is small, else JPEG."""
    shown = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    kind, options = ("png", {"optimize": True}) if max(shown.size) <= SMALL else ("jpeg", {"quality": 82})
    shown.save(buffer := io.BytesIO(), kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
