"""Exponential moving average of weights, which is what a stage ships.

The average follows fast at first: decay min(d, (1 + k) / (10 + k)) at update k.
"""

import torch
from torch import Tensor, nn


class EMA:
    """Averages of a network's parameters, float32, in the order of its parameters."""

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self.updates = 0
        self.averages: list[Tensor] = [p.detach().float().clone() for p in network.parameters()]

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move every average towards the network's weights.

        network   the one that the averages were made from
        """
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = [p.detach() for p in network.parameters()]
        torch._foreach_lerp_(self.averages, weights, 1 - decay)
        self.updates += 1

    @torch.no_grad()
    def copy_to(self, network: nn.Module) -> None:
        """Give the averages to a network of the same shape.

        network   receives them in its own dtype
        """
        for parameter, average in zip(network.parameters(), self.averages, strict=True):
            parameter.copy_(average)
