"""Optimiser and learning-rate schedule.

AdamW, arXiv:1711.05101.
"""

import math

import torch
from torch import nn


def make_optimizer(network: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with decay on matrices and convolutions only; fused where the weights are on a GPU.

    network        its parameters with gradients are optimised
    lr             peak learning rate
    weight_decay   decoupled decay
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = parameters[0].is_cuda
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), fused=fused)


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
