"""What lies in folders of models, searched once as long as nothing in them changes.

A validation asks for the same names dozens of times, a batch again for every line.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

# Nanoseconds within which a second change of a folder may leave its time as it is.
COARSE = 2_000_000_000


@dataclass(frozen=True)
class Listing:
    """The files below a root.

    files     relative, with /
    folders   the folders that were searched: their time of change, and the names in them
    made      when
    """

    files: tuple[str, ...]
    folders: dict[str, tuple[int | None, list[str]]]
    made: int

    def holds(self) -> bool:
        """Whether no folder has changed since."""
        return all(self._same(path, *was) for path, was in self.folders.items())

    def _same(self, path: str, changed: int | None, names: list[str]) -> bool:
        if time_of(path) != changed:
            return False
        sure = changed is None or self.made - changed > COARSE
        return sure or names_in(path) == names


_known: dict[str, Listing] = {}


def files_below(root: Path, pattern: str) -> list[str]:
    """The files below a folder whose relative path fits a pattern; links are followed, hidden ones left out.

    pattern   ** is any number of folders, * any part of a name
    """
    path = str(root)
    if path not in _known or not _known[path].holds():
        _known[path] = search(path)
    fits = matcher(pattern)
    return [name for name in _known[path].files if fits.fullmatch(name)]


def search(root: str) -> Listing:
    """The files below a root; of folders that are links in a circle, each is searched once on a way down."""
    made = time.time_ns()
    files: list[str] = []
    folders: dict[str, tuple[int | None, list[str]]] = {}
    stack: list[tuple[str, frozenset[str]]] = [("", frozenset())]
    while stack:
        below, around = stack.pop()
        path = os.path.join(root, below)
        real = os.path.realpath(path)
        if real in around:
            continue
        names = names_in(path)
        folders[path] = time_of(path), names
        for name in names:
            if name.startswith("."):
                continue
            inner = f"{below}/{name}" if below else name
            if os.path.isdir(os.path.join(root, inner)):
                stack.append((inner, around | {real}))
            else:
                files.append(inner)
    return Listing(tuple(files), folders, made)


def names_in(path: str) -> list[str]:
    """The names in a folder, sorted; none where it cannot be read."""
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def time_of(path: str) -> int | None:
    """When a folder changed last, in nanoseconds; None where it is not there."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None


@lru_cache
def matcher(pattern: str) -> re.Pattern[str]:
    """A pattern of paths as a regular expression."""
    parts = re.split(r"(\*\*/|\*)", pattern)
    meant = {"**/": "(?:.*/)?", "*": "[^/]*"}
    return re.compile("".join(meant.get(part) or re.escape(part) for part in parts))
