"""Write 200 drawings of a style that no training of the cascade saw, and what a tuned stage is measured by.

    python recipes/openmoji/pictures.py SPRITES_DIR OUT_DIR [--pictures N] [--measured N]

SPRITES_DIR is what recipes/emoji/sprites.py wrote. OUT_DIR gets

    images/         drawings to tune on, 256 pixels on white, each with its caption in a .txt file
    prior.txt       prompts in the cascade's own styles, for `imagen finetune --prior`
    prompts.jsonl   prompts of other openmoji drawings, and of the same things in the cascade's own styles
    reference/      every drawing of the things, in all styles: among their captions judges rank
    real/           the drawings that the prompts ask for, on which the measures are validated

No drawing is both in images/ and in prompts.jsonl, and no prompt both in prior.txt and in prompts.jsonl.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "emoji"))
from compose import Drawings, concepts
from prompts import Case, Cases

from imagen_nodes.imagen_core.evaluation.prompts import LINES, write_folder, write_prompts

STYLE, SIDE = "openmoji", 256
NEW, OLD = f"{STYLE}, not tuned on", "own styles"


def chosen(
    rows: list[dict], pictures: int, measured: int, prior: int
) -> tuple[list[dict], list[dict], list[dict], list[dict]]:
    """Drawings to tune on, to ask for, to ask for in the cascade's own styles, and to keep known.

    rows       of sprites.json
    pictures   to tune on
    measured   to ask for
    prior      to keep known
    """
    rng = np.random.default_rng(2205)
    known = [row for row in rows if row["split"] == "train" and row["name"] in concepts()]
    names = {row["name"] for row in known}
    new = [row for row in rows if row["style"] == STYLE and row["name"] in names]
    new = [new[i] for i in rng.permutation(len(new))]
    asked = new[pictures : pictures + measured]
    old = [known[i] for i in rng.permutation(len(known))]
    styles = sorted({row["style"] for row in known})
    same = []
    for i, row in enumerate(asked):
        drawn = [other for other in old if other["name"] == row["name"]]
        drawn.sort(key=lambda other: (styles.index(other["style"]) - i) % len(styles))
        same.append(drawn[0])
    taken = {row["row"] for row in same}
    return new[:pictures], asked, same, [row for row in old if row["row"] not in taken][:prior]


def write_images(drawings: Drawings, rows: list[dict], folder: Path) -> None:
    """Drawings on white with their captions, as a folder to tune on."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        sprite = Image.fromarray(drawings.source(row["row"], SIDE))
        under = Image.new("RGBA", sprite.size, "white")
        under.alpha_composite(sprite)
        path = folder / f"{row['key']}.png"
        under.convert("RGB").save(path)
        path.with_suffix(".txt").write_text(f"{row['name']}, {STYLE} style\n", "utf-8")


def write_drawings(cases: Cases, drawn: list[Case], folder: Path) -> None:
    """Drawings at 64 as `imagen evaluate` reads them."""
    pictures = torch.stack([cases.picture(case.scene) for case in drawn])
    write_folder(folder, [case.prompt for case in drawn], pictures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sprites", type=Path, help="folder that sprites.py wrote")
    parser.add_argument("out", type=Path, help="folder for pictures and prompts")
    parser.add_argument("--pictures", type=int, default=200, help="drawings to tune on")
    parser.add_argument("--prior", type=int, default=80, help="prompts to keep known")
    parser.add_argument("--measured", type=int, default=100, help="drawings to ask for")
    args = parser.parse_args()
    drawings = Drawings(args.sprites)
    cases = Cases(drawings, 1)
    tuned, asked, same, prior = chosen(drawings.rows, args.pictures, args.measured, args.prior)
    write_images(drawings, tuned, args.out / "images")
    lines = [cases.plain(row, "prior").prompt.prompt for row in prior]
    (args.out / "prior.txt").write_text("\n".join(lines) + "\n", "utf-8")
    drawn = [cases.plain(row, NEW) for row in asked] + [cases.plain(row, OLD) for row in same]
    write_prompts([case.prompt for case in drawn], args.out / LINES)
    write_drawings(cases, drawn, args.out / "real")
    shown = [
        row for row in drawings.rows if row["name"] in concepts() and row["split"] != "heldout"
    ]
    write_drawings(cases, [cases.plain(row, "reference") for row in shown], args.out / "reference")
    print(
        f"{len(tuned)} to tune on, {len(asked)} to ask for, {len(shown)} drawings of the same things"
    )


if __name__ == "__main__":
    main()
