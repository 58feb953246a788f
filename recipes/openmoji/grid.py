"""Before and after side by side, from the pictures that `imagen evaluate` made.

    python recipes/openmoji/grid.py BEFORE AFTER REAL GRID.png [--things NAME ...]

BEFORE and AFTER are folders of `imagen evaluate`, REAL is what pictures.py wrote. Rows, each of the same
things: the bundled base, the base with the LoRA, the real drawings; then the things in the base's own
styles, before and with the LoRA.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from imagen_nodes.imagen_core.evaluation.prompts import LINES, Prompt, read_prompts

STYLE, ACROSS, SIDE = "openmoji", 8, 96
COLOURS = 128  # of the palette


def shown(folder: Path, new: bool) -> dict[str, tuple[Prompt, Path]]:
    """Prompts and files by thing, in the new style or in the others."""
    prompts = read_prompts(folder / LINES)
    return {str(p.thing): (p, folder / str(p.file)) for p in prompts if (p.style == STYLE) == new}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("real", type=Path)
    parser.add_argument("out", type=Path, help="PNG")
    parser.add_argument("--things", nargs="*", help="default: the first that are asked for")
    args = parser.parse_args()
    before, after = args.before / "pictures", args.after / "pictures"
    rows = [
        *(shown(folder, True) for folder in (before, after, args.real)),
        *(shown(folder, False) for folder in (before, after)),
    ]
    things = args.things or [t for t in rows[1] if all(t in row for row in rows)][:ACROSS]
    sheet = np.full((SIDE * len(rows), SIDE * len(things), 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for k, thing in enumerate(things):
            image = Image.open(row[thing][1]).convert("RGB")
            image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            sheet[i * SIDE : (i + 1) * SIDE, k * SIDE : (k + 1) * SIDE] = np.asarray(image)
    Image.fromarray(sheet).quantize(COLOURS).save(args.out, optimize=True)
    print("\n".join(rows[4][thing][0].prompt for thing in things))


if __name__ == "__main__":
    main()
