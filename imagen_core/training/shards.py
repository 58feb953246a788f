"""Archives of webdataset: files of one name, such as `0001.jpg` and `0001.txt`, are one sample.

A file inside an archive has a place, "ARCHIVE::OFFSET+SIZE::NAME", so that any of them is read alone.
"""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from .recipe import RecipeError

PLACE = re.compile(r"(.+?\.tar)::(\d+)\+(\d+)::(.+)", re.DOTALL | re.IGNORECASE)


def samples(archive: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Name, and places by suffix, of each sample of an uncompressed tar file."""
    found: dict[str, dict[str, str]] = {}
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                folder, slash, name = member.name.rpartition("/")
                key, dot, suffix = name.partition(".")
                if member.isfile() and key:
                    place = f"{archive}::{member.offset_data}+{member.size}::{member.name}"
                    found.setdefault(folder + slash + key, {})[dot + suffix.lower()] = place
    except tarfile.TarError as error:
        raise RecipeError(f"{archive}: expected an uncompressed tar file: {error}") from error
    for key, places in found.items():
        yield key.rpartition("/")[2], places


def read_bytes(path: str) -> bytes:
    """The content of a file, or of one inside an archive.

    path   of the file, or a place
    """
    place = PLACE.fullmatch(path)
    if place is None:
        return Path(path).read_bytes()
    with open(place[1], "rb") as file:
        file.seek(int(place[2]))
        return file.read(int(place[3]))
