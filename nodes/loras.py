"""LoRAs: onto a stage, and to a file."""

from typing import Any

from . import host
from .checks import named, require_stage
from .widgets import choice, file_choice, number, string, wire


class ImagenLoadLoRA:
    """A stage with a LoRA."""

    DESCRIPTION = (
        "Applies a LoRA from models/loras to a stage: files of peft, diffusers, kohya and "
        "ComfyUI, for these nodes' own stages and for DeepFloyd IF. Several can be stacked, each "
        "with its strength; the stage's weights are shared, not copied. A LoRA trained on "
        "another stage is refused."
    )
    CATEGORY = "imagen"
    FUNCTION = "load"
    RETURN_TYPES = ("IMAGEN_STAGE", "IMAGEN_LORA")
    RETURN_NAMES = ("stage", "lora")
    OUTPUT_TOOLTIPS = (
        "The stage with the LoRA: connect to a sampling node or to another Load Imagen LoRA.",
        "The LoRA itself: connect to Save Imagen LoRA.",
    )
    SEARCH_ALIASES = ["lora loader", "load lora", "style", "fine-tune"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {
            "required": {
                "stage": wire("IMAGEN_STAGE", "The stage that the LoRA was trained on."),
                "lora": file_choice(
                    host.lora_names(),
                    "models/loras",
                    "A file in models/loras. emoji_few_steps comes with the pack, for a first look: the "
                    "bundled base in 4 steps instead of 32. It needs steps 4, sampler ddim and a guidance "
                    "scale of 1 (Dynamic-Threshold Guidance).",
                ),
                "strength": number(
                    (1.0, -10.0, 10.0, 0.05),
                    "1 = as trained, 0 = off, below 0 = the opposite effect.",
                ),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, lora: str | None = None) -> bool | str:
        """Whether the file is there; else where to put it."""
        if lora is not None and host.lora_by_path(lora):
            return True
        return host.offered(host.lora_names(), lora, f"put it into {host.home('loras')}")

    @classmethod
    def IS_CHANGED(cls, lora: str = "", **_given: Any) -> int:
        """When the file was written: a LoRA that is trained further is loaded anew."""
        return host.lora_file(lora).stat().st_mtime_ns

    def load(self, stage: Any, lora: str, strength: float) -> tuple:
        """The stage with the LoRA, and the LoRA."""
        from ..imagen_core import apply_lora, load_lora

        with named("Load Imagen LoRA"):
            require_stage(stage)
            loaded = load_lora(host.lora_file(lora), stage)
            return apply_lora(stage, loaded, strength), loaded


class ImagenSaveLoRA:
    """A LoRA to a file."""

    DESCRIPTION = (
        "Saves a LoRA in models/loras, with peft's tensor names (read by diffusers and ComfyUI) "
        "or with kohya's. The file records which stage it is for."
    )
    CATEGORY = "imagen"
    FUNCTION = "save"
    RETURN_TYPES = ("IMAGEN_LORA",)
    RETURN_NAMES = ("lora",)
    OUTPUT_TOOLTIPS = ("The same LoRA.",)
    OUTPUT_NODE = True
    SEARCH_ALIASES = ["lora save", "save lora", "export lora", "kohya"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {
            "required": {
                "lora": wire("IMAGEN_LORA", "From Load Imagen LoRA or from training."),
                "name": string(
                    "my_style",
                    "File name without extension; folders in it are created. An "
                    "existing file is replaced.",
                ),
                "layout": choice(
                    ["peft", "kohya"],
                    "peft",
                    "Tensor names in the file; peft's suit most programs.",
                ),
            }
        }

    def save(self, lora: Any, name: str, layout: Any) -> dict[str, Any]:
        """The same LoRA."""
        from ..imagen_core import save_lora

        with named("Save Imagen LoRA"):
            path = host.lora_path(name, "name")
            save_lora(lora, path, layout)
        return {"ui": {"text": [str(path)]}, "result": (lora,)}
