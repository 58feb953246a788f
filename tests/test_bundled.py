"""The cascade that ships: it loads, batches do not change pictures, tiles leave no seams."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imagen_nodes.imagen_core import (
    Guidance,
    apply_lora,
    load_cascade,
    load_lora,
    sample_base,
    super_resolve,
)
from imagen_nodes.imagen_core.diffusion.tiles import windows
from imagen_nodes.nodes import host

EXAMPLES = Path(__file__).parent.parent / "example_workflows"
HEART = EXAMPLES / "input" / "imagen_heart_64.png"


@pytest.fixture(scope="module")
def emoji():
    return load_cascade("emoji")


def test_a_seed_gives_the_same_picture_alone_and_in_a_batch_of_four(emoji):
    text = emoji.text_encoder.encode_prompt("a red apple, noto style")
    batch = sample_base(emoji.base, text, batch_size=4, seed=10, steps=8)
    for i in range(4):
        alone = sample_base(emoji.base, text, seed=10 + i, steps=8)
        assert torch.allclose(alone[0], batch[i], rtol=0, atol=1e-4)


def test_the_prompt_decides_the_colour(emoji):
    """The mean colour of a red and of a blue heart, over four seeds."""
    means = {}
    for name in ("red", "blue"):
        text = emoji.text_encoder.encode_prompt(f"{name} heart, noto style")
        images = sample_base(emoji.base, text, batch_size=4, steps=12)
        means[name] = images.mean(dim=(0, 1, 2))
    assert means["red"][0] > means["red"][2] + 0.1
    assert means["blue"][2] > means["blue"][0] + 0.1


def test_fast_is_near_the_full_run(emoji):
    text = emoji.text_encoder.encode_prompt("a red apple, noto style")
    counted = {}
    for quality in ("full", "fast"):
        with Evaluations(emoji.base.unet) as evaluations:
            counted[quality] = sample_base(emoji.base, text, quality=quality), evaluations.count
    (full, steps), (fast, fewer) = counted["full"], counted["fast"]
    assert (steps, fewer) == (32, 28)
    assert 0 < (full - fast).square().mean().sqrt() < 0.02


def test_its_lora_takes_four_steps_without_guidance_nearer_to_the_full_run(emoji):
    few = apply_lora(
        emoji.base, load_lora(host.lora_file("emoji_few_steps.safetensors"), emoji.base)
    )
    text = emoji.text_encoder.encode_prompt(["a red apple, noto style", "a rocket, fluent style"])
    full = sample_base(emoji.base, text, batch_size=2)
    hasty = {"steps": 4, "sampler": "ddim", "guidance": Guidance(1.0, "static"), "batch_size": 2}
    before, after = (
        (sample_base(stage, text, **hasty) - full).square().mean().sqrt()
        for stage in (emoji.base, few)
    )
    assert after < 0.8 * before


class Evaluations:
    """Counts a network's evaluations."""

    def __init__(self, unet):
        self.unet, self.count = unet, 0

    def __enter__(self):
        self.hook = self.unet.register_forward_hook(self.add)
        return self

    def __exit__(self, *error):
        self.hook.remove()

    def add(self, *given):
        self.count += 1


def edge_over_elsewhere(image, edges):
    """Mean gradient across the given columns over the mean gradient across all others."""
    gradient = image.diff(dim=2).abs().mean(dim=(0, 1, 3))
    on_edge = torch.zeros(len(gradient), dtype=torch.bool)
    on_edge[[edge - 1 for edge in edges]] = True
    return (gradient[on_edge].mean() / gradient[~on_edge].mean()).item()


def test_tiles_leave_no_seams(emoji):
    """A flat picture, so that nothing but tiling can make one column differ from another."""
    picture = torch.full((1, 144, 144, 3), 0.6)
    text = emoji.text_encoder.encode_prompt("")
    result = super_resolve(emoji.sr1024, picture, text, steps=3, tile=256)
    assert result.shape == (1, 576, 576, 3)
    tiles = windows(576, 576, 256, emoji.sr1024.unet.size_multiple)
    edges = {w.left for w in tiles} | {w.left + w.width for w in tiles}
    assert edge_over_elsewhere(result, sorted(edges - {0, 576})) < 1.05


def test_enlarging_keeps_what_is_there(emoji):
    picture = torch.from_numpy(np.array(Image.open(HEART))).float()[None] / 255
    text = emoji.text_encoder.encode_prompt("red heart, noto style")
    large = super_resolve(emoji.sr256, picture, text, steps=6, seed=1)
    small = torch.nn.functional.avg_pool2d(large.movedim(-1, 1), 4).movedim(1, -1)
    assert (small - picture).abs().mean() < 0.06


def test_in_bfloat16_the_pictures_are_nearly_the_same(emoji):
    half = load_cascade("emoji", dtype=torch.bfloat16, text_dtype=torch.float32)
    assert half.text_encoder.dtype == torch.float32
    text = emoji.text_encoder.encode_prompt("a red apple, noto style")
    made = [sample_base(stages.base, text, seed=3, steps=8) for stages in (emoji, half)]
    assert (made[0] - made[1]).abs().mean() < 0.006  # a level and a half of 255, at guidance 4
    made = [super_resolve(stages.sr256, made[0], text, seed=3, steps=3) for stages in (emoji, half)]
    assert (made[0] - made[1]).abs().mean() < 0.004
    assert (made[0] - made[1]).square().mean().sqrt() < 0.01


def test_the_templates_show_the_settings_of_the_stages(emoji):
    graph = json.loads((EXAMPLES / "api" / "text_to_1024.json").read_text("utf-8"))
    inputs = {node["class_type"]: node["inputs"] for node in graph.values()}
    stages = ("ImagenBaseSample", "ImagenSR256", "ImagenSR1024")
    for node, stage in zip(stages, emoji.stages, strict=True):
        own = stage.config.defaults
        shown = {name: inputs[node][name] for name in ("steps", "sampler")}
        assert shown == {"steps": own.steps, "sampler": own.sampler}, node
        assert inputs[node].get("aug_level", own.aug_level) == own.aug_level, node
    guidance, own = inputs["ImagenDynamicThreshold"], emoji.base.config.defaults
    assert (guidance["guidance_scale"], guidance["threshold"]) == (
        own.guidance_scale,
        own.threshold,
    )
