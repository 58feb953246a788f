"""Exponential moving average of weights, which is what a stage ships.

The average follows fast at first: decay min(d, (1 + k) / (10 + k)) at update k.
"""

import torch
from torch import Tensor, nn


class EMA:
    """Averages of the parameters that are trained, float32, in the order of the network's parameters."""

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self.updates = 0
        trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in trained]
        self.averages: list[Tensor] = [p.detach().float().clone() for _, p in trained]

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move every average towards the network's weights.

        network   the one that the averages were made from
        """
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = [p.detach() for p in network.parameters() if p.requires_grad]
        torch._foreach_lerp_(self.averages, weights, 1 - decay)
        self.updates += 1

    @torch.no_grad()
    def copy_to(self, network: nn.Module) -> None:
        """Give the averages to a network that has the trained parameters, in its own dtype."""
        parameters = dict(network.named_parameters())
        for name, average in zip(self.names, self.averages, strict=True):
            parameters[name].copy_(average)
