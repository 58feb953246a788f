"""Every key of diffusers' U-Net, changed one at a time on tiny networks: the same pictures, or its name.

Also what IF's own configurations do not have: a text that needs no projection, other sizes and scales.
"""

import contextlib
import inspect
import itertools
import json
import warnings

import pytest
import torch

from imagen_nodes.imagen_core import ADMConfig, CheckpointError, TextEmbedding, load_stage
from imagen_nodes.imagen_core.formats.convert import convert
from imagen_nodes.imagen_core.formats.deepfloyd import enlargement
from imagen_nodes.imagen_core.formats.diffusers_config import from_diffusers, to_diffusers

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers")
    diffusers.utils.logging.set_verbosity(diffusers.logging.CRITICAL)

SCALE = 1 / 0.7071
TINY = {
    1: ADMConfig((32, 64), (1, 1), (False, True), 48, 32, 64, 16, 4, out_channels=6),
    2: ADMConfig(
        (32, 64), (1, 1), (False, True), 48, 32, 64, 16, 4, out_channels=6, lowres=True,
        self_attention=False, activate_embedding_once=True, residual_scale=0.7071,
    ),
}  # fmt: skip
NONE = object()  # the key is not there
CROSS = ["SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D"]
PLAIN = ["ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"]
CHANGES = {
    "sample_size": [None, 16, [16, 16], [16, 24], "64"],
    "in_channels": [3, 4, 6, 7],
    "out_channels": [3, 4, 6],
    "center_input_sample": [True],
    "flip_sin_to_cos": [False],
    "freq_shift": [1],
    "down_block_types": [[CROSS[0], CROSS[0]], ["DownBlock2D", CROSS[0]], [PLAIN[0], PLAIN[0]]],
    "mid_block_type": [NONE, "UNetMidBlock2D", None],
    "up_block_types": [[CROSS[1], CROSS[1]], [PLAIN[1], CROSS[1]], [CROSS[1], "UpBlock2D"]],
    "only_cross_attention": [True, False, [True, False], [False, True]],
    "block_out_channels": [[64, 64], [32, 96]],
    "layers_per_block": [2, [1, 2]],
    "downsample_padding": [0],
    "mid_block_scale_factor": [2.0],
    "dropout": [0.5],
    "act_fn": [NONE, "gelu", "silu", "swish", "mish", "relu"],
    "norm_num_groups": [8, 16],
    "norm_eps": [1e-3],
    "cross_attention_dim": [64, [32, 32], [64, 32]],
    "transformer_layers_per_block": [2, [1, 2]],
    "reverse_transformer_layers_per_block": [[1, 1]],
    "encoder_hid_dim": [None, 32, 64],
    "encoder_hid_dim_type": [None, "text_proj", "image_proj", "text_image_proj", "ip_image_proj"],
    "attention_head_dim": [8, 32, [16, 16], [8, 16], 24],
    "num_attention_heads": [4],
    "dual_cross_attention": [True],
    "use_linear_projection": [True],
    "class_embed_type": [None, "timestep", "identity", "projection", "simple_projection"],
    "addition_embed_type": [None, "text_image", "image", "text_time"],
    "addition_time_embed_dim": [16],
    "num_class_embeds": [10],
    "upcast_attention": [True],
    "resnet_time_scale_shift": [NONE, "default", "ada_group", "spatial"],
    "resnet_skip_time_act": [True, False],
    "resnet_out_scale_factor": [2.0, 1.0],
    "time_embedding_type": ["fourier"],
    "time_embedding_dim": [None, 96],
    "time_embedding_act_fn": [None, "gelu", "silu"],
    "timestep_post_act": ["silu"],
    "time_cond_proj_dim": [16],
    "conv_in_kernel": [1, 5],
    "conv_out_kernel": [1, 5],
    "projection_class_embeddings_input_dim": [16],
    "attention_type": ["gated"],
    "class_embeddings_concat": [True],
    "mid_block_only_cross_attention": [True, False],
    "cross_attention_norm": [NONE, "layer_norm"],
    "addition_embed_type_num_heads": [8, 5],
}


def test_every_key_is_in_the_table():
    known = inspect.signature(diffusers.UNet2DConditionModel.__init__).parameters.keys() - {"self"}
    assert known == CHANGES.keys()


def peer_of(config):
    """diffusers' network of a configuration, random; None where it makes none of it."""
    torch.manual_seed(0)
    try:
        peer = diffusers.UNet2DConditionModel.from_config(config).eval()
    except Exception:
        return None
    with torch.no_grad():
        for parameter in peer.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return peer


def publish(peer, config, folder):
    folder.mkdir(exist_ok=True)
    peer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@torch.no_grad()
def difference(peer, stage):
    """The largest difference of both networks' outputs in float64; infinite where diffusers has none."""
    shape = stage.config.unet
    peer, stage = peer.double(), stage.to(dtype=torch.float64)
    x = torch.randn(2, 6 if shape.lowres else 3, 16, 16).double()
    t, k = torch.tensor([857.0, 37.0]), torch.tensor([250.0, 100.0])
    embeds = torch.randn(2, 7, shape.text_dim).double()
    text = TextEmbedding(embeds, torch.ones(2, 7, dtype=torch.bool))
    labels = {"class_labels": k} if shape.lowres else {}
    try:
        theirs = peer(x, t, text.embeds, **labels).sample
    except Exception:
        return float("inf")
    given = (x[:, 3:], k) if shape.lowres else ()
    ours = stage.unet(x[:, :3], t, stage.unet.prepare(text), *given)
    return float((ours - theirs).abs().max())


def refusal(folder):
    """What is said of a folder that is no stage; None where it is one."""
    try:
        load_stage(folder)
    except CheckpointError as error:
        return str(error)
    return None


STAGE_TWO = ("class", "in_", "only", "mid", "resnet", "time_embedding")  # keys of which it has more
CASES = [
    pytest.param(number, key, marks=pytest.mark.slow)
    if number == 2 and not key.startswith(STAGE_TWO)
    else (number, key)
    for number in TINY
    for key in CHANGES
]


@pytest.mark.parametrize(("number", "key"), CASES)
def test_a_changed_key_gives_diffusers_picture_or_is_refused_by_name(number, key, tmp_path):
    for i, value in enumerate(CHANGES[key]):
        config = to_diffusers(TINY[number])
        config = {k: v for k, v in config.items() if k != key} | (
            {} if value is NONE else {key: value}
        )
        peer = peer_of(config)
        if peer is None:
            continue  # nothing to compare with
        folder = publish(peer, config, tmp_path / str(i))
        told = refusal(folder)
        if told is None:
            assert difference(peer, load_stage(folder)) <= 1e-5, value
        else:
            assert f"{folder / 'config.json'}: " in told
            assert key in told


def test_a_key_of_a_later_diffusers_is_refused_unless_it_is_off():
    config = to_diffusers(TINY[1])
    assert from_diffusers({**config, "some_new_layer": None}) == TINY[1]
    with pytest.raises(ValueError, match="some_new_layer"):
        from_diffusers({**config, "some_new_layer": 3})


@pytest.mark.parametrize("number", TINY)
@pytest.mark.parametrize("projected", [True, False])
def test_a_text_as_wide_as_what_is_attended_to_is_projected_where_the_file_says_so(
    number, projected, tmp_path
):
    config = {**to_diffusers(TINY[number]), "encoder_hid_dim": 32 if projected else None}
    config["encoder_hid_dim_type"] = "text_proj" if projected else None
    peer = peer_of(config)
    stage = load_stage(publish(peer, config, tmp_path / "unet"))
    assert stage.config.unet.text_proj == projected
    assert difference(peer, stage) <= 1e-5
    convert(tmp_path / "unet", tmp_path / "again", "diffusers")
    assert load_stage(tmp_path / "again").config == stage.config


@pytest.mark.parametrize(
    ("side", "scale"), [(128, 2), (192, 3), (256, 4), (512, 2), (1024, 4), (96, 4)]
)
def test_a_stage_two_enlarges_as_often_as_its_side_says(side, scale, tmp_path):
    """No key gives the scale: up to 256 it is read against 64, above against 256."""
    assert enlargement(side) == scale
    config = to_diffusers(TINY[2], side)
    stage = load_stage(publish(peer_of(config), config, tmp_path / "unet"))
    assert (stage.config.resolution, stage.config.scale) == (side, scale)
    for layout in ("original", "diffusers"):
        convert(tmp_path / "unet", tmp_path / layout, layout)
        again = load_stage(tmp_path / layout).config
        assert (again.resolution, again.scale) == (side, scale)


WRONG = [None, True, -1, 0, 10**9, 1.5, "64", [], [64, 64, 64], {}, [None, None], [[64], 64]]


@pytest.mark.parametrize("key", CHANGES)
def test_a_value_of_another_type_is_refused_by_name(key):
    config = to_diffusers(TINY[1])
    for value in WRONG:
        with contextlib.suppress(ValueError):
            assert isinstance(from_diffusers({**config, key: value}), ADMConfig)
            continue
        with pytest.raises(ValueError, match=key):
            from_diffusers({**config, key: value})


@pytest.mark.parametrize(
    "text", ["{", "[]", "3", "null", '{"block_out_channels": [1]}', "[" * 5000]
)
def test_a_configuration_that_is_none_is_named(text, tmp_path):
    folder = publish(peer_of(to_diffusers(TINY[1])), {}, tmp_path / "unet")
    (folder / "config.json").write_text(text)
    assert f"{folder / 'config.json'}: " in (refusal(folder) or "")


def test_all_keys_are_sorted_into_one_of_three_kinds():
    from imagen_nodes.imagen_core.formats.diffusers_config import HAD, READ, WITHOUT_EFFECT

    kinds = [set(HAD) - {"_class_name"}, set(READ), set(WITHOUT_EFFECT)]
    assert set().union(*kinds) == CHANGES.keys()
    assert not any(a & b for a, b in itertools.combinations(kinds, 2))
