"""What steers sampling: the encoded prompt, and guidance."""

from typing import Any

from . import host
from .checks import named
from .widgets import advanced, boolean, choice, number, string, wire

NO_BOUND = 100.0


class ImagenT5Encode:
    """Prompt to token states."""

    DESCRIPTION = (
        "Encodes a prompt and a negative prompt with T5. Encoded prompts are kept, so using one "
        "again costs nothing. A prompt longer than the encoder's limit is cut, with a warning "
        "that says where."
    )
    CATEGORY = "imagen"
    FUNCTION = "encode"
    RETURN_TYPES = ("IMAGEN_TEXT",)
    RETURN_NAMES = ("text",)
    OUTPUT_TOOLTIPS = ("Connect to the sampling nodes; one text can feed several stages.",)
    RUN_MANY = "encode_many"
    HAS_INTERMEDIATE_OUTPUT = True  # how the prompt was read
    SEARCH_ALIASES = ["prompt", "clip text encode", "t5", "text"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        text = {"multiline": True, "dynamicPrompts": True}
        return {
            "required": {
                "text_encoder": wire("IMAGEN_TEXT_ENCODER", "From a loader."),
                "prompt": string(
                    "a red apple, noto style",
                    "What the image should show. (word:1.2) makes a word stronger, "
                    "(word:0.8) weaker. [cat:dog:0.4] changes from cat to dog after 40 % of the "
                    "steps. Texts between BREAK are encoded apart.",
                    **text,
                ),
                "negative_prompt": string(
                    "", "What guidance should steer away from; usually empty.", **text
                ),
            },
            "optional": {
                "clean_caption": advanced(
                    boolean(
                        False,
                        "DeepFloyd IF's caption cleaning: removes links, brackets, sizes etc., "
                        "so that no word has a weight, no text changes and BREAK is a word.",
                    )
                )
            },
        }

    def encode(
        self, text_encoder: Any, prompt: str, negative_prompt: str, clean_caption: bool = False
    ) -> dict[str, Any]:
        """The encoded prompt and its null text; the interface is told how the prompt was read."""
        with named("T5 Encode"), host.on_device(text_encoder.model, role="text_encoder"):
            text = text_encoder.encode_prompt(prompt, negative_prompt, clean_caption)
            told = reading_of(text_encoder.describe(prompt, clean_caption), text_encoder.max_length)
        lines = [
            f"reads: {told['text']}",
            f"{told['tokens']} of {told['limit']} tokens: {told['pieces']}",
            *(f"from {change['from']:.0%}: {change['text']}" for change in told["later"]),
            *([f"weights: {told['weights']}"] if told["weights"] else []),
            *([f"cut: {told['cut']}"] if told["cut"] else []),
        ]
        ui = {"text": ["\n".join(lines)], "imagen_reading": [told]}
        return {"ui": ui, "result": (text,)}

    def encode_many(self, calls: list[dict[str, Any]]) -> list[Any]:
        """What `encode` returns for each of several calls; prompts go through T5 together."""
        kinds: dict[Any, list[str]] = {}
        for call in calls:
            encoder, clean = call["text_encoder"], call.get("clean_caption", False)
            kind = (encoder, call["negative_prompt"], clean)
            kinds.setdefault(kind, []).append(call["prompt"])
        for (encoder, negative, clean), prompts in kinds.items():
            with host.on_device(encoder.model, role="text_encoder"):
                encoder.encode_prompt(prompts, negative, clean)  # which keeps them
        return [self.encode(**call) for call in calls]


def reading_of(reading: Any, max_length: int) -> dict[str, Any]:
    """What the interface is told of how a prompt was read: weights and what is cut at any step.

    reading      imagen_core.Reading
    max_length   tokens of each part
    """
    every = [reading, *(later for _, later in reading.later)]
    weights = dict.fromkeys(weighted for each in every for weighted in each.weights)
    return {
        "text": reading.text,
        "tokens": len(reading.tokens),
        "pieces": " ".join(reading.tokens),
        "limit": max_length * reading.parts,
        "weights": ", ".join(f"{text} {weight:.3g}" for text, weight in weights),
        "cut": " … ".join(dict.fromkeys(each.cut for each in every if each.cut)),
        "later": [{"from": start, "text": later.text} for start, later in reading.later],
    }


class ImagenMixPrompts:
    """A second prompt mixed in, and a text for the pooled path."""

    DESCRIPTION = (
        "Mixes a second prompt into the prediction. A style prompt replaces the prompt in the "
        "pooled path, which conditions the image as a whole, while attention still reads the "
        "prompt word by word. DeepFloyd IF's style transfer connects the style to both. A second "
        "prompt costs one more evaluation of the network per step."
    )
    CATEGORY = "imagen"
    FUNCTION = "mix"
    RETURN_TYPES = ("IMAGEN_TEXT",)
    RETURN_NAMES = ("text",)
    OUTPUT_TOOLTIPS = ("Connect to the sampling nodes, in place of the prompt itself.",)
    SEARCH_ALIASES = ["style", "positive mixer", "blend prompts", "style transfer"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {
            "required": {
                "text": wire("IMAGEN_TEXT", "The prompt; its negative prompt is used."),
                "mixer": number(
                    (0.25, 0.0, 1.0, 0.01), "Weight of the second prompt; at 0 it is not evaluated."
                ),
            },
            "optional": {
                "second": wire("IMAGEN_TEXT", "A second prompt; its negative prompt is not used."),
                "style": wire(
                    "IMAGEN_TEXT", "A style prompt: its pooled vector replaces the prompt's."
                ),
            },
        }

    def mix(self, text: Any, mixer: float, second: Any = None, style: Any = None) -> tuple:
        """The prompt with the second one and the style."""
        from dataclasses import replace

        with named("Imagen Mix Prompts"):
            mixed = replace(
                text,
                second=None if second is None else second.text,
                mixer=mixer if second is not None else 0.0,
                style=None if style is None else style.text,
            )
        return (mixed,)


class ImagenDynamicThreshold:
    """Guidance and the threshold that keeps it in range."""

    DESCRIPTION = (
        "Sets how strongly the image follows the text, and the threshold that keeps strong "
        "guidance from oversaturating it: dynamic thresholding clips each image at a percentile "
        "of its own values and rescales it (Imagen, section 2.3)."
    )
    CATEGORY = "imagen"
    FUNCTION = "make"
    RETURN_TYPES = ("IMAGEN_GUIDANCE",)
    RETURN_NAMES = ("guidance",)
    OUTPUT_TOOLTIPS = ("Connect to the sampling nodes.",)
    SEARCH_ALIASES = ["cfg", "guidance", "dynamic thresholding", "classifier-free guidance"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {
            "required": {
                "guidance_scale": number(
                    (4.0, 1.0, 50.0, 0.1),
                    "1 = off; 2 to 5 follows the text; higher is bolder and less varied.",
                ),
                "threshold": choice(
                    ["dynamic", "static", "none"],
                    "static",
                    "static: clip to [-1, 1]; dynamic: clip at the percentile and rescale, for "
                    "strong guidance; none: do not clip.",
                ),
                "percentile": advanced(
                    number(
                        (0.995, 0.5, 1.0, 0.005),
                        "Dynamic threshold: percentile of abs(x0) in each image; 0.995 leaves 99.5 % "
                        "of the values unclipped.",
                    )
                ),
                "max_value": advanced(
                    number(
                        (NO_BOUND, 1.0, NO_BOUND, 0.1),
                        "Upper limit of the dynamic threshold; 100 = no limit.",
                    )
                ),
                "start": advanced(
                    number(
                        (0.0, 0.0, 1.0, 0.01),
                        "Guidance starts at this fraction of the schedule; 0 = with the first step.",
                    )
                ),
                "end": advanced(
                    number(
                        (1.0, 0.0, 1.0, 0.01),
                        "Guidance ends at this fraction of the schedule; 1 = with the last step.",
                    )
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
        with named("Dynamic-Threshold Guidance"):
            return (Guidance(guidance_scale, threshold, percentile, bound, start, end),)
