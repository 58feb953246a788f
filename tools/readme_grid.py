"""Makes docs/grid.png: twelve prompts through the bundled base, default settings, seed 0.

python tools/readme_grid.py [--out FILE]
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from imagen_nodes import imagen_core as core

NAMES = (
    "red apple",
    "rocket",
    "cat face",
    "house",
    "pizza",
    "sunflower",
    "butterfly",
    "castle",
    "fish",
    "rainbow",
    "crown",
    "blue heart",
)
COLUMNS, ENLARGE = 6, 2
GRID = Path(__file__).parent.parent / "docs" / "grid.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=GRID, help="the picture; default: %(default)s")
    options = parser.parse_args()
    cascade = core.load_cascade("emoji")
    # One call a prompt, so that every picture has seed 0.
    pictures = [cascade.generate(f"{name}, noto style", upto=64)[0] for name in NAMES]
    pixels = [(255 * picture).round().byte().numpy() for picture in pictures]
    rows = [
        np.concatenate(pixels[start : start + COLUMNS], axis=1)
        for start in range(0, len(pixels), COLUMNS)
    ]
    grid = Image.fromarray(np.concatenate(rows, axis=0))
    size = (grid.width * ENLARGE, grid.height * ENLARGE)
    grid.resize(size, Image.Resampling.NEAREST).save(options.out)
    print(options.out)


if __name__ == "__main__":
    main()
