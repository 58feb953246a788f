"""LoadImage and LoadImageMask."""

import hashlib
from typing import Any

import torch
from torch import Tensor

from .folders import folders, input_file


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
        return hashlib.sha256(input_file(image).read_bytes()).hexdigest()

    def load(self, image: str) -> tuple[Tensor, Tensor]:
        """The pixels of each frame, and 1 - alpha; an all-zero 64x64 mask where there is no alpha."""
        from PIL import Image, ImageOps, ImageSequence

        frames = []
        with Image.open(input_file(image)) as opened:
            for frame in ImageSequence.Iterator(opened):
                pixels, mask = _frame(ImageOps.exif_transpose(frame))
                if not frames or pixels.shape == frames[0][0].shape:
                    frames.append((pixels, mask))
                if opened.format == "MPO":
                    break  # the others are other views
        return torch.cat([pixels for pixels, _ in frames]), torch.cat([mask for _, mask in frames])


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
        from PIL import Image, ImageOps

        with Image.open(input_file(image)) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGBA")
        mask = _pixels(picture)[..., ("red", "green", "blue", "alpha").index(channel)]
        return (1 - mask if channel == "alpha" else mask,)


def _frame(picture: Any) -> tuple[Tensor, Tensor]:
    """Pixels and mask of one frame, b = 1."""
    if picture.mode == "I":  # 16 bits
        picture = picture.point(lambda value: value * (1 / 255))
    pixels = _pixels(picture.convert("RGB"))
    if "A" in picture.getbands():
        return pixels, 1 - _pixels(picture.getchannel("A"))[..., 0]
    if picture.mode == "P" and "transparency" in picture.info:
        return pixels, 1 - _pixels(picture.convert("RGBA").getchannel("A"))[..., 0]
    return pixels, torch.zeros(1, 64, 64)


def _pixels(picture: Any) -> Tensor:
    import numpy as np

    array = np.asarray(picture).astype(np.float32) / 255.0
    return torch.from_numpy(array if array.ndim == 3 else array[..., None])[None]
