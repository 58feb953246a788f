"""Optimisers and the learning-rate schedule.

AdamW, arXiv:1711.05101; Muon, Jordan et al. 2024, with the step size of arXiv:2502.16982, so that one
learning rate serves both kinds of weights.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..kernels.precision import cpu_computes_bfloat16

OptimizerName = Literal["adamw", "adamw8bit", "muon"]
# Bytes of its state for each trained number.
STATE_BYTES: dict[OptimizerName, int] = {"adamw": 8, "adamw8bit": 2, "muon": 4}
BETAS = (0.9, 0.99)
MOMENTUM = 0.95
EDGES = ("conv_in", "conv_out", "pixels")  # layers that see pixels
ADAM_RMS = 0.2  # root mean square of a typical AdamW update, which Muon's is scaled to


def make_optimizer(
    network: nn.Module, name: OptimizerName, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimiser of a network; weights of fewer than two dimensions are not decayed.

    network        its parameters with gradients are optimised
    name           "adamw8bit" needs bitsandbytes; it keeps weights of fewer than 4096 numbers in 32 bits
    lr             peak learning rate
    weight_decay   decoupled decay of matrices and convolutions
    """
    named = [(key, p) for key, p in network.named_parameters() if p.requires_grad]
    matrices = [p for _, p in named if p.ndim >= 2]
    vectors = {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0}
    plain = [{"params": matrices, "weight_decay": weight_decay}, vectors]
    if name == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]

        return AdamW8bit(plain, lr=lr, betas=BETAS)
    if name == "adamw":
        fused = matrices[0].device.type in ("cpu", "cuda")
        return torch.optim.AdamW(plain, lr=lr, betas=BETAS, fused=fused)
    if name != "muon":
        raise ValueError(f"optimizer must be one of {get_args(OptimizerName)}, got {name!r}")
    edges = [p for key, p in named if p.ndim >= 2 and key.startswith(EDGES)]
    hidden = [p for p in matrices if not any(p is edge for edge in edges)]
    groups = [
        {"params": hidden, "orthogonal": True, "weight_decay": weight_decay},
        {"params": edges, "orthogonal": False, "weight_decay": weight_decay},
        {**vectors, "orthogonal": False},
    ]
    return Muon(groups, lr=lr)


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates for hidden matrices; AdamW for everything else.

    Groups say which by "orthogonal". A convolution is a matrix of its output channels against the rest.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float):
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "orthogonal": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                state = self.state[parameter]
                if group["orthogonal"]:
                    update = _muon_update(parameter.grad, state)
                else:
                    update = _adam_update(parameter.grad, state)
                parameter.add_(update, alpha=-group["lr"])


def _muon_update(grad: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Nesterov momentum, orthogonalised, at the scale of an AdamW update."""
    if "momentum" not in state:
        state["momentum"] = torch.zeros_like(grad)
    state["momentum"].lerp_(grad, 1 - MOMENTUM)
    update = grad.lerp(state["momentum"], MOMENTUM).flatten(1)
    scale = ADAM_RMS * math.sqrt(max(update.shape))
    return (scale * orthogonalize(update)).view(grad.shape)


def _adam_update(grad: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Adam's update with bias correction."""
    if "step" not in state:
        state["step"] = torch.zeros(())
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(grad), torch.zeros_like(grad)
    state["step"] += 1
    state["exp_avg"].lerp_(grad, 1 - BETAS[0])
    state["exp_avg_sq"].lerp_(grad.square(), 1 - BETAS[1])
    step = state["step"].item()
    mean = state["exp_avg"] / (1 - BETAS[0] ** step)
    return mean / ((state["exp_avg_sq"] / (1 - BETAS[1] ** step)).sqrt() + 1e-8)


def orthogonalize(matrix: Tensor, iterations: int = 5) -> Tensor:
    """About the nearest matrix with orthonormal rows or columns (singular values 0.7 to 1.2).

    matrix       n m
    iterations   of the quintic Newton-Schulz iteration
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16() if matrix.is_cuda or cpu_computes_bfloat16() else matrix.float()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


def lr_factor(step: int, progress: float, warmup_steps: int, decay: float) -> float:
    """Learning rate over its peak: linear warm-up, constant, cosine to zero over the last part.

    step           0 for the first
    progress       part of the run that is done, 0..1
    warmup_steps   steps of the warm-up
    decay          part of the run over which the rate falls, 0..1
    """
    warmup = min(1.0, (step + 1) / max(1, warmup_steps))
    if decay == 0 or progress <= 1 - decay:
        return warmup
    return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - 1 + decay) / decay)))
