"""Draw line icons with their names, as a folder to tune on: a domain that no training of the cascade saw.

    npm pack lucide-static@1.62.0 && tar xzf lucide-static-1.62.0.tgz
    python recipes/line_icons/pictures.py package OUT_DIR [--pictures N]

Lucide's icons are under the ISC licence. Those with names of one word are drawn, 256 pixels, black on
white, each with captions from its name and tags in a .txt file. Some names are
left out; prompts.txt beside OUT_DIR asks for them. Needs resvg_py and pillow.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

SIDE = 256
# Not drawn, so that what is made of them cannot be copied.
LEFT_OUT = (
    *("anchor", "banana", "bird", "camera", "cloud", "fish", "guitar", "house", "key", "rocket"),
    *("turtle", "umbrella"),
)


def draw(svg: str) -> Image.Image:
    """An icon in black on white, with a margin."""
    svg = svg.replace("currentColor", "black").replace(
        'viewBox="0 0 24 24"', 'viewBox="-1 -1 26 26"'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE, skip_system_fonts=True)
    icon = Image.open(io.BytesIO(png)).convert("RGBA")
    ground = Image.new("RGBA", icon.size, "white")
    ground.alpha_composite(icon)
    return ground.convert("L")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path, help="lucide-static, unpacked")
    parser.add_argument("out", type=Path, help="folder for the pictures")
    parser.add_argument("--pictures", type=int, default=300)
    args = parser.parse_args()
    tags = json.loads((args.package / "tags.json").read_text("utf-8"))
    names = sorted(n for n in tags if re.fullmatch("[a-z]+", n) and n not in LEFT_OUT)
    chosen = [names[i] for i in np.random.default_rng(2205).permutation(len(names))]
    args.out.mkdir(parents=True, exist_ok=True)
    for name in chosen[: args.pictures]:
        path = args.out / f"{name}.png"
        draw((args.package / "icons" / f"{name}.svg").read_text("utf-8")).save(path)
        texts = [name, *(tag for tag in tags[name][:2] if tag != name)]
        path.with_suffix(".txt").write_text(
            "\n".join(f"{t}, line icon" for t in texts) + "\n", "utf-8"
        )
    lines = "\n".join(f"{name}, line icon" for name in LEFT_OUT)
    args.out.with_name("prompts.txt").write_text(lines + "\n", "utf-8")
    print(f"{args.pictures} of {len(names)} icons")


if __name__ == "__main__":
    main()
