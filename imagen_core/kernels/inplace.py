"""Elementwise steps that write over their input where no gradient wants it.

A large picture's features are hundreds of megabytes: a fresh result for each of three elementwise steps
costs more time in page faults than in arithmetic. Values are the same to the bit.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def activate_(x: Tensor, act: nn.Module) -> Tensor:
    """act(x), in x itself where no gradient is asked for.

    x     any shape, not used afterwards
    act   nn.SiLU, nn.GELU (exact), nn.Identity; any other module makes a new tensor
    """
    if x.requires_grad:
        return act(x)
    if isinstance(act, nn.SiLU):
        return F.silu(x, inplace=True)
    if isinstance(act, nn.GELU) and act.approximate == "none":
        return torch._C._nn.gelu_(x)  # pyright: ignore[reportAttributeAccessIssue]
    return act(x)


def scale_shift_(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x * (1 + scale) + shift, in x itself where no gradient is asked for.

    x              b c h w, not used afterwards
    scale, shift   b c 1 1
    """
    if x.requires_grad or scale.requires_grad or shift.requires_grad:
        return torch.addcmul(shift, x, 1 + scale)
    return torch.addcmul(shift, x, 1 + scale, out=x)


def add_(x: Tensor, other: Tensor) -> Tensor:
    """x + other, in x itself where no gradient is asked for.

    x       not used afterwards
    other   the same shape
    """
    return x + other if x.requires_grad or other.requires_grad else x.add_(other)


def scale_(x: Tensor, factor: float) -> Tensor:
    """x * factor, in x itself where no gradient is asked for.

    x   any shape, not used afterwards
    """
    return x * factor if x.requires_grad else x.mul_(factor)
