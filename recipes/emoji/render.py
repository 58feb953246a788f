"""Render every training picture on white into memory-mappable arrays, with a manifest.

    python recipes/emoji/render.py DATA_DIR OUT_DIR [--large 4000] [--workers N] [--limit N]

Writes OUT_DIR/images_64.npy and images_256.npy (uint8, "n 64 64 3" and "n 256 256 3"),
images_1024.npy ("m 1024 1024 3", a subset of the SVG pictures) and manifest.json. A picture is
drawn once and made smaller by exact box averages, so its sizes agree. Needs resvg_py and pillow.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import random
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from captions import Picture, build_manifest, kept_keys, normalize_weights
from sources import RASTER_SET, Drawings, read_drawings, read_names

HOLDOUT = Path(__file__).with_name("holdout.json")
LARGE = 1024
SIZES = (64, 256)
# Side at which a picture is drawn that is not in the 1024 subset; blurred gradients are slow.
MEDIUM_SIDES = {"noto": 512, "fluent-emoji": 256, "fluent-emoji-flat": 512, RASTER_SET: 256}
# Shares of the 1024 subset: the gradients of the fluent set cost about ten times the time.
LARGE_SHARES = {"noto": 0.4, "flat": 0.4, "fluent": 0.2}
MAX_SVG_CHARS = 450_000
CHUNK = 8


def box_average(image: np.ndarray, side: int) -> np.ndarray:
    """Average exact square boxes down to a side that divides the image's own.

    image    h h 3, uint8
    side     side of the result
    returns  side side 3, uint8, rounded; boxes of up to 16 by 16
    """
    box = image.shape[0] // side
    if box * side != image.shape[0]:
        raise ValueError(f"side {side} does not divide the picture's {image.shape[0]}")
    nothing = np.zeros((), np.uint16)
    rows = sum((image[i::box].astype(np.uint16) for i in range(box)), nothing)
    total = sum((rows[:, i::box] for i in range(box)), nothing)
    return ((total + box * box // 2) // (box * box)).astype(np.uint8)


def draw_svg(svg: str, side: int) -> np.ndarray:
    """One SVG on white.

    side     pixels
    returns  side side 3, uint8
    """
    import resvg_py
    from PIL import Image

    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=side, height=side, background="#ffffff", skip_system_fonts=True
    )
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def draw_raster(encoded: bytes, side: int) -> np.ndarray:
    """One encoded picture on white, centred on a square and resized with Lanczos if it must be.

    side     pixels
    returns  side side 3, uint8
    """
    from PIL import Image

    image = Image.open(io.BytesIO(encoded)).convert("RGBA")
    square = max(image.size)
    canvas = Image.new("RGBA", (square, square), "white")
    canvas.alpha_composite(image, ((square - image.width) // 2, (square - image.height) // 2))
    canvas = canvas.convert("RGB")
    if square != side:
        canvas = canvas.resize((side, side), Image.Resampling.LANCZOS)
    return np.asarray(canvas)


def choose_large(pictures: list[Picture], count: int, seed: int = 0) -> set[int]:
    """Indices of the SVG pictures that the 1024 stage trains on, drawn by their weights."""
    rng = random.Random(seed)
    chosen: set[int] = set()
    for style, share in LARGE_SHARES.items():
        rows = [i for i, p in enumerate(pictures) if p.style == style]
        # Exponential races: the smallest are a weighted draw without replacement.
        rows.sort(key=lambda i: rng.expovariate(1.0) / pictures[i].weight)
        chosen.update(rows[: round(count * share)])
    return chosen


def choose_named(pictures: list[Picture], names: list[str]) -> list[Picture]:
    """The pictures of these names, each as likely as the others; an unknown name is an error."""
    wanted = {name.strip() for name in names if name.strip()}
    unknown = wanted - {picture.name for picture in pictures}
    if unknown:
        raise ValueError(f"no picture has the name {', '.join(sorted(unknown))}")
    return [replace(picture, weight=1.0) for picture in pictures if picture.name in wanted]


def _draw_job(job: tuple[int, str | bytes, int]) -> tuple[int, dict[int, np.ndarray] | str]:
    """All sizes of one picture drawn at a side, or why it could not be drawn."""
    index, drawing, side = job
    try:
        if isinstance(drawing, bytes):
            image = draw_raster(drawing, side)
        elif len(drawing) > MAX_SVG_CHARS:
            return index, f"the svg has {len(drawing)} characters, more than {MAX_SVG_CHARS}"
        else:
            image = draw_svg(drawing, side)
    except (ValueError, OSError) as error:
        return index, str(error)
    medium = box_average(image, 256)
    sizes = {64: box_average(medium, 64), 256: medium}
    if side == LARGE:
        sizes[LARGE] = image
    return index, sizes


def held_out_digests(sets: dict[str, Drawings], holdout: dict[str, list[str]], pool) -> set[str]:
    """Fingerprints of the 64 pixel renderings of every held-out picture."""
    jobs = [
        (0, sets[name].items[key], MEDIUM_SIDES[name])
        for name, keys in holdout.items()
        for key in keys
    ]
    drawn = pool.imap_unordered(_draw_job, jobs, chunksize=CHUNK)
    return {_digest(sizes[64]) for _, sizes in drawn if not isinstance(sizes, str)}


def _digest(image: np.ndarray) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def render(
    pictures: list[Picture],
    sets: dict[str, Drawings],
    holdout: dict[str, list[str]],
    out: Path,
    large_count: int,
    workers: int,
) -> dict:
    """Draw the pictures into OUT_DIR and return the manifest that was written there.

    A picture whose 64 pixel rendering equals a held-out one, or an earlier one of the same style,
    is dropped, and so is one that cannot be drawn; the manifest lists both.
    """
    large = choose_large(pictures, large_count)
    arrays = {size: _open_array(out, size, len(pictures)) for size in SIZES}
    arrays[LARGE] = _open_array(out, LARGE, len(large))
    # Slow drawings first, so that the pool ends together.
    order = sorted(range(len(pictures)), key=lambda i: (i not in large, -_cost(pictures[i], sets)))
    jobs = (_job(i, pictures[i], sets, i in large) for i in order)
    kept: list[tuple[int, int | None]] = []
    skipped: list[dict[str, str]] = []
    with multiprocessing.Pool(workers) as pool:
        seen = held_out_digests(sets, holdout, pool)
        rows = dict.fromkeys(arrays, 0)
        for index, sizes in pool.imap(_draw_job, jobs, chunksize=CHUNK):
            picture = pictures[index]
            if isinstance(sizes, str):
                skipped.append({"set": picture.set, "key": picture.key, "reason": sizes})
                continue
            mark = _digest(sizes[64])
            if {mark, f"{picture.style} {mark}"} & seen:
                reason = "looks like a picture already seen or held out"
                skipped.append({"set": picture.set, "key": picture.key, "reason": reason})
                continue
            seen.add(f"{picture.style} {mark}")
            kept.append((index, rows[LARGE] if LARGE in sizes else None))
            for size, image in sizes.items():
                arrays[size][rows[size]] = image
                rows[size] += 1
    for size, array in arrays.items():
        _close_array(array, out, size, rows[size])
    return _write_manifest(pictures, kept, skipped, out)


def _job(index: int, picture: Picture, sets: dict[str, Drawings], large: bool) -> tuple:
    side = LARGE if large else MEDIUM_SIDES[picture.set]
    return index, sets[picture.set].items[picture.key], side


def _cost(picture: Picture, sets: dict[str, Drawings]) -> int:
    drawing = sets[picture.set].items[picture.key]
    return len(drawing) if isinstance(drawing, str) else 0


def _open_array(out: Path, size: int, count: int) -> np.memmap:
    path = out / f"images_{size}.npy.part"
    return np.lib.format.open_memmap(path, "w+", np.uint8, (max(count, 1), size, size, 3))


def _close_array(array: np.memmap, out: Path, size: int, count: int) -> None:
    """Give a partly filled array file its true length and its name."""
    array.flush()
    offset, shape = array.offset, (count, size, size, 3)
    part = out / f"images_{size}.npy.part"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    if header.tell() != offset:
        raise RuntimeError(
            f"{part}: the header would change from {offset} to {header.tell()} bytes"
        )
    with open(part, "r+b") as file:
        file.write(header.getvalue())
        file.truncate(offset + count * size * size * 3)
    os.replace(part, out / f"images_{size}.npy")


def _write_manifest(
    pictures: list[Picture],
    kept: list[tuple[int, int | None]],
    skipped: list[dict[str, str]],
    out: Path,
) -> dict:
    """Rows in the order of the arrays; "large" is the row of images_1024, or null."""
    rows = []
    weighed = normalize_weights([pictures[index] for index, _ in kept])
    for picture, (_, large) in zip(weighed, kept, strict=True):
        vector = picture.set != RASTER_SET
        rows.append({**asdict(picture), "vector": vector, "large": large})
    manifest = {"version": 1, "pictures": rows, "skipped": skipped}
    part = out / "manifest.json.part"
    part.write_text(json.dumps(manifest, ensure_ascii=False))
    os.replace(part, out / "manifest.json")
    return manifest


def check_holdout(manifest: dict, sets: dict[str, Drawings], holdout: dict[str, list[str]]) -> None:
    """Raise if a held-out picture is in a manifest."""
    allowed = {name: set(kept_keys(sets[name], keys)) for name, keys in holdout.items()}
    for row in manifest["pictures"]:
        if row["key"] not in allowed[row["set"]]:
            raise RuntimeError(f"{row['set']}/{row['key']} is held out and was rendered")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with the tarballs of fetch.py")
    parser.add_argument("out", type=Path, help="folder for the arrays and the manifest")
    parser.add_argument("--large", type=int, default=4000, help="pictures at 1024 pixels")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--limit", type=int, help="only so many pictures, drawn by weight")
    parser.add_argument("--names", type=Path, help="file of picture names, one a line: only these")
    parser.add_argument("--styles", nargs="+", help="only these styles: noto, fluent, flat, 3d")
    args = parser.parse_args()
    start = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    holdout = json.loads(HOLDOUT.read_text())
    sets = read_drawings(args.data)
    pictures = build_manifest(sets, read_names(args.data), holdout)
    if args.names is not None:
        pictures = choose_named(pictures, args.names.read_text("utf-8").split("\n"))
    if args.styles is not None:
        pictures = [picture for picture in pictures if picture.style in args.styles]
    if args.limit is not None:
        pictures = random.Random(0).sample(pictures, min(args.limit, len(pictures)))
    manifest = render(pictures, sets, holdout, args.out, args.large, args.workers)
    check_holdout(manifest, sets, holdout)
    styles = [row["style"] for row in manifest["pictures"]]
    print({style: styles.count(style) for style in sorted(set(styles))})
    print("1024:", sum(row["large"] is not None for row in manifest["pictures"]))
    for row in manifest["skipped"]:
        print(f"skipped {row['set']}/{row['key']}: {row['reason']}")
    print(f"{len(styles)} pictures in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
