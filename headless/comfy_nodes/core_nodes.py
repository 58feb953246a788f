"""The nodes of ComfyUI itself that Imagen workflows use, with ComfyUI's ids, inputs and behaviour."""

import hashlib
import os
import re
import time
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...nodes import host
from .png import save_png

LARGEST = 16384  # pixels of a side
METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]


@dataclass(frozen=True)
class Folders:
    """Where pictures come from and go to; no name leaves its folder."""

    input: Path = Path("input")
    output: Path = Path("output")
    temp: Path = Path("temp")


folders: ContextVar[Folders] = ContextVar("folders", default=Folders())  # noqa: B039 - frozen


def use_folders(places: Folders) -> None:
    """From now on pictures come from and go to these folders, those of the pack's own nodes too.

    places   input, output and temp
    """
    folders.set(places)
    host.temporary.set(places.temp)


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
        height, width = (round(side * scale_by) for side in image.shape[1:3])
        return (resize(image, width, height, upscale_method, "disabled"),)


def resize(image: Tensor, width: int, height: int, method: str, crop: str) -> Tensor:
    """A picture at another size by one of ComfyUI's methods.

    image           b h w c
    width, height   of the result
    method          one of METHODS
    crop            "center" keeps the aspect ratio by cutting, "disabled" stretches
    """
    x = image.movedim(-1, 1)
    if crop == "center":
        x = _center_crop(x, width / height)
    if method == "lanczos":
        return _lanczos(x.movedim(1, -1), width, height)
    return F.interpolate(x, size=(height, width), mode=method).movedim(1, -1)


def _center_crop(x: Tensor, aspect: float) -> Tensor:
    """b c h w cut around its middle to an aspect ratio."""
    height, width = x.shape[2:]
    left = round((width - width * aspect / (width / height)) / 2) if width / height > aspect else 0
    top = round((height - height * (width / height) / aspect) / 2) if width / height < aspect else 0
    return x[:, :, top : height - top, left : width - left]


def _lanczos(image: Tensor, width: int, height: int) -> Tensor:
    import numpy as np
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


def primitive(kind: str, options: dict[str, Any]) -> type:
    """The class of a node that puts out the value of its one widget.

    kind      type of the value
    options   of the widget
    """

    class Primitive:
        CATEGORY = "utils/primitive"
        FUNCTION = "value_of"
        RETURN_TYPES = (kind,)

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {"value": (kind, options)}}

        def value_of(self, value: Any) -> tuple[Any]:
            return (value,)

    return Primitive


_WHOLE = 2**63 - 1
CORE_NODES: dict[str, type] = {
    "LoadImage": LoadImage,
    "LoadImageMask": LoadImageMask,
    "SaveImage": SaveImage,
    "PreviewImage": PreviewImage,
    "ImageScale": ImageScale,
    "ImageScaleBy": ImageScaleBy,
    "ImageBatch": ImageBatch,
    "ImageCrop": ImageCrop,
    "PrimitiveInt": primitive(
        "INT", {"min": -_WHOLE, "max": _WHOLE, "control_after_generate": True}
    ),
    "PrimitiveFloat": primitive("FLOAT", {"min": -float(_WHOLE), "max": float(_WHOLE)}),
    "PrimitiveString": primitive("STRING", {}),
    "PrimitiveStringMultiline": primitive("STRING", {"multiline": True}),
    "PrimitiveBoolean": primitive("BOOLEAN", {}),
}
