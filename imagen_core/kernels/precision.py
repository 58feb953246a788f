"""Which dtype a processor is fast with."""

from functools import cache

import torch


@cache
def cpu_computes_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself (AVX-512 BF16 or AMX), about twice as fast as float32."""
    names = (
        "_is_avx512_bf16_supported",
        "_is_amx_tile_supported",
    )  # absent from older versions of torch
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)
