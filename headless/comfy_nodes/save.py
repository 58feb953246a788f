"""SaveImage and PreviewImage, and the names of the files that they write."""

import os
import re
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from .folders import folders, inside
from .png import save_png


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
        subfolder, stem = os.path.split(os.path.normpath(fill_in(prefix, images)))
        folder = inside(root, subfolder)
        metadata = {**({} if prompt is None else {"prompt": prompt}), **(extra or {})}
        counter, saved = next_counter(folder, stem), []
        for i, image in enumerate(images):
            name = f"{stem.replace('%batch_num%', str(i))}_{counter + i:05}_.png"
            save_png(folder / name, image, metadata, self.COMPRESS)
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

    folder   of the files
    stem     their names' beginning
    """
    pattern = re.compile(re.escape(stem) + r"_(\d+)_.*")
    files = folder.iterdir() if folder.is_dir() else ()
    found = [int(match[1]) for path in files if (match := pattern.fullmatch(path.name))]
    return max(found, default=0) + 1


def saved_files(out: Path, shown: dict[str, dict[str, list[Any]]]) -> list[Path]:
    """The pictures that a run's output nodes saved, and after them those that are only looked at.

    out     the folder of pictures
    shown   what the nodes show, by id
    """
    files = [
        out / ("temp" if entry["type"] == "temp" else "") / entry["subfolder"] / entry["filename"]
        for outputs in shown.values()
        for entry in outputs.get("images", [])
    ]
    return sorted(files, key=lambda file: out / "temp" in file.parents)
