"""Before and after side by side: what the bundled cascade makes, with and without LoRAs.

    python recipes/openmoji/grid.py SPRITES_DIR OUT_DIR BASE_LORA SR_LORA GRID.png

OUT_DIR is what pictures.py wrote. Rows, each of eight things: the cascade as it is, with the LoRAs, the
real drawings, and the cascade's own styles with the LoRAs. 128 pixels each, averaged from 256.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "emoji"))
from compose import Drawings, Piece, Scene

from imagen_nodes.imagen_core import Cascade, apply_lora, load_cascade, load_lora
from imagen_nodes.imagen_core.evaluation.prompts import LINES, read_prompts

ACROSS, SIDE = 8, 128
COLOURS = 128  # of the palette


def real(drawings: Drawings, thing: str) -> Tensor:
    """OpenMoji's drawing of a thing: 256 256 3 in 0..1."""
    row = next(r for r in drawings.rows if (r["style"], r["name"]) == ("openmoji", thing))
    scene = Scene((Piece(row["row"]),), thing, "plain")
    return torch.from_numpy(drawings.render(scene, 256)) / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sprites", type=Path, help="folder that sprites.py wrote")
    parser.add_argument("folder", type=Path, help="folder that pictures.py wrote")
    parser.add_argument("base", type=Path, help="LoRA of the base")
    parser.add_argument("sr", type=Path, help="LoRA of SR 256")
    parser.add_argument("out", type=Path, help="PNG")
    parser.add_argument("--things", nargs="*", help="names; default: the first that are asked for")
    args = parser.parse_args()
    prompts = read_prompts(args.folder / LINES)
    asked = [p for p in prompts if p.style == "openmoji"]
    things = args.things or [p.thing for p in asked[:ACROSS]]
    own = [
        next(p.prompt for p in prompts if p.thing == t and p.style != "openmoji") for t in things
    ]
    new = [f"{thing}, openmoji style" for thing in things]
    plain = load_cascade("emoji")
    base = apply_lora(plain.base, load_lora(args.base, plain.base))
    sr = apply_lora(plain.sr256, load_lora(args.sr, plain.sr256))
    tuned = Cascade(plain.text_encoder, base, sr)
    drawn = torch.stack([real(Drawings(args.sprites), thing) for thing in things])
    rows = [
        plain.generate(new, upto=256, seed=0),
        tuned.generate(new, upto=256, seed=0),
        drawn,
        tuned.generate(own, upto=256, seed=0),
    ]
    small = [F.interpolate(r.permute(0, 3, 1, 2), (SIDE, SIDE), mode="area") for r in rows]
    grid = torch.cat([torch.cat(list(row), dim=2) for row in small], dim=1).permute(1, 2, 0)
    image = Image.fromarray((grid.clamp(0, 1) * 255).round().byte().numpy())
    image.quantize(COLOURS).save(args.out, optimize=True)
    print(", ".join(things), "|", ", ".join(own))


if __name__ == "__main__":
    main()
