"""Elementwise steps that write over their input where no gradient is recorded.

A large picture's features are hundreds of megabytes: a fresh result for each of three elementwise steps
costs more time in page faults than in arithmetic. Values are the same to the bit. While gradients are
recorded any tensor may be kept for them, one that asks for none too: a LoRA behind fixed layers keeps theirs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def activate_(x: Tensor, act: nn.Module) -> Tensor:
    """act(x), in x itself where no gradient is recorded.

    x     any shape, not used afterwards
    act   nn.SiLU, nn.GELU (exact), nn.Identity; any other module makes a new tensor
    """
    if torch.is_grad_enabled():
        return act(x)
    if isinstance(act, nn.SiLU):
        return F.silu(x, inplace=True)
    if isinstance(act, nn.GELU) and act.approximate == "none":
        return torch._C._nn.gelu_(x)  # pyright: ignore[reportAttributeAccessIssue]
    return act(x)


def scale_shift_(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x * (1 + scale) + shift, in x itself where no gradient is recorded.

    x              b c h w, not used afterwards
    scale, shift   b c 1 1
    """
    if torch.is_grad_enabled():
        return torch.addcmul(shift, x, 1 + scale)
    return torch.addcmul(shift, x, 1 + scale, out=x)


def add_(x: Tensor, other: Tensor) -> Tensor:
    """x + other, in x itself where no gradient is recorded.

    x       not used afterwards
    other   the same shape
    """
    return x + other if torch.is_grad_enabled() else x.add_(other)


def scale_(x: Tensor, factor: float) -> Tensor:
    """x * factor, in x itself where no gradient is recorded.

    x   any shape, not used afterwards
    """
    return x * factor if torch.is_grad_enabled() else x.mul_(factor)
