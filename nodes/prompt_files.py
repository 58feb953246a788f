"""Encoded prompts on disk: T5 runs once, sampling often."""

from typing import Any

from . import host
from .checks import named
from .widgets import file_choice, string, wire


class ImagenSaveText:
    """An encoded prompt to a file."""

    DESCRIPTION = (
        "Saves an encoded prompt in models/imagen/texts, with its negative prompt, second prompt "
        "and style. Imagen Load Text loads it without T5, also on a machine where T5 does not "
        "fit into memory."
    )
    CATEGORY = "imagen"
    FUNCTION = "save"
    RETURN_TYPES = ("IMAGEN_TEXT",)
    RETURN_NAMES = ("text",)
    OUTPUT_TOOLTIPS = ("The same text: connect to the sampling nodes.",)
    OUTPUT_NODE = True
    SEARCH_ALIASES = ["save embedding", "save conditioning", "cache prompt"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {
            "required": {
                "text": wire("IMAGEN_TEXT", "From T5 Encode or Imagen Mix Prompts."),
                "name": string(
                    "prompt",
                    "File name without extension; folders in it are created. An "
                    "existing file is replaced.",
                ),
            }
        }

    def save(self, text: Any, name: str) -> dict[str, Any]:
        """The same text."""
        from ..imagen_core import save_text

        with named("Imagen Save Text"):
            path = host.text_path(name, "name")
            save_text(path, text)
        return {"ui": {"text": [str(path)]}, "result": (text,)}


class ImagenLoadText:
    """An encoded prompt from a file."""

    DESCRIPTION = "Loads an encoded prompt that Imagen Save Text saved; T5 is not needed."
    CATEGORY = "imagen"
    FUNCTION = "load"
    RETURN_TYPES = ("IMAGEN_TEXT",)
    RETURN_NAMES = ("text",)
    OUTPUT_TOOLTIPS = (
        "Connect to the sampling nodes. Their stages must have been trained with the "
        "T5 that encoded it.",
    )
    SEARCH_ALIASES = ["load embedding", "load conditioning", "cached prompt"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {
            "required": {
                "saved_text": file_choice(
                    host.text_names(), "models/imagen/texts", "A file in models/imagen/texts."
                )
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, saved_text: str | None = None) -> bool | str:
        """Whether the text is there; else how to make it."""
        return host.offered(host.text_names(), saved_text, "save one with Imagen Save Text first")

    @classmethod
    def IS_CHANGED(cls, saved_text: str) -> int:
        """When the file was written: a text that is saved anew is loaded anew."""
        return host.resolve(("imagen",), saved_text, "saved_text").stat().st_mtime_ns

    def load(self, saved_text: str) -> tuple:
        """The encoded prompt."""
        from ..imagen_core import load_text

        with named("Imagen Load Text"):
            return (load_text(host.resolve(("imagen",), saved_text, "saved_text")),)
