"""DeepFloyd IF's network in diffusers' unet/config.json: read, every key heeded or refused, and written.

Keys and defaults are those of diffusers' UNet2DConditionModel.
"""

import math
from typing import Any

from ..unet.adm import ADMConfig

BASE_SIDE, SR_SIDE, LARGEST_FIRST_SIDE = 64, 256, 256  # pixels
MOST = 2**16  # of any size in a configuration

HAD = {
    "_class_name": ("UNet2DConditionModel",),
    "center_input_sample": (False,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_type": ("UNetMidBlock2DSimpleCrossAttn",),
    "norm_num_groups": (32,),
    "norm_eps": (1e-5,),
    "encoder_hid_dim_type": ("text_proj", None),
    "num_attention_heads": (None,),
    "class_embed_type": ("timestep", None),
    "addition_embed_type": ("text",),
    "num_class_embeds": (None,),
    "resnet_time_scale_shift": ("scale_shift",),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    "class_embeddings_concat": (False,),
    "cross_attention_norm": ("group_norm",),
    "out_channels": (3, 6),
}
"""What this network has of keys that name a kind of layer, or switch one on."""

READ = (
    "sample_size",
    "in_channels",
    "down_block_types",
    "up_block_types",
    "only_cross_attention",
    "mid_block_only_cross_attention",
    "block_out_channels",
    "layers_per_block",
    "mid_block_scale_factor",
    "act_fn",
    "cross_attention_dim",
    "encoder_hid_dim",
    "attention_head_dim",
    "addition_embed_type_num_heads",
    "resnet_skip_time_act",
    "resnet_out_scale_factor",
    "time_embedding_dim",
    "time_embedding_act_fn",
)
WITHOUT_EFFECT = (
    "downsample_padding",
    "dropout",
    "transformer_layers_per_block",
    "reverse_transformer_layers_per_block",
    "dual_cross_attention",
    "use_linear_projection",
    "addition_time_embed_dim",
    "upcast_attention",
    "projection_class_embeddings_input_dim",
)
"""Keys that change nothing in a network of IF's blocks when it is evaluated."""

DEFAULTS = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": None,
    "in_channels": 4,
    "out_channels": 4,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "mid_block_only_cross_attention": None,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "attention_head_dim": 8,
    "num_attention_heads": None,
    "class_embed_type": None,
    "addition_embed_type": None,
    "addition_embed_type_num_heads": 64,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "cross_attention_norm": None,
}
ACTIVATIONS = {"gelu": "gelu", "silu": "silu", "swish": "silu"}
KINDS = {
    False: ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"),
    True: ("SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D"),
}
"""A level's halves, by whether it has attention."""


def from_diffusers(config: dict[str, Any]) -> ADMConfig:
    """The shape in diffusers' unet/config.json; ValueError names a key that this network cannot honour."""
    given = {**DEFAULTS, **{key: config[key] for key in config}}
    for key, known in HAD.items():
        require(key, given[key] in known, f"one of {list(known)}", given[key])
    for key in given.keys() - {*HAD, *READ, *WITHOUT_EFFECT}:
        known = key.startswith("_") or given[key] in (None, False)
        require(key, known, "no such key, which this network does not know", given[key])
    attention = levels(given)
    count = len(attention)
    width = whole("cross_attention_dim", same(given, "cross_attention_dim", count))
    projected = given["encoder_hid_dim"] is not None
    text_dim = whole("encoder_hid_dim", given["encoder_hid_dim"]) if projected else width
    kind = given["encoder_hid_dim_type"]
    require("encoder_hid_dim_type", projected or kind is None, "null without encoder_hid_dim", kind)
    heads = whole("addition_embed_type_num_heads", given["addition_embed_type_num_heads"])
    divides = text_dim % heads == 0
    require("addition_embed_type_num_heads", divides, f"a number that divides {text_dim}", heads)
    channels = each(given, "block_out_channels", count)
    head_dim = whole("attention_head_dim", same(given, "attention_head_dim", count))
    check_heads("attention_head_dim", head_dim, channels, attention)
    own_time = given["time_embedding_dim"]
    once = activated_once(given)
    return ADMConfig(
        channels=channels,
        num_res_blocks=each(given, "layers_per_block", count),
        attention=attention,
        text_dim=text_dim,
        context_dim=width,
        time_dim=whole("time_embedding_dim", own_time) if own_time else 4 * channels[0],
        head_dim=head_dim,
        pool_heads=heads,
        out_channels=given["out_channels"],
        activation=activation_of(given, "act_fn"),
        lowres=sees_lowres(given),
        self_attention=not crosses_only(given, attention),
        activate_embedding_once=once,
        residual_scale=residual_scale(given),
        text_proj=projected and text_dim == width,
    )


def side_of(config: dict[str, Any]) -> int:
    """The nominal side of what the network makes, in pixels."""
    side = config.get("sample_size")
    if side is None:
        return SR_SIDE if config.get("class_embed_type") == "timestep" else BASE_SIDE
    square = isinstance(side, (list, tuple)) and len(side) == 2 and side[0] == side[1]
    return whole("sample_size", side[0] if square else side)


def require(key: str, good: bool, expected: str, value: Any) -> None:
    """Raise ValueError unless a key's value is good.

    expected   in words
    """
    if not good:
        raise ValueError(f"{key}: expected {expected}, got {value!r}")


def whole(key: str, value: Any) -> int:
    """The value of a key that is a size."""
    good = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST
    require(key, good, f"a whole number from 1 to {MOST}", value)
    return value


def each(given: dict[str, Any], key: str, count: int) -> tuple[int, ...]:
    """The sizes of all levels, of a key that gives one for all or one a level.

    count   levels
    """
    value = given[key]
    values = value if isinstance(value, (list, tuple)) else [value] * count
    require(key, len(values) == count, f"{count} values, one a level", value)
    return tuple(whole(key, each) for each in values)


def same(given: dict[str, Any], key: str, count: int) -> Any:
    """The one value of a key that may give one a level.

    count   levels
    """
    value = given[key]
    if not isinstance(value, (list, tuple)):
        return value
    require(key, len(value) == count, f"{count} values, one a level", value)
    require(key, all(each == value[0] for each in value), "the same in all levels", value)
    return value[0]


def check_heads(
    key: str, head_dim: int, channels: tuple[int, ...], attention: tuple[bool, ...]
) -> None:
    """Raise ValueError unless the width of every level with attention, the middle too, is whole heads.

    head_dim    width of a head
    attention   which of them have it
    """
    there = [width for width, has in zip(channels, attention, strict=True) if has]
    for width in (*there, channels[-1]):
        require(key, width % head_dim == 0, f"a width of heads that divides {width}", head_dim)


def levels(given: dict[str, Any]) -> tuple[bool, ...]:
    """Whether each level has attention, from the kinds of its blocks."""
    by_kind = {down: there for there, (down, _) in KINDS.items()}
    down, up = (given.get(key, []) for key in ("down_block_types", "up_block_types"))
    good = isinstance(down, (list, tuple)) and 0 < len(down) <= 16
    good = good and all(isinstance(kind, str) and kind in by_kind for kind in down)
    require("down_block_types", good, f"a list of {list(by_kind)}", down)
    attention = tuple(by_kind[kind] for kind in down)
    mirrored = [KINDS[there][1] for there in reversed(attention)]
    good = isinstance(up, (list, tuple)) and list(up) == mirrored
    require("up_block_types", good, f"down_block_types mirrored, {mirrored}", up)
    return attention


def sees_lowres(given: dict[str, Any]) -> bool:
    """Whether the network sees a low-resolution picture and the level of its noise."""
    kind, channels = given["class_embed_type"], given["in_channels"]
    expected = 6 if kind == "timestep" else 3
    require(
        "in_channels", channels == expected, f"{expected} with class_embed_type {kind!r}", channels
    )
    return kind == "timestep"


def activation_of(given: dict[str, Any], key: str) -> Any:
    """The activation that a key names."""
    name = given[key]
    known = isinstance(name, str) and name in ACTIVATIONS
    require(key, known, f"one of {list(ACTIVATIONS)}", name)
    return ACTIVATIONS[name]


def activated_once(given: dict[str, Any]) -> bool:
    """Whether the summed embedding is activated once for all blocks, as both keys must say alike."""
    once, kind = given["resnet_skip_time_act"], given["time_embedding_act_fn"]
    require("resnet_skip_time_act", isinstance(once, bool), "true or false", once)
    if once and kind is None:
        raise ValueError(
            "resnet_skip_time_act: expected a time_embedding_act_fn beside it, got None"
        )
    require(
        "time_embedding_act_fn", once or kind is None, "null without resnet_skip_time_act", kind
    )
    if once:
        alike = activation_of(given, "time_embedding_act_fn") == activation_of(given, "act_fn")
        require("time_embedding_act_fn", alike, f"act_fn's {given['act_fn']!r}", kind)
    return once


def crosses_only(given: dict[str, Any], attention: tuple[bool, ...]) -> bool:
    """Whether image positions attend to the text alone, which must hold of the whole network."""
    only, middle = given["only_cross_attention"], given["mid_block_only_cross_attention"]
    per_level = isinstance(only, (list, tuple))
    values = list(only) if per_level else [only] * len(attention)
    good = len(values) == len(attention) and all(isinstance(value, bool) for value in values)
    require("only_cross_attention", good, "true or false, or one a level", only)
    middle = (not per_level and only) if middle is None else middle
    require("mid_block_only_cross_attention", isinstance(middle, bool), "true or false", middle)
    found = {value for value, there in zip(values, attention, strict=True) if there}
    if found - {middle}:
        raise ValueError(
            f"only_cross_attention and mid_block_only_cross_attention: expected the same in all levels "
            f"and in the middle, got {only!r} and {middle!r}"
        )
    return middle


def residual_scale(given: dict[str, Any]) -> float:
    """What residual sums are multiplied by: diffusers divides, the original multiplies by 0.7071."""
    keys = ("resnet_out_scale_factor", "mid_block_scale_factor")
    out, middle = (given[key] for key in keys)
    for key, value in zip(keys, (out, middle), strict=True):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        require(key, number and 1e-3 < value < 1e3, "a positive number", value)
    if not math.isclose(out, middle, rel_tol=1e-6):
        raise ValueError(f"{' and '.join(keys)}: expected the same, got {out} and {middle}")
    scale = round(1 / out, 6)
    return scale if math.isclose(scale, 1 / out, rel_tol=1e-6) else 1 / out


def to_diffusers(config: ADMConfig, side: int | None = None) -> dict[str, Any]:
    """The unet/config.json that `from_diffusers` reads back, whole for diffusers' own loader.

    side     nominal side of what it makes, in pixels; None = DeepFloyd IF's
    """
    scale = 1 / config.residual_scale
    projected = config.text_proj or config.text_dim != config.context_dim
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
        "down_block_types": [KINDS[there][0] for there in config.attention],
        "encoder_hid_dim": config.text_dim if projected else None,
        "encoder_hid_dim_type": "text_proj" if projected else None,
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
        "sample_size": side or (SR_SIDE if config.lowres else BASE_SIDE),
        "time_embedding_act_fn": config.activation if config.activate_embedding_once else None,
        "time_embedding_dim": config.time_dim,
        "up_block_types": [KINDS[there][1] for there in reversed(config.attention)],
    }
