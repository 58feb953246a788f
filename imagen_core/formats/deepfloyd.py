"""What a DeepFloyd IF network is: its configuration in diffusers' and in the original layout.

Read from config.json, from config.yml, or off the tensors of a lone file; written for both.
"""

import json
from itertools import count
from pathlib import Path
from typing import Any

import torch

from ..diffusion.schedules import DiscreteSchedule
from ..stage import SamplingDefaults, StageConfig
from ..unet.adm import ADMConfig
from ..weights.errors import CheckpointError
from .deepfloyd_names import DIFFUSERS_TOP, ORIGINAL_TOP, Layout

RESIDUAL_SCALE = 0.7071  # of stage II, literal in the original
BASE_DEFAULTS = SamplingDefaults("smart100", "ddpm", 7.0, percentile=0.95, max_value=1.5)
SR_DEFAULTS = SamplingDefaults("smart50", "ddpm", 4.0, aug_level=0.25)
Shapes = dict[str, tuple[int, ...]]


def find_layout(shapes: Shapes) -> Layout | None:
    """Which published layout tensors are in; None where they are no DeepFloyd IF network.

    shapes   by name
    """
    if "add_embedding.pool.q_proj.weight" in shapes:
        return "diffusers"
    return "original" if "encoder_pooling.1.q_proj.weight" in shapes else None


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


def read_config(path: Path, shapes: Shapes, layout: Layout) -> StageConfig:
    """The stage's configuration: from config.json or config.yml beside the weights, else from them.

    path     of a file of the weights
    shapes   by name
    layout   "diffusers" or "original"
    """
    folder = path.parent
    try:
        if layout == "diffusers" and (folder / "config.json").is_file():
            found = json.loads((folder / "config.json").read_text("utf-8"))
            if "block_out_channels" in found:
                return stage_config(from_diffusers(found))
        if layout == "original" and (folder / "config.yml").is_file():
            return stage_config(from_original(read_yaml(folder / "config.yml"), shapes))
        return stage_config(from_shapes(shapes, layout))
    except (OSError, AttributeError, KeyError, ValueError, TypeError, IndexError) as error:
        raise CheckpointError(
            f"{path}: not the shape of a DeepFloyd IF network: {error!r}"
        ) from error


def read_yaml(path: Path) -> Any:
    """The data in a YAML file, its plain part only.

    path   of the file
    """
    import yaml

    try:
        return yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise CheckpointError(f"{path}: not YAML: {str(error).splitlines()[0]}") from error


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
        # diffusers divides by this, the original multiplies by 0.7071
        residual_scale=round(1 / config.get("resnet_out_scale_factor", 1.0), 6),
    )


def to_diffusers(config: ADMConfig) -> dict[str, Any]:
    """The unet/config.json that `from_diffusers` reads back, whole for diffusers' own loader.

    config   of the network
    """
    levels = ["CrossAttn" if there else "Resnet" for there in config.attention]
    kinds = {
        "Resnet": ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"),
        "CrossAttn": ("SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D"),
    }
    scale = 1 / config.residual_scale
    return {
        "_class_name": "UNet2DConditionModel",
        "act_fn": config.activation,
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": config.pool_heads,
        "attention_head_dim": config.head_dim,
        "block_out_channels": list(config.channels),
        "class_embed_type": "timestep" if config.lowres else None,
        "cross_attention_dim": config.context_dim,
        "cross_attention_norm": "group_norm",
        "down_block_types": [kinds[level][0] for level in levels],
        "encoder_hid_dim": config.text_dim,
        "encoder_hid_dim_type": "text_proj",
        "in_channels": 6 if config.lowres else 3,
        "layers_per_block": list(config.num_res_blocks),
        "mid_block_scale_factor": scale,
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "norm_num_groups": config.groups,
        "only_cross_attention": not config.self_attention,
        "out_channels": config.out_channels,
        "resnet_out_scale_factor": scale,
        "resnet_skip_time_act": config.activate_embedding_once,
        "resnet_time_scale_shift": "scale_shift",
        "sample_size": 256 if config.lowres else 64,
        "time_embedding_act_fn": config.activation if config.activate_embedding_once else None,
        "time_embedding_dim": config.time_dim,
        "up_block_types": [kinds[level][1] for level in reversed(levels)],
    }


def from_original(config: dict[str, Any], shapes: Shapes) -> ADMConfig:
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


def to_original(config: ADMConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The config.yml that `from_original` reads back, whole for the original's own constructor.

    config   of the network
    dtype    of the weights
    """
    first = config.channels[0]
    if any(width % first for width in config.channels):
        raise CheckpointError(
            f"the original layout needs widths that are multiples of the first, got {config.channels}"
        )
    size = 256 if config.lowres else 64
    attended = [str(size >> level) for level, there in enumerate(config.attention) if there]
    precision = {torch.float16: "16", torch.bfloat16: "bf16"}.get(dtype, "32")
    params = {
        "in_channels": 6 if config.lowres else 3,
        "model_channels": first,
        "out_channels": config.out_channels,
        "num_res_blocks": list(config.num_res_blocks),
        "attention_resolutions": ",".join(attended),
        "activation": config.activation,
        "encoder_dim": config.text_dim,
        "att_pool_heads": config.pool_heads,
        "encoder_channels": config.context_dim,
        "image_size": size,
        "disable_self_attentions": None if config.self_attention else ",".join(attended),
        "dropout": 0.0,
        "channel_mult": ",".join(str(width // first) for width in config.channels),
        "conv_resample": True,
        "num_head_channels": config.head_dim,
        "use_scale_shift_norm": True,
        "resblock_updown": True,
        "efficient_activation": config.activate_embedding_once,
        "scale_skip_connection": config.residual_scale != 1.0,
        "precision": precision,
    }
    return {"params": params}


def from_shapes(shapes: Shapes, layout: Layout) -> ADMConfig:
    """The shape of a network whose file lies alone; head widths and activation are IF's.

    shapes   by name
    layout   "diffusers" or "original"
    """
    levels = diffusers_levels(shapes) if layout == "diffusers" else original_levels(shapes)
    if layout == "diffusers":
        top, norm = DIFFUSERS_TOP, "mid_block.attentions.0.norm_cross.weight"
        self_attention = "mid_block.attentions.0.to_k.weight" in shapes
    else:
        top, norm = ORIGINAL_TOP, "middle_block.1.norm_encoder.weight"
        rows, columns = shapes["middle_block.1.qkv.weight"][:2]
        self_attention = rows == 3 * columns
    lowres = top["aug_embedding.linear_1"] + ".weight" in shapes
    return ADMConfig(
        channels=tuple(width for width, _, _ in levels),
        num_res_blocks=tuple(count for _, count, _ in levels),
        attention=tuple(attention for _, _, attention in levels),
        text_dim=shapes[top["pooled_text.norm_1"] + ".weight"][0],
        context_dim=shapes[norm][0],
        time_dim=shapes[top["time_embedding.linear_1"] + ".weight"][0],
        out_channels=shapes[top["conv_out"] + ".weight"][0],
        lowres=lowres,
        self_attention=self_attention,
        activate_embedding_once=lowres,
        residual_scale=RESIDUAL_SCALE if lowres else 1.0,
    )


def diffusers_levels(shapes: Shapes) -> list[tuple[int, int, bool]]:
    """Width, number of residual blocks and whether there is attention, of each level.

    shapes   by name, in diffusers' layout
    """
    levels = []
    for level in range(number_of("down_blocks.{}.resnets.0.conv1.weight", shapes)):
        blocks = number_of(f"down_blocks.{level}.resnets.{{}}.conv1.weight", shapes)
        width = shapes[f"down_blocks.{level}.resnets.0.conv1.weight"][0]
        attention = f"down_blocks.{level}.attentions.0.group_norm.weight" in shapes
        levels.append((width, blocks, attention))
    return levels


def number_of(pattern: str, names: Shapes) -> int:
    """How many names there are of a pattern, numbered from 0 without a gap.

    pattern   with {} for the number
    names     of the tensors
    """
    return next(k for k in count() if pattern.format(k) not in names)


def original_levels(shapes: Shapes) -> list[tuple[int, int, bool]]:
    """Width, number of residual blocks and whether there is attention, of each level.

    shapes   by name, in the original layout: where a level ends is seen in the decoder alone, whose
             up-sampling block is the last child of a level's last block
    """
    runs, run = [], 0
    for i in range(number_of("output_blocks.{}.0.in_layers.2.weight", shapes)):
        run += 1
        if any(f"output_blocks.{i}.{child}.in_layers.2.weight" in shapes for child in (1, 2)):
            runs.append(run)
            run = 0
    levels, first = [], 1
    for blocks in reversed([*runs, run]):
        width = shapes[f"input_blocks.{first}.0.in_layers.2.weight"][0]
        levels.append((width, blocks - 1, f"input_blocks.{first}.1.qkv.weight" in shapes))
        first += blocks
    return levels
