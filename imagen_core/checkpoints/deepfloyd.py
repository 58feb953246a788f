"""DeepFloyd IF's published files -> Stage: diffusers' layout and the original one.

A folder with config.json or config.yml, its weights whole or in shards, or a lone file whose shape is
read off its tensors. Weights stay memory-mapped until each is placed.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..diffusion.schedules import DiscreteSchedule
from ..stage import SamplingDefaults, Stage, StageConfig, build_unet
from ..unet.adm import ADMConfig
from .deepfloyd_names import Entry, entries
from .errors import CheckpointError
from .weights import Tensors, open_all, weight_files

RESIDUAL_SCALE = 0.7071  # of stage II, literal in the original
BASE_DEFAULTS = SamplingDefaults("smart100", "ddpm", 7.0, percentile=0.95, max_value=1.5)
SR_DEFAULTS = SamplingDefaults("smart50", "ddpm", 4.0, aug_level=0.25)


def load_deepfloyd(
    path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Stage:
    """A DeepFloyd IF stage.

    path     a model's folder, its unet folder, or a file of weights
    device   where the weights go
    dtype    what the network is to compute in; None = as stored
    """
    path = Path(path)
    path = path / "unet" if (path / "unet").is_dir() else path
    files = weight_files(path)
    with open_all(files) as tensors:
        layout = "diffusers" if "conv_in.weight" in tensors.shapes else "original"
        config = read_shape(path, tensors.shapes, layout)
        with torch.device("meta"):
            unet = build_unet(config)
        expected = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
        table = entries(config, layout, set(expected))
        check_table(path, table, expected, tensors.shapes, config.head_dim)
        state = {
            entry.ours: place(entry, tensors, config.head_dim, device, dtype) for entry in table
        }
    unet.load_state_dict(state, assign=True)
    return Stage(stage_config(config), unet.requires_grad_(False).eval())


def stage_config(config: ADMConfig) -> StageConfig:
    """The stage that a DeepFloyd IF network is: stage II where it sees a low-resolution picture.

    config   of the network
    """
    sr = config.lowres
    return StageConfig(
        kind="sr" if sr else "base",
        resolution=256 if sr else 64,
        scale=4 if sr else 1,
        unet=config,
        schedule=DiscreteSchedule(),
        prediction="eps",
        defaults=SR_DEFAULTS if sr else BASE_DEFAULTS,
        align_corners=True,
    )


def read_shape(path: Path, shapes: dict[str, tuple[int, ...]], layout: str) -> ADMConfig:
    """The network's shape: from config.json or config.yml beside the weights, else from them.

    path     folder or file of the weights
    shapes   by name
    layout   "diffusers" or "original"
    """
    folder = path if path.is_dir() else path.parent
    try:
        if layout == "diffusers" and (folder / "config.json").is_file():
            return from_diffusers(json.loads((folder / "config.json").read_text("utf-8")))
        if layout == "original" and (folder / "config.yml").is_file():
            import yaml

            return from_original(yaml.safe_load((folder / "config.yml").read_text("utf-8")), shapes)
        if layout == "diffusers":
            return from_shapes(shapes)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise CheckpointError(
            f"{path}: not the shape of a DeepFloyd IF network: {error!r}"
        ) from error
    raise CheckpointError(f"{path}: expected config.yml beside weights in the original layout")


def from_diffusers(config: dict[str, Any]) -> ADMConfig:
    """The shape in diffusers' unet/config.json.

    config   parsed JSON
    """
    channels = tuple(config["block_out_channels"])
    blocks = config["layers_per_block"]
    lowres = config.get("class_embed_type") == "timestep"
    return ADMConfig(
        channels=channels,
        num_res_blocks=tuple([blocks] * len(channels) if isinstance(blocks, int) else blocks),
        attention=tuple("CrossAttn" in kind for kind in config["down_block_types"]),
        text_dim=config["encoder_hid_dim"],
        context_dim=config["cross_attention_dim"],
        time_dim=config.get("time_embedding_dim") or 4 * channels[0],
        head_dim=config["attention_head_dim"],
        pool_heads=config["addition_embed_type_num_heads"],
        groups=config["norm_num_groups"],
        out_channels=config["out_channels"],
        activation=config["act_fn"],
        lowres=lowres,
        self_attention=not config["only_cross_attention"],
        activate_embedding_once=bool(config.get("resnet_skip_time_act")),
        residual_scale=RESIDUAL_SCALE if lowres else 1.0,
    )


def from_original(config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> ADMConfig:
    """The shape in the original config.yml.

    config   parsed YAML
    shapes   of the tensors: whether attention sees the image is read off them
    """
    params = config["params"]
    multiples = [int(m) for m in str(params["channel_mult"]).split(",")]
    width = params["model_channels"]
    blocks = params["num_res_blocks"]
    blocks = [blocks] * len(multiples) if isinstance(blocks, int) else list(blocks)
    wanted = {int(r) for r in str(params["attention_resolutions"]).split(",")}
    sizes = [params["image_size"] >> level for level in range(len(multiples))]
    qkv = shapes["middle_block.1.qkv.weight"]
    lowres = "aug_proj.0.weight" in shapes
    return ADMConfig(
        channels=tuple(width * m for m in multiples),
        num_res_blocks=tuple(blocks),
        attention=tuple(size in wanted for size in sizes),
        text_dim=params["encoder_dim"],
        context_dim=params["encoder_channels"],
        time_dim=width * max(multiples),
        head_dim=params["num_head_channels"],
        pool_heads=params["att_pool_heads"],
        out_channels=params["out_channels"],
        activation=params["activation"],
        lowres=lowres,
        self_attention=qkv[0] == 3 * qkv[1],
        activate_embedding_once=bool(params.get("efficient_activation", lowres)),
        residual_scale=RESIDUAL_SCALE if params.get("scale_skip_connection", lowres) else 1.0,
    )


def from_shapes(shapes: dict[str, tuple[int, ...]]) -> ADMConfig:
    """The shape of a lone file in diffusers' layout; head width and activation are IF's.

    shapes   by name
    """

    def count(pattern: str) -> int:
        k = 0
        while pattern.format(k) in shapes:
            k += 1
        return k

    levels = count("down_blocks.{}.resnets.0.conv1.weight")
    lowres = "class_embedding.linear_1.weight" in shapes
    down = "down_blocks.{}.resnets.{}.conv1.weight"
    attention = "mid_block.attentions.0.{}.weight"
    return ADMConfig(
        channels=tuple(shapes[down.format(level, 0)][0] for level in range(levels)),
        num_res_blocks=tuple(
            count(f"down_blocks.{level}.resnets.{{}}.conv1.weight") for level in range(levels)
        ),
        attention=tuple(
            f"down_blocks.{level}.attentions.0.group_norm.weight" in shapes
            for level in range(levels)
        ),
        text_dim=shapes["add_embedding.norm1.weight"][0],
        context_dim=shapes[attention.format("norm_cross")][0],
        time_dim=shapes["time_embedding.linear_1.weight"][0],
        out_channels=shapes["conv_out.weight"][0],
        lowres=lowres,
        self_attention=attention.format("to_k") in shapes,
        activate_embedding_once=lowres,
        residual_scale=RESIDUAL_SCALE if lowres else 1.0,
    )


def check_table(
    path: Path,
    table: list[Entry],
    expected: dict[str, tuple[int, ...]],
    found: dict[str, tuple[int, ...]],
    head_dim: int,
) -> None:
    """Raise one CheckpointError that lists every missing, unexpected and mis-shaped tensor.

    path       for the error
    table      which foreign tensors make which of ours
    expected   our shapes by our names
    found      their shapes by their names
    head_dim   rows of one head and part
    """
    wanted: dict[str, tuple[int, ...]] = {}
    for entry in table:
        parts = entry.write(torch.empty(expected[entry.ours], device="meta"), head_dim)
        wanted |= {name: tuple(part.shape) for name, part in zip(entry.theirs, parts, strict=True)}
    lines = [f"missing {name} {list(wanted[name])}" for name in sorted(wanted.keys() - found)]
    lines += [f"unexpected {name} {list(found[name])}" for name in sorted(found.keys() - wanted)]
    lines += [
        f"{name}: expected {list(wanted[name])}, found {list(found[name])}"
        for name in sorted(wanted.keys() & found)
        if wanted[name] != found[name]
    ]
    if lines:
        raise CheckpointError(
            f"{path}: {len(lines)} tensors do not fit a DeepFloyd IF network:\n  "
            + "\n  ".join(lines)
        )


def place(
    entry: Entry,
    tensors: Tensors,
    head_dim: int,
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> Tensor:
    """One of our weights, where and as it is to be used.

    entry           its row of the table
    tensors         open files
    head_dim        rows of one head and part
    device, dtype   target; None = as stored
    """
    tensor = entry.read([tensors.get(name) for name in entry.theirs], head_dim)
    tensor = tensor.to(device, dtype)
    return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor.contiguous()
