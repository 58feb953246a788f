"""Archives of webdataset: files of one name, such as `0001.jpg` and `0001.txt`, are one sample.

A file inside an archive has a place, "ARCHIVE::OFFSET+SIZE::NAME", so that any of them is read alone.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path

from .recipe import RecipeError

MARK = "::"


def samples(archive: Path) -> Iterator[dict[str, str]]:
    """Places by suffix, of each sample of an uncompressed tar file."""
    found: dict[str, dict[str, str]] = {}
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                folder, slash, name = member.name.rpartition("/")
                key, dot, suffix = name.partition(".")
                if member.isfile() and key:
                    place = f"{archive}{MARK}{member.offset_data}+{member.size}{MARK}{member.name}"
                    found.setdefault(folder + slash + key, {})[dot + suffix.lower()] = place
    except tarfile.TarError as error:
        raise RecipeError(f"{archive}: expected an uncompressed tar file: {error}") from error
    yield from found.values()


def read_bytes(path: str) -> bytes:
    """The content of a file, or of one inside an archive.

    path   of the file, or a place
    """
    archive, mark, rest = path.partition(MARK)
    if not mark:
        return Path(path).read_bytes()
    offset, size = rest.partition(MARK)[0].split("+")
    with open(archive, "rb") as file:
        file.seek(int(offset))
        return file.read(int(size))
