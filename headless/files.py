"""Files that appear whole or not at all, under names that no two processes take."""

import ctypes
import errno
import hashlib
import itertools
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

LONGEST = 255  # bytes of a file's name
STALE = 24 * 3600.0  # seconds after which a temporary of another computer is nobody's
UNFINISHED = re.compile(r"\..+\.(?:([0-9a-f]{6})-)?(\d+)(?:-\d+)?\.writing", re.DOTALL)
FEW = 4  # files that are synced one by one
NO_LINKS = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_numbers = itertools.count()
durable: ContextVar[bool] = ContextVar("durable", default=True)
"""Whether files are to be on the disk as soon as they are written; where not, `sync_all` sees to it later."""


def no_room(error: BaseException | None) -> OSError | None:
    """What says, behind an error, that nothing more can be written: a full or read-only disk, a quota."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return error
        error = error.__cause__
    return None


def owner() -> str:
    """Six digits for this computer, and the number of this process."""
    return f"{hashlib.sha256(platform.node().encode()).hexdigest()[:6]}-{os.getpid()}"


def temporary_name(name: str) -> str:
    """What a file is called while it is written: of its name, or, where that leaves no room, of its hash.

    It says who writes it, so that `remove_leftovers` knows what a dead process left.
    """
    own = f".{owner()}-{next(_numbers)}.writing"
    if len(os.fsencode(f".{name}{own}")) > LONGEST:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:20]
    return f".{name}{own}"


def shortened(name: str, most: int = LONGEST) -> str:
    """A name whose bytes are no more than `most`: as many of its first characters as fit."""
    return name.encode("utf-8", "replace")[:most].decode("utf-8", "ignore")


def sync_folder(folder: Path) -> None:
    """Have the disk keep which files a folder holds, where the system lets a folder be opened."""
    if os.name == "nt" or not durable.get():
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError:  # some network drives have nothing to say
        pass
    finally:
        os.close(number)


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, on the disk once the block ends well, removed where it still is after.

    path   of the finished file; its folder is made
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name(path.name))
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def scratch_folder(where: Path) -> Iterator[Path]:
    """A new folder in `where`, which must be there; gone with all that is in it when the block ends."""
    folder = where / temporary_name("imagen")
    folder.mkdir()
    try:
        yield folder
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        except KeyboardInterrupt:  # in the middle of it
            shutil.rmtree(folder, ignore_errors=True)
            raise


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
    if not durable.get():
        return
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_all(paths: Collection[Path]) -> None:
    """Have the disk keep what files and folders hold.

    paths   on one disk; on Linux it keeps all at once where there are many, which is quicker
    """
    if len(paths) > FEW and sys.platform == "linux":
        number = os.open(next(iter(paths)), os.O_RDONLY)
        try:
            if ctypes.CDLL(None).syncfs(number) == 0:
                return
        finally:
            os.close(number)
    for path in paths:
        (sync_folder if path.is_dir() else sync_file)(path)


def placed(temporary: Path, paths: Iterable[Path]) -> Path:
    """Give a finished file the first of some names that is free; of several processes one gets each.

    temporary   in the same folder as the names
    """
    for path in paths:
        if _takes(temporary, path):
            sync_folder(path.parent)
            return path
    raise FileExistsError(errno.EEXIST, "no name is free", str(temporary.parent))


def _takes(temporary: Path, path: Path) -> bool:
    """Whether a file could have a name: it was free. The name appears with all of the file behind it."""
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
    try:  # there are no links here: an empty file holds the name
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    os.replace(temporary, path)
    return True


def remove_leftovers(folder: Path) -> None:
    """Remove what dead processes left half-written in a folder; what may still be written stays.

    A temporary is nobody's where its process is gone from this computer, and a day after it last changed.
    """
    try:
        entries = list(os.scandir(folder))
    except OSError:  # none there, or not ours to read
        return
    for entry in entries:
        found = UNFINISHED.fullmatch(entry.name)
        if found is None or not _abandoned(entry, found[1], int(found[2])):
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            try:
                os.unlink(entry.path)
            except OSError:
                continue


def _abandoned(entry: os.DirEntry[str], computer: str | None, process: int) -> bool:
    try:
        old = time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE
    except OSError:
        return False
    return old or (computer == owner().partition("-")[0] and not is_alive(process))


def is_alive(process: int) -> bool:
    """Whether a process of this number may run on this computer."""
    if os.name == "nt":  # there a signal of 0 would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
