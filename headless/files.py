"""Files that appear whole or not at all."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST = 255  # bytes of a file's name


def temporary_name(name: str) -> str:
    """What a file is called while it is written: of its name, or, where that leaves no room, of its hash."""
    own = f".{os.getpid()}.writing"
    if len(os.fsencode(f".{name}{own}")) > LONGEST:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:20]
    return f".{name}{own}"


def shortened(name: str, most: int = LONGEST) -> str:
    """A name whose bytes are no more than `most`: as many of its first characters as fit."""
    return name.encode("utf-8", "replace")[:most].decode("utf-8", "ignore")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it when the block ends well, removed when not.

    path   of the finished file; its folder is made
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name(path.name))
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
