"""Makes docs/icon.png and docs/banner.png, for the registry: the three stages of one picture.

python tools/artwork.py
"""

from __future__ import annotations

from pathlib import Path

from node_pictures import small
from PIL import Image, ImageDraw, ImageFont

from imagen_nodes import imagen_core as core

OUT = Path(__file__).parent.parent / "docs"
ICON, BANNER = 256, (1260, 540)  # 21:9
DARK, LIGHT, ACCENT = "#17171c", "#e8e8ee", "#b48be4"
MOST_BYTES = 100_000


def stages() -> list[Image.Image]:
    """The picture after each stage."""
    cascade = core.load_cascade("emoji")
    text = cascade.text_encoder.encode_prompt("a red apple, noto style")
    image = core.sample_base(cascade.base, text, seed=0)
    made = [image]
    for stage in (cascade.sr256, cascade.sr1024):
        made.append(core.super_resolve(stage, made[-1], text, seed=0))
    return [Image.fromarray((255 * each[0]).round().byte().numpy()) for each in made]


def scaled(picture: Image.Image, side: int) -> Image.Image:
    """The picture at a size, its pixels kept square where it grows.

    picture   square
    side      in pixels
    """
    grows = picture.width < side
    return picture.resize((side, side), Image.Resampling.NEAREST if grows else Image.Resampling.BOX)


def icon(pictures: list[Image.Image]) -> Image.Image:
    """One picture in three slanted strips, a stage each.

    pictures   by stage
    """
    image = scaled(pictures[0], ICON)
    for k, picture in enumerate(pictures[1:], 1):
        edge, slant = ICON * k // 3, ICON // 12
        mask = Image.new("L", image.size)
        corners = [(edge + slant, 0), (ICON, 0), (ICON, ICON), (edge - slant, ICON)]
        ImageDraw.Draw(mask).polygon(corners, fill=255)
        image.paste(scaled(picture, ICON), mask=mask)
    return image


def banner(pictures: list[Image.Image]) -> Image.Image:
    """The stages from left to right under the name.

    pictures   by stage
    """
    width, height = BANNER
    image = Image.new("RGB", BANNER, DARK)
    draw = ImageDraw.Draw(image)
    draw.text((width // 2, 66), "Imagen Nodes", LIGHT, ImageFont.load_default(72), anchor="mm")
    line = "text  →  64  →  256  →  1024"
    draw.text((width // 2, 128), line.replace("→", ">"), ACCENT, ImageFont.load_default(28), "mm")
    side, gap = 300, 60
    left = (width - 3 * side - 2 * gap) // 2
    for k, picture in enumerate(pictures):
        x, y = left + k * (side + gap), height - side - 56
        image.paste(scaled(picture, side), (x, y))
        label = f"{picture.width} x {picture.height}"
        draw.text((x + side // 2, height - 28), label, LIGHT, ImageFont.load_default(24), "mm")
        if k:
            middle = y + side // 2
            draw.line([(x - gap + 12, middle), (x - 14, middle)], ACCENT, 5)
            draw.polygon([(x - 8, middle), (x - 24, middle - 12), (x - 24, middle + 12)], ACCENT)
    return image


def main() -> None:
    pictures = stages()
    for name, image in (("icon", icon(pictures)), ("banner", banner(pictures))):
        (OUT / f"{name}.png").write_bytes(small(image, MOST_BYTES))


if __name__ == "__main__":
    main()
