"""The processes and devices that a training runs on: accelerate's, or this process alone without it."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.precision import computes_bfloat16
from .recipe import Precision


def processes(precision: Precision, on_cpu: bool = False) -> Any:
    """accelerate's Accelerator where it is installed, else what stands in for it.

    precision   of the network's arithmetic; "auto" is bfloat16 where the processor computes in it
    on_cpu      whether to leave a GPU alone
    """
    fast = computes_bfloat16("cuda" if torch.cuda.is_available() and not on_cpu else "cpu")
    half = precision == "bfloat16" or (precision == "auto" and fast)
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    except ImportError:
        return OneProcess(half, on_cpu)
    AcceleratorState._reset_state()  # a run before this one may have had another precision
    return Accelerator(mixed_precision="bf16" if half else "no", cpu=on_cpu)


class OneProcess:
    """This process on one device, with those methods of accelerate's Accelerator that the loop calls."""

    num_processes, process_index, is_main_process = 1, 0, True

    def __init__(self, half: bool, on_cpu: bool):
        """Choose the device.

        half   whether networks compute in bfloat16
        """
        gpu = torch.cuda.is_available() and not on_cpu
        self.device, self.half = torch.device("cuda" if gpu else "cpu"), half

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        """Both as they are, the module on the device."""
        return module.to(self.device), optimizer

    def autocast(self) -> AbstractContextManager[Any]:
        """Arithmetic in the chosen precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)

    def no_sync(self, _module: nn.Module) -> AbstractContextManager[Any]:
        """There is nothing to keep in step."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss."""
        loss.backward()

    def clip_grad_norm_(self, parameters: list[nn.Parameter], most: float) -> Tensor:
        """Bound the gradients' norm; what it was."""
        return nn.utils.clip_grad_norm_(parameters, most)
