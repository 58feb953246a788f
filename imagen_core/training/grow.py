"""A larger network that begins with what a smaller one has learnt.

For twice the resolution, its levels under a new first level: most of a training then runs at a resolution
where it costs a fourth, and what the network knows of things keeps its scale. Progressive growing,
arXiv:1710.10196, of a U-Net for diffusion. Or with parts of its own: text attention at more of its levels,
convolutions at the resolution of the picture.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..stage import build_unet
from ..unet.adm import ADMConfig, ADMUNet


def grows_from(config: ADMConfig) -> ADMConfig:
    """The shape of a network that one of this shape can grow from: without its first level and pixels."""
    return replace(
        config,
        channels=config.channels[1:],
        num_res_blocks=config.num_res_blocks[1:],
        attention=config.attention[1:],
        pixel_channels=0,
    )


def lacks_parts(small: Any, config: ADMConfig) -> bool:
    """Whether a shape is this one but for attention at some levels, or convolutions of pixels."""
    if not isinstance(small, ADMConfig) or len(small.attention) != len(config.attention):
        return False
    pairs = zip(small.attention, config.attention, strict=True)
    fewer = all(there or not here for here, there in pairs)
    parts = {"attention": config.attention, "pixel_channels": config.pixel_channels}
    fewer &= small.pixel_channels in (0, config.pixel_channels)
    return small != config and fewer and replace(small, **parts) == config


def grown(small: nn.Module, config: Any) -> ADMUNet:
    """A new network that holds a copy of a smaller one's weights.

    small    an ADMUNet whose shape is `grows_from(config)`, or `config` without some of its parts
    config   an ADMConfig; for a new level: whose first two are equally wide, and the first attends to no text

    ValueError where they do not fit. A new level begins by passing on what comes in, halved, then doubled;
    a new part begins by adding nothing.
    """
    new_level = not lacks_parts(small.config, config)
    if new_level and (
        small.config != grows_from(config)
        or config.channels[0] != config.channels[1]
        or config.attention[0]
    ):
        raise ValueError(
            f"expected a network of the same shape without the first level, which must be as wide as the "
            f"second one and attend to no text: {grows_from(config)}, or one that lacks attention at some "
            f"levels or pixel_channels; got {small.config}"
        )
    network = build_unet(config)
    assert isinstance(network, ADMUNet)
    kept = small.state_dict()
    if new_level:
        kept = {deeper(name): value for name, value in kept.items()}
        for name, module in network.up[-1].named_modules():
            if name.endswith("res.skip"):
                pass_on(module)
    network.load_state_dict({**network.state_dict(), **kept})
    return network.to(next(small.parameters()).device)


def deeper(name: str) -> str:
    """A weight's name in the larger network: encoder levels move down by one, all others stay."""
    first, *rest = name.split(".")
    return ".".join([first, str(int(rest[0]) + 1), *rest[1:]]) if first == "down" else name


@torch.no_grad()
def pass_on(skip: nn.Module) -> None:
    """Let a block's residual path hand on its first channels, and nothing of what the encoder left."""
    weight = getattr(skip, "weight", None)
    if isinstance(weight, Tensor):
        nn.init.dirac_(weight)
        nn.init.zeros_(skip.get_parameter("bias"))
