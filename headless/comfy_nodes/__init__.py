"""ComfyUI's own nodes that Imagen workflows use, with ComfyUI's ids, inputs and behaviour."""

from .edit import ImageBatch, ImageCrop, ImageScale, ImageScaleBy
from .load import LoadImage, LoadImageMask
from .primitives import PRIMITIVES
from .save import PreviewImage, SaveImage

CORE_NODES: dict[str, type] = {
    "LoadImage": LoadImage,
    "LoadImageMask": LoadImageMask,
    "SaveImage": SaveImage,
    "PreviewImage": PreviewImage,
    "ImageScale": ImageScale,
    "ImageScaleBy": ImageScaleBy,
    "ImageBatch": ImageBatch,
    "ImageCrop": ImageCrop,
    **PRIMITIVES,
}
