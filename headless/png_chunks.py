"""PNG files chunk by chunk: their texts, and their picture without texts. No pixel is decoded."""

import zlib
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# Beside the critical chunks: transparency, orientation, animation.
NEEDED = (b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT")
ORIENTATION = ("Raw profile type exif", "XML:com.adobe.xmp")  # texts that may say how it is turned
KEYWORD = 79  # bytes at most
LARGEST_PROFILE = 2**20


class BadText(ValueError):
    """A text of a PNG that cannot be read."""


def is_png(path: Path) -> bool:
    """Whether a file starts as a PNG does, whatever its name."""
    with path.open("rb") as file:
        return file.read(len(SIGNATURE)) == SIGNATURE


def chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and length of each whole chunk's data; ends where the file is cut off.

    file   may be moved between two chunks
    """
    end = file.seek(0, 2)
    position = len(SIGNATURE)
    while position + 12 <= end:
        file.seek(position)
        head = file.read(8)
        length = int.from_bytes(head[:4], "big")
        if position + 12 + length > end:
            return
        yield head[4:], position + 8, length
        position += 12 + length


def read_texts(path: Path, keys: Iterable[str], largest: int) -> dict[str, str | BadText]:
    """The texts under these keys, the last of each; BadText in place of one that cannot be read.

    largest   bytes of a text, unpacked
    """
    wanted = {key.encode("latin-1"): key for key in keys}
    found: dict[str, str | BadText] = {}
    with path.open("rb") as file:
        for kind, start, length in chunks(file):
            if kind not in TEXTS:
                continue
            file.seek(start)
            key = wanted.get(file.read(min(length, KEYWORD + 1)).partition(b"\0")[0])
            if key is None:
                continue
            file.seek(start)
            try:
                found[key] = text_of(kind, file.read(length), largest)
            except BadText as error:
                found[key] = error
    return found


def text_of(kind: bytes, data: bytes, largest: int) -> str:
    """The text in a chunk's data; BadText where it is damaged, or larger than `largest` bytes."""
    _, _, rest = data.partition(b"\0")
    packed = kind == b"zTXt" or (kind == b"iTXt" and rest[:1] == b"\1")
    if kind == b"zTXt":
        rest = rest[1:]
    elif kind == b"iTXt":
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    if packed:
        try:
            rest = zlib.decompressobj().decompress(rest, largest + 1)
        except zlib.error as error:
            raise BadText(f"its compressed text is damaged: {error}") from error
    if len(rest) > largest:
        raise BadText(f"its text is larger than {largest} bytes")
    try:
        return rest.decode("utf-8" if kind == b"iTXt" else "latin-1")
    except UnicodeDecodeError as error:
        raise BadText(f"its text is not UTF-8: {error}") from error


def picture_alone(data: bytes) -> bytes:
    """A PNG without what its pixels do not need: texts and colour profiles, which may unpack to any size.

    data   of the file; what follows a chunk that is cut off stays as it is
    """
    parts, position = [SIGNATURE], len(SIGNATURE)
    for kind, start, length in chunks(BytesIO(data)):
        position = start + length + 4
        critical = not kind[0] & 0x20
        if critical or kind in NEEDED or _turns(kind, data[start : start + length]):
            parts.append(data[start - 8 : position])
    return b"".join([*parts, data[position:]])


def _turns(kind: bytes, data: bytes) -> bool:
    """Whether a chunk is a text that may say how the picture is turned, of a size that is safe to read."""
    if kind not in TEXTS or data.partition(b"\0")[0].decode("latin-1") not in ORIENTATION:
        return False
    try:
        return bool(text_of(kind, data, LARGEST_PROFILE))
    except BadText:
        return False
