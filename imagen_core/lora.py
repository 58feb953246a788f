"""LoRA: low-rank updates of a stage's layers, added beside the weights while the network runs.

A stage with LoRAs shares every weight with the stage that it came from. Each updated layer computes
`W x + up (down x)`: one pair of matrices a layer, however many LoRAs are stacked. Two kinds of update
are made into weights of their own, which the file holds in full anyway or which a low rank cannot say:
differences (`weight`, `bias`), and DoRA along the input axis.

References: LoRA, arXiv:2106.09685; DoRA, arXiv:2402.09353.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .diffusion.respacing import number
from .kernels.convolution import Conv2d
from .stage import Stage, StageConfig

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Update:
    """What a LoRA adds to one layer at strength 1; all float32.

    down        r in (height width), None = no low-rank part
    up          out r, alpha / rank folded in
    magnitude   DoRA: norms of the rows of the merged weight, (out,), NaN = a row without; or norms of
                its columns, (1, in)
    weight      difference of the weight itself
    bias        difference of the bias, or of a norm's
    """

    down: Tensor | None = None
    up: Tensor | None = None
    magnitude: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None

    @property
    def rank(self) -> int:
        """Of the low-rank part; 0 = none."""
        return 0 if self.down is None else len(self.down)

    @property
    def full(self) -> bool:
        """Whether it needs a weight of its own."""
        by_columns = self.magnitude is not None and self.magnitude.ndim == 2
        return self.weight is not None or by_columns

    # (Eq. 3)
    def delta(self, weight: Tensor) -> Tensor:
        """What the update adds to a weight at strength 1: float32, of the weight's shape.

        LoRA, arXiv:2106.09685, Eq. 3.
        """
        weight = weight.float()
        delta = torch.zeros_like(weight)
        if self.down is not None and self.up is not None:
            delta += (self.up.to(weight) @ self.down.to(weight).flatten(1)).view_as(weight)
        if self.weight is not None:
            delta += self.weight.to(weight).view_as(weight)
        if self.magnitude is None:
            return delta
        return self.gains(weight, delta) * (weight + delta) - weight

    # (Eq. 5)
    def gains(self, weight: Tensor, delta: Tensor) -> Tensor:
        """DoRA's factors of the merged weight's rows or columns, shaped to multiply it.

        weight, delta   float32, of one shape

        DoRA, arXiv:2402.09353, Eq. 5.
        """
        assert self.magnitude is not None
        flat = (weight + delta).flatten(1)
        magnitude = self.magnitude.to(weight)
        if magnitude.ndim == 1:
            gains = (magnitude / flat.norm(dim=1)).nan_to_num(1.0, 1.0, 1.0)
            return gains.view(-1, *[1] * (weight.ndim - 1))
        norms = (weight + delta).transpose(0, 1).flatten(1).norm(dim=1)
        return (magnitude.flatten() / norms).view(1, -1, *[1] * (weight.ndim - 2))


@dataclass(frozen=True, eq=False)
class LoRA:
    """Updates of a stage's layers, as `load_lora` fits them to a stage.

    config     of the stage
    updates    by the name of our layer, such as "down.1.0.attention.qkv"
    metadata   strings of the file's header
    """

    config: StageConfig
    updates: Mapping[str, Update]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The largest rank of a layer."""
        return max((update.rank for update in self.updates.values()), default=0)

    @property
    def parameters(self) -> int:
        """Numbers in it."""
        tensors = (t for update in self.updates.values() for t in vars(update).values())
        return sum(t.numel() for t in tensors if t is not None)


class LowRank(nn.Module):
    """A layer with a low-rank branch beside its weight."""

    weight: Tensor
    bias: Tensor | None
    down: Tensor
    up: Tensor
    gain: Tensor | None

    def factors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """down, up, and factors of the weight's rows."""
        return self.down, self.up, self.gain


class LowRankLinear(LowRank, nn.Linear):
    """W x + up (down x)."""

    def forward(self, x: Tensor) -> Tensor:
        down, up, gain = self.factors()
        y = F.linear(x, self.weight, self.bias)
        if gain is not None:
            y = y * gain if self.bias is None else torch.lerp(self.bias, y, gain)
        return y + F.linear(F.linear(x, down), up)


class LowRankConv2d(LowRank, Conv2d):
    """The same for a convolution: `down` has its window, `up` is one of 1 x 1."""

    def forward(self, x: Tensor) -> Tensor:
        down, up, gain = self.factors()
        y = super().forward(x)
        if gain is not None:
            bias = torch.zeros_like(gain) if self.bias is None else self.bias
            y = torch.lerp(bias[:, None, None], y, gain[:, None, None])
        branch = F.conv2d(self.seen(x), down, None, self.stride, self.padding)
        return y + F.conv2d(branch, up[:, :, None, None])


def apply_lora(stage: Stage, lora: LoRA, strength: float = 1.0) -> Stage:
    """A stage with a LoRA, beside those that it has; the given one stays as it is.

    stage      shares its weights with the result
    lora       fitted to the stage by `load_lora`
    strength   factor of the updates; 0 = off, below 0 = the opposite
    """
    plain = stage.plain or stage
    strength = number("strength", strength)
    if not math.isfinite(strength):
        raise ValueError(f"strength: expected a finite number, got {strength}")
    if lora.config.unet != plain.config.unet:
        raise ValueError("lora: was fitted to a stage of another shape; load it for this stage")
    stacked = (*stage.loras, (lora, strength))
    acting = [(lora, strength) for lora, strength in stacked if strength]
    unet = shared(plain.unet)
    for name in dict.fromkeys(name for lora, _ in acting for name in lora.updates):
        found = [(lora.updates[name], s) for lora, s in acting if name in lora.updates]
        place(unet, name, updated(unet.get_submodule(name), found))
    unet.__dict__["plain"] = plain.unet  # for hosts: who holds the weights
    made = type(stage)(plain.config, unet)
    made.plain, made.loras = plain, stacked
    return made


def merge_loras(stage: Stage) -> Stage:
    """A stage of ordinary weights that does what a stage with LoRAs does.

    stage   with LoRAs; one without comes back as it is
    """
    if stage.plain is None:
        return stage
    unet = shared(stage.plain.unet)
    acting = [(lora, strength) for lora, strength in stage.loras if strength]
    for name in dict.fromkeys(name for lora, _ in acting for name in lora.updates):
        layer: Any = unet.get_submodule(name)
        found = [(lora.updates[name], s) for lora, s in acting if name in lora.updates]
        merge_into(layer, found, layer.weight)
    return type(stage)(stage.plain.config, unet)


def shared(module: Module) -> Module:
    """A network of new modules around the same parameters and buffers.

    module   any; a host's handle of it is left behind
    """
    twin = cast(Module, module.__class__.__new__(module.__class__))
    twin.__dict__.update(module.__dict__)
    for host_own in ("comfy_patcher", "plain"):
        twin.__dict__.pop(host_own, None)
    for kept in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
        twin.__dict__[kept] = module.__dict__[kept].copy()
    twin.__dict__["_modules"] = {
        name: None if child is None else shared(child) for name, child in module._modules.items()
    }
    return twin


def place(network: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer in the place of another.

    name      dotted
    """
    parent, _, leaf = name.rpartition(".")
    network.get_submodule(parent)._modules[leaf] = layer


def updated(layer: Any, updates: list[tuple[Update, float]]) -> nn.Module:
    """A layer with updates, as a branch where they allow it.

    layer     of a network whose modules are not shared; may be changed
    updates   and their strengths
    """
    plain_weight = layer.weight
    merge_into(layer, [(u, s) for u, s in updates if u.full], plain_weight, biases=False)
    branches = [(update, s) for update, s in updates if update.rank and not update.full]
    for update, strength in updates:
        if update.bias is not None:
            add_bias(layer, update.bias, strength)
    if not branches:
        return layer
    down, up, gain = factors_of(branches, plain_weight)
    return with_branch(layer, down, up, gain)


def factors_of(
    updates: list[tuple[Update, float]], weight: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One low-rank pair that does what several updates do, and factors of the weight's rows.

    updates   low-rank ones and their strengths
    weight    of the layer, which DoRA's factors depend on
    """
    downs, ups, gain = [], [], None
    for update, strength in updates:
        assert update.down is not None and update.up is not None
        up = strength * update.up.to(weight.device)
        if update.magnitude is not None:
            delta = update.up @ update.down.flatten(1)
            own = update.gains(weight.float(), delta.to(weight.device).view(weight.shape)).flatten()
            gain = torch.ones_like(own) if gain is None else gain
            gain, up = gain + strength * (own - 1), up * own[:, None]
        downs.append(update.down.to(weight))
        ups.append(up.to(weight))
    return torch.cat(downs), torch.cat(ups, dim=1), None if gain is None else gain.to(weight)


def with_branch(layer: Any, down: Tensor, up: Tensor, gain: Tensor | None) -> LowRank:
    """A layer's twin with a low-rank branch, which is no part of its state.

    layer      a linear layer or a convolution
    down, up   as in `Update`
    gain       (out,) factors of the weight's rows; None = 1
    """
    twin = shared(layer)
    twin.__class__ = LowRankConv2d if isinstance(layer, Conv2d) else LowRankLinear
    for name, tensor in (("down", down), ("up", up), ("gain", gain)):
        twin.register_buffer(name, tensor, persistent=False)
    return cast(LowRank, twin)


def merge_into(
    layer: Any, updates: list[tuple[Update, float]], weight: Tensor, biases: bool = True
) -> None:
    """Give a layer a weight of its own with the updates in it.

    layer     of a network whose parameters may be shared; they are replaced, not changed
    updates   and their strengths
    weight    that the updates were made for
    biases    whether differences of the bias are added too
    """
    if not updates:
        return
    total = sum(strength * update.delta(weight) for update, strength in updates)
    merged = (layer.weight.float() + total).to(layer.weight)
    if merged.ndim == 4:
        merged = merged.to(memory_format=torch.channels_last)
    layer.weight = nn.Parameter(merged, requires_grad=False)
    if isinstance(layer, Conv2d):
        layer.forget()  # what it shares with the plain layer
    for update, strength in updates if biases else ():
        if update.bias is not None:
            add_bias(layer, update.bias, strength)


def add_bias(layer: Any, bias: Tensor, strength: float) -> None:
    """Give a layer a bias of its own with a difference in it.

    layer      as in `merge_into`
    bias       the difference
    strength   its factor
    """
    merged = layer.bias.float() + strength * bias.to(layer.bias.device)
    layer.bias = nn.Parameter(merged.to(layer.bias), requires_grad=False)


def layers_of(unet: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every linear layer and convolution of a network, by name."""
    for name, module in unet.named_modules():
        if isinstance(module, (nn.Linear, Conv2d)):
            yield name, module
