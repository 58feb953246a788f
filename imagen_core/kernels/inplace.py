"""Elementwise steps that write over their input where no gradient is recorded.

A large picture's features are hundreds of megabytes: a fresh result for each of three elementwise steps
costs more time in page faults than in arithmetic. Values are the same to the bit. While gradients are
recorded any tensor may be kept for them, one that asks for none too: a LoRA behind fixed layers keeps theirs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .precision import eager_bfloat16

WIDE = 2**9  # values that a loop over channels should have at least
# Half-precision values that a processor takes at once: what is left over goes one by one.
VECTOR = 32
LARGE = 2**16  # values, from which on folding pays


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
    if folding_pays(x):
        flat, channels = folded(x), x.shape[1]
        factor, offset = (
            each.flatten(2).transpose(1, 2).repeat(1, 1, flat.shape[2] // channels)
            for each in (1 + scale, shift)
        )
        torch.addcmul(offset, flat, factor, out=flat)
        return x
    return torch.addcmul(shift, x, 1 + scale, out=x)


def folding_pays(x: Tensor) -> bool:
    """Whether loops over the channels of one position leave many over: half precision, on a CPU.

    x   b c h w
    """
    return (
        eager_bfloat16(x)
        and x.shape[1] % VECTOR != 0
        and x.numel() >= LARGE
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def folded(x: Tensor) -> Tensor:
    """View of x in which neighbouring positions are one row of WIDE values or more: b n/k k*c.

    x   b c h w, channels last; k is a power of two that divides n = h * w
    """
    batch, channels, height, width = x.shape
    fold = 1
    while fold * channels < WIDE and height * width % (2 * fold) == 0:
        fold *= 2
    return x.permute(0, 2, 3, 1).view(batch, height * width // fold, fold * channels)


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
