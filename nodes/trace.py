"""What a sampling node shows beside its picture: the threshold step by step, and a filmstrip of x0."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import host

if TYPE_CHECKING:
    from torch import Tensor

    from ..imagen_core import Trace

FRAMES, FRAME_SIDE = 8, 64
DIGITS = 4


class Watch:
    """Follows one node's sampling, in the parts that memory allows; all stays on the device till the end."""

    def __init__(self) -> None:
        self.traces: dict[int, Trace] = {}  # by first row
        self.frames: list[Tensor] = []
        self.began = time.monotonic()

    def part(self, first: int) -> dict[str, Any]:
        """Keyword arguments for the core: what to call after each step and where to keep the threshold.

        first   row of the batch that this part starts with; 0 begins anew
        """
        from ..imagen_core import Trace

        told = host.progress()
        if not host.watched():
            return {"on_step": told}
        if first == 0:
            self.traces, self.frames = {}, []
        self.traces[first] = Trace()
        on_step = self._filming(told) if first == 0 else told
        return {"on_step": on_step, "trace": self.traces[first]}

    def result(self, image: Tensor) -> Any:
        """What the node returns: the picture, and what the interface is told if somebody looks.

        image   b h w c
        """
        if not host.watched():
            return (image,)
        height, width = image.shape[1:3]
        told = {**self._summary(), "width": width, "height": height}
        told["seconds"] = round(time.monotonic() - self.began, 1)
        return {"ui": {"imagen_trace": [told]}, "result": (image,)}

    def _filming(self, told: Callable[[int, int, Tensor], None]) -> Callable[..., None]:
        """The callback, which also keeps a small first picture of some of the steps."""
        from torch.nn.functional import interpolate

        def on_step(step: int, num_steps: int, x0: Tensor) -> None:
            told(step, num_steps, x0)
            if step in shown_steps(num_steps):
                scale = FRAME_SIDE / max(x0.shape[2:])
                side = [max(1, round(length * scale)) for length in x0.shape[2:]]
                self.frames.append(
                    interpolate(x0[:1], side, mode="area" if scale < 1 else "nearest")
                )

        return on_step

    def _summary(self) -> dict[str, Any]:
        """Threshold and clipped fraction by step and picture, and the filmstrip's file."""
        import torch

        levels = torch.cat([self.traces[first].read() for first in sorted(self.traces)], dim=2)
        rows = [[[rounded(v) for v in values] for values in level] for level in levels.tolist()]
        summary: dict[str, Any] = {
            "threshold": [level[0] for level in rows],
            "clipped": [level[1] for level in rows],
            "frames": len(self.frames),
        }
        if self.frames:
            strip = (torch.cat(self.frames, dim=3)[0].movedim(0, -1) + 1) / 2
            summary["strip"] = host.save_temporary(strip)
        return summary


def rounded(value: float) -> float | None:
    """A number as JSON can hold it; None for NaN and the infinities, which a diverged network gives."""
    return round(value, DIGITS) if math.isfinite(value) else None


def shown_steps(num_steps: int) -> set[int]:
    """Which steps the filmstrip has: evenly spread, the last among them."""
    count = min(FRAMES, num_steps)
    return {round((k + 1) * num_steps / count) for k in range(count)}
