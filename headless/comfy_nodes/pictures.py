"""Picture files -> pixels, frame by frame: only formats that are meant, and no more than memory holds."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..png_chunks import is_png, picture_alone

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MOST_PIXELS = 2**26  # of all frames together: 1 GB as float32 with a mask
MOST_FRAMES = 10_000
# What Pillow raises over files that are damaged.
DAMAGED = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError),
    *(AttributeError, AssertionError, struct.error, zlib.error),
)
END_OF_JPEG = b"\xff\xd9"


def read_frames(path: Path) -> tuple[Tensor, Tensor]:
    """The frames of the first one's size, n h w 3 in 0..1, and 1 - alpha, n h w.

    Where no frame has alpha, the mask is zeros of 64 x 64, as ComfyUI has it. ValueError where the file is no
    picture of FORMATS, or too large.
    """
    import torch

    with open_picture(path) as opened:
        count = frames_of(opened)
        check_size(path, opened.size, count)
        levels, alpha, whole = read_frame(path, opened)
        if count == 1 or not whole:
            return levels[None], torch.zeros(1, 64, 64) if alpha is None else 1 - alpha[None]
        pixels = torch.empty(count, *levels.shape)
        pixels[0], kept, first = levels, 1, opened.size
        masks = None
        if alpha is not None:
            masks = torch.zeros(pixels.shape[:3])
            masks[0] = 1 - alpha
        for i in range(1, count):
            if not whole or not _turn_to(opened, i):
                break  # cut off: the frames before it are there
            if sorted(opened.size) != sorted(first):
                continue
            levels, alpha, whole = read_frame(path, opened)
            if levels.shape != pixels.shape[1:]:
                continue
            pixels[kept] = levels
            if alpha is not None:
                masks = torch.zeros(pixels.shape[:3]) if masks is None else masks
                masks[kept] = 1 - alpha
            kept += 1
    return pixels[:kept], torch.zeros(kept, 64, 64) if masks is None else masks[:kept]


def read_channels(path: Path) -> Tensor:
    """Red, green, blue and alpha of the first frame, h w 4 in 0..1; alpha is 1 where the file has none."""
    import torch
    from PIL import ImageOps

    with open_picture(path) as opened:
        check_size(path, opened.size, 1)
        load_as_far_as_it_goes(path, opened)
        picture = ImageOps.exif_transpose(opened)
    if is_deep(picture):
        levels = _grey(picture)[..., None]
        return torch.cat([levels.expand(-1, -1, 3), torch.ones_like(levels)], dim=2)
    return _scaled(_of_8_bits(picture).convert("RGBA"))


def frames_of(opened: Any) -> int:
    """How many frames a picture has, as far as its file can be read."""
    if opened.format == "MPO":
        return 1  # the others are other views
    try:
        return getattr(opened, "n_frames", 1)
    except DAMAGED:
        return 1


def _turn_to(opened: Any, frame: int) -> bool:
    from PIL import Image

    try:
        opened.seek(frame)
    except DAMAGED:
        return False
    except Image.DecompressionBombError:
        return False
    return True


def open_picture(path: Path) -> Any:
    """An open Pillow image; ValueError where the file is none of FORMATS."""
    from PIL import Image, UnidentifiedImageError

    file: Any = path
    try:
        if is_png(path):
            file = io.BytesIO(picture_alone(path.read_bytes()))
        opened = Image.open(file, formats=FORMATS)
        if opened.format == "JPEG" and not _ends_with(path, END_OF_JPEG):
            opened.close()  # cut off: libjpeg gives its last rows only at an end
            file = io.BytesIO(path.read_bytes() + END_OF_JPEG)
            opened = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path.name}: too large: {error}") from error
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's, not the picture's
        said = "" if isinstance(error, UnidentifiedImageError) else f": {error}"
        expected = f"expected a whole image in one of the formats {', '.join(FORMATS)}"
        raise ValueError(f"{path.name}: {expected}{said}") from error
    return opened


def check_size(path: Path, size: tuple[int, int], frames: int) -> None:
    """Raise ValueError where a picture's frames are more than can be loaded.

    size   width and height of one
    """
    width, height = size
    if frames > MOST_FRAMES or frames * width * height > MOST_PIXELS:
        raise ValueError(
            f"{path.name}: expected at most {MOST_PIXELS} pixels in at most {MOST_FRAMES} frames, got "
            f"{frames} of {width} x {height}; make it smaller or shorter"
        )


def read_frame(path: Path, opened: Any) -> tuple[Tensor, Tensor | None, bool]:
    """The current frame: levels h w 3, alpha h w or None, both in 0..1, and whether it was whole."""
    from PIL import ImageOps

    whole = load_as_far_as_it_goes(path, opened)
    return *to_levels(ImageOps.exif_transpose(opened)), whole


def load_as_far_as_it_goes(path: Path, opened: Any) -> bool:
    """Decode the current frame; whether it was whole.

    One that is cut off keeps its first rows, as in ComfyUI; ValueError where there are not two.
    """
    try:
        opened.load()
    except DAMAGED as error:
        opened.tile = []  # what was decoded counts as all
        if opened._im is None or _rows(opened) < 2:
            raise ValueError(f"{path.name}: not a whole image: {error}") from error
        return False
    return True


def _rows(picture: Any) -> int:
    """How many rows were decoded, up to the last that is not black; a row of its own is no picture."""
    box = picture.getbbox()
    return 0 if box is None else box[3]


def to_levels(picture: Any) -> tuple[Tensor, Tensor | None]:
    """Levels h w 3 of a Pillow image, and alpha h w where it has one, both in 0..1."""
    if is_deep(picture):
        return _grey(picture)[..., None].expand(-1, -1, 3), None
    picture = _of_8_bits(picture)
    levels = _scaled(picture.convert("RGB"))
    if "A" in picture.getbands():
        return levels, _scaled(picture.getchannel("A"))
    if picture.mode == "P" and "transparency" in picture.info:
        return levels, _scaled(picture.convert("RGBA").getchannel("A"))
    return levels, None


def is_deep(picture: Any) -> bool:
    """Whether a Pillow image is grey of 16 bits or of floats, which Pillow makes 8 bits of by cutting off."""
    return picture.mode.startswith("I;16") or picture.mode == "F"


def _of_8_bits(picture: Any) -> Any:
    """The same picture; one of whole numbers without a depth is of 16 bits, as ComfyUI takes it."""
    return picture.point(lambda value: value * (1 / 255)) if picture.mode == "I" else picture


def _grey(picture: Any) -> Tensor:
    """Levels h w in 0..1 of a deep picture; floats reach to 1, or to 255 where one is above 1."""
    import numpy as np
    import torch

    array = np.nan_to_num(np.asarray(picture).astype(np.float32))
    highest = 65535.0
    if picture.mode == "F":
        highest = 255.0 if array.max(initial=0) > 1 else 1.0
    return torch.from_numpy(np.clip(array / highest, 0, 1))


def _scaled(picture: Any) -> Tensor:
    import numpy as np
    import torch

    return torch.from_numpy(np.array(picture)).float().div_(255.0)


def _ends_with(path: Path, end: bytes) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - len(end)))
        return file.read() == end
