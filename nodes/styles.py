"""Styles: texts around a prompt, from a list that users extend."""

from __future__ import annotations

from typing import Any

from . import host
from .widgets import choice, string

FILE = "styles.txt"
OWN = {
    "none": "{prompt}",
    "noto": "{prompt}, noto style",
    "fluent": "{prompt}, fluent style",
    "flat": "{prompt}, flat style",
    "3d": "{prompt}, 3d style",
    "photo": "a photo of {prompt}, sharp, natural light",
    "studio photo": "a studio photo of {prompt}, soft light, plain background",
    "watercolour": "a watercolour painting of {prompt}, paper texture",
    "oil painting": "an oil painting of {prompt}, visible brush strokes",
    "pencil drawing": "a pencil drawing of {prompt}, hatching, white paper",
    "pixel art": "pixel art of {prompt}, few colours",
    "clay": "a clay model of {prompt}, soft studio light",
}


def styles() -> dict[str, str]:
    """Texts with {prompt} in them by name: the pack's, then those of models/imagen/styles.txt.

    A line of the file is NAME: TEXT; a text without {prompt} goes after the prompt. A name of the pack's
    is replaced, blank lines and lines that begin with # are left out.
    """
    found = dict(OWN)
    for root in host.folders("imagen"):
        path = root / FILE
        if not path.is_file():
            continue
        for line in path.read_text("utf-8-sig", errors="replace").splitlines():
            name, colon, text = (part.strip() for part in line.partition(":"))
            if colon and name and text and not name.startswith("#"):
                found[name] = text if "{prompt}" in text else f"{{prompt}}, {text}"
    return found


class ImagenStyle:
    """A prompt in a style."""

    DESCRIPTION = (
        "Puts a prompt into the words of a style. Add your own in the file styles.txt in "
        "models/imagen, one a line: NAME: words with {prompt} where the prompt goes."
    )
    CATEGORY = "imagen"
    FUNCTION = "write"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("prompt",)
    OUTPUT_TOOLTIPS = ("Connect to `prompt` of T5 Encode.",)
    SEARCH_ALIASES = ["style", "styles csv", "prompt styler", "prompt template"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {
            "required": {
                "prompt": string(
                    "a red apple",
                    "What the image should show.",
                    multiline=True,
                    dynamicPrompts=True,
                ),
                "style": choice(
                    list(styles()), "none", "From the pack, and from models/imagen/styles.txt."
                ),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, style: str | None = None) -> bool | str:
        """Whether the style is there; else where to write it."""
        advice = f"add a line NAME: TEXT to {host.home('imagen') / FILE}"
        return host.offered(list(styles()), style, advice)

    @classmethod
    def IS_CHANGED(cls, style: str = "", **_given: Any) -> str:
        """The style's text: a changed file counts."""
        return styles().get(style, "")

    def write(self, prompt: str, style: str) -> tuple:
        """The prompt in the style's words."""
        return (styles()[style].replace("{prompt}", prompt.strip()),)
