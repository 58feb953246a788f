"""ImageScale, ImageScaleBy, ImageBatch and ImageCrop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 16384  # pixels of a side
METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]


class ImageScale:
    """A picture at another size."""

    CATEGORY = "image/upscaling"
    FUNCTION = "upscale"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        side = {"default": 512, "min": 0, "max": LARGEST, "step": 1}
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (METHODS,),
                "width": ("INT", side),
                "height": ("INT", side),
                "crop": (["disabled", "center"],),
            }
        }

    def upscale(
        self, image: Tensor, upscale_method: str, width: int, height: int, crop: str
    ) -> tuple[Tensor]:
        """The picture; a side of 0 follows the other."""
        if width == 0 and height == 0:
            return (image,)
        rows, columns = image.shape[1:3]
        width = width or max(1, round(columns * height / rows))
        height = height or max(1, round(rows * width / columns))
        return (resize(image, width, height, upscale_method, crop),)


class ImageScaleBy:
    """A picture larger or smaller by a factor."""

    CATEGORY = "image/upscaling"
    FUNCTION = "upscale"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (METHODS,),
                "scale_by": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 8.0, "step": 0.01}),
            }
        }

    def upscale(self, image: Tensor, upscale_method: str, scale_by: float) -> tuple[Tensor]:
        """The picture."""
        height, width = (max(1, round(side * scale_by)) for side in image.shape[1:3])
        return (resize(image, width, height, upscale_method, "disabled"),)


def resize(image: Tensor, width: int, height: int, method: str, crop: str) -> Tensor:
    """A picture at another size by one of ComfyUI's methods.

    image           b h w c
    method          one of METHODS
    crop            "center" keeps the aspect ratio by cutting, "disabled" stretches
    """
    import torch.nn.functional as F

    x = image.movedim(-1, 1)
    if crop == "center":
        x = _center_crop(x, width / height)
    if method == "lanczos":
        return _lanczos(x.movedim(1, -1), width, height)
    return F.interpolate(x, size=(height, width), mode=method).movedim(1, -1)


def _center_crop(x: Tensor, aspect: float) -> Tensor:
    """b c h w cut around its middle to an aspect ratio; a row and a column are left of the thinnest."""
    height, width = x.shape[2:]
    left = round((width - width * aspect / (width / height)) / 2) if width / height > aspect else 0
    top = round((height - height * (width / height) / aspect) / 2) if width / height < aspect else 0
    left, top = min(left, (width - 1) // 2), min(top, (height - 1) // 2)
    return x[:, :, top : height - top, left : width - left]


def _lanczos(image: Tensor, width: int, height: int) -> Tensor:
    import numpy as np
    import torch
    from PIL import Image

    pictures = [Image.fromarray((255 * i).clamp(0, 255).byte().cpu().numpy()) for i in image]
    resized = [p.resize((width, height), Image.Resampling.LANCZOS) for p in pictures]
    stacked = np.stack([np.asarray(p).astype(np.float32) / 255.0 for p in resized])
    return torch.from_numpy(stacked).to(image)


class ImageBatch:
    """Two batches in one; the second takes the first one's size."""

    CATEGORY = "image"
    FUNCTION = "batch"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {"required": {"image1": ("IMAGE",), "image2": ("IMAGE",)}}

    def batch(self, image1: Tensor, image2: Tensor) -> tuple[Tensor]:
        """Both."""
        import torch

        if image1.shape[1:3] != image2.shape[1:3]:
            image2 = resize(image2, image1.shape[2], image1.shape[1], "bilinear", "center")
        return (torch.cat([image1, image2]),)


class ImageCrop:
    """A rectangle of a picture."""

    CATEGORY = "image/transform"
    FUNCTION = "crop"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        side = {"default": 512, "min": 1, "max": LARGEST, "step": 1}
        place = {"default": 0, "min": 0, "max": LARGEST, "step": 1}
        return {
            "required": {
                "image": ("IMAGE",),
                "width": ("INT", side),
                "height": ("INT", side),
                "x": ("INT", place),
                "y": ("INT", place),
            }
        }

    def crop(self, image: Tensor, width: int, height: int, x: int, y: int) -> tuple[Tensor]:
        """The rectangle, as much of it as lies inside."""
        x, y = min(x, image.shape[2] - 1), min(y, image.shape[1] - 1)
        return (image[:, y : y + height, x : x + width],)
