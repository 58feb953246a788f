"""The nodes themselves, on a tiny cascade: what passes through them, and what bad input is told."""

import pytest
import torch

from imagen_nodes import NODE_CLASS_MAPPINGS
from imagen_nodes.imagen_core import (
    PRESETS,
    EncodedPrompt,
    Guidance,
    SamplingDefaults,
    Stage,
    StageConfig,
    TextEmbedding,
    sample_base,
    super_resolve,
)
from imagen_nodes.nodes import host

BASE = {"width": 16, "height": 16, "batch_size": 1, "seed": 0, "steps": 2}
BASE |= {"sampler": "dpmpp_2m", "strength": 1.0}
SR = {"seed": 0, "steps": 2, "sampler": "dpmpp_2m", "aug_level": 0.1, "tile": 0}


def stage_of(kind: str, resolution: int, scale: int, preset: str) -> Stage:
    torch.manual_seed(0)
    config = StageConfig(
        kind, resolution, scale, PRESETS[preset], defaults=SamplingDefaults(steps=2)
    )
    stage = Stage(config)
    with torch.no_grad():
        for parameter in stage.unet.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return stage


@pytest.fixture(scope="module")
def base():
    return stage_of("base", 16, 1, "tiny-base")


@pytest.fixture(scope="module")
def sr():
    return stage_of("sr", 64, 4, "tiny-sr")


@pytest.fixture(scope="module")
def text():
    states, null = torch.randn(2, 1, 5, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 5, dtype=torch.bool)
    return EncodedPrompt(TextEmbedding(states, mask), TextEmbedding(null, mask))


@pytest.fixture
def picture():
    return torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(5))


def node(node_id: str, **inputs):
    """What ComfyUI does with a node: its function, by name, with keyword arguments."""
    cls = NODE_CLASS_MAPPINGS[node_id]
    return getattr(cls(), cls.FUNCTION)(**inputs)


def test_every_base_widget_reaches_the_core(base, text):
    guidance = node(
        "ImagenDynamicThreshold", guidance_scale=2.5, threshold="static", percentile=0.9,
        max_value=100.0, start=0.1, end=0.9,
    )[0]  # fmt: skip
    assert (guidance.guidance_scale, guidance.threshold, guidance.max_value) == (
        2.5, "static", None,
    )  # fmt: skip
    chosen = {"width": 24, "height": 16, "batch_size": 3, "seed": 2**64 - 1, "steps": 3}
    chosen |= {"sampler": "ddpm", "strength": 1.0, "guidance": guidance}
    (made,) = node("ImagenBaseSample", stage=base, text=text, **chosen)
    assert made.shape == (3, 16, 24, 3)
    assert torch.equal(made, sample_base(base, text, **chosen))


@pytest.mark.parametrize("node_id", ["ImagenSR256", "ImagenSR1024"])
def test_every_sr_widget_reaches_the_core(sr, text, picture, node_id):
    chosen = {"seed": 9, "steps": 3, "sampler": "ddim", "aug_level": 0.4, "tile": 32}
    (made,) = node(node_id, stage=sr, image=picture, text=text, **chosen)
    assert made.shape == (2, 64, 64, 3)
    assert torch.equal(made, super_resolve(sr, picture, text, **chosen))


def test_strength_and_the_picture_reach_the_core(base, text, picture):
    chosen = {**BASE, "steps": 4, "strength": 0.3, "image": picture}
    (made,) = node("ImagenBaseSample", stage=base, text=text, **chosen)
    assert torch.equal(made, sample_base(base, text, **chosen))
    assert not torch.equal(made, sample_base(base, text, **{**chosen, "strength": 1.0}))


def test_guidance_reaches_the_sr_stages(sr, text, picture):
    strong = Guidance(6.0, "none")
    (made,) = node("ImagenSR256", stage=sr, text=text, image=picture, guidance=strong, **SR)
    assert torch.equal(made, super_resolve(sr, picture, text, guidance=strong, **SR))
    assert not torch.equal(made, super_resolve(sr, picture, text, **SR))


def test_inputs_are_never_changed_in_place(base, sr, text, picture):
    """ComfyUI's cache hands the same tensors to every consumer."""
    mask = torch.zeros(2, 16, 16)
    mask[:, :8] = 1
    inputs = [picture, mask, text.text.embeds, text.null_text.embeds]
    before = [tensor.clone() for tensor in inputs]
    node("ImagenBaseSample", stage=base, text=text, image=picture, mask=mask, **BASE)
    node("ImagenSR256", stage=sr, text=text, image=picture, **SR)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


def test_unmasked_pixels_come_back_and_masked_ones_do_not(base, text, picture):
    mask = torch.zeros(1, 16, 16)
    mask[:, :8] = 1
    (made,) = node("ImagenBaseSample", stage=base, text=text, image=picture, mask=mask, **BASE)
    assert torch.equal(made[:, 8:], picture[:, 8:])
    assert (made[:, :8] - picture[:, :8]).abs().max() > 0.05


def test_each_step_is_reported(base, text):
    seen = []
    token = host.reporter.set(lambda step, num_steps, x0: seen.append((step, num_steps)))
    try:
        node("ImagenBaseSample", stage=base, text=text, **{**BASE, "steps": 3})
    finally:
        host.reporter.reset(token)
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_stage_of_the_other_kind_is_refused(base, sr, text, picture):
    with pytest.raises(ValueError, match="SR 1024: stage: expected a super-resolution stage, got"):
        node("ImagenSR1024", stage=base, text=text, image=picture, **SR)
    with pytest.raises(ValueError, match="Base Sample: stage: expected a base stage, got"):
        node("ImagenBaseSample", stage=sr, text=text, **BASE)
    with pytest.raises(ValueError, match="SR 256: stage: the loaded cascade has no such stage"):
        node("ImagenSR256", stage=None, text=text, image=picture, **SR)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(1, 8, 8, 1), r"SR 256: image: expected .* 3 channels, got \[1, 8, 8, 1\]"),
        (torch.rand(8, 8, 3), r"SR 256: image: expected batch x height"),
        (torch.full((1, 8, 8, 3), float("nan")), "SR 256: image: has values that are not numbers"),
    ],
)
def test_a_picture_that_cannot_be_enlarged_is_refused(sr, text, image, message):
    with pytest.raises(ValueError, match=message):
        node("ImagenSR256", stage=sr, text=text, image=image, **SR)


def test_the_alpha_of_a_picture_is_dropped(sr, text, picture):
    with_alpha = torch.cat([picture, torch.rand(2, 16, 16, 1)], dim=-1)
    expected = node("ImagenSR256", stage=sr, text=text, image=picture, **SR)[0]
    made = node("ImagenSR256", stage=sr, text=text, image=with_alpha, **SR)[0]
    assert torch.equal(made, expected)


def test_a_size_that_does_not_fit_names_the_nearest(base, text):
    with pytest.raises(ValueError, match="nearest good size is"):
        node("ImagenBaseSample", stage=base, text=text, **{**BASE, "width": 17})
