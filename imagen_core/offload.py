"""A network on a device that does not hold it: weights come in layer by layer and make room for the next.

What fits stays on the device. The rest is copied into a ring of equal places there: while one layer computes,
the layers that came after it the last time are on their way, on a stream of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

ALIGNED = 512  # bytes; where a tensor may begin
PLACES = 3  # of the ring: one computes, two are on their way


class Copies:
    """Copies to a device, beside what it computes."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(self, pairs: list[tuple[Tensor, Tensor]], after: Any) -> Any:
        """Begin copies of (from, to) once `after`, an event, has passed; what `finish` is given."""
        if self.stream is None:
            for source, place in pairs:
                place.copy_(source)
            return None
        if after is not None:
            self.stream.wait_event(after)
        with torch.cuda.stream(self.stream):
            for source, place in pairs:
                place.copy_(source, non_blocking=True)
        return self.stream.record_event()

    def finish(self, started: Any) -> None:
        """What is computed from now on waits for these copies."""
        if started is not None:
            torch.cuda.current_stream(self.device).wait_event(started)

    def close(self) -> None:
        """Wait for all copies."""
        if self.stream is not None:
            self.stream.synchronize()

    def passed(self) -> Any:
        """An event that passes when everything asked for so far is computed."""
        return (
            None if self.stream is None else torch.cuda.current_stream(self.device).record_event()
        )


@dataclass(eq=False)
class Layer:
    """A module's own weights.

    home     where they stay, in pinned memory for a CUDA device
    place    number in the ring while they are on the device
    started  copies that are on their way
    """

    module: nn.Module
    weights: list[Tensor]
    home: list[Tensor] = field(default_factory=list)
    place: int | None = None
    started: Any = None

    @property
    def size(self) -> int:
        """Bytes in the ring."""
        return sum(-(-each.nbytes // ALIGNED) * ALIGNED for each in self.weights)


class Ring:
    """Layers that take turns in a few places of a device."""

    def __init__(self, layers: list[Layer], device: torch.device, copies: Any):
        self.layers, self.copies = layers, copies
        size = max(layer.size for layer in layers)
        self.places = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(PLACES)]
        self.holds: list[Layer | None] = [None] * PLACES
        # What was computed in this memory before it was a place may not have ended.
        self.free_after: list[Any] = [copies.passed()] * PLACES
        self.turn = 0
        self.followed_by = dict(zip(layers, [*layers[1:], layers[0]], strict=True))
        self.last = layers[-1]

    def bring(self, layer: Layer) -> None:
        """Begin to copy a layer into the place whose turn it is, unless it is on the device."""
        if layer.place is not None:
            return
        place, self.turn = self.turn, (self.turn + 1) % PLACES
        old = self.holds[place]
        if old is not None:
            old.place = None
        pairs, first = [], 0
        for weight, home in zip(layer.weights, layer.home, strict=True):
            room = self.places[place][first : first + home.nbytes].view(home.dtype)
            there = room.as_strided(home.shape, torch.empty_like(home, device="meta").stride())
            pairs.append((home, there))
            weight.data = there
            first += -(-home.nbytes // ALIGNED) * ALIGNED
        self.holds[place], layer.place = layer, place
        layer.started = self.copies.start(pairs, self.free_after[place])

    def before(self, layer: Layer) -> None:
        """The layer is about to compute: its weights are there, and those of the next ones begin to come."""
        self.followed_by[self.last] = layer
        self.bring(layer)
        self.copies.finish(layer.started)
        self.last = layer
        following = layer
        for _ in range(PLACES - 1):
            following = self.followed_by[following]
            if following.place is None and self.holds[self.turn] is not layer:
                self.bring(following)

    def after(self, layer: Layer) -> None:
        """The layer has computed: its place is free once the device is there."""
        if layer.place is not None:
            self.free_after[layer.place] = self.copies.passed()


def layers_of(network: nn.Module) -> list[Layer]:
    """The modules of a network that have weights of their own, in its order."""
    layers, known = [], set()
    for module in network.modules():
        every = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        own = [each for each in every if id(each) not in known]
        known |= {id(each) for each in own}
        if own:
            layers.append(Layer(module, own))
    return layers


def least_budget(layers: list[Layer]) -> int:
    """Bytes of the device that the ring and the layers that must stay there take."""
    turns = (layer.size for layer in layers if not must_stay(layer, layers))
    stays = sum(layer.size for layer in layers if must_stay(layer, layers))
    return PLACES * max(turns, default=0) + stays


def must_stay(layer: Layer, layers: list[Layer]) -> bool:
    """Whether a layer stays on the device: the first, as its device is the network's, and one that holds
    others, as it may use its own weights after theirs.
    """
    return layer is layers[0] or any(layer.module.children())


def split(layers: list[Layer], budget: int) -> tuple[list[Layer], list[Layer]]:
    """The layers that stay on the device, and those that take turns: of those that may, the largest.

    budget   bytes of the device; ValueError where that is less than `least_budget`
    """
    if sum(layer.size for layer in layers) <= budget:
        return layers, []
    least = least_budget(layers)
    if budget < least:
        raise ValueError(f"budget_bytes: expected at least {least} for this network, got {budget}")
    left = budget - least
    turns = [layer for layer in layers if not must_stay(layer, layers)]
    turns.sort(key=lambda layer: layer.size, reverse=True)
    while turns and turns[-1].size <= left:
        left -= turns.pop().size
    return [layer for layer in layers if layer not in turns], [x for x in layers if x in turns]


@contextmanager
def offloaded(
    network: nn.Module, budget_bytes: int, device: torch.device, copies: Any = None
) -> Iterator[None]:
    """Inside the block the network computes on a device that holds a part of its weights at a time.

    network        its weights are on the CPU, where they are again afterwards; no gradients
    budget_bytes   of the device, for weights; ValueError where that is less than three of its largest layers
    copies         makes them; None = Copies
    """
    stay, turns = split(layers_of(network), budget_bytes)
    homes = [(weight, weight.data) for layer in (*stay, *turns) for weight in layer.weights]
    hooks, copies = [], copies or Copies(device)
    try:
        for layer in stay:
            for weight in layer.weights:
                weight.data = weight.data.to(device)
        if turns:
            ring = Ring(turns, device, copies)
            for layer in turns:
                pinned = device.type == "cuda"
                layer.home = [w.data.pin_memory() if pinned else w.data for w in layer.weights]
                hooks.append(layer.module.register_forward_pre_hook(_call(ring.before, layer)))
                hooks.append(layer.module.register_forward_hook(_call(ring.after, layer)))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        try:
            copies.close()  # before their places are gone; raises where the device has failed
        finally:
            for weight, home in homes:
                weight.data = home


def _call(function: Any, layer: Layer) -> Any:
    return lambda *given: function(layer)
