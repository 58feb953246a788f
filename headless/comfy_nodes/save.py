"""SaveImage and PreviewImage, and the names of the files that they write."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...files import LONGEST
from ..files import shortened
from .folders import folders, inside
from .png import save_png

if TYPE_CHECKING:
    from torch import Tensor

LONGEST_STEM = LONGEST - 15  # what follows: _00001_.png, with room for more digits
LONGEST_PATH = 4000  # bytes, of 4096 on Linux; elsewhere the system says so itself


class SaveImage:
    """Pictures into the output folder, with the workflow inside."""

    CATEGORY = "image"
    FUNCTION = "save"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    COMPRESS = 4

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {
            "required": {
                "images": ("IMAGE",),
                "filename_prefix": ("STRING", {"default": "ComfyUI"}),
            },
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix: str | None) -> bool | str:
        """Whether files may have such names, as far as that is known before there are pictures."""
        try:
            if filename_prefix is not None:  # None = a link brings it
                place(folders.get().output, filename_prefix)
        except ValueError as error:
            return str(error)
        return True

    def save(
        self, images: Tensor, filename_prefix: str, prompt: Any = None, extra_pnginfo: Any = None
    ) -> dict[str, Any]:
        """Write prefix_00001_.png and so on; what the interface is told."""
        return self._write(
            folders.get().output, "output", images, filename_prefix, prompt, extra_pnginfo
        )

    def _write(
        self, root: Path, kind: str, images: Tensor, prefix: str, prompt: Any, extra: Any
    ) -> dict[str, Any]:
        subfolder, stem = place(root, fill_in(prefix, images))
        folder = root / subfolder
        metadata = {**({} if prompt is None else {"prompt": prompt}), **(extra or {})}
        numbers = itertools.count(next_counter(folder, shortened(stem, LONGEST_STEM)))
        saved = []
        for i, image in enumerate(images):
            own = shortened(stem.replace("%batch_num%", str(i)), LONGEST_STEM)
            name = save_png(folder, numbered(own, numbers), image, metadata, self.COMPRESS)
            saved.append({"filename": name, "subfolder": subfolder, "type": kind})
        return {"ui": {"images": saved}}


class PreviewImage(SaveImage):
    """Pictures into the temporary folder."""

    COMPRESS = 1

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {
            "required": {"images": ("IMAGE",)},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def save(self, images: Tensor, prompt: Any = None, extra_pnginfo: Any = None) -> dict[str, Any]:
        """Write preview_00001_.png and so on."""
        return self._write(folders.get().temp, "temp", images, "preview", prompt, extra_pnginfo)


def place(root: Path, prefix: str) -> tuple[str, str]:
    """The folder below `root` and the beginning of the names that a prefix means, each of a length that fits.

    ValueError where the prefix leads out of `root`, or no file can have such a name.
    """
    if "\0" in prefix:
        raise ValueError("expected a file name without NUL characters")
    above, stem = os.path.split(os.path.normpath(prefix))
    subfolder = os.sep.join(shortened(part) for part in above.split(os.sep))
    folder = inside(root, subfolder)
    if len(os.fsencode(folder)) > LONGEST_PATH:
        raise ValueError(f"expected at most {LONGEST_PATH} bytes of folders, got {prefix[:80]!r}…")
    return subfolder, stem


def fill_in(prefix: str, images: Tensor) -> str:
    """A file name's beginning with its %width%, %height%, %year%, … filled in.

    prefix   given by the user
    images   b h w c, to be saved
    """
    now = time.localtime()
    values = {"width": str(images.shape[2]), "height": str(images.shape[1]), "year": f"{now[0]}"}
    names = ("month", "day", "hour", "minute", "second")
    values.update({name: f"{part:02}" for name, part in zip(names, now[1:6], strict=True)})
    for name, value in values.items():
        prefix = prefix.replace(f"%{name}%", value)
    return prefix


def next_counter(folder: Path, stem: str) -> int:
    """One more than the highest number among stem_00001_.png, stem_00002_….jpg, …

    stem     their names' beginning
    """
    pattern = re.compile(re.escape(stem) + r"_(\d+)_.*")
    files = folder.iterdir() if folder.is_dir() else ()
    found = [int(match[1]) for path in files if (match := pattern.fullmatch(path.name))]
    return max(found, default=0) + 1


def numbered(stem: str, numbers: Iterable[int]) -> Iterator[str]:
    """Names for a picture; another process may take some, so that more than one is tried."""
    return (f"{stem}_{number:05}_.png" for number in numbers)


def saved_files(out: Path, shown: dict[str, dict[str, list[Any]]]) -> list[Path]:
    """The pictures that a run's output nodes saved, and after them those that are only looked at.

    out     the folder of pictures
    """
    files = [
        out / ("temp" if entry["type"] == "temp" else "") / entry["subfolder"] / entry["filename"]
        for outputs in shown.values()
        for entry in outputs.get("images", [])
    ]
    return sorted(files, key=lambda file: out / "temp" in file.parents)
