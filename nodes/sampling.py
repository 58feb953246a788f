"""The sampling nodes: text to 64, 64 to 256, 256 to 1024."""

from typing import Any

from . import host
from .checks import check_links, named, require_input_size, require_stage
from .many import call_together, seeds_of
from .oom import attempts, rows_of, smaller_parts
from .trace import Watch
from .widgets import (
    FITTING,
    INPAINT,
    QUALITY,
    SAMPLER,
    SEED,
    TIMESTEPS,
    advanced,
    choice,
    integer,
    level_input,
    number,
    settings_of,
    steps_input,
    wire,
)


class ImagenBaseSample:
    """Text to a 64 picture; or a picture, or a masked part of it, to another one."""

    DESCRIPTION = (
        "Makes the small image that the cascade starts from. With an image, sampling starts from "
        "that image; with a mask as well, only the masked part is repainted and the rest is kept "
        "pixel-exact."
    )
    CATEGORY = "imagen"
    FUNCTION = "sample"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("An image: edit it, or connect it to Imagen SR 256.",)
    RUN_MANY = "sample_many"
    HAS_INTERMEDIATE_OUTPUT = True  # so that a cached run shows the chart again
    ESSENTIALS_CATEGORY = "Image Generation"
    SEARCH_ALIASES = ["ksampler", "imagen sampler", "text to image", "inpaint", "img2img"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        about = "In pixels. Base stages work best near 64, their training size."
        side = integer((64, 16, 1024, 8), about)
        return {
            "required": {
                "stage": wire("IMAGEN_STAGE", "A base stage, from a loader."),
                "text": wire("IMAGEN_TEXT", "From T5 Encode."),
                "width": side,
                "height": side,
                "batch_size": integer((1, 1, 256, 1), "Number of images; image i uses seed + i."),
                "seed": SEED,
                "steps": steps_input("More steps give a finer result; 24 to 50 is usual."),
                "sampler": SAMPLER,
                "strength": number(
                    (1.0, 0.01, 1.0, 0.01),
                    "With an image: how much of it to change, as the fraction of the steps that "
                    "is run; 1 = all steps.",
                ),
            },
            "optional": {
                "guidance": wire(
                    "IMAGEN_GUIDANCE",
                    "From Dynamic-Threshold Guidance; else the stage's own settings.",
                ),
                "image": wire("IMAGE", "Start from this image; it sets the size and the batch."),
                "mask": wire("MASK", "White is repainted, black is kept pixel-exact."),
                "timesteps": TIMESTEPS,
                "inpaint": INPAINT,
                "resample": advanced(
                    integer(
                        (1, 1, 20, 1),
                        "With a mask: RePaint passes per segment. More passes hide the seam better "
                        "and cost that much more time.",
                    )
                ),
                "jump": advanced(integer((10, 1, 1000, 1), "With resample: steps per segment.")),
                "quality": QUALITY,
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, input_types: dict[str, Any]) -> bool | str:
        """Whether the links fit, and the stage is of the right kind."""
        return check_links(cls, input_types, "base")

    def sample(
        self,
        stage: Any,
        text: Any,
        width: int,
        height: int,
        batch_size: int,
        seed: int,
        steps: int,
        sampler: str,
        strength: float,
        guidance: Any = None,
        image: Any = None,
        mask: Any = None,
        timesteps: str = "",
        inpaint: Any = "repaint",
        resample: int = 1,
        jump: int = 10,
        quality: Any = "full",
    ) -> Any:
        """The pictures."""
        import torch

        from ..imagen_core import Inpainting, sample_base
        from ..imagen_core.checks import check_base
        from ..imagen_core.settings import Settings

        node, watch, mask = "Imagen Base Sample", Watch(), host.whitened(mask)
        chosen = settings_of(steps, timesteps, sampler, quality=quality) | dict(guidance=guidance)
        with named(node), torch.no_grad():
            chosen |= dict(strength=strength, inpainting=Inpainting(inpaint, resample, jump))
            require_stage(stage, "base")
            settings, size = Settings(seed=seed, **chosen), (batch_size, height, width)
            batch, height, width = check_base(stage, text, settings, image, mask, size)
            needed = stage.running_bytes(rows_a_step(text, batch), height, width)
            with host.on_device(stage.unet, needed):
                for attempt in attempts(node, batch, smaller_parts(batch, 0)):
                    with attempt:
                        for rows in attempt.rows:
                            made = sample_base(
                                stage,
                                text.take(rows),
                                image=rows_of(image, rows),
                                mask=rows_of(mask, rows),
                                width=width,
                                height=height,
                                batch_size=rows.stop - rows.start,
                                seed=seeds_of(seed, rows),
                                **chosen,
                                **watch.part(rows.start),
                            )
                            attempt.made.append(made)
        return watch.result(host.to_results(attempt.pictures()))

    def sample_many(self, calls: list[dict[str, Any]]) -> list[Any]:
        """What `sample` returns for each of several calls, prompts of a kind evaluated together."""

        def at_once(call: dict[str, Any], pictures: int) -> int:
            from ..imagen_core.memory import pictures_at_once

            image = call["image"]
            height, width = (call["height"], call["width"]) if image is None else image.shape[1:3]
            prompts, device = rows_a_step(call["text"], 1), host.compute_device()
            return pictures_at_once(call["stage"], pictures, height, width, prompts, device)

        return call_together(self.sample, calls, at_once)


TILE = (
    "Side in pixels of overlapping tiles of the result, which save memory; 0 = the whole image at once, "
    "below 0 = the largest tiles that free memory takes."
)


def super_resolution_inputs() -> dict[str, Any]:
    """The inputs that both super-resolution nodes have."""
    return {
        "required": {
            "stage": wire("IMAGEN_STAGE", "A super-resolution stage, from a loader."),
            "image": wire("IMAGE", "Any image: the previous stage's, or one of your own."),
            "text": wire(
                "IMAGEN_TEXT", "From T5 Encode. Another prompt than the base's restyles the image."
            ),
            "seed": SEED,
            "steps": steps_input("More steps give a finer result; 4 to 16 is usual."),
            "sampler": SAMPLER,
            "aug_level": level_input(
                "Noise added to `image` first: 0 keeps it as it is, 0.1 to 0.3 lets the stage invent detail."
            ),
            "tile": advanced(integer((0, FITTING, 4096, 64), TILE)),
        },
        "optional": {
            "guidance": wire(
                "IMAGEN_GUIDANCE", "From Dynamic-Threshold Guidance; else the stage's own settings."
            ),
            "timesteps": TIMESTEPS,
            "aug_noise": advanced(
                choice(
                    ["once", "each step"],
                    "once",
                    "When the noise of aug_level is drawn: once, or anew at each step as in "
                    "DeepFloyd IF's own code.",
                )
            ),
            "original": wire(
                "IMAGE",
                "Start from this image, four times as large as `image`; `image` still says "
                "what the result shows.",
            ),
            "mask": wire(
                "MASK", "With an original: white is repainted, black is kept pixel-exact."
            ),
            "strength": advanced(
                number(
                    (1.0, 0.01, 1.0, 0.01),
                    "With an original: how much of it to change, as the fraction of the steps "
                    "that is run; 1 = all steps.",
                )
            ),
            "inpaint": INPAINT,
            "quality": QUALITY,
        },
    }


class ImagenSR256:
    """A picture four times as large, by the 64 to 256 stage."""

    DESCRIPTION = (
        "Enlarges an image four times with the cascade's second stage: 64 x 64 becomes 256 x 256."
    )
    CATEGORY = "imagen"
    FUNCTION = "enlarge"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("An image: edit it, or connect it to Imagen SR 1024.",)
    RUN_MANY = "enlarge_many"
    HAS_INTERMEDIATE_OUTPUT = True
    ESSENTIALS_CATEGORY = "Image Generation"
    SEARCH_ALIASES = ["upscale", "super resolution", "restyle"]
    NAME = "Imagen SR 256"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return super_resolution_inputs()

    @classmethod
    def VALIDATE_INPUTS(cls, input_types: dict[str, Any]) -> bool | str:
        """Whether the links fit, and the stage is of the right kind."""
        return check_links(cls, input_types, "sr")

    def enlarge(
        self,
        stage: Any,
        image: Any,
        text: Any,
        seed: int,
        steps: int,
        sampler: str,
        aug_level: float,
        tile: int,
        guidance: Any = None,
        timesteps: str = "",
        aug_noise: Any = "once",
        original: Any = None,
        mask: Any = None,
        strength: float = 1.0,
        inpaint: Any = "repaint",
        quality: Any = "full",
    ) -> Any:
        """The enlarged pictures."""
        import torch

        from ..imagen_core import Inpainting, super_resolve
        from ..imagen_core.checks import check_sr
        from ..imagen_core.settings import Settings

        chosen = settings_of(steps, timesteps, sampler, aug_level, quality)
        chosen |= dict(guidance=guidance, aug_noise=aug_noise, strength=strength)
        watch, mask = Watch(), host.whitened(mask)
        with named(self.NAME), torch.no_grad():
            chosen["inpainting"] = Inpainting(inpaint)
            require_stage(stage, "sr")
            settings = Settings(seed=seed, tile=max(tile, 0), **chosen)
            batch, height, width = check_sr(stage, text, settings, image, original, mask)
            require_input_size(stage, image)
            tile = tile_that_fits(stage, tile, height, width)
            at_once = (min(tile or side, side) for side in (height, width))
            needed = stage.running_bytes(rows_a_step(text, batch), *at_once)
            ways = smaller_parts(batch, tile, max(height, width), 4 * stage.unet.size_multiple)
            with host.on_device(stage.unet, needed):
                for attempt in attempts(self.NAME, batch, ways):
                    with attempt:
                        for rows in attempt.rows:
                            made = super_resolve(
                                stage,
                                image[rows],
                                text.take(rows),
                                original=rows_of(original, rows),
                                mask=rows_of(mask, rows),
                                tile=attempt.tile,
                                seed=seeds_of(seed, rows),
                                **chosen,
                                **watch.part(rows.start),
                            )
                            attempt.made.append(made)
        return watch.result(host.to_results(attempt.pictures()))

    def enlarge_many(self, calls: list[dict[str, Any]]) -> list[Any]:
        """What `enlarge` returns for each of several calls, prompts of a kind evaluated together."""

        def at_once(call: dict[str, Any], pictures: int) -> int:
            from ..imagen_core.memory import pictures_at_once

            stage = call["stage"]
            sides = [stage.config.scale * side for side in call["image"].shape[1:3]]
            tile = tile_that_fits(stage, call["tile"], *sides)
            height, width = (min(tile or side, side) for side in sides)
            prompts, device = rows_a_step(call["text"], 1), host.compute_device()
            return pictures_at_once(stage, pictures, height, width, prompts, device)

        return call_together(self.enlarge, calls, at_once)


class ImagenSR1024(ImagenSR256):
    """A picture four times as large, by the 256 to 1024 stage."""

    DESCRIPTION = (
        "Enlarges an image four times with the cascade's third stage: 256 x 256 becomes 1024 x "
        "1024. It has no self-attention, so it works at any size, whole or in tiles."
    )
    OUTPUT_TOOLTIPS = ("The finished image.",)
    NAME = "Imagen SR 1024"


def tile_that_fits(stage: Any, tile: int, height: int, width: int) -> int:
    """The side of the tiles of a run; 0 = the whole picture.

    tile            as the widget says it
    height, width   of the result
    """
    if tile >= 0:
        return tile
    from ..imagen_core.peak import fitting_tile

    return fitting_tile(stage, 1, height, width, host.compute_device())


def rows_a_step(text: Any, batch: int) -> int:
    """Pictures that the network sees at once, each with every prompt and with the null text.

    text    EncodedPrompt
    """
    return batch * (len(text.positives) + 1)
