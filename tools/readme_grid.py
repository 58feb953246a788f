"""Makes docs/grid.png: what the bundled base composes, each picture as it came, default settings.

    python tools/readme_grid.py [CASCADE] [--base FILE] [--out FILE]

Three rows: six prompts; one thing in the four styles, then in two colours; one prompt at six seeds.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from imagen_nodes import imagen_core as core

COMPOSED = (
    "a purple fox, flat style",
    "three red apples, noto style",
    "a castle on a blue background, flat style",
    "a rocket, fluent style",
    "a heart on a yellow background, 3d style",
    "a green apple left of a house, flat style",
)
STYLED = (
    "a red apple, noto style",
    "a red apple, fluent style",
    "a red apple, flat style",
    "a red apple, 3d style",
    "a blue apple, noto style",
    "a yellow heart, 3d style",
)
SEEDED = "a house"
COLUMNS, SIDE, LINE, GAP = 6, 128, 30, 6
GRID = Path(__file__).parent.parent / "docs" / "grid.png"


def labelled(prompt: str) -> list[str]:
    """A prompt in at most two lines."""
    words, lines = prompt.split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 22 and len(lines) < 2:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def sheet(cells: list[tuple[Tensor, str]], columns: int) -> Image.Image:
    """Images in rows, each over its label.

    cells   h w 3 in 0..1, and the label
    """
    step, rows = SIDE + GAP, -(-len(cells) // columns)
    grid = Image.new("RGB", (columns * step + GAP, rows * (step + LINE) + GAP), "white")
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(11)
    for i, (image, label) in enumerate(cells):
        picture = Image.fromarray((255 * image).round().byte().numpy().astype(np.uint8))
        x, y = GAP + step * (i % columns), GAP + (step + LINE) * (i // columns)
        grid.paste(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST), (x, y))
        draw.rectangle((x - 1, y - 1, x + SIDE, y + SIDE), outline="#cccccc")
        for line, text in enumerate(labelled(label)):
            draw.text((x, y + SIDE + 2 + 13 * line), text, "#444444", font)
    return grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cascade", nargs="?", default="emoji")
    parser.add_argument("--base", type=Path, help="a stage file in place of the cascade's base")
    parser.add_argument("--out", type=Path, default=GRID, help="the picture; default: %(default)s")
    options = parser.parse_args()
    cascade = core.load_cascade(options.cascade)
    stage = cascade.base if options.base is None else core.load_stage(options.base)
    cells = [(prompt, 0, prompt) for prompt in COMPOSED + STYLED]
    cells += [(SEEDED, seed, f"{SEEDED}, seed {seed}") for seed in range(COLUMNS)]
    encode = cascade.text_encoder.encode_prompt
    made = [
        (core.sample_base(stage, encode(prompt), seed=seed)[0], label)
        for prompt, seed, label in cells
    ]
    sheet(made, COLUMNS).save(options.out)
    print(options.out)


if __name__ == "__main__":
    main()
