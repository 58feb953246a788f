"""What a DeepFloyd IF network is: its configuration in diffusers' and in the original layout.

Read from config.json (diffusers_config), from config.yml, or off the tensors of a lone file.
"""

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch

from ..diffusion.schedules import DiscreteSchedule
from ..stage import SamplingDefaults, StageConfig
from ..unet.adm import ADMConfig
from ..weights.errors import CheckpointError
from ..weights.files import read_json
from .deepfloyd_names import DIFFUSERS_TOP, ORIGINAL_TOP, Layout
from .diffusers_config import (
    BASE_SIDE,
    LARGEST_FIRST_SIDE,
    SR_SIDE,
    check_heads,
    from_diffusers,
    require,
    side_of,
    whole,
)

RESIDUAL_SCALE = 0.7071  # of stage II, literal in the original
BASE_DEFAULTS = SamplingDefaults("smart100", "ddpm", 7.0, percentile=0.95, max_value=1.5)
SR_DEFAULTS = SamplingDefaults("smart50", "ddpm", 4.0, aug_level=0.25)
Shapes = dict[str, tuple[int, ...]]
MOST_YAML, MOST_DEPTH = 2**16, 8  # bytes, levels
SIGNS: dict[Layout, str] = {
    "diffusers": "add_embedding.pool.q_proj.weight",
    "original": "encoder_pooling.1.q_proj.weight",
}
"""A tensor that only DeepFloyd IF's networks have, in each layout."""
ORIGINAL_HAS = {
    "dims": 2,
    "resblock_updown": True,
    "use_scale_shift_norm": True,
    "interpolate_mode": "bilinear",
}
"""What the original's networks have of keys that name a kind of layer, or switch one on."""


def find_layout(shapes: Shapes) -> Layout | None:
    """Which published layout tensors are in; None where they are no DeepFloyd IF network."""
    return next((layout for layout, sign in SIGNS.items() if sign in shapes), None)


def stage_config(config: ADMConfig, side: int | None = None) -> StageConfig:
    """The stage that a DeepFloyd IF network is: an SR stage where it sees a low-resolution picture.

    side     nominal side of what it makes, in pixels; None = DeepFloyd IF's
    """
    sr = config.lowres
    side = side or (SR_SIDE if sr else BASE_SIDE)
    return StageConfig(
        kind="sr" if sr else "base",
        resolution=side,
        scale=enlargement(side) if sr else 1,
        unet=config,
        schedule=DiscreteSchedule(),
        prediction="eps",
        defaults=SR_DEFAULTS if sr else BASE_DEFAULTS,
        align_corners=True,
    )


def enlargement(side: int) -> int:
    """How many times an SR stage enlarges, which no published configuration says: a stage of up to 256
    pixels is taken to come after 64, a larger one after 256; 4 where that gives no whole number.

    side   nominal side of what it makes, in pixels
    """
    before = BASE_SIDE if side <= LARGEST_FIRST_SIDE else LARGEST_FIRST_SIDE
    return side // before if side % before == 0 and side > before else 4


def read_config(path: Path, shapes: Shapes, layout: Layout) -> StageConfig:
    """The stage's configuration: from config.json or config.yml beside the weights, else from them."""
    source = path.with_name("config.json" if layout == "diffusers" else "config.yml")
    top = DIFFUSERS_TOP if layout == "diffusers" else ORIGINAL_TOP
    side = None
    try:
        data = {}
        if source.is_file():
            data = read_json(source) if layout == "diffusers" else read_yaml(source)
        if layout == "diffusers" and "block_out_channels" in data:
            config, side = from_diffusers(data), side_of(data)
        elif data and layout == "original":
            config, side = (
                from_original(data, shapes),
                whole("image_size", data["params"]["image_size"]),
            )
        else:
            source, config = path, from_shapes(shapes, layout)
        projected = top["text_proj"] + ".weight" in shapes
        config = replace(config, text_proj=projected and config.text_dim == config.context_dim)
        return stage_config(config, side)
    except (OSError, AttributeError, KeyError, ValueError, TypeError, IndexError) as error:
        told = error if isinstance(error, ValueError) else repr(error)
        raise CheckpointError(
            f"{source}: not the shape of a DeepFloyd IF network: {told}"
        ) from error


def other_network(path: Path) -> str:
    """Why the network of a configuration beside some weights is none of IF's; "" = it does not say."""
    source = path.with_name("config.json")
    try:
        data = read_json(source) if source.is_file() else {}
        if "block_out_channels" in data:
            from_diffusers(data)
    except (KeyError, ValueError) as error:
        return f" ({source}: {error})"
    return ""


def read_yaml(path: Path) -> Any:
    """The data in a YAML file, its plain part only, without references that could multiply."""
    import yaml

    try:
        if path.stat().st_size > MOST_YAML:
            raise CheckpointError(f"{path}: expected less than {MOST_YAML} bytes of YAML")
        data, depth = path.read_bytes(), 0
        for event in yaml.parse(data):
            if isinstance(event, yaml.AliasEvent):
                raise CheckpointError(f"{path}: has references (*name), which are not read")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MOST_DEPTH:
                raise CheckpointError(f"{path}: is nested more than {MOST_DEPTH} deep")
        return yaml.safe_load(data)
    except (yaml.YAMLError, RecursionError, UnicodeError) as error:
        raise CheckpointError(f"{path}: not YAML: {str(error).splitlines()[0]}") from error


def from_original(config: dict[str, Any], shapes: Shapes) -> ADMConfig:
    """The shape in the original config.yml; ValueError names a key that this network cannot honour.

    shapes   of the tensors: whether attention sees the image is read off them
    """
    params = config["params"]
    for key, known in ORIGINAL_HAS.items():
        value = params.get(key, known)
        require(key, value == known, repr(known), value)
    multiples = numbers("channel_mult", params["channel_mult"])
    width = whole("model_channels", params["model_channels"])
    blocks = params["num_res_blocks"]
    blocks = blocks if isinstance(blocks, list) else [blocks] * len(multiples)
    wanted = numbers("attention_resolutions", params["attention_resolutions"])
    sizes = [whole("image_size", params["image_size"]) >> k for k in range(len(multiples))]
    qkv = shapes["middle_block.1.qkv.weight"]
    channels = tuple(width * m for m in multiples)
    attention = tuple(size in wanted for size in sizes)
    head_dim = whole("num_head_channels", params["num_head_channels"])
    check_heads("num_head_channels", head_dim, channels, attention)
    lowres = "aug_proj.0.weight" in shapes
    for key in ("efficient_activation", "scale_skip_connection"):
        require(key, isinstance(params.get(key, lowres), bool), "true or false", params.get(key))
    return ADMConfig(
        channels=channels,
        num_res_blocks=tuple(whole("num_res_blocks", count) for count in blocks),
        attention=attention,
        text_dim=whole("encoder_dim", params["encoder_dim"]),
        context_dim=whole("encoder_channels", params["encoder_channels"]),
        time_dim=width * max(multiples),
        head_dim=head_dim,
        pool_heads=whole("att_pool_heads", params["att_pool_heads"]),
        out_channels=whole("out_channels", params["out_channels"]),
        activation=params["activation"],
        lowres=lowres,
        self_attention=qkv[0] == 3 * qkv[1],
        activate_embedding_once=params.get("efficient_activation", lowres),
        residual_scale=RESIDUAL_SCALE if params.get("scale_skip_connection", lowres) else 1.0,
    )


def numbers(key: str, value: Any) -> list[int]:
    """The sizes that a key lists, as "1,2,4" or as a list."""
    parts = value.split(",") if isinstance(value, str) else value
    parts = parts if isinstance(parts, list) else [parts]
    require(key, 0 < len(parts) <= 16, "sizes such as 1,2,4", value)
    good = all(isinstance(part, int) or str(part).strip().isdecimal() for part in parts)
    require(key, good, "sizes such as 1,2,4", value)
    return [whole(key, int(part)) for part in parts]


def to_original(config: ADMConfig, dtype: torch.dtype, side: int | None = None) -> dict[str, Any]:
    """The config.yml that `from_original` reads back, whole for the original's own constructor.

    side     nominal side of what it makes, in pixels; None = DeepFloyd IF's
    """
    first = config.channels[0]
    if any(width % first for width in config.channels):
        raise CheckpointError(
            f"the original layout needs widths that are multiples of the first, got {config.channels}"
        )
    size = side or (SR_SIDE if config.lowres else BASE_SIDE)
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
    """The shape of a network whose file lies alone; head widths and activation are IF's."""
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
