"""What thresholding did, level by level; nothing is computed or moved unless somebody asks.

Imagen, arXiv:2205.11487, section 2.3.
"""

import torch
from torch import Tensor


class Trace:
    """The threshold and the clipped fraction of each level of a run, on the device until it is read."""

    def __init__(self) -> None:
        self._levels: dict[int, Tensor] = {}  # 2 b

    def record(self, i: int, x0: Tensor, bound: Tensor) -> None:
        """Keep one level; a level that is evaluated again replaces what it had.

        i       level of the sampling grid
        x0      b c h w, before the threshold
        bound   (b,), what |x0| may reach in each picture
        """
        outside = x0.abs() > bound[:, None, None, None]
        self._levels[i] = torch.stack([bound, outside.flatten(1).mean(1, dtype=torch.float32)])

    def read(self) -> Tensor:
        """Threshold s and clipped fraction by level: (levels, 2, b) on the CPU, in one transfer.

        Empty where nothing was recorded: guidance without a threshold.
        """
        if not self._levels:
            return torch.empty(0, 2, 0)
        return torch.stack([self._levels[i] for i in sorted(self._levels)]).cpu()
