"""The cascade as one node, and the seeds of its stages."""

from __future__ import annotations

from typing import Any

from . import host
from .conditioning import ImagenT5Encode
from .loaders import DTYPE_TIP, ImagenLoadCascade
from .preview import stages_shown
from .sampling import TILE, ImagenBaseSample, ImagenSR256, ImagenSR1024
from .widgets import (
    AUTO,
    FITTING,
    OWN_LEVEL,
    OWN_STEPS,
    SEED,
    advanced,
    choice,
    integer,
    level_input,
    steps_input,
    wire,
)

UPTO = ["64", "256", "1024"]


def picture_of(returned: Any) -> Any:
    """The first result of a node, whether it tells the interface something or not."""
    return (returned["result"] if isinstance(returned, dict) else returned)[0]


class ImagenSampleCascade:
    """Text to a picture of any stage, in one node."""

    DESCRIPTION = (
        "The whole cascade in one node: loads it, encodes the prompt and runs its stages up to the "
        "size you choose. The same seed gives the same image as the separate nodes."
    )
    CATEGORY = "imagen"
    FUNCTION = "sample"
    RETURN_TYPES = ("IMAGE", "IMAGE")
    RETURN_NAMES = ("image", "image_64")
    OUTPUT_TOOLTIPS = ("The image of the last stage that ran.", "The base's image.")
    OUTPUT_NODE = True  # it shows what it makes, so that it runs alone
    HAS_INTERMEDIATE_OUTPUT = True
    ESSENTIALS_CATEGORY = "Image Generation"
    SEARCH_ALIASES = ["imagen", "text to image", "all in one", "ksampler", "pixel diffusion"]

    def __init__(self):
        self.loaded: dict[tuple[str, str], tuple] = {}  # one cascade, kept from run to run

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        loader = ImagenLoadCascade.INPUT_TYPES()["required"]
        encoder = ImagenT5Encode.INPUT_TYPES()["required"]
        own_steps = "This stage's steps."
        return {
            "required": {
                "cascade": loader["cascade"],
                "prompt": encoder["prompt"],
                "negative_prompt": encoder["negative_prompt"],
                "upto": choice(UPTO, "1024", "The last stage to run, by the size it makes."),
                "batch_size": integer((1, 1, 256, 1), "Number of images; image i uses seed + i."),
                "seed": SEED,
            },
            "optional": {
                "guidance": wire(
                    "IMAGEN_GUIDANCE",
                    "From Dynamic-Threshold Guidance, for the base; else its own settings.",
                ),
                "steps_64": advanced(steps_input(own_steps)),
                "steps_256": advanced(steps_input(own_steps)),
                "steps_1024": advanced(steps_input(own_steps)),
                "aug_level_256": advanced(level_input("Noise on what SR 256 enlarges.")),
                "aug_level_1024": advanced(level_input("Noise on what SR 1024 enlarges.")),
                "tile": advanced(integer((0, FITTING, 4096, 64), TILE)),
                "dtype": advanced(choice(list(host.DTYPES), "auto", DTYPE_TIP)),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, cascade: str | None = None) -> bool | str:
        """Whether the cascade is there; else where to put it."""
        return ImagenLoadCascade.VALIDATE_INPUTS(cascade)

    def sample(
        self,
        cascade: str,
        prompt: str,
        negative_prompt: str,
        upto: str,
        batch_size: int,
        seed: int,
        guidance: Any = None,
        steps_64: int = OWN_STEPS,
        steps_256: int = OWN_STEPS,
        steps_1024: int = OWN_STEPS,
        aug_level_256: float = OWN_LEVEL,
        aug_level_1024: float = OWN_LEVEL,
        tile: int = 0,
        dtype: str = "auto",
    ) -> Any:
        """The last stage's pictures and the base's."""
        if (cascade, dtype) not in self.loaded:
            self.loaded = {}  # the one before makes room first
            self.loaded[cascade, dtype] = ImagenLoadCascade().load(cascade, dtype)
        encoder, *stages = self.loaded[cascade, dtype]
        encoded = ImagenT5Encode().encode(encoder, prompt, negative_prompt)
        (text,) = encoded["result"]
        side = stages[0].config.resolution
        base = ImagenBaseSample().sample(
            stages[0], text, width=side, height=side, batch_size=batch_size, seed=seed, steps=steps_64,
            sampler=AUTO, strength=1.0, guidance=guidance,
        )  # fmt: skip
        made = {"64": picture_of(base)}
        levels, steps = (aug_level_256, aug_level_1024), (steps_256, steps_1024)
        kinds = (ImagenSR256, ImagenSR1024)
        for i in range(UPTO.index(upto)):
            image = made[UPTO[i]]
            enlarged = kinds[i]().enlarge(
                stages[i + 1], image, text, seed, steps[i], AUTO, levels[i], tile
            )
            made[UPTO[i + 1]] = picture_of(enlarged)
        result = (made[upto], made["64"])
        if not host.watched():
            return result
        told = {
            "imagen_view": stages_shown(made),
            "imagen_reading": encoded["ui"]["imagen_reading"],
        }
        return {"ui": told, "result": result}


class ImagenSeeds:
    """One seed for three stages, of which some may keep another."""

    DESCRIPTION = (
        "One seed for all three stages. When an image is nearly right, keep the seed of the stages "
        "that you like and let the others change."
    )
    CATEGORY = "imagen"
    FUNCTION = "choose"
    RETURN_TYPES = ("INT", "INT", "INT")
    RETURN_NAMES = ("base", "sr256", "sr1024")
    OUTPUT_TOOLTIPS = (
        "Connect to the seed of Imagen Base Sample.",
        "Connect to the seed of Imagen SR 256.",
        "Connect to the seed of Imagen SR 1024.",
    )
    SEARCH_ALIASES = ["seed", "seed generator", "reuse last seed", "random seed"]
    KEPT = ("nothing", "base", "base and sr256")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        most = 2**64 - 1
        return {
            "required": {
                "seed": SEED,
                "keep": choice(
                    list(cls.KEPT), "nothing", "Which stages take kept_seed in place of seed."
                ),
                "kept_seed": integer((0, 0, most, 1), "The seed of the stages that are kept."),
            }
        }

    def choose(self, seed: int, keep: str, kept_seed: int) -> tuple[int, ...]:
        """The seeds of base, SR 256 and SR 1024."""
        kept = self.KEPT.index(keep)
        return tuple(kept_seed if stage < kept else seed for stage in range(3))
