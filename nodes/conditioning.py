"""What steers sampling: the encoded prompt, and guidance."""

from typing import Any

from . import host
from .widgets import choice, number, wire

NO_BOUND = 100.0


class ImagenT5Encode:
    """Prompt to token states."""

    DESCRIPTION = (
        "Encodes a prompt, and a negative prompt, with T5. The same prompt is encoded once. A prompt that "
        "is longer than the encoder takes is cut, with a warning that says where."
    )
    CATEGORY = "imagen"
    FUNCTION = "encode"
    RETURN_TYPES = ("IMAGEN_TEXT",)
    RETURN_NAMES = ("text",)
    OUTPUT_TOOLTIPS = ("For the sampling nodes; one text may feed several stages.",)
    SEARCH_ALIASES = ["prompt", "clip text encode", "t5", "text"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        text = {"multiline": True, "dynamicPrompts": True}
        return {
            "required": {
                "text_encoder": wire("IMAGEN_TEXT_ENCODER", "From a loader."),
                "prompt": (
                    "STRING",
                    {
                        **text,
                        "default": "a red apple, noto style",
                        "tooltip": "What the picture shows.",
                    },
                ),
                "negative_prompt": (
                    "STRING",
                    {
                        **text,
                        "default": "",
                        "tooltip": "What guidance leads away from; empty is the usual choice.",
                    },
                ),
            },
            "optional": {
                "clean_caption": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "DeepFloyd IF's caption cleaning: drops links, brackets, sizes and more.",
                    },
                ),
            },
        }

    def encode(
        self, text_encoder: Any, prompt: str, negative_prompt: str, clean_caption: bool = False
    ) -> dict[str, Any]:
        """The encoded prompt and its null text; the interface is told how the prompt was read."""
        with host.on_device(text_encoder.model, role="text_encoder"):
            text = text_encoder.encode_prompt(prompt, negative_prompt, clean_caption)
        reading = text_encoder.describe(prompt, clean_caption)
        lines = [
            f"reads: {reading.text}",
            f"{len(reading.tokens)} of {text_encoder.max_length} tokens: {' '.join(reading.tokens)}",
            *([f"cut: {reading.cut}"] if reading.cut else []),
        ]
        return {"ui": {"text": ["\n".join(lines)]}, "result": (text,)}


class ImagenMixPrompts:
    """A second prompt mixed in, and a text for the pooled path."""

    DESCRIPTION = (
        "Mixes a second prompt into the prediction, and lets another text stand for the picture as a whole "
        "(the pooled path) while the prompt is attended to word by word. DeepFloyd IF's style transfer "
        "feeds the style to both. A second prompt costs one more evaluation a step."
    )
    CATEGORY = "imagen"
    FUNCTION = "mix"
    RETURN_TYPES = ("IMAGEN_TEXT",)
    RETURN_NAMES = ("text",)
    OUTPUT_TOOLTIPS = ("For the sampling nodes, in place of the prompt by itself.",)
    SEARCH_ALIASES = ["style", "positive mixer", "blend prompts", "style transfer"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {
            "required": {
                "text": wire(
                    "IMAGEN_TEXT", "The prompt, and the negative prompt that stays in use."
                ),
                "mixer": number(
                    0.25, 0.0, 1.0, 0.01, "Weight of the second prompt; 0 = it is not evaluated."
                ),
            },
            "optional": {
                "second": wire("IMAGEN_TEXT", "A second prompt; its negative prompt is not used."),
                "style": wire("IMAGEN_TEXT", "Its pooled vector takes the place of the prompt's."),
            },
        }

    def mix(self, text: Any, mixer: float, second: Any = None, style: Any = None) -> tuple:
        """The prompt with the second one and the style."""
        from ..imagen_core import EncodedPrompt

        return (
            EncodedPrompt(
                text.text,
                text.null_text,
                None if second is None else second.text,
                mixer if second is not None else 0.0,
                None if style is None else style.text,
            ),
        )


class ImagenDynamicThreshold:
    """Guidance and the threshold that keeps it in range."""

    DESCRIPTION = (
        "How strongly the text pulls, and what keeps strong pulls from burning the picture: dynamic "
        "thresholding clips each picture at its own percentile and rescales (Imagen, section 2.3)."
    )
    CATEGORY = "imagen"
    FUNCTION = "make"
    RETURN_TYPES = ("IMAGEN_GUIDANCE",)
    RETURN_NAMES = ("guidance",)
    OUTPUT_TOOLTIPS = ("For the sampling nodes.",)
    SEARCH_ALIASES = ["cfg", "guidance", "dynamic thresholding", "classifier-free guidance"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {
            "required": {
                "guidance_scale": number(
                    2.0,
                    1.0,
                    50.0,
                    0.1,
                    "1 = off; 2 to 5 follows the text; more is bolder and less varied.",
                ),
                "threshold": choice(
                    ["dynamic", "static", "none"],
                    "static",
                    "static: clip to the range; dynamic: clip at the percentile and rescale, "
                    "for strong guidance; none: leave.",
                ),
                "percentile": number(
                    0.995,
                    0.5,
                    1.0,
                    0.005,
                    "Part of the pixels that dynamic thresholding leaves unclipped.",
                ),
                "max_value": number(
                    NO_BOUND, 1.0, NO_BOUND, 0.1, "Bound on the dynamic threshold; 100 = none."
                ),
                "start": number(
                    0.0, 0.0, 1.0, 0.01, "Guidance acts from this part of the schedule on."
                ),
                "end": number(
                    1.0, 0.0, 1.0, 0.01, "Guidance acts up to this part of the schedule."
                ),
            }
        }

    def make(
        self,
        guidance_scale: float,
        threshold: Any,
        percentile: float,
        max_value: float,
        start: float,
        end: float,
    ) -> tuple:
        """The guidance."""
        from ..imagen_core import Guidance

        bound = None if max_value >= NO_BOUND else max_value
        return (Guidance(guidance_scale, threshold, percentile, bound, start, end),)
