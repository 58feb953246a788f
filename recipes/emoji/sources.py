"""Read the fetched tarballs: drawings by set and key, and the emoji names of emojibase.

A set is one package of drawings. Iconify lists redrawn or renamed icons as aliases and keeps
withdrawn ones as hidden: neither is a separate picture here.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from fetch import find_tarball

ICON_SETS = {
    "noto": "@iconify-json/noto",
    "fluent-emoji": "@iconify-json/fluent-emoji",
    "fluent-emoji-flat": "@iconify-json/fluent-emoji-flat",
}
RASTER_SET = "fluent-emoji-3d"
RASTER_PACKAGE = "@lobehub/fluent-emoji-3d"
# @iconify-json/fluent-emoji has no code points of its own; its keys are those of the flat set.
CODE_POINTS = {
    "noto": "@iconify-json/noto",
    "fluent-emoji": "@iconify-json/fluent-emoji-flat",
    "fluent-emoji-flat": "@iconify-json/fluent-emoji-flat",
}


@dataclass(frozen=True)
class Drawings:
    """One set: drawing (svg text or encoded picture) and emoji code points by key."""

    items: dict[str, str | bytes]
    hexcodes: dict[str, list[str]]

    def digest(self, key: str) -> str:
        """Fingerprint of a drawing: equal drawings have equal fingerprints."""
        item = self.items[key]
        return hashlib.sha256(item.encode() if isinstance(item, str) else item).hexdigest()


@dataclass(frozen=True)
class Names:
    """What emojibase says: its list of emoji, lists of short codes by hexcode, names of sub-groups."""

    emoji: list[dict]
    shortcodes: list[dict[str, str | list[str]]] = field(default_factory=list)
    subgroups: dict[str, str] = field(default_factory=dict)


def normalize_hexcode(hexcode: str) -> str:
    """One spelling for a code point sequence: lower case, no leading zeros, no fe0f."""
    codes = hexcode.lower().replace("_", "-").split("-")
    return "-".join(f"{int(code, 16):x}" for code in codes if code != "fe0f")


def svg_document(icon: dict, icon_set: dict) -> str:
    """A whole SVG document for one icon of an iconify set, centred on a square view."""
    width = icon.get("width", icon_set.get("width", 16))
    height = icon.get("height", icon_set.get("height", 16))
    left, top = icon.get("left", 0), icon.get("top", 0)
    side = max(width, height)
    view = f"{left - (side - width) / 2:g} {top - (side - height) / 2:g} {side} {side}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{view}">{icon["body"]}</svg>'
    )


def read_icons(icon_set: dict, chars: dict[str, str]) -> Drawings:
    """The separate pictures of an iconify set.

    icon_set  parsed icons.json
    chars     parsed chars.json: icon key by hexcode
    """
    items: dict[str, str | bytes] = {
        key: svg_document(icon, icon_set)
        for key, icon in icon_set["icons"].items()
        if not icon.get("hidden")
    }
    hexcodes: dict[str, list[str]] = {}
    for hexcode, key in chars.items():
        if key in items:
            hexcodes.setdefault(key, []).append(normalize_hexcode(hexcode))
    return Drawings(items, hexcodes)


def read_member(tar: tarfile.TarFile, member: str | tarfile.TarInfo) -> bytes:
    """The content of a regular file in a tarball; a member of another kind raises ValueError."""
    file = tar.extractfile(member)
    if file is None:
        raise ValueError(f"{tar.name}: expected {member} to be a regular file")
    return file.read()


def _read_json(tarball: Path, member: str):
    with tarfile.open(tarball) as tar:
        return json.loads(read_member(tar, f"package/{member}"))


def read_raster(tarball: Path) -> Drawings:
    """The pictures of the 3D set; a key is the file's stem, which is its hexcode."""
    items: dict[str, str | bytes] = {}
    with tarfile.open(tarball) as tar:
        for member in tar:
            path = Path(member.name)
            if path.parent.name == "assets" and path.suffix in (".webp", ".png"):
                items[path.stem] = read_member(tar, member)
    return Drawings(items, {key: [normalize_hexcode(key)] for key in items})


def read_icon_set(data: Path, package: str, code_points: str | None = None) -> Drawings:
    """One iconify package from a folder of tarballs.

    code_points   the package that knows the icons' code points; None = the package itself
    """
    chars = _read_json(find_tarball(data, code_points or package), "chars.json")
    return read_icons(_read_json(find_tarball(data, package), "icons.json"), chars)


def read_drawings(data: Path) -> dict[str, Drawings]:
    """All four sets from a folder of tarballs, by set name."""
    sets = {
        name: read_icon_set(data, package, CODE_POINTS[name]) for name, package in ICON_SETS.items()
    }
    sets[RASTER_SET] = read_raster(find_tarball(data, RASTER_PACKAGE))
    return sets


def read_names(data: Path) -> Names:
    """English emoji names from a folder of tarballs."""
    tarball = find_tarball(data, "emojibase-data")
    shortcodes = [_read_json(tarball, f"en/shortcodes/{n}.json") for n in ("github", "emojibase")]
    subgroups = _read_json(tarball, "meta/groups.json")["subgroups"]
    return Names(_read_json(tarball, "en/data.json"), shortcodes, subgroups)
