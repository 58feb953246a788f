"""Which weights of a stage are trained: all, those of attention, or a LoRA beside fixed ones.

References: LoRA, arXiv:2106.09685; DoRA, arXiv:2402.09353; checkpointing, arXiv:1604.06174.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..kernels.convolution import Conv2d
from ..lora import LoRA, LowRank, LowRankConv2d, LowRankLinear, Update, layers_of, place, shared
from ..stage import Stage
from ..unet.attention import TextAttention
from ..unet.layers import ResBlock
from .optim import EDGES
from .recipe import TuneSection


class Trained(LowRank):
    """A low-rank branch whose matrices are trained."""

    scale: float
    magnitude: Tensor | None

    def factors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """down, up, and DoRA's factors of the weight's rows."""
        up = self.scale * self.up
        if self.magnitude is None:
            return self.down, up, None
        with torch.no_grad():  # the norm counts as a constant: arXiv:2402.09353, section 4.3
            delta = (up @ self.down.flatten(1)).view_as(self.weight)
            norm = (self.weight + delta).flatten(1).norm(dim=1)
        gain = self.magnitude / norm
        return self.down, up * gain[:, None], gain

    def update_with(self, tensors: dict[str, Tensor]) -> Update:
        """The branch as a LoRA has it, of given matrices: down, up and magnitude."""
        up = self.scale * tensors["up"]
        return Update(tensors["down"], up, tensors.get("magnitude"))


class TrainedLinear(Trained, LowRankLinear):
    """A linear layer with a trained branch."""


class TrainedConv2d(Trained, LowRankConv2d):
    """A convolution with a trained branch."""


def prepare(stage: Stage, tune: TuneSection) -> Stage:
    """A stage whose parameters ask for gradients where they are to be trained.

    stage   in float32; with a LoRA it shares its weights with the result
    """
    if tune.what == "lora":
        stage.unet.requires_grad_(False)
        stage = with_trained_branches(stage, tune)
    else:
        for name, parameter in stage.unet.named_parameters():
            # Not its norms: torch 2.13 crashes in a group norm's backward pass whose input needs no gradient.
            attention = ".attention." in name and "norm" not in name
            parameter.requires_grad_(tune.what == "all" or attention)
    if tune.checkpointing:
        for module in stage.unet.modules():
            if isinstance(module, (ResBlock, TextAttention)):
                module.forward = partial(checkpoint, module.forward, use_reentrant=False)
    return stage


def with_trained_branches(stage: Stage, tune: TuneSection) -> Stage:
    """A stage with new branches that change nothing yet, beside the weights of the given one."""
    unet = shared(stage.unet)
    alpha = tune.alpha or float(tune.rank)
    for name, layer in list(layers_of(stage.unet)):
        if not is_target(name, layer, tune):
            continue
        twin = shared(layer)
        twin.__class__ = TrainedConv2d if isinstance(layer, Conv2d) else TrainedLinear
        assert isinstance(twin, Trained)
        weight = twin.weight
        rank = min(tune.rank, len(weight), weight[0].numel())
        down = torch.empty(rank, *weight.shape[1:], device=weight.device)
        twin.down = nn.Parameter(nn.init.kaiming_uniform_(down, a=math.sqrt(5)))
        twin.up = nn.Parameter(torch.zeros(len(weight), rank, device=weight.device))
        norms = weight.detach().flatten(1).norm(dim=1)
        twin.magnitude = nn.Parameter(norms) if tune.dora else None
        twin.scale = alpha / tune.rank
        place(unet, name, twin)
    return Stage(stage.config, unet)


def is_target(name: str, layer: nn.Module, tune: TuneSection) -> bool:
    """Whether a layer gets a branch."""
    if name.partition(".")[0] in EDGES:
        return False
    if ".attention." in name:
        return tune.targets != "convolutions"
    return tune.targets != "attention" and isinstance(layer, Conv2d)


def lora_of(stage: Stage, averages: dict[str, Tensor], about: dict[str, str]) -> LoRA:
    """The LoRA that a stage's branches are.

    stage      from `prepare`
    averages   of its trained parameters, by name
    about      strings for the file's header
    """
    updates = {}
    for name, layer in stage.unet.named_modules():
        if isinstance(layer, Trained):
            start = f"{name}."
            own = {k.removeprefix(start): v for k, v in averages.items() if k.startswith(start)}
            updates[name] = layer.update_with({k: v.detach().clone() for k, v in own.items()})
    return LoRA(stage.config, updates, about)
