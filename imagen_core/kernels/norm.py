"""Group norm, scale and shift, and activation in one go.

On a GPU, where no gradient is recorded, a Triton kernel is tried against torch's steps.

On a CPU it serves bfloat16 in channels-last. Torch's kernel for that layout takes a picture of fewer than
1024 positions group by group, a few channels of each position at a time: up to eight times as long a value
as for a larger one. Here statistics are per channel first, whatever the groups, and everything after them
is float32 in pieces that stay in the cache. Where gradients are recorded, the norm and its gradient compute
in float32, which is twice as fast there. Float32 networks keep torch's kernel, and its bytes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from . import choice
from .inplace import activate_, folded, scale_shift_
from .layout import layout_of
from .precision import eager_bfloat16

PIECE = 2**18  # values in float32 at once: a core's cache
SMALL = 1024  # positions; from here on torch's kernel is the faster one
LEAST = 2**14  # values of a picture; below, torch's kernel finds them in the fastest cache
ScaleShift = tuple[Tensor, Tensor]
MODULES = {"none": nn.Identity(), "silu": nn.SiLU(), "gelu": nn.GELU()}


def norm_activate(
    x: Tensor, norm: nn.GroupNorm, act: nn.Module, level: ScaleShift | None = None
) -> Tensor:
    """act(norm(x) * (1 + scale) + shift): a new tensor like x.

    x       b c h w
    level   scale and shift, each b c 1 1; None = neither
    """
    if x.device.type in choice.DEVICES and chooses(x):
        return chosen(x, norm, act, level)
    if fuses(x, norm):
        return fused(x, norm, act, level)
    h = normed(x, norm)
    return activate_(h if level is None else scale_shift_(h, *level), act)


def normed(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """norm(x); of bfloat16 in channels-last on a CPU with a float32 gradient where one is recorded.

    x   b c h w
    """
    if x.device.type in choice.DEVICES and chooses(x):
        return chosen(x, norm, MODULES["none"], None)
    wide = (
        torch.is_grad_enabled()
        and eager_bfloat16(x)
        and x.is_contiguous(memory_format=torch.channels_last)
    )
    if not wide:
        return norm(x)
    given = (x, norm.weight, norm.bias, norm.num_groups, norm.eps)
    return WideNorm.apply(*given)  # pyright: ignore[reportReturnType]


def in_steps(
    x: Tensor, weight: Tensor, bias: Tensor, level: ScaleShift | tuple[()], *more: Any
) -> Tensor:
    """act(group_norm(x) * (1 + scale) + shift) by torch, one step after the other.

    level   scale and shift, each b c 1 1; () = neither
    more    groups, eps, a name of MODULES
    """
    h = F.group_norm(x, more[0], weight, bias, more[1])
    return activate_(scale_shift_(h, *level) if level else h, MODULES[more[2]])


def in_one(
    x: Tensor, weight: Tensor, bias: Tensor, level: ScaleShift | tuple[()], *more: Any
) -> Tensor:
    """The same by a Triton kernel; ModuleNotFoundError where Triton is not there."""
    from .fused_norm import fused_norm

    return fused_norm(x, weight, bias, level, *more[:3])


NORM = choice.Choice("norm", {"plain": in_steps, "triton": in_one})


def chooses(x: Tensor) -> bool:
    """Whether there may be a choice for this image on a GPU; autocast computes norms in float32.

    x   b c h w
    """
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled(x.device.type)
    )


def chosen(x: Tensor, norm: nn.Module, act: nn.Module, level: ScaleShift | None) -> Tensor:
    """`norm_activate` in the way that `NORM` chooses, with the weights as the layer brings them.

    x   b c h w
    """
    with Taking(act, () if level is None else level) as taking:
        h = norm(x)
    if taking.done:
        return h
    return activate_(h if level is None else scale_shift_(h, *level), act)


class Taking(TorchFunctionMode):
    """Group norms that a layer computes meanwhile are scaled, shifted and activated too.

    A host's layer casts its weights, or fetches and patches them, and lets go of them behind the norm: so it
    is the layer that is called, and its call of torch's norm that is taken.

    done   whether one was
    """

    def __init__(self, act: nn.Module, level: ScaleShift | tuple[()]):
        super().__init__()
        self.level, self.done = level, False
        self.act = next((name for name, kind in MODULES.items() if type(act) is type(kind)), None)
        if isinstance(act, nn.GELU) and act.approximate != "none":
            self.act = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.group_norm or self.act is None:
            return func(*args, **kwargs)
        return self.computed(*args, **kwargs)

    def computed(
        self,
        input: Tensor,
        num_groups: int,
        weight: Any = None,
        bias: Any = None,
        eps: float = 1e-5,
    ) -> Tensor:
        """What `NORM` makes of the arguments of torch's norm, or torch where they are none for it.

        input   b c h w
        """
        layout = layout_of(input)
        if weight is None or bias is None or layout == "apart":
            return F.group_norm(input, num_groups, weight, bias, eps)
        self.done = True
        return NORM(input, weight, bias, self.level, num_groups, eps, self.act, layout)


class WideNorm(torch.autograd.Function):
    """Group norm of bfloat16 in float32, which keeps the bfloat16 input alone for its gradient."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        sizes = (len(x), x.shape[1], x[0, 0].numel(), groups)
        made, mean, scale = torch.native_group_norm(
            x.float(), weight.float(), bias.float(), *sizes, eps
        )
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.sizes = sizes
        return made.to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *above: Tensor) -> Any:
        x, weight, mean, scale = ctx.saved_tensors
        top = above[0].float().contiguous(memory_format=torch.channels_last)
        found = torch.ops.aten.native_group_norm_backward(
            top, x.float(), mean, scale, weight.float(), *ctx.sizes, [True, True, True]
        )
        kinds = (x.dtype, weight.dtype, weight.dtype)
        return (*(each.to(kind) for each, kind in zip(found, kinds, strict=True)), None, None)


def fuses(x: Tensor, norm: nn.GroupNorm) -> bool:
    """Whether the way in pieces serves, and is the faster one; the same for any number of pictures.

    x   b c h w
    """
    if torch.is_grad_enabled() or not eager_bfloat16(x):
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
