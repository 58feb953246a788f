"""What a run tells: the bar, the live preview, a note; and how it is interrupted."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from .adapter import comfy

if TYPE_CHECKING:
    from torch import Tensor

OnStep = Callable[[int, int, "Tensor"], None]

PREVIEW_SIDE = 256
PREVIEW_SECONDS = 0.25

reporter: ContextVar[OnStep | None] = ContextVar("reporter", default=None)
"""Outside ComfyUI: what is told of each step; a runner sets it around a node."""


LOG = logging.getLogger("imagen_nodes")


def note(text: str) -> None:
    """Tell whoever watches the log something that is not an error, but not expected either."""
    LOG.warning(text)


def tell(text: str) -> None:
    """Tell what one would expect: no warning in ComfyUI, whose log shows more than those."""
    LOG.log(logging.WARNING if comfy("comfy.utils") is None else logging.INFO, text)


def progress() -> OnStep:
    """What a sampler is to call after each step: bar, live preview, interrupt."""
    utils = comfy("comfy.utils")
    if utils is None:
        told = reporter.get()
        return told if told is not None else lambda step, num_steps, x0: None
    management = comfy("comfy.model_management")
    bar, shown = None, 0.0

    def on_step(step: int, num_steps: int, x0: Tensor) -> None:
        nonlocal bar, shown
        management.throw_exception_if_processing_interrupted()
        bar = bar or utils.ProgressBar(num_steps)
        picture = None
        if step == num_steps:  # it stays, with its size written below it: that must be the true one
            side = max(PREVIEW_SIDE, *x0.shape[2:])
            picture = ("JPEG", preview(x0, side), side)
        elif time.monotonic() - shown > PREVIEW_SECONDS:
            picture, shown = ("JPEG", preview(x0), PREVIEW_SIDE), time.monotonic()
        bar.update_absolute(step, num_steps, picture)

    return on_step


def preview(x0: Tensor, wanted: int = PREVIEW_SIDE) -> Any:
    """The first picture of a batch as a PIL image near a side, small ones enlarged without smoothing.

    x0       b 3 h w in [-1, 1]
    wanted   pixels of the longer side
    """
    from PIL import Image
    from torch.nn.functional import avg_pool2d

    shrink = max(1, max(x0.shape[2:]) // wanted)
    first = x0[0]
    if shrink > 1:  # before it leaves the device; a pool of one pixel took most of a preview's time
        first = avg_pool2d(first, shrink, ceil_mode=True)
    pixels = ((first.permute(1, 2, 0) + 1) * 127.5).clamp(0, 255).byte().cpu().numpy()
    image = Image.fromarray(pixels)
    factor = max(1, wanted // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def interrupted() -> bool:
    """Whether a person has asked ComfyUI to stop; what runs may finish what it is at first."""
    management = comfy("comfy.model_management")
    return management is not None and management.processing_interrupted()


def stop_if_interrupted() -> None:
    """End the node as ComfyUI does where a person has asked for it."""
    management = comfy("comfy.model_management")
    if management is not None:
        management.throw_exception_if_processing_interrupted()


def long_progress() -> Callable[[int, int, Tensor | None], None]:
    """Shows how far a training is: done, of how many, an image (h w 3 in 0..1) or None; never interrupts."""
    utils = comfy("comfy.utils")
    told = reporter.get()
    if utils is None and told is None:
        return lambda done, total, image: None
    bar = None

    def on_step(done: int, total: int, image: Tensor | None) -> None:
        nonlocal bar
        if utils is None:
            if told is not None:
                told(done, total, blank)
            return
        bar = bar or utils.ProgressBar(total)
        picture = (
            None if image is None else ("JPEG", preview(image.movedim(2, 0)[None] * 2 - 1), 512)
        )
        bar.update_absolute(done, total, picture)

    import torch

    blank = torch.zeros(1, 3, 1, 1)
    return on_step
