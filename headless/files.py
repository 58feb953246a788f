"""Names that no two processes take, pictures on the disk, and what dead processes left behind."""

import ctypes
import errno
import os
import re
import shutil
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from ..files import LONGEST, owner, sync_file, sync_folder, temporary_path

STALE = 24 * 3600.0  # seconds after which a temporary of another computer is nobody's
UNFINISHED = re.compile(r"\..+\.(?:([0-9a-f]{6})-)?(\d+)(?:-\d+)?\.writing", re.DOTALL)
FEW = 4  # files that are synced one by one
NO_LINKS = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_ROOM = (*NO_SPACE, errno.EROFS)
durable: ContextVar[bool] = ContextVar("durable", default=True)
"""Whether pictures are to be on the disk as soon as they are placed; where not, `sync_all` does it later."""


def no_room(error: BaseException | None) -> OSError | None:
    """What says, behind an error, that nothing more can be written: a full or read-only disk, a quota."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return error
        error = error.__cause__
    return None


def shortened(name: str, most: int = LONGEST) -> str:
    """A name whose bytes are no more than `most`: as many of its first characters as fit."""
    return name.encode("utf-8", "replace")[:most].decode("utf-8", "ignore")


@contextmanager
def scratch_folder(where: Path) -> Iterator[Path]:
    """A new folder in `where`, which must be there; gone with all that is in it when the block ends."""
    folder = temporary_path(where / "imagen")
    folder.mkdir()
    try:
        yield folder
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        except KeyboardInterrupt:  # in the middle of it
            shutil.rmtree(folder, ignore_errors=True)
            raise


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
    if durable.get():
        sync_file(temporary)
    for path in paths:
        if _takes(temporary, path):
            if durable.get():
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
        with os.scandir(folder) as entries:  # maybe a million, of which few are temporaries
            found = [(e, name) for e in entries if (name := UNFINISHED.fullmatch(e.name))]
    except OSError:  # none there, or not ours to read
        return
    for entry, name in found:
        if not _abandoned(entry, name[1], int(name[2])):
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
