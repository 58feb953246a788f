"""How LoRA files name the layers of our stages: our own names, and both of DeepFloyd IF's layouts.

Tables only: no files are read here.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..diffusion.schedules import DiscreteSchedule
from ..stage import StageConfig, build_unet
from ..unet.adm import ADMConfig
from .deepfloyd_names import Entry, Layout, entries


@dataclass(frozen=True, eq=False)
class Place:
    """Where in our network a foreign layer's update goes.

    layer   our layer's name
    rows    rows of our weight, in the foreign layer's order; None = all, in order
    """

    layer: str
    rows: Tensor | None = None


def weights_of(config: StageConfig) -> dict[str, Tensor]:
    """Our network's tensors on the meta device, by name."""
    with torch.device("meta"):
        return build_unet(config.unet).state_dict()


def has_published_names(config: StageConfig) -> bool:
    """Whether a network is of DeepFloyd IF's shape, so that its layers have names in both layouts."""
    unet = config.unet
    return (
        isinstance(unet, ADMConfig)
        and unet.patch == 1
        and unet.text_dim != unet.context_dim
        and isinstance(config.schedule, DiscreteSchedule)
    )


def places_of(config: StageConfig) -> dict[str, Place]:
    """Every name that a file may give to a layer of a stage, dotted."""
    layers = dict.fromkeys(name.rpartition(".")[0] for name in weights_of(config))
    found = {layer: Place(layer) for layer in layers}
    if has_published_names(config):
        found |= published_places(config, "original") | published_places(config, "diffusers")
    return found


def published_places(config: StageConfig, layout: Layout) -> dict[str, Place]:
    """The names that a published layout gives to the layers of a DeepFloyd IF network."""
    wanted = weights_of(config)
    assert isinstance(config.unet, ADMConfig)
    found = {}
    for entry in entries(config.unet, layout, set(wanted)):
        layer, _, kind = entry.ours.rpartition(".")
        if kind == "weight":
            rows = rows_of(entry, len(wanted[entry.ours]), config.unet.head_dim)
            for theirs, chosen in zip(entry.theirs, rows, strict=True):
                found[theirs.rpartition(".")[0]] = Place(layer, chosen)
    return found


def rows_of(entry: Entry, count: int, head_dim: int) -> list[Tensor | None]:
    """Which of our rows each foreign tensor of an entry is, in its own order; None = all, in order.

    entry      of the table of names
    count      rows of ours
    head_dim   rows of one head and part
    """
    if entry.parts == 1 and len(entry.theirs) == 1:
        return [None]
    rows = replace(entry, trailing=False).write(torch.arange(count)[:, None], head_dim)
    return [part.squeeze(-1) for part in rows]
