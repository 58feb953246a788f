"""Draw every concept's drawings with their alpha, for pictures that are composed while training.

    python recipes/emoji/sprites.py DATA_DIR OUT_DIR [--large N] [--workers N]

Writes OUT_DIR/sprites_256.npy (uint8, "n 256 256 4", straight alpha), the same at 128 and 64 (averages
of areas), and sprites.json: one object a row with `row` (of the arrays), `style`, `key`, `name`, `group`,
`kind` (emojibase's sub-group), `captions`, `colour` (the one dominant colour, or null) and `split`:
"train", "heldout" (no training of the cascade may see it) or "other" (a style that none sees). With --large
also sprites_1024.npy, N drawings of the vector styles that may be trained on; `large` is their row in it.
Needs resvg_py and pillow.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from captions import (
    STYLES,
    Entry,
    Names,
    build_manifest,
    caption_variants,
    describe,
    index_entries,
    spoken_name,
)
from colours import dominant_colour
from fetch import OPENMOJI
from sources import RASTER_SET, Drawings, read_drawings, read_icon_set, read_names

HOLDOUT = Path(__file__).with_name("holdout.json")
SIDE = 256
SMALLER = (128, 64)
LARGE = 1024
CHUNK = 8
MAX_SVG_CHARS = 450_000
# Concepts are the names that at least this many styles draw, in these groups, without skin tones.
MIN_STYLES = 3
CONCEPT_GROUPS = ("smileys", "animals", "food", "travel", "activities", "objects", "symbols")


@dataclass(frozen=True)
class Sprite:
    """One drawing to be drawn: where it comes from and what it shows."""

    set: str
    style: str
    key: str
    name: str
    group: str
    kind: str
    captions: list[tuple[str, float]]
    split: str


def draw(drawing: str | bytes, side: int) -> np.ndarray:
    """One SVG, or an encoded picture centred on a square: side side 4, uint8, straight alpha."""
    from PIL import Image

    if isinstance(drawing, str):
        import resvg_py

        png = resvg_py.svg_to_bytes(
            svg_string=drawing, width=side, height=side, skip_system_fonts=True
        )
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))
    image = Image.open(io.BytesIO(drawing)).convert("RGBA")
    square = max(image.size)
    canvas = Image.new("RGBA", (square, square))
    canvas.paste(image, ((square - image.width) // 2, (square - image.height) // 2))
    return np.asarray(canvas.resize((side, side), Image.Resampling.LANCZOS))


def _draw_job(job: tuple[int, str | bytes, int]) -> tuple[int, np.ndarray | str]:
    """The drawing of one row at a side, or why it could not be drawn."""
    index, drawing, side = job
    if isinstance(drawing, str) and len(drawing) > MAX_SVG_CHARS:
        return index, f"the svg has {len(drawing)} characters, more than {MAX_SVG_CHARS}"
    try:
        return index, draw(drawing, side)
    except (ValueError, OSError) as error:
        return index, str(error)


def choose(sets: dict[str, Drawings], names: Names, holdout: dict[str, list[str]]) -> list[Sprite]:
    """The drawings of every concept, those that are held out marked as such, in a fixed order.

    sets      by set name, openmoji among them
    holdout   held-out keys by set name
    """
    entries = index_entries(names)
    told = {
        (set_name, key): _entry(drawings, key, entries)
        for set_name, drawings in sets.items()
        for key in drawings.items
    }
    styles_of: dict[str, set[str]] = {}
    for (set_name, _), entry in told.items():
        if set_name in STYLES and _is_concept(entry):
            styles_of.setdefault(spoken_name(entry.label), set()).add(set_name)
    concepts = {name for name, styles in styles_of.items() if len(styles) >= MIN_STYLES}
    trained = {
        (picture.set, picture.key)
        for picture in build_manifest({k: sets[k] for k in STYLES}, names, holdout)
    }
    sprites = []
    for (set_name, key), entry in told.items():
        name = spoken_name(entry.label)
        if name not in concepts or not _is_concept(entry):
            continue
        held = key in holdout.get(set_name, ())
        if set_name in STYLES and not held and (set_name, key) not in trained:
            continue  # equal to a held-out drawing, or to one that is there
        style = STYLES.get(set_name, set_name)
        split = "other" if set_name not in STYLES else "heldout" if held else "train"
        captions = caption_variants(name, style, entry.group, entry.tags, entry.synonyms)
        sprites.append(Sprite(set_name, style, key, name, entry.group, entry.kind, captions, split))
    return sprites


def _entry(drawings: Drawings, key: str, entries: dict[str, Entry]) -> Entry:
    return describe(key, drawings.hexcodes.get(key, []), entries)[0]


def _is_concept(entry: Entry) -> bool:
    return entry.group in CONCEPT_GROUPS and "skin tone" not in entry.label


def render(sprites: list[Sprite], sets: dict[str, Drawings], out: Path, workers: int) -> list[dict]:
    """Draw the sprites into OUT_DIR; the rows of sprites.json."""
    part = out / "sprites_256.npy.part"
    array = np.lib.format.open_memmap(part, "w+", np.uint8, (len(sprites), SIDE, SIDE, 4))
    rows: list[dict | None] = [None] * len(sprites)
    jobs = ((i, sets[s.set].items[s.key], SIDE) for i, s in enumerate(sprites))
    with multiprocessing.Pool(workers) as pool:
        for index, image in pool.imap_unordered(_draw_job, jobs, chunksize=CHUNK):
            sprite = sprites[index]
            if isinstance(image, str):
                print(f"skipped {sprite.set}/{sprite.key}: {image}")
                continue
            array[index] = image
            rows[index] = {**vars(sprite), "colour": dominant_colour(image)}
    array.flush()
    os.replace(part, out / "sprites_256.npy")
    for side in SMALLER:
        array = _write_smaller(array, out / f"sprites_{side}.npy", side)
    return [{"row": i, **row} for i, row in enumerate(rows) if row is not None]


def _write_smaller(sprites: np.ndarray, path: Path, side: int) -> np.ndarray:
    """The sprites at half their side, weighted by alpha, written to a file."""
    part = path.with_suffix(".npy.part")
    smaller = np.lib.format.open_memmap(part, "w+", np.uint8, (len(sprites), side, side, 4))
    for row, sprite in enumerate(sprites):
        boxes = sprite.reshape(side, 2, side, 2, 4).astype(np.float32)
        alpha = boxes[..., 3:].sum((1, 3))
        colour = (boxes[..., :3] * boxes[..., 3:]).sum((1, 3)) / np.maximum(alpha, 1)
        smaller[row] = np.rint(np.concatenate([colour, alpha / 4], axis=-1)).astype(np.uint8)
    smaller.flush()
    os.replace(part, path)
    return smaller


def render_large(
    rows: list[dict], sets: dict[str, Drawings], out: Path, count: int, workers: int
) -> None:
    """Draw some vector drawings at 1024 too; their rows of sprites.json say where."""
    able = [row for row in rows if row["split"] == "train" and row["set"] != RASTER_SET]
    chosen = random.Random(0).sample(able, min(count, len(able)))
    part = out / "sprites_1024.npy.part"
    array = np.lib.format.open_memmap(part, "w+", np.uint8, (len(chosen), LARGE, LARGE, 4))
    jobs = ((i, sets[row["set"]].items[row["key"]], LARGE) for i, row in enumerate(chosen))
    with multiprocessing.Pool(workers) as pool:
        for index, image in pool.imap_unordered(_draw_job, jobs, chunksize=CHUNK):
            if not isinstance(image, str):
                array[index] = image
                chosen[index]["large"] = index
    array.flush()
    os.replace(part, out / "sprites_1024.npy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with the tarballs of fetch.py")
    parser.add_argument("out", type=Path, help="folder for the drawings")
    parser.add_argument("--large", type=int, default=0, help="drawings at 1024 too")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    start = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    sets = {**read_drawings(args.data), "openmoji": read_icon_set(args.data, OPENMOJI)}
    holdout = json.loads(HOLDOUT.read_text("utf-8"))
    rows = render(choose(sets, read_names(args.data), holdout), sets, args.out, args.workers)
    if args.large:
        render_large(rows, sets, args.out, args.large, args.workers)
    part = args.out / "sprites.json.part"
    part.write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    os.replace(part, args.out / "sprites.json")
    counts = [(row["style"], row["split"]) for row in rows]
    print(
        {f"{style} {split}": counts.count((style, split)) for style, split in sorted(set(counts))}
    )
    print(f"{len(rows)} drawings of {len({row['name'] for row in rows})} concepts "
          f"in {time.perf_counter() - start:.0f} s")  # fmt: skip


if __name__ == "__main__":
    main()
