"""The sampling nodes: text to 64, 64 to 256, 256 to 1024."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from . import host
from .shortage import in_parts, rows_of, smaller_parts
from .watch import Watch
from .widgets import INPAINT, SAMPLER, SEED, TIMESTEPS, choice, integer, number, wire


class ImagenBaseSample:
    """Text to a 64 picture; or a picture, or a masked part of it, to another one."""

    DESCRIPTION = (
        "Makes the small picture that the cascade grows from. With an image it starts from that one; with "
        "a mask too, only the masked part is painted and the rest comes back exactly."
    )
    CATEGORY = "imagen"
    FUNCTION = "sample"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("An ordinary image: edit it, or hand it to Imagen SR 256.",)
    SEARCH_ALIASES = ["ksampler", "imagen sampler", "text to image", "inpaint", "img2img"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {
            "required": {
                "stage": wire("IMAGEN_STAGE", "A base stage, from a loader."),
                "text": wire("IMAGEN_TEXT", "From T5 Encode."),
                "width": integer(
                    64, 16, 1024, 8, "Pixels. Stages are trained at 64; near it works best."
                ),
                "height": integer(
                    64, 16, 1024, 8, "Pixels. Stages are trained at 64; near it works best."
                ),
                "batch_size": integer(1, 1, 256, 1, "Pictures at once; picture i uses seed + i."),
                "seed": SEED,
                "steps": integer(32, 1, 1000, 1, "More steps, finer result; 24 to 50 is usual."),
                "sampler": SAMPLER,
                "strength": number(
                    1.0,
                    0.01,
                    1.0,
                    0.01,
                    "With an image: how much of it is made new; 1 = all of it.",
                ),
            },
            "optional": {
                "guidance": wire(
                    "IMAGEN_GUIDANCE", "From Dynamic-Threshold Guidance; else the stage's own."
                ),
                "image": wire("IMAGE", "Start from this picture; it gives the size and the batch."),
                "mask": wire("MASK", "White is painted new; black comes back exactly."),
                "timesteps": TIMESTEPS,
                "inpaint": INPAINT,
                "resample": integer(
                    1, 1, 20, 1, "With a mask: walks of each stretch of steps; more fits better."
                ),
                "jump": integer(10, 1, 1000, 1, "With resample: steps of a stretch."),
            },
        }

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
    ) -> Any:
        """The pictures."""
        from ..imagen_core import Inpainting, sample_base

        require_stage(stage, "base", "Imagen Base Sample")
        with named("Imagen Base Sample"):
            stage.check_text(text.text.embeds)
        image = coloured(image, "Imagen Base Sample")
        if image is not None:
            batch_size, height, width = image.shape[:3]
        require_mask(mask, image, batch_size, "Imagen Base Sample")
        sized_by = "width and height" if image is None else "image"
        with named("Imagen Base Sample"):
            stage.check_size(height, width, sized_by)
        watch = Watch()

        def make(rows: slice, tile: int) -> Any:
            return sample_base(
                stage,
                text.take(rows),
                guidance=guidance,
                image=None if image is None else image[rows],
                mask=rows_of(mask, rows),
                width=width,
                height=height,
                batch_size=rows.stop - rows.start,
                seed=(seed + rows.start) % 2**64,
                steps=timesteps.strip() or steps,
                sampler=sampler,
                strength=strength,
                inpainting=Inpainting(inpaint, resample, jump),
                **watch.part(rows.start),
            )

        with host.on_device(
            stage.unet, stage.running_bytes(rows_a_step(text, batch_size), height, width)
        ):
            ways = smaller_parts(batch_size, 0)
            made = in_parts(make, batch_size, ways, "Imagen Base Sample")
        return watch.result(host.to_results(made))


def super_resolution_inputs(steps: int) -> dict[str, Any]:
    """The inputs that both super-resolution nodes have.

    steps   default number
    """
    return {
        "required": {
            "stage": wire("IMAGEN_STAGE", "A super-resolution stage, from a loader."),
            "image": wire("IMAGE", "Any picture; the stage before, or one of your own."),
            "text": wire("IMAGEN_TEXT", "From T5 Encode; another prompt than the base's restyles."),
            "seed": SEED,
            "steps": integer(steps, 1, 1000, 1, "More steps, finer result."),
            "sampler": SAMPLER,
            "aug_level": number(
                0.1,
                0.0,
                1.0,
                0.01,
                "Noise put on the picture first: 0 keeps it, 0.1 to 0.3 lets the stage invent detail.",
            ),
            "tile": integer(
                0, 0, 4096, 64, "Side of overlapping tiles of the result; 0 = whole. Saves memory."
            ),
        },
        "optional": {
            "guidance": wire(
                "IMAGEN_GUIDANCE", "From Dynamic-Threshold Guidance; else the stage's own."
            ),
            "timesteps": TIMESTEPS,
            "aug_noise": choice(
                ["once", "each step"],
                "once",
                "When the noise of aug_level is drawn: once, or anew at each step as DeepFloyd IF's own "
                "code does.",
            ),
            "original": wire(
                "IMAGE",
                "Start from this picture, four times as large as image, which still says what is seen.",
            ),
            "mask": wire(
                "MASK", "With an original: white is painted new; black comes back exactly."
            ),
            "strength": number(
                1.0,
                0.01,
                1.0,
                0.01,
                "With an original: how much of it is made new; 1 = all of it.",
            ),
            "inpaint": INPAINT,
        },
    }


class ImagenSR256:
    """A picture four times as large, by the 64 to 256 stage."""

    DESCRIPTION = "Enlarges a picture four times with the cascade's second stage: 64 becomes 256."
    CATEGORY = "imagen"
    FUNCTION = "enlarge"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("An ordinary image: edit it, or hand it to Imagen SR 1024.",)
    SEARCH_ALIASES = ["upscale", "super resolution", "restyle"]
    NAME = "Imagen SR 256"
    STEPS = 12

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return super_resolution_inputs(cls.STEPS)

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
    ) -> Any:
        """The enlarged pictures."""
        from ..imagen_core import Inpainting, super_resolve

        require_stage(stage, "sr", self.NAME)
        with named(self.NAME):
            stage.check_text(text.text.embeds)
        image = coloured(image, self.NAME)
        require_input_size(stage, image, self.NAME)
        with named(self.NAME):
            stage.check_size(*image.shape[1:3], name="image")
        original = coloured(original, self.NAME, "original")
        if original is not None:
            with named(self.NAME):
                stage.check_original(original.shape, image.shape)
        require_mask(mask, original, len(image), self.NAME, "original")
        height, width = (stage.config.scale * side for side in image.shape[1:3])
        batch, watch = len(image), Watch()

        def make(rows: slice, tile: int) -> Any:
            return super_resolve(
                stage,
                image[rows],
                text.take(rows),
                guidance=guidance,
                seed=(seed + rows.start) % 2**64,
                steps=timesteps.strip() or steps,
                sampler=sampler,
                aug_level=aug_level,
                aug_noise=aug_noise,
                tile=tile,
                original=rows_of(original, rows),
                mask=rows_of(mask, rows),
                strength=strength,
                inpainting=Inpainting(inpaint),
                **watch.part(rows.start),
            )

        at_once = [min(tile or side, side) for side in (height, width)]
        with host.on_device(stage.unet, stage.running_bytes(rows_a_step(text, batch), *at_once)):
            least = 4 * stage.unet.size_multiple
            ways = smaller_parts(batch, tile, max(height, width), least)
            made = in_parts(make, batch, ways, self.NAME)
        return watch.result(host.to_results(made))


class ImagenSR1024(ImagenSR256):
    """A picture four times as large, by the 256 to 1024 stage."""

    DESCRIPTION = (
        "Enlarges a picture four times with the cascade's third stage: 256 becomes 1024. It has no "
        "self-attention, so it takes any size, whole or in tiles."
    )
    OUTPUT_TOOLTIPS = ("The finished picture.",)
    NAME = "Imagen SR 1024"
    STEPS = 8


def rows_a_step(text: Any, batch: int) -> int:
    """Pictures that the network sees at once, each with every prompt and with the null text.

    text    EncodedPrompt
    batch   pictures
    """
    return batch * (len(text.positives) + 1)


def require_stage(stage: Any, kind: str | None, node: str) -> None:
    """Raise ValueError unless the wire carries a stage of the kind.

    stage   the input
    kind    "base" or "sr"; None = either
    node    display name, for the error
    """
    if stage is None:
        raise ValueError(
            f"{node}: stage: the loaded cascade has no such stage; "
            f"choose another cascade, or connect Load Imagen Stage"
        )
    if kind is not None and stage.config.kind != kind:
        wanted = {"base": "a base stage", "sr": "a super-resolution stage"}
        raise ValueError(
            f"{node}: stage: expected {wanted[kind]}, got {wanted[stage.config.kind]} "
            f"({stage.config.resolution}); connect another output of the loader"
        )


@contextmanager
def named(node: str) -> Iterator[None]:
    """A ValueError inside the block says which node it comes from.

    node   display name
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{node}: {error}") from None


def coloured(image: Any, node: str, name: str = "image") -> Any:
    """The image as RGB, grey in all three channels and alpha dropped; None stays None.

    image   b h w c in 0..1; 1, 3 or 4 channels, else ValueError
    node    display name, for the error
    name    of the input
    """
    if image is None:
        return None
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"{node}: {name}: expected batch x height x width x 3 channels, got {list(image.shape)}; "
            f"convert it to RGB"
        )
    require_numbers(image, f"{node}: {name}")
    return image.expand(-1, -1, -1, 3) if image.shape[-1] == 1 else image[..., :3]


def require_mask(mask: Any, image: Any, batch: int, node: str, name: str = "image") -> None:
    """Raise ValueError unless the mask says for each picture what to paint; None passes.

    mask    b h w of any size, one row or one a picture
    image   what is painted in, or None
    batch   pictures
    node    display name, for the error
    name    of the input that is painted in
    """
    if mask is None:
        return
    if image is None:
        raise ValueError(f"{node}: mask: needs an {name} too, whose unmasked part is kept")
    if mask.ndim != 3 or len(mask) not in (1, batch):
        raise ValueError(
            f"{node}: mask: expected 1 or {batch} x height x width, as there are {batch} pictures, got "
            f"{list(mask.shape)}"
        )
    require_numbers(mask, f"{node}: mask")


def require_numbers(tensor: Any, where: str) -> None:
    """Raise ValueError where a tensor has NaN or infinite values.

    tensor   any shape
    where    node and input, for the error
    """
    if not tensor.isfinite().all():
        raise ValueError(
            f"{where}: has values that are not numbers (NaN or infinite); "
            f"look at the node that made it"
        )


def require_input_size(stage: Any, image: Any, node: str) -> None:
    """Raise ValueError where a picture is far smaller than what the stage was trained to enlarge.

    stage   an SR stage
    image   b h w c
    node    display name, for the error
    """
    height, width = image.shape[1:3]
    wanted = stage.config.resolution // stage.config.scale
    if max(height, width) < wanted / 2:
        raise ValueError(
            f"{node}: image: this stage enlarges pictures of about {wanted} x {wanted}, got "
            f"{width} x {height}; put the stage before it in between (Imagen SR 256), or scale the "
            f"picture up"
        )
