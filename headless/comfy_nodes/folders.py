"""Where a run reads and writes pictures; no name leaves its folder."""

import re
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Folders:
    """Where pictures come from and go to; no name leaves its folder."""

    input: Path = Path("input")
    output: Path = Path("output")
    temp: Path = Path("temp")


folders: ContextVar[Folders] = ContextVar("folders", default=Folders())  # noqa: B039 - frozen


def inside(folder: Path, name: str) -> Path:
    """The path of a name in a folder, which it may not leave.

    folder   holds the file
    name     relative
    """
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"expected a name inside {folder}, got {name!r}")
    return path


def input_file(name: str) -> Path:
    """The file that an image widget names: "file.png", or "file.png [output]".

    name   with or without the folder's name in brackets
    """
    match = re.fullmatch(r"(.*) \[(input|output|temp)\]", name)
    base, where = (match[1], match[2]) if match else (name, "input")
    return inside(getattr(folders.get(), where), base)
