"""Networks whose weights ComfyUI may leave in main memory, and bring to the device layer by layer."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

LAYERS = ("Linear", "Conv2d", "GroupNorm", "LayerNorm")


def take_operations(network: nn.Module, operations: Any) -> None:
    """Make a network's layers those of a host, in place; their weights stay.

    network      a U-Net
    operations   comfy.ops.disable_weight_init, or another holder of LAYERS, each derived from torch's
    """
    for layer in network.modules():
        layer.__class__ = hosted(type(layer), operations)


@cache
def hosted(kind: type, operations: Any) -> type:
    """A class of layers as the host has it; the same where it has none.

    kind         of a module, torch's or derived from it
    operations   as in `take_operations`
    """
    from torch import nn

    for name in LAYERS:
        plain, own = getattr(nn, name), getattr(operations, name)
        if issubclass(kind, plain) and not issubclass(kind, own):
            return own if kind is plain else type(kind.__name__, (kind, own), {})
    return kind


@cache
def patcher_class(base: Any) -> type:
    """ComfyUI's handle of a network, which tells it where it computes; whole, unless layers are ComfyUI's.

    base   ComfyUI's ModelPatcher
    """

    class NetworkPatcher(base):
        """A handle."""

        def load(
            self,
            device_to: Any = None,
            lowvram_model_memory: float = 0,
            force_patch_weights: bool = False,
            full_load: bool = False,
        ) -> None:
            network = network_of(self.model)
            parted = any(hasattr(layer, "comfy_cast_weights") for layer in network.modules())
            whole = full_load or not parted
            super().load(device_to, lowvram_model_memory, force_patch_weights, whole)
            network.__dict__["runs_on"] = device_to

        def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> Any:
            if device_to is not None:
                network_of(self.model).__dict__.pop("runs_on", None)
            return super().unpatch_model(device_to, unpatch_weights)

    return NetworkPatcher


def network_of(model: Any) -> Any:
    """The network that a handle holds, alone or in ComfyUI's model."""
    return getattr(model, "diffusion_model", model)
