"""Pictures as red, green and blue. Loads nothing heavy."""

from __future__ import annotations

from PIL import Image


def rgb(image: Image.Image) -> Image.Image:
    """The picture without transparency, which is laid on white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
