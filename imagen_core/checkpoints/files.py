"""Files of tensors: safetensors only, read without executing anything, written by rename."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import CheckpointError

PICKLE_STARTS = (b"\x80", b"PK\x03\x04")  # a bare pickle; torch.save's zip


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it when the block ends well, removed when not.

    path   of the finished file; its folder is made
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file; it appears whole or not at all.

    path       of the file
    tensors    by name
    metadata   strings for the header
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with replacing(path) as temporary:
            save_file(contiguous, temporary, metadata)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: could not be written: {error}") from error


def is_pickle(path: Path) -> bool:
    """Whether a file starts as a pickle does; safetensors has "{" behind the length of its header.

    path   of the file
    """
    with path.open("rb") as file:
        start = file.read(9)
    return start.startswith(PICKLE_STARTS) and start[8:] != b"{"


@contextmanager
def open_tensors(path: Path) -> Iterator:
    """An open safetensors file, memory-mapped; anything else is a CheckpointError.

    path   of the file
    """
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
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}); copy or download it again"
        ) from error


def inside(folder: Path, name: str, what: str) -> Path:
    """The file of that name in a folder, which it may not leave.

    folder   holds the file
    name     relative path
    what     names the entry in the error
    """
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise CheckpointError(f"{what}: expected a name inside {folder}, got {name!r}")
    return path
