"""GGUF's blocks of quantised weights, expanded to float32 with torch on any device.

A row of a matrix is a row of blocks. Each block holds a few scales and small integers; the layouts are
those that the PyPI package `gguf` expands with numpy, which the tests compare with, value by value.
Order of operations is kept, so that the results are equal and not only close.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BlockFormat:
    """One of GGUF's storage types.

    name     as gguf calls it
    size     values of a block
    bytes    of a block
    decode   n bytes, uint8 -> n size, float32
    """

    name: str
    size: int
    bytes: int
    decode: Callable[[Tensor], Tensor]

    def values(self, width: int) -> int:
        """How many values a row of so many bytes holds.

        width   bytes
        """
        return width // self.bytes * self.size

    def expand(self, rows: Tensor) -> Tensor:
        """Rows of blocks as values: r values, float32.

        rows   r bytes, uint8
        """
        return self.decode(rows.reshape(-1, self.bytes)).reshape(len(rows), -1)


def half(raw: Tensor) -> Tensor:
    """Pairs of bytes as half-precision numbers: n k, float32.

    raw   n 2k, uint8
    """
    return raw.contiguous().view(torch.float16).float()


def nibbles(raw: Tensor, group: int) -> Tensor:
    """The low halves of each group of bytes, then its high halves: n 2k, uint8.

    raw     n k, uint8
    group   bytes
    """
    raw = raw.unflatten(1, (-1, 1, group))
    return torch.cat([raw & 15, raw >> 4], dim=2).flatten(1)


def pairs_of_bits(raw: Tensor, group: int) -> Tensor:
    """Bits 0-1 of each group of bytes, then bits 2-3, 4-5, 6-7: n 4k, uint8.

    raw     n k, uint8
    group   bytes
    """
    raw = raw.unflatten(1, (-1, 1, group))
    return torch.cat([(raw >> shift) & 3 for shift in (0, 2, 4, 6)], dim=2).flatten(1)


def bits(raw: Tensor) -> Tensor:
    """Bit 0 of every byte, then bit 1 of every byte, …: n 8k, uint8.

    raw   n k, uint8
    """
    return torch.cat([(raw >> k) & 1 for k in range(8)], dim=1)


def high_bits(raw: Tensor) -> Tensor:
    """The 32 bits of a little-endian word, lowest first: n 32, uint8.

    raw   n 4, uint8
    """
    return torch.stack([(raw >> k) & 1 for k in range(8)], dim=-1).flatten(1)


def scaled(d: Tensor, q: Tensor) -> Tensor:
    """Values of which each run shares a factor: n (k m), float32.

    d   n k, float32
    q   n (k m)
    """
    return (d[..., None] * q.unflatten(1, (d.shape[1], -1)).float()).flatten(1)


def shifted(d: Tensor, q: Tensor, m: Tensor) -> Tensor:
    """Values of which each run shares a factor and an offset that is taken off.

    d, m   n k, float32
    q      n (k m)
    """
    runs = q.unflatten(1, (d.shape[1], -1)).float()
    return (d[..., None] * runs - m[..., None]).flatten(1)


def q8_0(block: Tensor) -> Tensor:
    """Factor (2 bytes), 32 signed bytes."""
    return scaled(half(block[:, :2]), block[:, 2:].contiguous().view(torch.int8))


def q4_0(block: Tensor) -> Tensor:
    """Factor, 32 nibbles about 8."""
    return scaled(half(block[:, :2]), nibbles(block[:, 2:], 16).view(torch.int8) - 8)


def q4_1(block: Tensor) -> Tensor:
    """Factor, offset, 32 nibbles."""
    d, m = half(block[:, :4]).split(1, dim=1)
    return shifted(d, nibbles(block[:, 4:], 16), -m)


def q5_0(block: Tensor) -> Tensor:
    """Factor, 32 fifth bits, 32 nibbles; about 16."""
    q = nibbles(block[:, 6:], 16) | (high_bits(block[:, 2:6]) << 4)
    return scaled(half(block[:, :2]), q.view(torch.int8) - 16)


def q5_1(block: Tensor) -> Tensor:
    """Factor, offset, 32 fifth bits, 32 nibbles."""
    d, m = half(block[:, :4]).split(1, dim=1)
    return shifted(d, nibbles(block[:, 8:], 16) | (high_bits(block[:, 4:8]) << 4), -m)


def scales_and_offsets(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Eight factors and eight offsets of six bits each, of Q4_K and Q5_K: n 8 each, float32.

    raw   n 12, uint8: the first four of each whole; the low four bits of the last four share a byte,
          their upper two bits lie on top of the first four
    """
    low, middle, shared = raw.split(4, dim=1)
    scale = torch.cat([low & 63, (shared & 15) | ((low >> 6) << 4)], dim=1)
    offset = torch.cat([middle & 63, (shared >> 4) | ((middle >> 6) << 4)], dim=1)
    return scale.float(), offset.float()


def q4_k(block: Tensor) -> Tensor:
    """Factor, offset, eight six-bit scales and offsets, 256 nibbles."""
    d, dmin = half(block[:, :4]).split(1, dim=1)
    scale, offset = scales_and_offsets(block[:, 4:16])
    return shifted(d * scale, nibbles(block[:, 16:], 32), dmin * offset)


def q5_k(block: Tensor) -> Tensor:
    """Factor, offset, eight six-bit scales and offsets, 256 fifth bits, 256 nibbles."""
    d, dmin = half(block[:, :4]).split(1, dim=1)
    scale, offset = scales_and_offsets(block[:, 4:16])
    q = nibbles(block[:, 48:], 32) | (bits(block[:, 16:48]) << 4)
    return shifted(d * scale, q, dmin * offset)


def q6_k(block: Tensor) -> Tensor:
    """128 bytes of nibbles, 64 of upper pairs of bits, 16 signed scales, factor; about 32."""
    q = nibbles(block[:, :128], 64) | (pairs_of_bits(block[:, 128:192], 32) << 4)
    scale = block[:, 192:208].contiguous().view(torch.int8).float()
    return scaled(half(block[:, 208:]) * scale, q.view(torch.int8) - 32)


def q3_k(block: Tensor) -> Tensor:
    """256 third bits (0 = take 4 off), 256 pairs of bits, 16 six-bit scales about 32, factor."""
    low, high = block[:, 96:104], block[:, 104:108]
    upper = torch.cat([(high >> shift) & 3 for shift in (0, 2, 4, 6)], dim=1)
    scale = (torch.cat([low & 15, low >> 4], dim=1) | (upper << 4)).view(torch.int8) - 32
    q = pairs_of_bits(block[:, 32:96], 32).view(torch.int8)
    q = q - ((1 - bits(block[:, :32]).view(torch.int8)) << 2)
    return scaled(half(block[:, 108:]) * scale.float(), q)


FORMATS = {
    2: BlockFormat("Q4_0", 32, 18, q4_0),
    3: BlockFormat("Q4_1", 32, 20, q4_1),
    6: BlockFormat("Q5_0", 32, 22, q5_0),
    7: BlockFormat("Q5_1", 32, 24, q5_1),
    8: BlockFormat("Q8_0", 32, 34, q8_0),
    11: BlockFormat("Q3_K", 256, 110, q3_k),
    12: BlockFormat("Q4_K", 256, 144, q4_k),
    13: BlockFormat("Q5_K", 256, 176, q5_k),
    14: BlockFormat("Q6_K", 256, 210, q6_k),
}
"""By the number that a GGUF file gives a tensor's type."""
