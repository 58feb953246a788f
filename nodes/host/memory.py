"""The device that networks run on, and room for them there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

from .adapter import comfy
from .paging import patcher_class, take_operations

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Role = Literal["unet", "text_encoder"]

DTYPES = ("auto", "float32", "bfloat16", "float16")
PART = 0.9  # of what is free on a GPU, for one network and what it computes
LENDING = ("cuda", "mps", "xpu")  # devices whose tensors may be a CPU parameter's data for a while
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
"""What a RuntimeError says where there was none left: CUDA and MPS, CPUs of Linux and Windows, cuBLAS."""


chosen_device: ContextVar[Any] = ContextVar("chosen_device", default=None)
"""Outside ComfyUI: the torch.device that a person chose; None = an NVIDIA or AMD GPU where there is one."""


def compute_device(role: Role = "unet") -> torch.device:
    """Where networks are to run.

    role   which of them: ComfyUI may keep text encoders on the CPU
    """
    import torch

    management = comfy("comfy.model_management")
    if management is not None:
        of_text = role == "text_encoder"
        return management.text_encoder_device() if of_text else management.get_torch_device()
    device = chosen_device.get() or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda" and device.index is None:  # as tensors there name it
        return torch.device("cuda", torch.cuda.current_device())
    return device


def dtype(name: str, device: torch.device | None = None, role: Role = "unet") -> torch.dtype:
    """The dtype that a name stands for; "auto" is the fastest one that is precise enough.

    name     one of DTYPES
    device   where it is to run; None = where networks of its role are to run
    role     a text encoder, which runs once a prompt, stays in float32 on a CPU
    """
    import torch

    from ...imagen_core.kernels.precision import cpu_computes_bfloat16, gpu_half

    if name != "auto":
        return getattr(torch, name)
    device, management = device or compute_device(role), comfy("comfy.model_management")
    if device.type == "cpu":
        half = role == "unet" and cpu_computes_bfloat16()
        return torch.bfloat16 if half else torch.float32
    if management is None:
        return gpu_half(device) or torch.float32
    if management.should_use_bf16(device):
        return torch.bfloat16
    return torch.float16 if management.should_use_fp16(device) else torch.float32


def to_results(tensor: Tensor) -> Tensor:
    """A node's result where the host wants results: the CPU, unless ComfyUI was told otherwise.

    tensor   any shape
    """
    management = comfy("comfy.model_management")
    return tensor if management is None else tensor.to(management.intermediate_device())


@contextmanager
def on_device(module: nn.Module, memory_required: float = 0, role: Role = "unet") -> Iterator[None]:
    """The network on the compute device inside the block.

    module            a U-Net or a text encoder's model
    memory_required   bytes that running it will take beside its weights
    role              says which of ComfyUI's devices it belongs on

    ComfyUI's memory management loads it, makes room for it by sending others away (the text encoder
    before a U-Net, say) and may put it aside later; outside ComfyUI its weights on the CPU serve again, so
    that stages do not pile up on a GPU. A U-Net for which there is too little room stays behind in part, and
    its layers bring their weights when they run. A network with LoRAs shares the weights of the plain one,
    which is what ComfyUI knows of; the little that is its own follows.
    """
    from ...imagen_core.offload import offloaded

    management = comfy("comfy.model_management")
    budget, device = _budget(module, memory_required, role), compute_device(role)
    if management is None and device.type in LENDING:
        budget = sys.maxsize if budget is None else budget
    if budget is not None:
        with offloaded(module, budget, device):
            yield
        return
    if management is None:
        module.to(device)
        try:
            yield
        finally:
            if device.type != "cpu":
                module.to("cpu")
        return
    plain = module.__dict__.get("plain")
    handle = patcher_of(module if plain is None else plain, role)
    management.load_models_gpu(
        [handle], memory_required=memory_required, force_full_load=plain is not None
    )
    if plain is not None:
        module.to(next(plain.parameters()).device)
    yield


def _budget(module: nn.Module, memory_required: float, role: Role) -> int | None:
    """Bytes that a GPU has for the weights of a network that it cannot hold; None where it can.

    At least what the network needs to begin: a batch that is too large is split once that is seen.

    None also for what ComfyUI leaves behind in part by itself, a U-Net whose layers are ComfyUI's, and for
    text encoders, with which this was not tested.
    """
    from ...imagen_core.memory import free_bytes
    from ...imagen_core.offload import layers_of, least_budget

    device, management = compute_device(role), comfy("comfy.model_management")
    if device.type != "cuda" or role != "unet":
        return None
    if management is not None and "plain" not in module.__dict__:
        return None
    weights = sum(each.nbytes for each in module.parameters())
    if management is not None and weights + memory_required > PART * free_bytes(device):
        management.free_memory(weights + memory_required, device)
    room = PART * free_bytes(device) + _there(module, device) - memory_required
    return None if weights <= room else max(least_budget(layers_of(module)), int(room))


def _there(module: nn.Module, device: torch.device) -> int:
    """Bytes of a network's weights that are on a device."""
    return sum(each.nbytes for each in module.parameters() if each.device == device)


def patcher_of(module: nn.Module, role: Role = "unet") -> Any:
    """ComfyUI's handle of a network, made once and kept with it.

    module   a U-Net or a text encoder's model
    role     says which of ComfyUI's devices it belongs on
    """
    patcher = module.__dict__.get("comfy_patcher")
    return keep_patcher(module, module, role) if patcher is None else patcher


def keep_patcher(module: nn.Module, outer: nn.Module, role: Role) -> Any:
    """A new handle, from now on the one that `patcher_of` finds: a network must have one alone.

    module   a U-Net or a text encoder's model
    outer    holds it, and is assigned attributes; may be the network itself
    role     says which of ComfyUI's devices it belongs on
    """
    management = comfy("comfy.model_management")
    if role == "unet":
        devices = management.get_torch_device(), management.unet_offload_device()
        if devices[0].type != "cpu":  # there is nothing to bring there
            take_operations(module, comfy("comfy.ops").disable_weight_init)
    else:
        devices = management.text_encoder_device(), management.text_encoder_offload_device()
    handle = patcher_class(comfy("comfy.model_patcher").ModelPatcher)
    module.__dict__["comfy_patcher"] = handle(outer, *devices)
    return module.__dict__["comfy_patcher"]


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory left, on a GPU or on the CPU."""
    import torch

    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in NO_MEMORY)


def forget_unused() -> None:
    """Give memory that nothing holds any more back to the device."""
    import torch

    management = comfy("comfy.model_management")
    if management is not None:
        management.soft_empty_cache()
    elif torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
