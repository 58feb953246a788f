"""A folder of pictures with captions as training data, decoded one by one while the network trains.

Captions come from metadata.jsonl or metadata.csv (Hugging Face's imagefolder), from a .txt or .caption
file beside the picture (each line is one), from kohya's folder names (`10_red car`: ten repeats), or
last from the file's own name. `name_mask.png` beside `name.jpg` weighs the loss: white counts, black
does not. In archives of webdataset (.tar) a caption is the sample's .txt, .caption or .json.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..formats.pictures import SUFFIXES, upright_rgb
from .recipe import RecipeError
from .shards import read_bytes, samples

if TYPE_CHECKING:
    from PIL import Image

CAPTIONS = (".txt", ".caption")
MASK = "_mask"
ORIENTATION = 0x0112  # EXIF's tag; from 5 on width and height are exchanged
REPEATS = re.compile(r"(\d+)_(.+)")
NAME_KEYS, TEXT_KEYS = ("file_name", "image", "file"), ("text", "caption", "captions", "prompt")
BUCKET_STEP = 8  # sides of aspect buckets are multiples of it
MOST_ASPECT = 2.0


@dataclass(frozen=True)
class Picture:
    """One picture of a folder.

    path       of the file, or its place in an archive
    captions   at least one
    weight     how often it is drawn beside the others
    mask       file that weighs the loss; "" = none
    size       width and height, upright
    """

    path: str
    captions: tuple[str, ...]
    weight: float
    mask: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Folder:
    """What a folder holds.

    pictures   in the order of their paths
    skipped    path and reason, once each
    """

    pictures: tuple[Picture, ...]
    skipped: tuple[tuple[str, str], ...]

    def split(self, held_out: float) -> tuple[Folder, Folder]:
        """Two folders: to train on, and about this part of the pictures to measure on.

        held_out   0..1; which pictures depends on their names alone
        """
        parts: tuple[list[Picture], list[Picture]] = ([], [])
        for picture in self.pictures:
            digest = hashlib.sha256(Path(picture.path).name.encode()).digest()
            parts[int.from_bytes(digest[:4], "big") / 2**32 < held_out].append(picture)
        kept, out = (Folder(tuple(part), self.skipped) for part in parts)
        return (kept, out) if kept.pictures else (self, Folder((), ()))


def read_folder(root: str | Path, least: int = 1, trigger: str = "") -> Folder:
    """The pictures below a folder, each decoded once to see that it is whole.

    root      searched with its sub-folders
    least     a picture whose shorter side has fewer pixels is skipped
    trigger   put before every caption, with a comma; "" = nothing
    """
    root = Path(root)
    if not root.is_dir():
        raise RecipeError(f"data.folder: expected a folder of images, got {root}, which is none")
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    stems = {p.with_suffix(""): p for p in files}
    texts = dict(pair for table in tables(root) for pair in table)
    drafts = [draft(p, root, stems, texts) for p in files if not is_mask(p, stems)]
    drafts += [each for path in sorted(root.rglob("*.tar")) for each in packed(path)]
    with ThreadPoolExecutor() as pool:
        looked = list(pool.map(lambda picture: look_at(picture.path, least), drafts))
    found, skipped, seen = [], [], {}
    for picture, (size, digest, reason) in zip(drafts, looked, strict=True):
        if not reason and digest in seen:
            reason = f"the same file as {Path(seen[digest]).name}"
        if reason:
            skipped.append((picture.path, reason))
            continue
        seen[digest] = picture.path
        captions = [f"{trigger}, {text}" if trigger else text for text in picture.captions]
        found.append(replace(picture, captions=tuple(captions), size=size))
    if not found:
        first = ": ".join((Path(skipped[0][0]).name, skipped[0][1])) if skipped else ""
        why = f"; all {len(skipped)} were skipped, such as {first}" if skipped else ""
        raise RecipeError(f"data.folder: {root}: expected images, found none{why}")
    return Folder(tuple(found), tuple(skipped))


def draft(path: Path, root: Path, stems: dict[Path, Path], texts: dict[Path, list[str]]) -> Picture:
    """A picture of a folder before it is looked at.

    root    of the folder
    stems   all its pictures by their paths without suffixes
    texts   captions by resolved path, of metadata files
    """
    repeats, name = repeats_of(path, root)
    captions = texts.get(path.resolve()) or beside(path) or [name or spoken(path.stem)]
    mask = stems.get(path.with_name(path.stem + MASK), "")
    return Picture(str(path), tuple(captions), repeats, str(mask), (0, 0))


def packed(archive: Path) -> Iterator[Picture]:
    """Pictures of an archive before they are looked at."""
    for name, sample in samples(archive):
        suffix = next((s for s in sample if s in SUFFIXES), None)
        if suffix is None:
            continue
        texts: list[str] = []
        for kind in (*CAPTIONS, ".json"):
            if kind in sample and not texts:
                content = read_bytes(sample[kind]).decode("utf-8-sig", "replace")
                texts = told(content) if kind == ".json" else lines_of(content)
        texts = texts or [spoken(name)]
        yield Picture(sample[suffix], tuple(texts), 1.0, "", (0, 0))


def told(content: str) -> list[str]:
    """The captions in a sample's JSON; none where it names none."""
    try:
        row = json.loads(content)
    except ValueError:
        return []
    text = next((row[k] for k in TEXT_KEYS if row.get(k)), None) if isinstance(row, dict) else None
    texts = text if isinstance(text, list) else [text]
    return [each for each in texts if isinstance(each, str)]


def is_mask(path: Path, stems: dict[Path, Path]) -> bool:
    """Whether a file is another picture's mask."""
    name = path.stem.removesuffix(MASK)
    return name not in ("", path.stem) and path.with_name(name) in stems


def look_at(path: str, least: int) -> tuple[tuple[int, int], str, str]:
    """A picture's size, its file's digest, and why it cannot be used ("" = it can)."""
    from PIL import Image, UnidentifiedImageError

    try:
        data = read_bytes(path)
        with Image.open(io.BytesIO(data)) as image:
            turned = image.getexif().get(ORIENTATION, 1) >= 5
            size = image.size[::-1] if turned else image.size
            image.draft(None, (1, 1))  # a JPEG is read to its end, but not made whole
            image.load()
    except UnidentifiedImageError:
        return (0, 0), "", "cannot be read: no image, or cut off at its start"
    except Exception as error:  # a damaged file raises what its decoder likes
        return (0, 0), "", f"cannot be read: {type(error).__name__}: {str(error)[:80]}"
    reason = f"too small: {size[0]} x {size[1]}, at least {least} is needed" * (min(size) < least)
    return size, hashlib.sha256(data).hexdigest(), reason


def tables(root: Path) -> Iterator[list[tuple[Path, list[str]]]]:
    """Captions by resolved path, of each metadata file below a folder."""
    for path in sorted(root.rglob("metadata.*")):
        if path.suffix == ".jsonl":
            lines = path.read_text("utf-8-sig").splitlines()
            rows = [(i, json_row(path, i, line)) for i, line in enumerate(lines, 1) if line.strip()]
        elif path.suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = list(enumerate(csv.DictReader(file), 2))
        else:
            continue
        yield [captioned(path, i, row) for i, row in rows]


def json_row(path: Path, line: int, text: str) -> dict[str, Any]:
    """One line of a metadata.jsonl."""
    try:
        row = json.loads(text)
    except ValueError as error:
        raise RecipeError(f"{path}: line {line}: expected JSON, got {text[:60]!r}") from error
    if not isinstance(row, dict):
        raise RecipeError(f"{path}: line {line}: expected an object, got {text[:60]!r}")
    return row


def captioned(path: Path, line: int, row: dict[str, Any]) -> tuple[Path, list[str]]:
    """The picture and the captions that a row of metadata names."""
    name = next((row[key] for key in NAME_KEYS if row.get(key)), None)
    text = next((row[key] for key in TEXT_KEYS if row.get(key)), None)
    if not isinstance(name, str):
        raise RecipeError(f"{path}: line {line}: file_name: expected a file's name, got {name!r}")
    texts: list[Any] = text if isinstance(text, list) else [text]
    if not all(isinstance(each, str) for each in texts):
        raise RecipeError(f"{path}: line {line}: text: expected a caption or a list, got {text!r}")
    target = path.parent / name
    if not target.is_file():
        raise RecipeError(f"{path}: line {line}: file_name: {name}: no such file in {path.parent}")
    return target.resolve(), texts


def beside(path: Path) -> list[str]:
    """The captions in a file beside a picture, one a line; none where there is no such file."""
    for suffix in CAPTIONS:
        file = path.with_suffix(suffix)
        if file.is_file():
            return lines_of(file.read_text("utf-8-sig", errors="replace"))
    return []


def lines_of(text: str) -> list[str]:
    """The lines of a text that are not empty."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def repeats_of(path: Path, root: Path) -> tuple[float, str]:
    """Repeats and caption of kohya's folder names, `10_red car`; 1 and "" without one."""
    folder = path.parent
    match = REPEATS.fullmatch(folder.name) if folder != root.parent else None
    return (float(match[1]), spoken(match[2])) if match else (1.0, "")


def spoken(stem: str) -> str:
    """A file's name as a caption: words, without the number behind them."""
    words = re.sub(r"[_\-\s]+", " ", stem).strip()
    return re.sub(r"\s*\(?\d+\)?$", "", words) or words


def open_rgb(path: str, ground: str = "white", least: int = 0) -> Image.Image:
    """A picture as `upright_rgb` has it.

    path     of a file, or its place in an archive
    ground   colour, as pillow reads them
    least    sides that a JPEG must keep: a larger one is decoded smaller, which is faster; 0 = whole
    """
    from PIL import Image

    with Image.open(io.BytesIO(read_bytes(path))) as file:
        if least:
            file.draft(None, (least, least))
        return upright_rgb(file, ground)


@dataclass(frozen=True)
class FolderMaker:
    """Makes training pictures of a folder: h w 3 uint8, or h w 4 where any picture has a mask.

    pictures   to draw from
    side       of a whole picture: its shorter side is brought to it
    crop       side of the window that is cut out; 0 = side
    ground     colour behind transparent pictures
    random     whether windows lie anywhere, else in the middle
    buckets    whole pictures keep about their aspect ratio; a batch has one
    """

    pictures: tuple[Picture, ...]
    side: int
    crop: int = 0
    ground: str = "white"
    random: bool = True
    buckets: bool = False
    masked: bool = field(default=False, init=False)

    def __post_init__(self):
        object.__setattr__(self, "masked", any(picture.mask for picture in self.pictures))

    def __call__(self, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        return self.make(rng, self.pictures, self.weights, self.window)

    def batch(self, rng: np.random.Generator, count: int) -> list[tuple[np.ndarray, str]]:
        """Pictures of one size, with captions."""
        if not self.buckets:
            return [self(rng) for _ in range(count)]
        sizes, totals = (
            list(self.by_size),
            [sum(p.weight for p in v) for v in self.by_size.values()],
        )
        size = sizes[rng.choice(len(sizes), p=np.array(totals) / sum(totals))]
        pictures = self.by_size[size]
        weights = np.array([picture.weight for picture in pictures])
        return [self.make(rng, pictures, weights / weights.sum(), size) for _ in range(count)]

    @cached_property
    def weights(self) -> np.ndarray:
        """Chances of the pictures."""
        weights = np.array([picture.weight for picture in self.pictures])
        return weights / weights.sum()

    @property
    def window(self) -> tuple[int, int]:
        """Width and height of what is cut out."""
        side = self.crop or self.side
        return side, side

    @cached_property
    def by_size(self) -> dict[tuple[int, int], list[Picture]]:
        """Pictures by the size that fits their aspect ratio."""
        found: dict[tuple[int, int], list[Picture]] = {}
        for picture in self.pictures:
            found.setdefault(bucket_of(picture.size, self.side), []).append(picture)
        return found

    def make(
        self,
        rng: np.random.Generator,
        pictures: Sequence[Picture],
        weights: np.ndarray,
        window: tuple[int, int],
    ) -> tuple[np.ndarray, str]:
        """One of the pictures, cut to a window, and one of its captions."""
        picture = pictures[rng.choice(len(pictures), p=weights)]
        caption = picture.captions[rng.integers(len(picture.captions))]
        place = tuple(rng.random(2)) if self.random else (0.5, 0.5)
        shorter = max(self.side, *window) if self.crop else 0
        # Lanczos has twice the pixels that it makes: what a JPEG leaves out is not seen.
        image = open_rgb(picture.path, self.ground, 2 * max(shorter, *window))
        pixels = np.asarray(cut(image, window, place, shorter))
        if not self.masked:
            return pixels, caption
        if picture.mask:
            mask = open_rgb(picture.mask, "black").convert("L").resize(picture.size)
            weight = np.asarray(cut(mask, window, place, shorter))
        else:
            weight = np.full(pixels.shape[:2], 255, np.uint8)
        return np.concatenate([pixels, weight[..., None]], axis=2), caption


def cut(
    image: Image.Image, window: tuple[int, int], place: tuple[float, ...], shorter: int
) -> Image.Image:
    """A window of a picture: as much of it as fits, or of it brought to a shorter side.

    window    width and height
    place     of the window, 0..1 across and down
    shorter   side that the whole picture is brought to first; 0 = just enough to fill the window
    """
    from PIL import Image

    width, height = image.size
    fills = max(window[0] / width, window[1] / height)
    scale = shorter / min(width, height) if shorter else fills
    box = (window[0] / scale, window[1] / scale)
    left, top = (p * (side - part) for p, side, part in zip(place, image.size, box, strict=True))
    corners = (left, top, min(width, left + box[0]), min(height, top + box[1]))
    return image.resize(window, Image.Resampling.LANCZOS, box=corners)


def bucket_of(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The size of about side x side pixels that fits a picture's aspect ratio best.

    size   width and height
    side   multiple of BUCKET_STEP
    """
    aspect = size[0] / size[1]
    sides = range(BUCKET_STEP, int(side * MOST_ASPECT) + 1, BUCKET_STEP)
    sizes = [(w, h) for w in sides for h in sides if 0.75 * side**2 <= w * h <= side**2]
    sizes = [each for each in sizes if 1 / MOST_ASPECT <= each[0] / each[1] <= MOST_ASPECT]
    return min(sizes, key=lambda s: (round(abs(np.log(s[0] / s[1] / aspect)), 3), -s[0] * s[1]))


@dataclass(frozen=True)
class Mixed:
    """Pictures of one maker, and a part of another's: prior preservation, or the original data.

    part   of the second's, 0..1; of whole batches where the first keeps aspect ratios
    """

    first: FolderMaker
    second: FolderMaker
    part: float

    def batch(self, rng: np.random.Generator, count: int) -> list[tuple[np.ndarray, str]]:
        """Pictures of one size, with captions."""
        if not self.first.buckets:
            return [self(rng) for _ in range(count)]
        return self.chosen(rng).batch(rng, count)

    def chosen(self, rng: np.random.Generator) -> FolderMaker:
        """One of the makers, by chance."""
        return self.second if rng.random() < self.part else self.first

    def __call__(self, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        pixels, caption = self.chosen(rng)(rng)
        if pixels.shape[2] == 3 and (self.first.masked or self.second.masked):
            pixels = np.concatenate([pixels, np.full_like(pixels[..., :1], 255)], axis=2)
        return pixels, caption
