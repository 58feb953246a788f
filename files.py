"""Files that appear whole or not at all, names of files half-written, and locks that end with the process."""

import hashlib
import itertools
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

LONGEST = 255  # bytes of a file's name
_numbers = itertools.count()


def owner() -> str:
    """Six digits for this computer, and the number of this process."""
    return f"{hashlib.sha256(platform.node().encode()).hexdigest()[:6]}-{os.getpid()}"


def temporary_path(path: Path) -> Path:
    """Where a file or folder is written: a name beside its own, or, where that leaves no room, its hash's.

    path   of the finished one

    It says which process of which computer writes it, so that what a dead process left can be told.
    """
    name, own = path.name, f".{owner()}-{next(_numbers)}.writing"
    if len(os.fsencode(f".{name}{own}")) > LONGEST:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:20]
    return path.with_name(f".{name}{own}")


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, removed where it still is when the block ends.

    path   of the finished file; its folder is made
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it when the block ends well, removed when not.

    path   of the finished file; its folder is made
    """
    with unfinished(path) as temporary:
        yield temporary
        sync_file(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Have the disk keep what a file holds."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have the disk keep which files a folder holds, where the system lets a folder be opened."""
    if os.name == "nt":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError:  # some network drives have nothing to say
        pass
    finally:
        os.close(number)


def lock(file: BinaryIO, alone: bool) -> bool:
    """Take a lock that ends with the process, alone or beside others; whether nobody was in the way."""
    try:
        import fcntl
    except ImportError:
        return _lock_on_windows(file, alone)
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_on_windows(file: BinaryIO, alone: bool) -> bool:
    """There a lock is always held alone, so that shares lock their own files only."""
    if not alone:
        return True
    import msvcrt

    try:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
    except OSError:
        return False
    return True
