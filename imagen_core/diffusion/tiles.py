"""Overlapping windows over a large picture, and their seamless blend.

The network runs window by window inside each step; the sampler sees one picture. Memory in the
network is then that of a window, whatever the picture's size.

MultiDiffusion, arXiv:2302.08113.
"""

import math
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
    """Windows that cover a picture, of sides up to `tile`.

    height, width   of the picture, multiples of `multiple`
    tile            largest side of a window in pixels, a multiple of `multiple`
    multiple        what the network's input sides must be multiples of
    """
    high, wide = (side_of(length, tile, multiple) for length in (height, width))
    return [
        Window(top, left, high, wide)
        for top in starts(height, high, overlap_of(high), multiple)
        for left in starts(width, wide, overlap_of(wide), multiple)
    ]


def overlap_of(tile: int) -> int:
    """Pixels that neighbours share at least: an eighth of a tile, of small tiles 64 pixels or a quarter.

    Tiles of 512 then compute 1.3 times the pixels of a picture, whatever its size.
    """
    return max(tile // 8, min(tile // 4, 64))


def side_of(length: int, tile: int, multiple: int) -> int:
    """The least side of as many tiles as a length needs.

    length     pixels, a multiple of `multiple`
    tile       largest side
    """
    if tile >= length:
        return length
    count = len(starts(length, tile, overlap_of(tile), multiple))
    least = math.ceil(length / count / multiple) * multiple
    while least < tile and len(starts(length, least, overlap_of(least), multiple)) > count:
        least += multiple
    return min(least, tile)


class Tiles:
    """Overlapping windows that cover a picture, and the weights of their mean, which fall to the edges."""

    def __init__(self, windows: list[Window], device: torch.device | str = "cpu"):
        self.windows = windows
        made = {
            sides: torch.outer(*(_ramp(side, device) for side in sides))
            for sides in {(window.height, window.width) for window in windows}
        }
        self.ramps = [made[window.height, window.width] for window in windows]
        height = max(window.top + window.height for window in windows)
        width = max(window.left + window.width for window in windows)
        self.weights = torch.zeros(1, 1, height, width, device=device, dtype=torch.float32)
        for window, ramp in zip(windows, self.ramps, strict=True):
            window.crop(self.weights).add_(ramp)

    def add(self, total: Tensor | None, place: int, value: Tensor) -> Tensor:
        """The weighted sum so far, b c h w of the whole picture, with one window's part in it.

        total   of the windows before, changed in place; None = there are none
        place   of the window
        value   b c height width, what was computed under it
        """
        if total is None:
            shape = *value.shape[:2], *self.weights.shape[2:]
            total = torch.zeros(shape, device=self.weights.device, dtype=torch.float32)
        self.windows[place].crop(total).addcmul_(value, self.ramps[place])
        return total

    def mean(self, total: Tensor) -> Tensor:
        """The weighted mean of all windows, once each was added."""
        return total.div_(self.weights)


def _ramp(length: int, device: torch.device | str) -> Tensor:
    """Squared sine over a window's side: smooth, small at the edges, never zero."""
    t = (torch.arange(length, device=device, dtype=torch.float32) + 0.5) / length
    return torch.sin(torch.pi * t).square().clamp_min(1e-4)
