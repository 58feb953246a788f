"""Looking at a cascade: its stages over each other."""

from typing import Any

from . import host
from .checks import named
from .widgets import wire

STAGES = ("64", "256", "1024")


class ImagenCascadeView:
    """The stages' pictures over each other."""

    DESCRIPTION = (
        "Shows the images of the stages over each other. Move the pointer over the image, and a "
        "loupe shows the same place in each stage. Pin a run to compare the next ones with it. Every "
        "input is optional."
    )
    CATEGORY = "imagen"
    FUNCTION = "show"
    RETURN_TYPES = ()
    RETURN_NAMES = ()
    OUTPUT_TOOLTIPS = ()
    OUTPUT_NODE = True
    SEARCH_ALIASES = ["preview image", "compare", "loupe", "magnifier", "imagen view"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {
            "optional": {
                "image_64": wire("IMAGE", "From Imagen Base Sample, or any other image."),
                "image_256": wire("IMAGE", "From Imagen SR 256, or any other image."),
                "image_1024": wire("IMAGE", "From Imagen SR 1024, or any other image."),
            }
        }

    def show(self, image_64: Any = None, image_256: Any = None, image_1024: Any = None) -> dict:
        """The pictures as temporary files: all in `images`, and by stage in `imagen_view`."""
        from ..imagen_core.checks import check_image

        images = zip(STAGES, (image_64, image_256, image_1024), strict=True)
        given = {name: image for name, image in images if image is not None}
        with named("Cascade View"):
            for name, image in given.items():
                check_image(image, f"image_{name}")
            if not given:
                raise ValueError(
                    "expected at least one of image_64, image_256 and image_1024, got none; connect the "
                    "result of a stage"
                )
        stages = stages_shown(given)
        files = [file for stage in stages for file in stage["images"]]
        return {"ui": {"images": files, "imagen_view": stages}}


def stages_shown(images: dict[str, Any]) -> list[dict[str, Any]]:
    """What the interface is told of the stages' pictures, which are written as temporary files.

    images   b h w c, in the order of the stages

    A bypassed stage hands on what it was given, which is shown already: it is left out.
    """
    from ..imagen_core.sampling import rgb

    stages: list[dict[str, Any]] = []
    for image in images.values():
        height, width = image.shape[1:3]
        files = [host.save_temporary(picture) for picture in rgb(image)]
        if all(files != stage["images"] for stage in stages):
            name = str(max(width, height))
            stages.append({"stage": name, "width": width, "height": height, "images": files})
    return stages
