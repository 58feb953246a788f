"""A network whose lower levels run at some evaluations only.

DeepCache, arXiv:2312.00858.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .adm import ADMConfig
from .efficient import EfficientConfig
from .layers import Deep


@dataclass(frozen=True)
class Reuse:
    """Which evaluations take what the network's lower levels made from an earlier one.

    every    evaluations from one that runs all levels to the next
    levels   the highest levels, which every evaluation runs; an Efficient U-Net has its full resolution
             above its first level, and runs that even for 0

    DeepCache, arXiv:2312.00858.
    """

    every: int
    levels: int

    def check(self, config: ADMConfig | EfficientConfig) -> None:
        """Raise ValueError where a network of this shape cannot run so few of its levels."""
        least, most = int(isinstance(config, ADMConfig)), len(config.channels) - 1
        if self.every < 1 or not least <= self.levels <= most:
            raise ValueError(
                f"reuse: expected every at least 1 and levels from {least} to {most}, got {self}"
            )


class Reusing:
    """A network of one run, evaluated at one level after another: all else is the network's own."""

    def __init__(self, unet: Any, reuse: Reuse):
        self.unet, self.reuse = unet, reuse
        self.deep, self.rows, self.since = Deep(reuse.levels), 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unet, name)

    def __call__(self, x: Tensor, *given: Any) -> Tensor:
        """The network's output, as the network itself takes and gives it.

        x   b c h w; with another b, all levels run
        """
        if len(x) != self.rows or self.since == self.reuse.every:
            self.deep, self.rows, self.since = Deep(self.reuse.levels), len(x), 0
        self.since += 1
        return self.unet(x, *given, deep=self.deep)
