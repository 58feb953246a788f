"""Names of DeepFloyd IF's tensors: our network's against both published layouts.

Each of our tensors is made of one or more of theirs. Tables only: no files are read here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from ..unet.adm import ADMConfig

Layout = Literal["imagen", "diffusers", "original"]


@dataclass(frozen=True)
class Entry:
    """How one of our tensors is stored in a foreign file.

    ours      name in `ADMUNet.state_dict()`
    theirs    foreign names; several are stacked along the first dimension
    parts     rows of a single foreign tensor interleave this many parts head by head; 1 = they do not
    trailing  the foreign tensor has a trailing dimension of 1 (a one-tap convolution)
    """

    ours: str
    theirs: tuple[str, ...]
    parts: int = 1
    trailing: bool = False

    def read(self, tensors: list[Tensor], head_dim: int) -> Tensor:
        """Our tensor from theirs.

        tensors    in the order of `theirs`
        head_dim   rows of one head and part
        """
        tensor = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        if self.trailing:
            tensor = tensor.squeeze(-1)
        if self.parts > 1:
            pattern = "(heads parts d) ... -> (parts heads d) ..."
            tensor = rearrange(tensor, pattern, parts=self.parts, d=head_dim)
        return tensor

    def write(self, tensor: Tensor, head_dim: int) -> list[Tensor]:
        """Their tensors from ours: the inverse of `read`.

        head_dim   rows of one head and part
        """
        if self.parts > 1:
            pattern = "(parts heads d) ... -> (heads parts d) ..."
            tensor = rearrange(tensor, pattern, parts=self.parts, d=head_dim)
        if self.trailing:
            tensor = tensor.unsqueeze(-1)
        return list(tensor.chunk(len(self.theirs)))


DIFFUSERS_RES = {
    "norm_1": "norm1",
    "conv_1": "conv1",
    "embedding": "time_emb_proj",
    "norm_2": "norm2",
    "conv_2": "conv2",
    "skip": "conv_shortcut",
}
ORIGINAL_RES = {
    "norm_1": "in_layers.0",
    "conv_1": "in_layers.2",
    "embedding": "emb_layers.1",
    "norm_2": "out_layers.0",
    "conv_2": "out_layers.3",
    "skip": "skip_connection",
}
DIFFUSERS_TOP = {
    "time_embedding.linear_1": "time_embedding.linear_1",
    "time_embedding.linear_2": "time_embedding.linear_2",
    "aug_embedding.linear_1": "class_embedding.linear_1",
    "aug_embedding.linear_2": "class_embedding.linear_2",
    "text_proj": "encoder_hid_proj",
    "pooled_text.norm_1": "add_embedding.norm1",
    "pooled_text.pool": "add_embedding.pool",
    "pooled_text.proj": "add_embedding.proj",
    "pooled_text.norm_2": "add_embedding.norm2",
    "conv_in": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
ORIGINAL_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "aug_embedding.linear_1": "aug_proj.0",
    "aug_embedding.linear_2": "aug_proj.2",
    "text_proj": "encoder_proj",
    "pooled_text.norm_1": "encoder_pooling.0",
    "pooled_text.pool": "encoder_pooling.1",
    "pooled_text.proj": "encoder_pooling.2",
    "pooled_text.norm_2": "encoder_pooling.3",
    "conv_in": "input_blocks.0.0",
    "norm_out": "out.0",
    "conv_out": "out.2",
}


def blocks(config: ADMConfig) -> Iterator[tuple[str, str, str, str, str]]:
    """Every block as (ours, diffusers residual, diffusers attention, original residual, original attention).

    config   gives the number of levels and blocks, and where attention is
    """
    levels = len(config.channels)
    index = 1
    for level, count in enumerate(config.num_res_blocks):
        for r in range(count):
            theirs = f"down_blocks.{level}"
            yield (
                f"down.{level}.{r}",
                f"{theirs}.resnets.{r}",
                f"{theirs}.attentions.{r}",
                f"input_blocks.{index}.0",
                f"input_blocks.{index}.1",
            )
            index += 1
        if level < levels - 1:
            theirs = f"down_blocks.{level}.downsamplers.0"
            yield f"down.{level}.{count}", theirs, "", f"input_blocks.{index}.0", ""
            index += 1
    middle = ("mid_block.resnets.0", "mid_block.attentions.0", "middle_block.0", "middle_block.1")
    yield "middle.0", *middle
    yield "middle.1", "mid_block.resnets.1", "", "middle_block.2", ""
    index = 0
    for up, level in enumerate(reversed(range(levels))):
        count = config.num_res_blocks[level] + 1
        for r in range(count):
            theirs = f"up_blocks.{up}"
            yield (
                f"up.{up}.{r}",
                f"{theirs}.resnets.{r}",
                f"{theirs}.attentions.{r}",
                f"output_blocks.{index}.0",
                f"output_blocks.{index}.1",
            )
            index += 1
        if level > 0:
            child = 2 if config.attention[level] else 1
            theirs = f"output_blocks.{index - 1}.{child}"
            yield f"upsample.{up}", f"up_blocks.{up}.upsamplers.0", "", theirs, ""


def attention_entries(
    ours: str, diffusers: str, original: str, layout: Layout, parts: int
) -> list[Entry]:
    """Entries of one attention layer.

    ours, diffusers, original   the layer's prefixes
    parts                       3 where the layer attends to the image too, else 1
    """
    entries = []
    if layout == "diffusers":
        image = ("to_q", "to_k", "to_v")[:parts]
        table = {
            "norm": ("group_norm",),
            "text_norm": ("norm_cross",),
            "qkv": image,
            "text_kv": ("add_k_proj", "add_v_proj"),
            "proj_out": ("to_out.0",),
        }
        for name, theirs in table.items():
            for kind in ("weight", "bias"):
                names = tuple(f"{diffusers}.{part}.{kind}" for part in theirs)
                entries.append(Entry(f"{ours}.{name}.{kind}", names))
        return entries
    table = {
        "norm": ("norm", 1, False),
        "text_norm": ("norm_encoder", 1, False),
        "qkv": ("qkv", parts, True),
        "text_kv": ("encoder_kv", 2, True),
        "proj_out": ("proj_out", 1, True),
    }
    for name, (theirs, count, conv) in table.items():
        for kind in ("weight", "bias"):
            trailing = conv and kind == "weight"
            entries.append(
                Entry(f"{ours}.{name}.{kind}", (f"{original}.{theirs}.{kind}",), count, trailing)
            )
    return entries


def entries(config: ADMConfig, layout: Layout, names: set[str]) -> list[Entry]:
    """The table of a network: one entry for each of our tensors.

    names    our tensors, as `ADMUNet.state_dict()` names them
    """
    res, top = (
        (DIFFUSERS_RES, DIFFUSERS_TOP) if layout == "diffusers" else (ORIGINAL_RES, ORIGINAL_TOP)
    )
    table = [
        Entry(name, (theirs + name.removeprefix(ours),))
        for ours, theirs in top.items()
        for name in names
        if name.startswith(ours + ".")
    ]
    for ours, res_d, attention_d, res_o, attention_o in blocks(config):
        prefix = res_d if layout == "diffusers" else res_o
        for leaf, theirs in res.items():
            for kind in ("weight", "bias"):
                name = f"{ours}.res.{leaf}.{kind}"
                if name in names:
                    table.append(Entry(name, (f"{prefix}.{theirs}.{kind}",)))
        if f"{ours}.attention.qkv.weight" in names:
            parts = 3 if config.self_attention else 1
            table += attention_entries(f"{ours}.attention", attention_d, attention_o, layout, parts)
    return table
