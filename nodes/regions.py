"""A prompt for a part of the picture."""

from typing import Any

from . import host
from .checks import named
from .widgets import number, wire


class ImagenRegionalPrompt:
    """A prompt inside a mask, beside the prompt of the rest."""

    DESCRIPTION = (
        "Gives a part of the image a prompt of its own. Connect several in a row for several regions; "
        "outside them the first prompt holds. Let the prompt of a region say where its thing is, such "
        "as “a red apple on the left”. Each region costs one more evaluation of the network per step."
    )
    CATEGORY = "imagen"
    FUNCTION = "add"
    RETURN_TYPES = ("IMAGEN_TEXT",)
    RETURN_NAMES = ("text",)
    OUTPUT_TOOLTIPS = ("Connect to the sampling nodes, or to the next Imagen Regional Prompt.",)
    SEARCH_ALIASES = ["regional prompt", "latent couple", "area", "set mask", "composition"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {
            "required": {
                "text": wire(
                    "IMAGEN_TEXT",
                    "The prompt of the rest of the image, or another Imagen Regional Prompt; its negative "
                    "prompt is used.",
                ),
                "region": wire(
                    "IMAGEN_TEXT", "The prompt of the region; its negative prompt is not used."
                ),
                "mask": wire("MASK", "White is the region. Any size: it is scaled to the image's."),
                "strength": number(
                    (1.0, 0.0, 1.0, 0.01),
                    "How much of the prediction in the region is this prompt's; what remains is the "
                    "other prompt's.",
                ),
            }
        }

    def add(self, text: Any, region: Any, mask: Any, strength: float) -> tuple:
        """The prompt with the region."""
        with named("Imagen Regional Prompt"):
            return (text.with_region(region, host.whitened(mask), strength),)
