"""LoadImage and LoadImageMask."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from .folders import folders, input_file
from .pictures import read_channels, read_frames

if TYPE_CHECKING:
    from torch import Tensor


def pictures() -> list[str]:
    """The pictures in the input folder."""
    root = folders.get().input
    if not root.is_dir():
        return []
    endings = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tiff"}
    return sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.suffix.lower() in endings
    )


class LoadImage:
    """A picture of the input folder, and its transparency as a mask."""

    CATEGORY = "image"
    FUNCTION = "load"
    RETURN_TYPES = ("IMAGE", "MASK")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {"required": {"image": (pictures(), {"image_upload": True})}}

    @classmethod
    def VALIDATE_INPUTS(cls, image: str) -> bool | str:
        """Whether the file is there."""
        try:
            found = input_file(image).is_file()
        except ValueError as error:
            return str(error)
        where = folders.get().input
        advice = "" if where.is_dir() else ", which is not there; name a folder with --input"
        return found or f"no file {image!r} in {where}{advice}"

    @classmethod
    def IS_CHANGED(cls, image: str) -> str:
        """A fingerprint of the file."""
        digest = hashlib.sha256()
        with input_file(image).open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        return digest.hexdigest()

    def load(self, image: str) -> tuple[Tensor, Tensor]:
        """The pixels of each frame, and 1 - alpha; an all-zero 64x64 mask where there is no alpha."""
        return read_frames(input_file(image))


class LoadImageMask:
    """One channel of a picture as a mask."""

    CATEGORY = "mask"
    FUNCTION = "load"
    RETURN_TYPES = ("MASK",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {
            "required": {
                "image": (pictures(), {"image_upload": True}),
                "channel": (["alpha", "red", "green", "blue"],),
            }
        }

    VALIDATE_INPUTS = LoadImage.VALIDATE_INPUTS

    @classmethod
    def IS_CHANGED(cls, image: str, channel: str) -> str:
        """A fingerprint of the file."""
        return LoadImage.IS_CHANGED(image)

    def load(self, image: str, channel: str) -> tuple[Tensor]:
        """The channel; alpha is inverted, as ComfyUI has it."""
        channels = read_channels(input_file(image))
        mask = channels[None, ..., ("red", "green", "blue", "alpha").index(channel)]
        return (1 - mask if channel == "alpha" else mask,)
