"""Which dtype a processor is fast with."""

from functools import cache

import torch
from torch import Tensor


def eager_bfloat16(x: Tensor) -> bool:
    """Whether x is bfloat16 on a CPU and nothing is compiled, where some of torch's kernels are slow."""
    return (
        x.device.type == "cpu" and x.dtype == torch.bfloat16 and not torch.compiler.is_compiling()
    )


def computes_bfloat16(device: str) -> bool:
    """Whether a kind of device, "cuda" or "cpu", multiplies bfloat16 itself; others are slow in it."""
    return torch.cuda.is_bf16_supported() if device == "cuda" else cpu_computes_bfloat16()


@cache
def cpu_computes_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself (AVX-512 BF16 or AMX), about twice as fast as float32."""
    # Absent from older versions of torch.
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)
