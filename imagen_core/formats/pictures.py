"""Files of pictures, of any kind that Pillow opens, as training and evaluation see them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif", ".tga",
)  # fmt: skip


def upright_rgb(opened: Image.Image, ground: str = "white") -> Image.Image:
    """An open picture upright in RGB: 16 bit and CMYK converted, alpha on a ground.

    ground   colour, as pillow reads them
    """
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, np.float64)
        scale = 1.0 if image.mode == "F" and values.max() <= 1 else 65535.0
        levels = (values / scale * 255).clip(0, 255).astype(np.uint8)
        return Image.fromarray(levels).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        under = Image.new("RGBA", image.size, ground)
        return Image.alpha_composite(under, image).convert("RGB")
    return image.convert("RGB")
