"""Loaders: a whole cascade, a text encoder, one stage."""

from typing import Any

from . import host
from .checks import named
from .widgets import StageOutput, advanced, choice

DTYPE_TIP = (
    "Precision of the networks. auto = bfloat16 on GPUs and on CPUs that compute in it, "
    "otherwise whatever is fastest there."
)


class ImagenLoadCascade:
    """Text encoder and stages that were made for each other."""

    DESCRIPTION = (
        "Loads a cascade: a T5 text encoder and the stages trained with it. The cascade “emoji” "
        "is bundled; folders with a cascade.json under models/imagen are listed too."
    )
    CATEGORY = "imagen"
    FUNCTION = "load"
    RETURN_TYPES = (
        "IMAGEN_TEXT_ENCODER",
        StageOutput("base"),
        StageOutput("sr"),
        StageOutput("sr"),
    )
    RETURN_NAMES = ("text_encoder", "base", "sr256", "sr1024")
    OUTPUT_TOOLTIPS = (
        "Connect to T5 Encode.",
        "Makes 64 x 64 images of text: connect to Imagen Base Sample.",
        "Enlarges 64 to 256: connect to Imagen SR 256.",
        "Enlarges 256 to 1024: connect to Imagen SR 1024.",
    )
    ESSENTIALS_CATEGORY = "Image Generation"
    SEARCH_ALIASES = ["imagen", "cascade", "load imagen", "pixel diffusion"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {
            "required": {
                "cascade": choice(
                    host.cascade_names(),
                    "emoji",
                    "“emoji” is bundled; others are folders in models/imagen.",
                ),
                "dtype": advanced(choice(list(host.DTYPES), "auto", DTYPE_TIP)),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, cascade: str | None = None) -> bool | str:
        """Whether the cascade is there; else where to put it."""
        if cascade is not None and host.cascade_by_path(cascade):
            return True
        advice = f"put its folder into {host.home('imagen')}"
        return host.offered(host.cascade_names(), cascade, advice)

    def load(self, cascade: str, dtype: str) -> tuple:
        """Text encoder, base, SR 256 and SR 1024; None for a stage that the cascade lacks."""
        from ..imagen_core import load_cascade

        with named("Load Imagen Cascade"):
            loaded = load_cascade(
                host.cascade_folder(cascade),
                dtype=host.dtype(dtype),
                text_dtype=host.dtype(dtype, role="text_encoder"),
            )
        return loaded.text_encoder, loaded.base, loaded.sr256, loaded.sr1024


class ImagenLoadTextEncoder:
    """A T5 encoder by itself."""

    DESCRIPTION = (
        "Loads a T5 text encoder from models/text_encoders: a Hugging Face folder, a single "
        "safetensors file such as t5xxl_fp8_e4m3fn_scaled, or GGUF. float8 and GGUF weights stay "
        "compressed in memory."
    )
    CATEGORY = "imagen"
    FUNCTION = "load"
    RETURN_TYPES = ("IMAGEN_TEXT_ENCODER",)
    RETURN_NAMES = ("text_encoder",)
    OUTPUT_TOOLTIPS = ("Connect to T5 Encode.",)
    SEARCH_ALIASES = ["t5", "t5xxl", "gguf", "clip loader", "text encoder"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {
            "required": {
                "text_encoder": choice(
                    host.text_encoder_names(),
                    "",
                    "The T5 that the stages were trained with; another one gives noise.",
                ),
                "dtype": advanced(choice(list(host.DTYPES), "auto", DTYPE_TIP)),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, text_encoder: str | None = None) -> bool | str:
        """Whether the T5 is there; else where to put it."""
        advice = host.advice(text_encoder, "text_encoders")
        return host.offered(host.text_encoder_names(), text_encoder, advice)

    def load(self, text_encoder: str, dtype: str) -> tuple:
        """The text encoder."""
        from ..imagen_core import load_text_encoder

        with named("Load T5 Encoder"):
            path = host.resolve(("text_encoders", "imagen"), text_encoder, "text_encoder")
            kind, places = host.dtype(dtype, role="text_encoder"), host.tokenizer_folders()
            return (load_text_encoder(path, dtype=kind, tokenizers=places),)


class ImagenLoadStage:
    """One stage by itself."""

    DESCRIPTION = (
        "Loads one stage from models/diffusion_models or models/imagen, for cascades that you "
        "put together yourself. A stage only works with the T5 that it was trained with."
    )
    CATEGORY = "imagen"
    FUNCTION = "load"
    RETURN_TYPES = ("IMAGEN_STAGE",)
    RETURN_NAMES = ("stage",)
    OUTPUT_TOOLTIPS = (
        "Connect a base stage to Imagen Base Sample, a super-resolution stage to "
        "Imagen SR 256 or SR 1024.",
    )
    SEARCH_ALIASES = ["unet loader", "load diffusion model", "imagen stage"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {
            "required": {
                "stage": choice(
                    host.stage_names(),
                    "emoji/base.safetensors",
                    "A stage file written by `imagen train`, or a folder or file of DeepFloyd IF.",
                ),
                "dtype": advanced(choice(list(host.DTYPES), "auto", DTYPE_TIP)),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, stage: str | None = None) -> bool | str:
        """Whether the stage is there; else where to put it."""
        advice = host.advice(stage, "diffusion_models")
        return host.offered(host.stage_names(), stage, advice)

    def load(self, stage: str, dtype: str) -> tuple:
        """The stage."""
        from ..imagen_core import load_stage

        with named("Load Imagen Stage"):
            path = host.resolve(("diffusion_models", "imagen"), stage, "stage")
            return (load_stage(path, dtype=host.dtype(dtype)),)
