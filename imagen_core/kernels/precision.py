"""Which dtype a processor is fast with, and whether Triton compiles for it."""

from functools import cache

import torch
from torch import Tensor


def eager_bfloat16(x: Tensor) -> bool:
    """Whether x is bfloat16 on a CPU and nothing is compiled, where some of torch's kernels are slow."""
    return (
        x.device.type == "cpu" and x.dtype == torch.bfloat16 and not torch.compiler.is_compiling()
    )


def computes_bfloat16(device: str | torch.device) -> bool:
    """Whether a device, "cuda" or "cpu", multiplies bfloat16 itself; others are slow in it."""
    device = torch.device(device)
    return gpu_half(device) is torch.bfloat16 if device.type == "cuda" else cpu_computes_bfloat16()


def gpu_half(device: torch.device) -> torch.dtype | None:
    """The half precision that a GPU is fast and right in; None = neither.

    An NVIDIA GPU multiplies bfloat16 from compute capability 8.0 on: below, torch says that it is supported,
    and emulates it. float16 is fast from 7.0 on, and convolutions give NaN in it on the 16 series.
    """
    if device.type != "cuda":
        return torch.float16
    if torch.version.hip is not None:
        return torch.bfloat16
    capability = torch.cuda.get_device_capability(device)
    if capability >= (8, 0):
        return torch.bfloat16
    faulty = "GTX 16" in torch.cuda.get_device_name(device)
    return torch.float16 if capability >= (7, 0) and not faulty else None


@cache
def require_tensor_cores(device: torch.device) -> None:
    """Raise NotImplementedError on an NVIDIA GPU that Triton does not support.

    Below compute capability 8.0 its compiler ends the process on bfloat16, and takes minutes for kernels that
    spill all their registers.
    """
    if device.type != "cuda" or torch.version.hip is not None:
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        raise NotImplementedError(
            f"Triton needs compute capability 8.0, this GPU has {'.'.join(map(str, capability))}"
        )


@cache
def cpu_computes_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself (AVX-512 BF16 or AMX), about twice as fast as float32."""
    # Absent from older versions of torch.
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)
