"""Inputs that several nodes declare, in ComfyUI's notation."""

from typing import Any

SAMPLERS = ["dpmpp_2m", "dpmpp_2m_sde", "ddim", "ddpm", "heun"]

SEED = (
    "INT",
    {
        "default": 0,
        "min": 0,
        "max": 2**64 - 1,
        "control_after_generate": True,
        "tooltip": "Same seed, same picture, in any batch and on any device. "
        "Picture i of a batch uses seed + i.",
    },
)
SAMPLER = (
    SAMPLERS,
    {
        "default": "dpmpp_2m",
        "tooltip": "dpmpp_2m is sharp in few steps; ddpm and dpmpp_2m_sde add fresh noise each step; "
        "heun costs two evaluations a step.",
    },
)

TIMESTEPS = (
    "STRING",
    {
        "default": "",
        "tooltip": "For DeepFloyd IF, instead of steps: smart27, smart50, smart100, smart185, fast27, "
        "super27, super40, super100; leading50 as diffusers; 10,10,0 = steps a section; or timesteps "
        "[999, 500, 0]. Empty = steps.",
    },
)


def integer(
    default: int, low: int, high: int, step: int, tooltip: str
) -> tuple[str, dict[str, Any]]:
    """A whole number with a range.

    default, low, high, step   of the widget
    tooltip                    what it does
    """
    return "INT", {"default": default, "min": low, "max": high, "step": step, "tooltip": tooltip}


def number(
    default: float, low: float, high: float, step: float, tooltip: str
) -> tuple[str, dict[str, Any]]:
    """A number with a range, rounded to a thousandth.

    default, low, high, step   of the widget
    tooltip                    what it does
    """
    options = {"default": default, "min": low, "max": high, "step": step, "round": 0.001}
    return "FLOAT", {**options, "tooltip": tooltip}


def wire(kind: str, tooltip: str) -> tuple[str, dict[str, Any]]:
    """An input that only a link can feed.

    kind      type of the wire
    tooltip   what it does
    """
    return kind, {"tooltip": tooltip}


def choice(names: list[str], default: str, tooltip: str) -> tuple[list[str], dict[str, Any]]:
    """One of several names; the default is the first where it is not among them.

    names     to choose from
    default   preferred
    tooltip   what it does
    """
    if default not in names:
        default = names[0] if names else ""
    return names, {"default": default, "tooltip": tooltip}


INPAINT = choice(
    ["repaint", "clean"],
    "repaint",
    "With a mask. repaint: kept pixels carry each step's noise; clean: the network sees them as they are, "
    "as DeepFloyd IF does.",
)
