"""How images lie in memory."""

import torch
from torch import Tensor


def layout_of(x: Tensor) -> str:
    """How a tensor lies in memory: "contiguous", "channels last", or "apart" where neither holds."""
    if x.is_contiguous():
        return "contiguous"
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return "channels last" if last else "apart"
