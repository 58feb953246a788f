"""Prompts over the steps and in regions: against the evaluations that they are made of."""

from dataclasses import replace

import pytest
import torch

from imagen_nodes.imagen_core import sample_base, super_resolve
from imagen_nodes.imagen_core.diffusion.denoiser import make_denoiser
from imagen_nodes.imagen_core.diffusion.guidance import Guidance
from imagen_nodes.imagen_core.stage import StageConfig
from imagen_nodes.imagen_core.text.embedding import TextEmbedding
from imagen_nodes.imagen_core.text.prompt import EncodedPrompt
from imagen_nodes.imagen_core.unet.presets import PRESETS

SIGMAS = torch.linspace(5, 0, 6, dtype=torch.float64)
W = 3.0


@pytest.fixture(scope="module")
def stage(as_trained):
    return as_trained(StageConfig("base", 16, 1, PRESETS["tiny-base"], prediction="eps"))


def states(seed, rows=1):
    embeds = torch.randn(rows, 5, 16, generator=torch.Generator().manual_seed(seed))
    return TextEmbedding(embeds, torch.ones(rows, 5, dtype=torch.bool))


def prompt(seed, **parts):
    return EncodedPrompt(states(seed), NULL, **parts)


NULL = states(1)
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(9))
LEFT = torch.cat([torch.ones(16, 8), torch.zeros(16, 8)], dim=1)


@torch.no_grad()
def estimate(stage, text, i=2, scale=W):
    made = make_denoiser(
        stage.unet, stage.schedule, stage.prediction, text, Guidance(scale, "none"), SIGMAS, 2
    )
    return made(X, i).x0


def test_each_step_reads_the_text_of_its_part(stage):
    text = replace(states(2), later=((0.4, states(3)), (0.7, states(4))))
    for i, seed in enumerate([2, 2, 3, 3, 4]):
        expected = estimate(stage, prompt(seed), i)
        assert torch.equal(estimate(stage, EncodedPrompt(text, NULL), i), expected)


def test_the_null_text_and_the_style_change_too(stage):
    null = replace(states(2), later=((0.4, states(3)),))
    for i, seed in ((0, 2), (3, 3)):
        expected = estimate(stage, EncodedPrompt(states(5), states(seed), style=states(seed)), i)
        found = estimate(stage, EncodedPrompt(states(5), null, style=null), i)
        assert torch.equal(found, expected)


def test_a_run_that_starts_at_an_image_is_the_end_of_the_schedule(stage):
    text = EncodedPrompt(replace(states(2), later=((0.5, states(3)),)), NULL)
    image = torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(1))
    chosen = dict(image=image, steps=8, strength=0.5)
    with torch.no_grad():
        assert torch.equal(
            sample_base(stage, text, **chosen), sample_base(stage, prompt(3), **chosen)
        )


@pytest.mark.parametrize("scale", [1.0, W])
def test_each_region_is_its_prompts_own(stage, scale):
    """Before guidance, which is linear: each pixel comes from the prompt of its place."""
    text = prompt(2).with_region(prompt(3), LEFT).with_region(prompt(4), 1 - LEFT, 0.25)
    base, left, right = (estimate(stage, prompt(seed), scale=scale) for seed in (2, 3, 4))
    expected = LEFT * left + (1 - LEFT) * (0.25 * right + 0.75 * base)
    assert torch.allclose(estimate(stage, text, scale=scale), expected, atol=1e-4)
    assert (left - right).abs().max() > 1e-2


def test_regions_that_overlap_share_and_may_lie_in_each_other(stage):
    both = torch.ones(4, 4)
    text = prompt(2).with_region(prompt(3), both).with_region(prompt(4), both)
    found = [estimate(stage, prompt(seed)) for seed in (3, 4, 2)]
    assert torch.allclose(estimate(stage, text), (found[0] + found[1]) / 2, atol=1e-4)
    inner = prompt(2).with_region(prompt(3), torch.ones(8, 8), 0.5)
    outer = prompt(4).with_region(inner, LEFT)
    expected = LEFT * (found[0] + found[2]) / 2 + (1 - LEFT) * found[1]
    assert torch.allclose(estimate(stage, outer), expected, atol=1e-4)


@pytest.mark.parametrize("size", [(16, 16), (3, 5), (100, 40)])
def test_one_region_over_all_is_the_prompt_itself_to_the_bit(stage, size):
    text = prompt(2).with_region(prompt(3), torch.ones(size))
    assert torch.equal(estimate(stage, text), estimate(stage, prompt(3)))
    nothing = prompt(2).with_region(prompt(3), torch.zeros(size))
    assert torch.equal(estimate(stage, nothing), estimate(stage, prompt(2)))


def test_a_region_may_be_mixed_and_change_with_the_steps(stage):
    mixed = EncodedPrompt(replace(states(2), later=((0.4, states(3)),)), NULL, states(4), 0.25)
    text = prompt(5).with_region(mixed, LEFT)
    for i, seed in ((0, 2), (3, 3)):
        inside = estimate(stage, EncodedPrompt(states(seed), NULL, states(4), 0.25), i)
        expected = LEFT * inside + (1 - LEFT) * estimate(stage, prompt(5), i)
        assert torch.allclose(estimate(stage, text, i), expected, atol=1e-4)


@pytest.mark.parametrize("preset", [PRESETS["tiny-sr"], replace(PRESETS["tiny-base"], lowres=True)])
@pytest.mark.parametrize("tile", [0, 32])
def test_both_networks_enlarge_by_region_whole_and_in_tiles(as_trained, preset, tile):
    stage = as_trained(StageConfig("sr", 16, 4, preset, prediction="eps"))
    image = torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(1))
    chosen = dict(steps=1, tile=tile, sampler="ddim", guidance=Guidance(1.0, "none"))
    text = prompt(2).with_region(prompt(3), LEFT)
    with torch.no_grad():
        found, base, left = (
            super_resolve(stage, image, each, **chosen) for each in (text, prompt(2), prompt(3))
        )
    assert torch.allclose(found[:, :, :24], left[:, :, :24], atol=1e-3)
    assert torch.allclose(found[:, :, -24:], base[:, :, -24:], atol=1e-3)
    assert (left - base).abs().max() > 1e-2


def test_some_images_of_a_batch_keep_their_regions(stage):
    own = EncodedPrompt(states(5, 2), NULL).with_region(EncodedPrompt(states(6, 2), NULL), LEFT)
    whole = estimate(stage, own)
    for k in range(2):
        rows = slice(k, k + 1)
        denoise = make_denoiser(
            stage.unet, stage.schedule, stage.prediction, own.take(rows), Guidance(W, "none"), SIGMAS, 1
        )  # fmt: skip
        with torch.no_grad():
            assert torch.allclose(denoise(X[rows], 2).x0, whole[rows], atol=1e-4)


def test_prompts_of_one_form_share_a_batch(stage):
    texts = [
        EncodedPrompt(replace(states(a), later=((0.4, states(b)),)), NULL).with_region(
            prompt(b), LEFT
        )
        for a, b in ((2, 3), (4, 5))
    ]
    assert texts[0].form == texts[1].form
    others = prompt(2), prompt(2).with_region(prompt(3), 1 - LEFT)
    assert len({each.form for each in (*texts, *others)}) == 3
    joined = EncodedPrompt.cat(texts, [1, 1])
    for i in (0, 3):
        found = estimate(stage, joined, i)
        for k, text in enumerate(texts):
            assert torch.allclose(found[k], estimate(stage, text, i)[k], atol=1e-4)


def test_bad_regions_are_refused():
    for mask, strength, message in (
        (torch.ones(2, 4, 4), 1.0, r"mask: expected one of height x width .* got \[2, 4, 4\]"),
        (torch.full((4, 4), 255.0), 1.0, "mask: expected values in 0..1"),
        (torch.full((4, 4), torch.nan), 1.0, "mask: has values that are not numbers"),
        ([1], 1.0, "mask: expected a torch.Tensor"),
        (LEFT, 1.5, "strength must be in"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            prompt(2).with_region(prompt(3), mask, strength)
    longer = TextEmbedding(torch.zeros(1, 10, 16), torch.ones(1, 10, dtype=torch.bool))
    with pytest.raises(ValueError, match="region: expected 5 tokens .* as many BREAK"):
        prompt(2).with_region(EncodedPrompt(longer, longer), LEFT)


def test_steps_that_do_not_rise_are_refused():
    for later in (((0.4, states(2)), (0.4, states(3))), ((1.5, states(2)),), ((-0.1, states(2)),)):
        with pytest.raises(ValueError, match="later: expected rising parts of the steps"):
            replace(states(1), later=later)
    with pytest.raises(ValueError, match="later: expected states of"):
        replace(states(1), later=((0.4, states(1, 2)),))
