"""A network grown by a level: what it keeps, and where it begins."""

from dataclasses import asdict, replace

import pytest
import torch
from PIL import Image

from imagen_nodes.imagen_core import (
    PRESETS,
    Stage,
    StageConfig,
    TextEmbedding,
    load_stage,
    save_stage,
)
from imagen_nodes.imagen_core.training.grow import grown, grows_from
from imagen_nodes.imagen_core.training.loop import Watch, train
from imagen_nodes.imagen_core.training.recipe import RecipeError, TuneSection, parse_recipe
from imagen_nodes.imagen_core.training.tuning import is_target

SMALL = replace(PRESETS["tiny-base"], patch=2)
LARGE = replace(
    SMALL,
    channels=(SMALL.channels[0], *SMALL.channels),
    num_res_blocks=(0, *SMALL.num_res_blocks),
    attention=(False, *SMALL.attention),
)


@pytest.fixture
def small():
    torch.manual_seed(0)
    stage = Stage(StageConfig("base", 16, 1, SMALL))
    with torch.no_grad():
        for parameter in stage.unet.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return stage


def text(rows=2):
    states = torch.randn(rows, 4, SMALL.text_dim, generator=torch.Generator().manual_seed(1))
    return TextEmbedding(states, torch.ones(rows, 4, dtype=torch.bool))


def test_every_weight_of_the_smaller_network_is_in_the_larger(small):
    large = grown(small.unet, LARGE).state_dict()
    for name, value in small.unet.state_dict().items():
        head, *rest = name.split(".")
        moved = ".".join([head, str(int(rest[0]) + 1), *rest[1:]]) if head == "down" else name
        assert torch.equal(large[moved], value), name
    assert grows_from(LARGE) == SMALL


def test_it_begins_as_the_smaller_one_seen_through_halved_features(small):
    """The lower levels see the halved features of the first convolution, and answer twice as large."""
    large, x = grown(small.unet, LARGE), torch.randn(2, 3, 32, 32)
    t = torch.tensor([200.0, 700.0])
    with torch.no_grad():
        found = large(x, t, large.prepare(text()))
        features = torch.nn.functional.avg_pool2d(
            large.conv_in(torch.nn.functional.pixel_unshuffle(x, 2)), 2
        )
        inner = inside(small.unet, features, t)
        doubled = torch.nn.functional.interpolate(inner, scale_factor=2, mode="nearest")
        output = small.unet.conv_out(small.unet.act_out(small.unet.norm_out(doubled)))
    assert torch.allclose(found, torch.nn.functional.pixel_shuffle(output, 2), atol=1e-4)


def inside(unet, features, t):
    """What a network makes of features in place of its first convolution's, before its last norm."""
    seen = []
    first = unet.conv_in.register_forward_hook(lambda *call: features)
    last = unet.norm_out.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    try:
        unet(torch.zeros(2, 3, 16, 16), t, unet.prepare(text()))
    finally:
        first.remove()
        last.remove()
    return seen[0]


@pytest.mark.parametrize(
    "shape",
    [SMALL, replace(LARGE, channels=(16, 32, 32)), replace(LARGE, attention=(True, False, True))],
)
def test_other_shapes_are_refused(small, shape):
    with pytest.raises(
        ValueError, match="expected a network of the same shape without the first level"
    ):
        grown(small.unet, shape)


def recipe(**stage):
    shape = {"kind": "adm", **asdict(LARGE)}
    return {
        "stage": {"unet": shape, "kind": "base", "resolution": 32,
                  "grow_from": "small.safetensors", **stage},
        "data": {"folder": "pictures", "text_encoder": "t5", "workers": 0},
        "optim": {"warmup_steps": 0, "lr": 1e-4},
        "run": {"out": "run", "batch": 2, "steps": 2},
    }  # fmt: skip


def test_a_recipe_grows_a_stage(small, tmp_path, t5_folder):
    (tmp_path / "pictures").mkdir()
    for name in ("red", "blue"):
        Image.new("RGB", (32, 32), name).save(tmp_path / f"pictures/{name}.png")
    (tmp_path / "t5").symlink_to(t5_folder)
    save_stage(small, tmp_path / "small.safetensors")
    quiet = Watch(line=lambda line: None, note=lambda line: None)
    made = load_stage(train(parse_recipe(recipe(), tmp_path), watch=quiet))
    assert made.config.unet == LARGE
    before, after = (s.unet.get_parameter("middle.0.res.conv_1.weight") for s in (small, made))
    assert torch.allclose(before, after.float(), atol=1e-2)


def test_mistakes_are_named(small, tmp_path):
    with pytest.raises(RecipeError, match="expected one of start_from and grow_from, got both"):
        parse_recipe(recipe(start_from="x"), tmp_path)
    with pytest.raises(RecipeError, match="expected a preset, a table stage.unet"):
        parse_recipe(recipe(unet={}), tmp_path)


def test_attention_at_more_levels_begins_by_adding_nothing():
    torch.manual_seed(0)
    few = replace(SMALL, attention=(False,) * len(SMALL.channels))
    small = Stage(StageConfig("base", 16, 1, few)).unet
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    more = replace(few, attention=(*few.attention[:-1], True))
    large, x, t = grown(small, more), torch.randn(2, 3, 16, 16), torch.tensor([200.0, 700.0])
    assert sum(p.numel() for p in large.parameters()) > sum(p.numel() for p in small.parameters())
    with torch.no_grad():
        given, found = small(x, t, small.prepare(text())), large(x, t, large.prepare(text()))
    assert torch.allclose(found, given, atol=1e-6)
    with pytest.raises(ValueError, match="lacks attention at some levels"):
        grown(large, few)


def test_pixel_convolutions_begin_by_adding_nothing_and_then_see_every_pixel(small):
    smooth = replace(SMALL, pixel_channels=8)
    large, x, t = grown(small.unet, smooth), torch.randn(2, 3, 16, 16), torch.tensor([200.0, 700.0])
    context = large.prepare(text())
    with torch.no_grad():
        before = small.unet(x, t, small.unet.prepare(text()))
        assert torch.equal(large(x, t, context), before)
        large.pixels.out.weight.normal_()
        changed = x.clone()
        changed[:, :, 5, 7] += 1
        moved = large.pixels(torch.zeros(2, 16, 8, 8), changed) - large.pixels(
            torch.zeros(2, 16, 8, 8), x
        )
    rows, columns = moved.abs().sum((0, 1)).nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (3, 7, 5, 9)
    tune = TuneSection(what="lora")
    branches = {name for name, layer in large.named_modules() if is_target(name, layer, tune)}
    assert branches and not any(name.startswith("pixels") for name in branches)
    with pytest.raises(ValueError, match="pixel_channels"):
        grown(large, replace(SMALL, pixel_channels=4))
