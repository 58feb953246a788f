"""Inputs that several nodes declare, in ComfyUI's notation."""

from typing import Any

from . import host

SAMPLERS = ["dpmpp_2m", "dpmpp_2m_sde", "ddim", "ddpm", "heun", "unipc", "restart"]
AUTO, OWN_STEPS, OWN_LEVEL = "auto", 0, -1.0
"""Values of sampler, steps and aug_level that mean the stage's own."""
FITTING = -64
"""The tile that means the largest that free memory takes, a step of the widget below 0."""

SEED = (
    "INT",
    {
        "default": 0,
        "min": 0,
        "max": 2**64 - 1,
        "control_after_generate": True,
        "tooltip": "The same seed gives the same image, in any batch and on any device. Image i "
        "of a batch uses seed + i.",
    },
)
SAMPLER = (
    [AUTO, *SAMPLERS],
    {
        "default": AUTO,
        "tooltip": "auto = the stage's own. unipc needs the fewest steps, then dpmpp_2m; ddpm and "
        "dpmpp_2m_sde add fresh noise at each step; heun evaluates the network twice "
        "per step; restart repeats the middle steps with fresh noise.",
    },
)


def settings_of(
    steps: int, timesteps: str, sampler: str, aug_level: float = OWN_LEVEL, quality: Any = "full"
) -> dict[str, Any]:
    """What the core is told for these widgets; None = the stage's own.

    steps       OWN_STEPS = the stage's own
    timesteps   goes before steps unless it is empty
    sampler     AUTO = the stage's own
    aug_level   OWN_LEVEL = the stage's own; of an SR stage
    """
    settings = {
        "steps": timesteps.strip() or (None if steps == OWN_STEPS else steps),
        "sampler": None if sampler == AUTO else sampler,
        "quality": quality,
    }
    return settings if aug_level == OWN_LEVEL else {**settings, "aug_level": aug_level}


def steps_input(tooltip: str) -> tuple[str, dict[str, Any]]:
    """The number of sampler steps.

    tooltip   what a usual number is
    """
    return integer((OWN_STEPS, OWN_STEPS, 1000, 1), f"0 = the stage's own number. {tooltip}")


def level_input(tooltip: str) -> tuple[str, dict[str, Any]]:
    """The noise on what is enlarged.

    tooltip   what usual levels do
    """
    return number((OWN_LEVEL, OWN_LEVEL, 1.0, 0.01), f"-1 = the stage's own level. {tooltip}")


def integer(values: tuple[int, int, int, int], tooltip: str) -> tuple[str, dict[str, Any]]:
    """A whole number.

    values   default, least, most and step
    """
    default, low, high, step = values
    return "INT", {"default": default, "min": low, "max": high, "step": step, "tooltip": tooltip}


def number(values: tuple[float, float, float, float], tooltip: str) -> tuple[str, dict[str, Any]]:
    """A number, rounded to a thousandth.

    values   default, least, most and step
    """
    default, low, high, step = values
    options = {"default": default, "min": low, "max": high, "step": step, "round": 0.001}
    return "FLOAT", {**options, "tooltip": tooltip}


def string(default: str, tooltip: str, **shown: bool) -> tuple[str, dict[str, Any]]:
    """A text.

    shown   multiline, dynamicPrompts
    """
    return "STRING", {"default": default, "tooltip": tooltip, **shown}


def boolean(default: bool, tooltip: str) -> tuple[str, dict[str, Any]]:
    """A switch."""
    return "BOOLEAN", {"default": default, "tooltip": tooltip}


class StageOutput(str):
    """IMAGEN_STAGE as the type of an output, which also says what kind of stage comes out of it."""

    kind: str

    def __new__(cls, kind: str) -> "StageOutput":
        """The type.

        kind   "base" or "sr"
        """
        made = super().__new__(cls, "IMAGEN_STAGE")
        made.kind = kind
        return made


def advanced(declared: tuple[Any, dict[str, Any]]) -> tuple[Any, dict[str, Any]]:
    """The same input, which ComfyUI of today shows behind a button and older ones as any other."""
    kind, options = declared
    return kind, {**options, "advanced": True}


def wire(kind: str, tooltip: str) -> tuple[str, dict[str, Any]]:
    """An input that only a link can feed."""
    return kind, {"tooltip": tooltip}


def choice(names: list[str], default: str, tooltip: str) -> tuple[list[str], dict[str, Any]]:
    """One of several names; the default is the first where it is not among them.

    default   preferred
    """
    if default not in names:
        default = names[0] if names else ""
    return names, {"default": default, "tooltip": tooltip}


def file_choice(names: list[str], place: str, tooltip: str) -> tuple[list[str], dict[str, Any]]:
    """One of several files or folders; where there are none, the list says so: an empty one says nothing.

    place   where they lie
    """
    return choice(names or [host.NONE + place], "", tooltip)


TIMESTEPS = advanced(
    string(
        "",
        "For DeepFloyd IF, in place of steps: a preset (smart27, smart50, smart100, "
        "smart185, fast27, super27, super40, super100), leading50 for diffusers' "
        "grid, 10,10,0 for steps per section, or a list such as [999, 500, 0]. Leave "
        "empty to use steps.",
    )
)
INPAINT = advanced(
    choice(
        ["repaint", "clean"],
        "repaint",
        "With a mask. repaint: kept pixels get the noise of each step; clean: the network sees them "
        "without noise, as in DeepFloyd IF.",
    )
)
QUALITY = choice(
    ["full", "fast"],
    "full",
    "fast: about half the time. An SR stage makes 3/8 of the steps; a base 5/8, but not fewer than 28. With "
    "unipc where sampler is auto. Of timesteps, evenly chosen ones are visited.",
)
