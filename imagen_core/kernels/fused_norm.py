"""Group norm, scale and shift, and activation of a GPU's images in either layout (Triton).

Torch's group norm for CUDA knows no channels-last layout: there and back it copies all values. Here one
kernel takes the mean and spread of each channel in chunks of positions, enough of them to fill a card; a
small one makes of them what each channel is multiplied by and what is added; a third reads every value once
more and writes the result. Chunks depend on one image's size alone, so an image's values do not on its
batch.

Means and spreads of parts are put together without cancellation: Chan, Golub and LeVeque, "Algorithms for
computing the sample variance", 1983.
"""

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

from .layout import layout_of
from .precision import require_tensor_cores

BLOCK = 2**12  # values that a program has in registers
WIDE = {"channels last": 64, "contiguous": 1024}  # of them neighbours in memory
MOST_CHUNKS = 2**9
MOST_ROWS = 2**16 - 1  # images, and blocks of channels: what CUDA launches side by side
MOST_POSITIONS, MOST_EACH = 2**28, 2**12
ACTIVATIONS = ("none", "silu", "gelu")


@triton.jit
def chunk_moments(
    x, moments, row_step, channel_step, position_step, channels, positions, steps, chunks, apart,
    POSITIONS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Of each channel in a chunk of one image: its mean, and the sum of squared distances from it.

    moments   2 rows chunks channels, float32; `apart` values from the means to the sums
    steps     blocks of POSITIONS in a chunk
    """
    chunk, row = tl.program_id(0), tl.program_id(2).to(tl.int64)
    first, inside = tl.program_id(1) * CHANNELS, tl.arange(0, CHANNELS)
    place, used = tl.arange(0, POSITIONS), first + inside < channels
    x += row * row_step + first.to(tl.int64) * channel_step
    start = chunk * steps * POSITIONS
    mean, spread = tl.zeros([CHANNELS], tl.float32), tl.zeros([CHANNELS], tl.float32)
    for step in range(0, steps):
        begin = start + step * POSITIONS
        there = (begin + place < positions)[:, None] & used[None, :]
        at = place[:, None] * position_step + inside[None, :] * channel_step
        value = tl.load(x + begin.to(tl.int64) * position_step + at, mask=there, other=0.0)
        value = value.to(tl.float32)
        before = (begin - start).to(tl.float32)
        many = tl.maximum(tl.minimum(positions - begin, POSITIONS), 0).to(tl.float32)
        own = tl.sum(value, 0) / tl.maximum(many, 1.0)
        away = tl.where(there, value - own[None, :], 0.0)
        share = many / (before + many)
        spread += tl.sum(away * away, 0) + (own - mean) * (own - mean) * before * share
        mean += (own - mean) * share
    to = (row * chunks + chunk) * channels + first + inside
    tl.store(moments + to, mean, mask=used)
    tl.store(moments + apart + to, spread, mask=used)


@triton.jit
def chunks_from(chunk, own, used, channels, positions, length, chunks):
    """Where some chunks' moments of some channels lie, whether they are there, and each chunk's positions.

    chunk   numbers of chunks, perhaps beyond the last
    own     channels, of which those that are `used` are there
    """
    there = (chunk < chunks)[:, None] & used[None, :]
    many = tl.minimum(positions - chunk * length, length).to(tl.float32)
    return chunk[:, None] * channels + own[None, :], there, many


@triton.jit
def channel_lines(
    moments, weight, bias, scale, shift, lines, scale_row, scale_channel, shift_row, shift_channel,
    channels, each, positions, length, chunks, apart, rows, number, eps,
    CHUNKS: tl.constexpr, EACH: tl.constexpr, LEVEL: tl.constexpr,
):  # fmt: skip
    """What the channels of one group of one image are multiplied by, and what is added then.

    lines    2 rows channels, float32
    each     channels of a group
    length   positions of a chunk
    number   values of a group, a float
    """
    group, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    inside, place = tl.arange(0, EACH), tl.arange(0, CHUNKS)
    used, own = inside < each, group * each + inside
    moments += row * chunks * channels
    total = tl.zeros([CHUNKS, EACH], tl.float32)
    for first in range(0, chunks, CHUNKS):
        at, there, many = chunks_from(first + place, own, used, channels, positions, length, chunks)
        total += many[:, None] * tl.load(moments + at, mask=there, other=0.0)
    mean = tl.sum(tl.sum(total, 1), 0) / number
    total = tl.zeros([CHUNKS, EACH], tl.float32)
    for first in range(0, chunks, CHUNKS):
        at, there, many = chunks_from(first + place, own, used, channels, positions, length, chunks)
        away = tl.load(moments + at, mask=there, other=0.0) - mean
        spread = tl.load(moments + apart + at, mask=there, other=0.0)
        total += tl.where(there, spread + many[:, None] * away * away, 0.0)
    variance = tl.sum(tl.sum(total, 1), 0) / number
    factor = tl.load(weight + own, mask=used, other=0.0).to(tl.float32) / tl.sqrt(variance + eps)
    offset = tl.load(bias + own, mask=used, other=0.0).to(tl.float32) - mean * factor
    if LEVEL:
        more = tl.load(scale + row * scale_row + own * scale_channel, mask=used, other=0.0)
        added = tl.load(shift + row * shift_row + own * shift_channel, mask=used, other=0.0)
        more = 1.0 + more.to(tl.float32)
        factor, offset = factor * more, offset * more + added.to(tl.float32)
    lines += row * channels
    tl.store(lines + own, factor, mask=used)
    tl.store(lines + rows * channels + own, offset, mask=used)


@triton.jit
def along_lines(
    x, made, lines, row_step, channel_step, position_step, channels, positions, rows,
    POSITIONS: tl.constexpr, CHANNELS: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    """A block of one image, each value multiplied, added to and activated in float32.

    lines   2 rows channels, float32
    """
    row, begin = tl.program_id(2).to(tl.int64), tl.program_id(0) * POSITIONS
    first, inside = tl.program_id(1) * CHANNELS, tl.arange(0, CHANNELS)
    place, used = tl.arange(0, POSITIONS), first + inside < channels
    there = (begin + place < positions)[:, None] & used[None, :]
    start = row * row_step + first.to(tl.int64) * channel_step + begin.to(tl.int64) * position_step
    at = start + place[:, None] * position_step + inside[None, :] * channel_step
    lines += row * channels + first
    factor = tl.load(lines + inside, mask=used, other=0.0)
    offset = tl.load(lines + rows * channels + inside, mask=used, other=0.0)
    value = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    value = value * factor[None, :] + offset[None, :]
    if ACT == "silu":
        value = value / (1.0 + tl.exp(-value))
    if ACT == "gelu":
        value = 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))
    tl.store(made + at, value.to(made.dtype.element_ty), mask=there)


def blocks_of(channels: int, positions: int, layout: str) -> dict[str, Any]:
    """POSITIONS and CHANNELS of a block.

    layout   "channels last" or "contiguous"
    """
    most = {"POSITIONS": above(positions), "CHANNELS": above(channels)}
    near, far = ("CHANNELS", "POSITIONS") if layout == "channels last" else most
    wide = min(WIDE[layout], most[near])
    return {near: wide, far: min(BLOCK // wide, most[far])}


def above(number: int) -> int:
    """The least power of two that is not smaller."""
    return 1 << (number - 1).bit_length()


def require_fitting(x: Tensor, groups: int, *of_channels: Tensor) -> None:
    """Raise ValueError unless the kernels can compute these tensors.

    x             b c h w
    of_channels   weight, bias: c; scale, shift: b c 1 1
    """
    if x.dim() != 4 or not x.numel() or x.shape[1] % groups:
        raise ValueError(f"x: expected b c h w, c a multiple of {groups}, got {list(x.shape)}")
    if layout_of(x) == "apart":
        raise ValueError(f"x: expected contiguous or channels last, got strides {x.stride()}")
    rows, channels, positions = len(x), x.shape[1], x.shape[2] * x.shape[3]
    each = channels // groups
    if max(rows, groups) > MOST_ROWS or positions > MOST_POSITIONS or each > MOST_EACH:
        raise ValueError(
            f"x: expected up to {MOST_ROWS} images of {MOST_POSITIONS} positions, and {MOST_EACH} "
            f"channels a group, got {list(x.shape)}, {groups} groups"
        )
    for name, given in zip(("weight", "bias", "scale", "shift"), of_channels, strict=False):
        expected = (channels,) if name in ("weight", "bias") else (rows, channels, 1, 1)
        if given.shape != expected or given.device != x.device:
            raise ValueError(
                f"{name}: expected {list(expected)} on {x.device}, got {list(given.shape)} on {given.device}"
            )


def fused_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    level: tuple[Tensor, Tensor] | tuple[()],
    groups: int,
    eps: float,
    act: str,
) -> Tensor:
    """act(group_norm(x) * (1 + scale) + shift), computed in float32: like x, without gradients.

    x        b c h w, contiguous or channels last
    weight   (c,), as bias; of any dtype
    level    scale and shift, each b c 1 1; () = neither
    act      of ACTIVATIONS

    ValueError and NotImplementedError where the shapes or the GPU are not for these kernels.
    """
    require_tensor_cores(x.device)
    require_fitting(x, groups, weight, bias, *level)
    if act not in ACTIVATIONS:
        raise ValueError(f"act: expected one of {', '.join(ACTIVATIONS)}, got {act!r}")
    layout, (rows, channels) = layout_of(x), x.shape[:2]
    positions, each = x.shape[2] * x.shape[3], channels // groups
    steps_of_x = (1, channels) if layout == "channels last" else (positions, 1)
    strides = (channels * positions, *steps_of_x)
    blocks = blocks_of(channels, positions, layout)
    pieces, wide = (-(-positions // blocks["POSITIONS"]), -(-channels // blocks["CHANNELS"]))
    steps = -(-pieces // MOST_CHUNKS)
    chunks, length = -(-pieces // steps), steps * blocks["POSITIONS"]
    made, weight, bias = torch.empty_like(x), weight.contiguous(), bias.contiguous()
    moments = x.new_empty(2, rows, chunks, channels, dtype=torch.float32)
    lines = x.new_empty(2, rows, channels, dtype=torch.float32)
    scale, shift = level or (weight, bias)
    stride = (*scale.stride()[:2], *shift.stride()[:2]) if level else (0, 0, 0, 0)
    apart, across = rows * chunks * channels, above(each)
    tall = min(above(chunks), max(1, BLOCK // (2 * across)))
    with torch.cuda.device_of(x):  # Triton launches on the current device
        chunk_moments[(chunks, wide, rows)](  # pyright: ignore[reportIndexIssue]
            x, moments, *strides, channels, positions, steps, chunks, apart, **blocks
        )
        channel_lines[(groups, rows)](  # pyright: ignore[reportIndexIssue]
            moments, weight, bias, scale, shift, lines, *stride, channels, each, positions, length, chunks,
            apart, rows, float(positions * each), eps, CHUNKS=tall, EACH=across, LEVEL=bool(level),
        )  # fmt: skip
        along_lines[(pieces, wide, rows)](  # pyright: ignore[reportIndexIssue]
            x, made, lines, *strides, channels, positions, rows, ACT=act, **blocks
        )
    return made
