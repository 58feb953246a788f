"""Loaders: a whole cascade, a text encoder, one stage."""

from typing import Any

from . import host
from .widgets import choice

DTYPE_TIP = (
    "What the networks compute in; auto is bfloat16 on GPUs and on CPUs that compute in it, else what is "
    "fastest there."
)


class ImagenLoadCascade:
    """Text encoder and stages that were made for each other."""

    DESCRIPTION = (
        "Loads a cascade: its T5 encoder and its three stages. The cascade “emoji” ships with "
        "the nodes; folders with a cascade.json under models/imagen are offered too."
    )
    CATEGORY = "imagen"
    FUNCTION = "load"
    RETURN_TYPES = ("IMAGEN_TEXT_ENCODER", "IMAGEN_STAGE", "IMAGEN_STAGE", "IMAGEN_STAGE")
    RETURN_NAMES = ("text_encoder", "base", "sr256", "sr1024")
    OUTPUT_TOOLTIPS = (
        "For T5 Encode.",
        "Text to 64: for Imagen Base Sample.",
        "64 to 256: for Imagen SR 256.",
        "256 to 1024: for Imagen SR 1024.",
    )
    SEARCH_ALIASES = ["imagen", "cascade", "load imagen", "pixel diffusion"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {
            "required": {
                "cascade": choice(
                    host.cascade_names(),
                    "emoji",
                    "“emoji” ships with the nodes; others lie in models/imagen.",
                ),
                "dtype": choice(list(host.DTYPES), "auto", DTYPE_TIP),
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

        loaded = load_cascade(
            host.cascade_folder(cascade),
            dtype=host.dtype(dtype),
            text_dtype=host.dtype(dtype, role="text_encoder"),
        )
        return loaded.text_encoder, loaded.base, loaded.sr256, loaded.sr1024


class ImagenLoadTextEncoder:
    """A T5 encoder by itself."""

    DESCRIPTION = (
        "Loads a T5 encoder from models/text_encoders: a Hugging Face folder, a lone safetensors file "
        "such as t5xxl_fp8_e4m3fn_scaled, or GGUF. float8 and GGUF stay compressed in memory."
    )
    CATEGORY = "imagen"
    FUNCTION = "load"
    RETURN_TYPES = ("IMAGEN_TEXT_ENCODER",)
    RETURN_NAMES = ("text_encoder",)
    OUTPUT_TOOLTIPS = ("For T5 Encode.",)
    SEARCH_ALIASES = ["t5", "t5xxl", "gguf", "clip loader", "text encoder"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {
            "required": {
                "text_encoder": choice(
                    host.text_encoder_names(), "", "The T5 that the stages were trained with."
                ),
                "dtype": choice(list(host.DTYPES), "auto", DTYPE_TIP),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, text_encoder: str | None = None) -> bool | str:
        """Whether the T5 is there; else where to put it."""
        advice = f"put it into {host.home('text_encoders')}"
        return host.offered(host.text_encoder_names(), text_encoder, advice)

    def load(self, text_encoder: str, dtype: str) -> tuple:
        """The text encoder."""
        from ..imagen_core import load_text_encoder

        path = host.resolve(("text_encoders", "imagen"), text_encoder, "text_encoder")
        kind, places = host.dtype(dtype, role="text_encoder"), host.tokenizer_folders()
        return (load_text_encoder(path, dtype=kind, tokenizers=places),)


class ImagenLoadStage:
    """One stage by itself."""

    DESCRIPTION = (
        "Loads one stage from models/diffusion_models or models/imagen, to build a cascade of your own "
        "from parts. A stage understands only the T5 that it was trained with."
    )
    CATEGORY = "imagen"
    FUNCTION = "load"
    RETURN_TYPES = ("IMAGEN_STAGE",)
    RETURN_NAMES = ("stage",)
    OUTPUT_TOOLTIPS = ("For a sampling node of its kind.",)
    SEARCH_ALIASES = ["unet loader", "load diffusion model", "imagen stage"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {
            "required": {
                "stage": choice(
                    host.stage_names(),
                    "emoji/base.safetensors",
                    "A stage file, as `imagen train` writes them, or a DeepFloyd IF folder or file.",
                ),
                "dtype": choice(list(host.DTYPES), "auto", DTYPE_TIP),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, stage: str | None = None) -> bool | str:
        """Whether the stage is there; else where to put it."""
        advice = f"put it into {host.home('diffusion_models')}"
        return host.offered(host.stage_names(), stage, advice)

    def load(self, stage: str, dtype: str) -> tuple:
        """The stage."""
        from ..imagen_core import load_stage

        path = host.resolve(("diffusion_models", "imagen"), stage, "stage")
        return (load_stage(path, dtype=host.dtype(dtype)),)
