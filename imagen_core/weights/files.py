"""Files of tensors: safetensors only, read without executing anything, written by rename."""

import ctypes
import json
import mmap
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...files import replacing
from .errors import CheckpointError

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
PICKLE_STARTS = (b"\x80", b"PK\x03\x04")  # a bare pickle; torch.save's zip
OTHER_STARTS = {
    b"GGUF": "is a GGUF file, which is read for T5 encoders alone",
    b"version https://git-lfs": "is a pointer of Git LFS; fetch the file itself with `git lfs pull`",
    b"<": "is a web page; download the file itself",
}
MOST_JSON = 2**24  # bytes; an index of shards has a tenth of it


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: dict[str, str],
    produce: Callable[[str], Tensor] | None = None,
) -> None:
    """Write a safetensors file, tensor by tensor; it appears whole or not at all.

    tensors    by name: what is written, or what it looks like where `produce` is given
    metadata   strings for the header
    produce    name -> the tensor itself, called as its turn comes, so that one at a time is in memory
    """
    produce = produce or tensors.__getitem__
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    # Wide types first, so that every tensor starts at a multiple of its own width.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    for name in names:
        size = tensors[name].numel() * tensors[name].itemsize
        dtype, shape = DTYPES[tensors[name].dtype], list(tensors[name].shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    start = json.dumps(header).encode()
    start += b" " * (-len(start) % 8)
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            file.write(len(start).to_bytes(8, "little") + start)
            for name in names:
                made = produce(name)
                if (made.dtype, made.shape) != (tensors[name].dtype, tensors[name].shape):
                    raise CheckpointError(
                        f"{path}: {name}: expected {tensors[name].dtype} {list(tensors[name].shape)}, got "
                        f"{made.dtype} {list(made.shape)}"
                    )
                data = made.detach().cpu().contiguous().flatten().view(torch.uint8)
                file.write(memoryview(data.numpy()))  # pyright: ignore[reportArgumentType]
    except OSError as error:
        raise CheckpointError(f"{path}: could not be written: {error}") from error


def release(tensor: Tensor) -> None:
    """Give back the memory pages of a mapped file that were read for a tensor, now copied or written.

    tensor   memory-mapped, unchanged; reading it again reads the file again

    The system would take them back by itself, but until then they count as this process's.
    """
    if sys.platform != "linux":
        return
    page = mmap.PAGESIZE
    first = -(-tensor.data_ptr() // page) * page
    last = (tensor.data_ptr() + tensor.nbytes) // page * page
    if last > first:
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED
        )


def is_pickle(path: Path) -> bool:
    """Whether a file starts as a pickle does; safetensors has "{" behind the length of its header."""
    with path.open("rb") as file:
        start = file.read(9)
    return start.startswith(PICKLE_STARTS) and start[8:] != b"{"


@contextmanager
def open_tensors(path: Path) -> Iterator:
    """An open safetensors file, memory-mapped; anything else is a CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if is_pickle(path):
        raise CheckpointError(
            f"{path}: is a pickled checkpoint, which can run code when loaded; nothing was executed. "
            f"Expected safetensors"
        )
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        what = f"not a whole safetensors file ({error}); copy or download it again"
        with path.open("rb") as opened:
            start = opened.read(32)
        found = (told for sign, told in OTHER_STARTS.items() if start.startswith(sign))
        raise CheckpointError(f"{path}: {next(found, what)}") from error


def inside(folder: Path, name: Any, what: str) -> Path:
    """The file of that name in a folder, which the name may not leave; links are followed.

    folder   holds the file, or a link to it
    name     relative path
    """
    if isinstance(name, str) and name:
        root, path = os.path.abspath(folder), Path(os.path.abspath(folder / name))
        if path.is_relative_to(root) and path != Path(root):
            return path
    raise CheckpointError(f"{what}: expected a name inside {folder}, got {name!r}")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, in any of Unicode's encodings; CheckpointError names the file."""
    try:
        if path.stat().st_size > MOST_JSON:
            raise CheckpointError(f"{path}: expected less than {MOST_JSON} bytes of JSON")
        data = json.loads(path.read_bytes())  # from bytes: a byte-order mark is heeded
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: not a readable JSON file: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(
            f"{path}: expected a JSON object {{...}}, got {type(data).__name__}: {str(data)[:40]}"
        )
    return data


def read_text(path: Path) -> str:
    """The text of a file in any of Unicode's encodings, without its byte-order mark."""
    data = path.read_bytes()
    return data.decode(json.detect_encoding(data))
