"""Overlapping windows over a large picture, and their seamless blend.

The network runs window by window inside each step; the sampler sees one picture. Memory in the
network is then that of a window, whatever the picture's size.

MultiDiffusion, arXiv:2302.08113.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """A rectangle of a picture in pixels."""

    top: int
    left: int
    height: int
    width: int

    def crop(self, x: Tensor) -> Tensor:
        """View of b c h w under the window."""
        return x[..., self.top : self.top + self.height, self.left : self.left + self.width]


def starts(length: int, tile: int, overlap: int, multiple: int) -> list[int]:
    """First pixels of evenly spread tiles that cover a length, each a multiple of `multiple`.

    length, tile   pixels, multiples of `multiple`; one tile when tile >= length
    overlap        least overlap of neighbours in pixels
    multiple       grid on which tiles start
    """
    if tile >= length:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    last = length - tile
    return [round(k * last / (count - 1) / multiple) * multiple for k in range(count)]


def windows(height: int, width: int, tile: int, multiple: int) -> list[Window]:
    """Windows of side `tile` that cover a picture, neighbours sharing at least a quarter of it.

    height, width   of the picture, multiples of `multiple`
    tile            side of a window in pixels, a multiple of `multiple`
    multiple        what the network's input sides must be multiples of
    """
    overlap = tile // 4
    return [
        Window(top, left, min(tile, height), min(tile, width))
        for top in starts(height, tile, overlap, multiple)
        for left in starts(width, tile, overlap, multiple)
    ]


def blend(evaluate: Callable[[Window], Tensor], windows: list[Window], like: Tensor) -> Tensor:
    """Weighted mean of a function's values on overlapping windows, weights falling to the edges.

    evaluate   window -> b c' height width
    windows    cover the picture
    like       b c h w, gives the size and device of the result
    """
    height, width = like.shape[-2:]
    total, weights = None, torch.zeros(1, 1, height, width, device=like.device)
    for window in windows:
        value = evaluate(window)
        ramp = torch.outer(_ramp(window.height, like.device), _ramp(window.width, like.device))
        if total is None:
            total = torch.zeros(*value.shape[:2], height, width, device=like.device)
        window.crop(total).addcmul_(value, ramp)
        window.crop(weights).add_(ramp)
    assert total is not None, "windows is empty"
    return total.div_(weights)


def _ramp(length: int, device: torch.device) -> Tensor:
    """Squared sine over a window's side: smooth, small at the edges, never zero."""
    t = (torch.arange(length, device=device, dtype=torch.float32) + 0.5) / length
    return torch.sin(torch.pi * t).square().clamp_min(1e-4)
