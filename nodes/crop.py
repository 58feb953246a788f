"""Painting at a stage's own size inside a larger picture: a part cut out and put back, or room around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import host
from .checks import named
from .widgets import integer, number, wire

if TYPE_CHECKING:
    from torch import Tensor

MULTIPLE = 8  # of a stage's sides
SIZE = integer(
    (64, 16, 1024, MULTIPLE),
    "Longer side of the result in pixels: the size that the stage was trained at.",
)


@dataclass(frozen=True)
class Crop:
    """Where a part of a picture was, so that it can be put back.

    image    b h w 3, the whole picture
    mask     b h w, what may change, 0..1
    top, left, height, width   of the part, in pixels of the whole
    """

    image: Tensor
    mask: Tensor
    top: int
    left: int
    height: int
    width: int


class ImagenCropForInpaint:
    """The masked part of a picture, at a stage's size."""

    DESCRIPTION = (
        "Cuts out the masked part with some surroundings and scales it to the stage's own size, so "
        "that a small part of a large image is painted with all the pixels that the stage has. "
        "Imagen Stitch puts the result back."
    )
    CATEGORY = "imagen/edit"
    FUNCTION = "crop"
    RETURN_TYPES = ("IMAGE", "MASK", "IMAGEN_CROP")
    RETURN_NAMES = ("image", "mask", "crop")
    OUTPUT_TOOLTIPS = (
        "The part: connect to `image` of Imagen Base Sample.",
        "Its mask: connect to `mask` of Imagen Base Sample.",
        "Where it was: connect to Imagen Stitch.",
    )
    SEARCH_ALIASES = ["inpaint crop", "crop and stitch", "detailer", "crop by mask"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {
            "required": {
                "image": wire("IMAGE", "The whole image."),
                "mask": wire("MASK", "White is to be repainted."),
                "size": SIZE,
                "surroundings": number(
                    (1.5, 1.0, 8.0, 0.1),
                    "Size of what is cut out, in multiples of the masked part's: 1 = no surroundings.",
                ),
            }
        }

    def crop(self, image: Any, mask: Any, size: int, surroundings: float) -> tuple:
        """The part, its mask, and where it was."""
        from ..imagen_core.checks import check_image
        from ..imagen_core.sampling import rgb

        with named("Imagen Crop for Inpaint"):
            check_image(image, "image")
            mask = mask_of(mask, image)
            top, left, height, width = box_of(mask, surroundings)
        found = Crop(rgb(image), mask, top, left, height, width)
        return (*part_of(found, size), found)


class ImagenOutpaint:
    """A picture with room around it."""

    DESCRIPTION = (
        "Adds room around an image and scales all of it to the stage's own size, with a mask of what "
        "is new. The stage paints the room; Imagen Stitch puts the old image back at its own size."
    )
    CATEGORY = "imagen/edit"
    FUNCTION = "extend"
    RETURN_TYPES = ("IMAGE", "MASK", "IMAGEN_CROP")
    RETURN_NAMES = ("image", "mask", "crop")
    OUTPUT_TOOLTIPS = (
        "The image with room: connect to `image` of Imagen Base Sample.",
        "The room: connect to `mask` of Imagen Base Sample.",
        "The whole at its own size: connect to Imagen Stitch.",
    )
    SEARCH_ALIASES = ["outpainting", "pad image for outpainting", "extend image", "uncrop"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        part = "Room on this side, as a part of the image's width or height."
        sides = {
            name: number((0.25 if name in ("left", "right") else 0.0, 0.0, 4.0, 0.05), part)
            for name in ("left", "top", "right", "bottom")
        }
        return {"required": {"image": wire("IMAGE", "The image to extend."), **sides, "size": SIZE}}

    def extend(
        self, image: Any, left: float, top: float, right: float, bottom: float, size: int
    ) -> tuple:
        """The picture with room at the stage's size, the room's mask, and the whole."""
        import torch.nn.functional as F

        from ..imagen_core.checks import check_image
        from ..imagen_core.sampling import rgb

        with named("Imagen Outpaint"):
            check_image(image, "image")
            rows, columns = image.shape[1:3]
            room = [round(left * columns), round(right * columns), round(top * rows)]
            room.append(round(bottom * rows))
            if not any(room):
                raise ValueError(
                    "left, top, right, bottom: expected at least one above 0, got none"
                )
        x = rgb(image).movedim(-1, 1)
        whole = F.pad(x, room, mode="replicate").movedim(1, -1)
        new = 1 - F.pad(x.new_ones(len(x), rows, columns), room)
        found = Crop(whole, new, 0, 0, *whole.shape[1:3])
        return (*part_of(found, size), found)


class ImagenStitch:
    """A repainted part, back in its picture."""

    DESCRIPTION = (
        "Puts a repainted part back into the image that it was cut out of, whatever stage made it: "
        "it is scaled to the part's size and blended in along the mask. Everything else stays "
        "pixel-exact."
    )
    CATEGORY = "imagen/edit"
    FUNCTION = "stitch"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The whole image.",)
    SEARCH_ALIASES = ["inpaint stitch", "crop and stitch", "paste by mask", "uncrop"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {
            "required": {
                "image": wire("IMAGE", "The repainted part, of any size."),
                "crop": wire("IMAGEN_CROP", "From Imagen Crop for Inpaint or Imagen Outpaint."),
                "blend": integer(
                    (4, 0, 256, 1), "Width in pixels of the soft edge, inside the mask; 0 = hard."
                ),
            }
        }

    def stitch(self, image: Any, crop: Any, blend: int) -> tuple:
        """The whole picture."""
        from ..imagen_core.checks import check_image
        from ..imagen_core.sampling import rgb

        with named("Imagen Stitch"):
            check_image(image, "image")
            count = max(len(image), len(crop.image))
            for name, batch in (("image", image), ("crop", crop.image)):
                if len(batch) not in (1, count):
                    raise ValueError(f"{name}: expected 1 or {count} images, got {len(batch)}")
        rows = slice(crop.top, crop.top + crop.height)
        columns = slice(crop.left, crop.left + crop.width)
        part = resized(rgb(image), crop.height, crop.width).to(crop.image)
        weight = softened(crop.mask[:, rows, columns], blend)[..., None]
        whole = crop.image.expand(count, -1, -1, -1).clone()
        old = whole[:, rows, columns]
        whole[:, rows, columns] = (old + weight * (part - old)).where(weight > 0, old)
        return (whole,)


def mask_of(mask: Any, image: Any) -> Any:
    """A mask at the picture's size and batch, b h w in 0..1.

    mask   h w, b h w or b 1 h w, of any size
    """
    import torch.nn.functional as F

    from ..imagen_core.checks import check_mask

    check_mask(mask, image, len(image), "image")
    mask = host.whitened(mask.reshape(-1, *mask.shape[-2:])).float()
    if not (mask > 0.5).any():
        raise ValueError(
            "mask: nothing of it is white, so there is nothing to repaint; paint on the image in ComfyUI's "
            "mask editor (right-click Load Image)"
        )
    if mask.shape[1:] != image.shape[1:3]:
        mask = F.interpolate(mask[:, None], image.shape[1:3], mode="nearest-exact")[:, 0]
    return mask.clamp(0, 1).expand(len(image), -1, -1)


def box_of(mask: Any, surroundings: float) -> tuple[int, int, int, int]:
    """Top, left, height and width of a box around the white of all masks, square where the picture allows.

    mask           b h w, white somewhere
    surroundings   how much larger than the white
    """
    white = (mask > 0.5).any(0)
    rows, columns = white.any(1).nonzero(), white.any(0).nonzero()
    ends = [(int(found.min()), int(found.max()) + 1) for found in (rows, columns)]
    side = round(max(high - low for low, high in ends) * surroundings)
    box = []
    for (low, high), whole in zip(ends, white.shape, strict=True):
        length = min(side, whole)
        start = min(max(0, (low + high - length) // 2), whole - length)
        box.append((start, length))
    return box[0][0], box[1][0], box[0][1], box[1][1]


def part_of(crop: Crop, size: int) -> tuple[Any, Any]:
    """The part and its mask with a longer side of about `size`.

    size   a multiple of MULTIPLE
    """
    scale = size / max(crop.height, crop.width)
    height, width = (
        max(MULTIPLE, round(side * scale / MULTIPLE) * MULTIPLE)
        for side in (crop.height, crop.width)
    )
    rows = slice(crop.top, crop.top + crop.height)
    columns = slice(crop.left, crop.left + crop.width)
    mask = resized(crop.mask[:, rows, columns][..., None], height, width)[..., 0]
    return resized(crop.image[:, rows, columns], height, width), (mask > 0.01).to(mask)


def resized(image: Any, height: int, width: int) -> Any:
    """b h w c at another size, smoothed where it becomes smaller; in 0..1."""
    import torch.nn.functional as F

    if image.shape[1:3] == (height, width):
        return image
    x = image.movedim(-1, 1).float()
    made = F.interpolate(x, (height, width), mode="bicubic", antialias=True)
    return made.clamp(0, 1).movedim(1, -1).to(image)


def softened(mask: Any, blend: int) -> Any:
    """A mask whose edge rises over `blend` pixels inside it, so that nothing outside changes.

    mask   b h w in 0..1
    """
    import torch.nn.functional as F

    if blend == 0:
        return mask
    width = 2 * blend + 1
    padded = F.pad(mask[:, None], [blend] * 4, mode="replicate")
    shrunk = -F.max_pool2d(-padded, width, stride=1)
    smooth = F.avg_pool2d(F.pad(shrunk, [blend] * 4, mode="replicate"), width, stride=1)
    return smooth[:, 0] * (mask > 0)
