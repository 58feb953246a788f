"""Group norm, scale and shift, and activation in one go, for bfloat16 in channels-last on a CPU.

Torch's kernel for that layout takes a picture of fewer than 1024 positions group by group, a few channels of
each position at a time: up to eight times as long a value as for a larger one. Here statistics are per
channel first, whatever the groups, and everything after them is float32 in pieces that stay in the cache.
Float32 networks keep torch's kernel, and its bytes.
"""

import torch
from torch import Tensor, nn

from .inplace import activate_, folded, scale_shift_

PIECE = 2**18  # values in float32 at once: a core's cache
SMALL = 1024  # positions; from here on torch's kernel is the faster one
LEAST = 2**14  # values of a picture; below, torch's kernel finds them in the fastest cache
ScaleShift = tuple[Tensor, Tensor]


def norm_activate(
    x: Tensor, norm: nn.GroupNorm, act: nn.Module, level: ScaleShift | None = None
) -> Tensor:
    """act(norm(x) * (1 + scale) + shift): a new tensor like x.

    x       b c h w
    level   scale and shift, each b c 1 1; None = neither
    """
    if fuses(x, norm):
        return fused(x, norm, act, level)
    h = norm(x)
    return activate_(h if level is None else scale_shift_(h, *level), act)


def fuses(x: Tensor, norm: nn.GroupNorm) -> bool:
    """Whether the way in pieces serves, and is the faster one; the same for any number of pictures.

    x   b c h w
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return False
    if x.device.type != "cpu" or x.dtype != torch.bfloat16:
        return False
    positions = x.shape[2] * x.shape[3]
    return (
        positions < SMALL
        and x.shape[1] * positions >= LEAST
        and norm.weight.dtype == x.dtype
        and norm.weight.device == x.device
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def fused(x: Tensor, norm: nn.GroupNorm, act: nn.Module, level: ScaleShift | None) -> Tensor:
    """`norm_activate` in pieces.

    x   b c h w, channels last
    """
    batch, channels, height, width = x.shape
    flat = folded(x)
    fold = flat.shape[2] // channels
    made, places = torch.empty_like(flat), pieces(*flat.shape)
    sums = flat.new_zeros(2, batch, fold * channels, dtype=torch.float32)
    for place in places:
        part = flat[place].float()
        sums[0, place[0]] += part.sum(1)
        sums[1, place[0]] += part.square_().sum(1)
    grouped = sums.view(2, batch, fold, norm.num_groups, -1).mean((2, 4)).div_(flat.shape[1])
    factor, offset = affine(grouped, norm, level)
    factor, offset = factor.repeat(1, 1, fold), offset.repeat(1, 1, fold)
    for place in places:
        part, rows = flat[place].float(), place[0]
        torch.addcmul(offset[rows], part, factor[rows], out=part)
        made[place] = activate_(part, act)
    return made.view(batch, height, width, channels).permute(0, 3, 1, 2)


def pieces(rows: int, length: int, width: int) -> list[tuple[slice, slice]]:
    """Parts of a tensor of this shape that have at most PIECE values, or one of `length`."""
    high = max(1, PIECE // (length * width))
    long = length if high > 1 else max(1, PIECE // width)
    return [
        (slice(row, row + high), slice(first, first + long))
        for row in range(0, rows, high)
        for first in range(0, length, long)
    ]


def affine(moments: Tensor, norm: nn.GroupNorm, level: ScaleShift | None) -> tuple[Tensor, Tensor]:
    """What each channel is multiplied by, and what is added then: both b 1 c.

    moments   2 b groups: means of the values and of their squares
    """
    mean, square = moments.unsqueeze(-1)
    scale = (square - mean.square()).clamp_min_(0).add_(norm.eps).rsqrt_()
    factor = scale * norm.weight.float().view(norm.num_groups, -1)
    offset = norm.bias.float().view(norm.num_groups, -1) - mean * factor
    factor, offset = factor.flatten(1)[:, None], offset.flatten(1)[:, None]
    if level is None:
        return factor, offset
    more, shift = (each.float().flatten(2).transpose(1, 2) for each in level)
    return factor * (1 + more), offset * (1 + more) + shift
