"""GGUF files: the header read within bounds, tensors mapped into memory. Nothing is executed.

Written from the format's public description; versions 2 and 3, little-endian.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .block_formats import FORMATS, BlockFormat
from .errors import CheckpointError

MAGIC = b"GGUF"
PLAIN = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file.

    shape    of the values
    stored   the values, or out x bytes; a view of the file
    blocks   how bytes become values; None = they are values
    """

    shape: tuple[int, ...]
    stored: Tensor
    blocks: BlockFormat | None


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF file holds.

    metadata   by key
    tensors    by name, in GGUF's naming
    """

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


class Reader:
    """Takes values off a buffer, in order."""

    def __init__(self, buffer: mmap.mmap):
        self.buffer, self.position = buffer, 0

    def take(self, code: str, count: int = 1) -> tuple[Any, ...]:
        """The next values of a struct code.

        code    of one value
        count   how many
        """
        size = struct.calcsize("<" + code) * count
        end = self.position + size
        if end > len(self.buffer):
            raise ValueError(f"ends inside its header, at byte {len(self.buffer)}")
        values = struct.unpack_from(f"<{count}{code}", self.buffer, self.position)
        self.position = end
        return values

    def string(self) -> str:
        """The next string."""
        length = self.take("Q")[0]
        if length > len(self.buffer) - self.position:
            raise ValueError(f"ends inside a string of {length} bytes")
        start = self.position
        self.position += length
        return self.buffer[start : self.position].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """The next value of the metadata.

        kind   number of its type
        """
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            inner, length = *self.take("I"), *self.take("Q")
            if inner in SCALARS:
                return list(self.take(SCALARS[inner], length))
            return [self.value(inner) for _ in range(length)]
        if kind not in SCALARS:
            raise ValueError(f"has metadata of the unknown type {kind}")
        return self.take(SCALARS[kind])[0]


def is_gguf(path: Path) -> bool:
    """Whether a file starts as a GGUF file does."""
    with path.open("rb") as file:
        return file.read(4) == MAGIC


def open_gguf(path: Path) -> GgufFile:
    """Metadata and tensors of a GGUF file; the tensors are read when they are used."""
    try:
        with path.open("rb") as file:
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return read_gguf(buffer)
    except (OSError, ValueError, struct.error, OverflowError, MemoryError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: not a whole GGUF file ({error}); copy or download it again"
        ) from error


def read_gguf(buffer: mmap.mmap) -> GgufFile:
    """The same from the file's bytes; ValueError where they make no sense."""
    reader = Reader(buffer)
    magic = bytes(reader.take("B", 4))
    version, tensor_count, value_count = (*reader.take("I"), *reader.take("Q", 2))
    if magic != MAGIC or version not in (2, 3):
        raise ValueError(f"expected GGUF version 2 or 3, little-endian, got version {version}")
    metadata = {}
    for _ in range(value_count):
        key = reader.string()
        metadata[key] = reader.value(reader.take("I")[0])
    entries = []
    for _ in range(tensor_count):
        name = reader.string()
        shape = reader.take("Q", reader.take("I")[0])[::-1]
        entries.append((name, shape, *reader.take("I"), *reader.take("Q")))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"general.alignment: expected a positive number, got {alignment!r}")
    data = -(-reader.position // alignment) * alignment
    tensors = {
        name: gguf_tensor(name, buffer, shape, kind, data + offset)
        for name, shape, kind, offset in entries
    }
    if sum(tensor.stored.nbytes for tensor in tensors.values()) > len(buffer):
        raise ValueError("has tensors that overlap")
    return GgufFile(metadata, tensors)


def gguf_tensor(
    name: str, buffer: mmap.mmap, shape: tuple[int, ...], kind: int, start: int
) -> GgufTensor:
    """A view of one tensor.

    shape    of the values, outermost first
    kind     number of the storage type
    start    byte at which it begins
    """
    blocks = FORMATS.get(kind)
    if blocks is None and kind not in PLAIN:
        known = ", ".join(["F32", "F16", "BF16", *(known.name for known in FORMATS.values())])
        raise ValueError(f"tensor {name} has the storage type {kind}, expected one of {known}")
    *outer, width = shape or (1,)
    size, unit = (1, PLAIN[kind].itemsize) if blocks is None else (blocks.size, blocks.bytes)
    if width % size:
        raise ValueError(f"tensor {name}: rows of {width} are no whole blocks of {size}")
    row = width // size * unit
    count = row
    for side in outer:
        count *= side
    if start + count > len(buffer) or not count:
        raise ValueError(f"ends inside tensor {name}")
    raw = torch.frombuffer(buffer, dtype=torch.uint8, count=count, offset=start)
    stored = raw.view(*outer, row) if blocks is not None else raw.view(PLAIN[kind]).view(shape)
    return GgufTensor(tuple(shape), stored, blocks)
