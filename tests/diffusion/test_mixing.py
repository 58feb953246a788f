"""A second prompt, and a text for the pooled path: against the formula, evaluation by evaluation."""

import pytest
import torch

from imagen_nodes.imagen_core.diffusion.denoiser import guide, make_denoiser
from imagen_nodes.imagen_core.diffusion.guidance import Guidance
from imagen_nodes.imagen_core.stage import StageConfig
from imagen_nodes.imagen_core.text.embedding import TextEmbedding
from imagen_nodes.imagen_core.text.prompt import EncodedPrompt
from imagen_nodes.imagen_core.unet.presets import PRESETS

W = 3.0


@pytest.fixture(scope="module")
def stage(as_trained):
    return as_trained(StageConfig("base", 16, 1, PRESETS["tiny-base"], prediction="eps"))


def states(seed, rows=1):
    embeds = torch.randn(rows, 5, 16, generator=torch.Generator().manual_seed(seed))
    return TextEmbedding(embeds, torch.ones(rows, 5, dtype=torch.bool))


TEXT, NULL, SECOND, STYLE = (states(seed) for seed in range(4))
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(9))


@torch.no_grad()
def estimate(stage, prompt, scale=W):
    """The clean image at the middle of a grid: a straight line in the guided noise."""
    sigmas = torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64)
    return denoiser_of(stage, prompt, scale, sigmas, 2)(X, 1).x0


def denoiser_of(stage, prompt, scale, sigmas, batch):
    network = stage.unet, stage.schedule, stage.prediction
    return make_denoiser(*network, prompt, Guidance(scale, "none"), sigmas, batch)


def alone(stage, text, pooled=None):
    return estimate(stage, EncodedPrompt(text, NULL, style=pooled), 1.0)


@pytest.mark.parametrize("scale", [1.0, W])
def test_the_second_prompt_enters_as_in_the_formula(stage, scale):
    prompt = EncodedPrompt(TEXT, NULL, SECOND, 0.3)
    c, p, u = (alone(stage, text) for text in (TEXT, SECOND, NULL))
    expected = u + scale * (0.7 * c + 0.3 * p - u)
    assert torch.allclose(estimate(stage, prompt, scale), expected, atol=1e-4)
    assert (expected - (u + scale * (c - u))).abs().max() > 1e-2


def test_a_mixer_of_zero_costs_and_changes_nothing(stage):
    prompt = EncodedPrompt(TEXT, NULL, SECOND, 0.0)
    assert len(prompt.positives) == 1
    assert torch.equal(estimate(stage, prompt), estimate(stage, EncodedPrompt(TEXT, NULL)))


def test_the_style_is_pooled_and_the_prompt_attended_to(stage):
    """Style in the rows of both prompts; the negative prompt keeps its own."""
    prompt = EncodedPrompt(TEXT, NULL, STYLE, 0.5, STYLE)
    c, p, u = alone(stage, TEXT, STYLE), alone(stage, STYLE, STYLE), alone(stage, NULL)
    assert torch.allclose(estimate(stage, prompt), u + W * (0.5 * c + 0.5 * p - u), atol=1e-4)
    assert (c - alone(stage, TEXT)).abs().max() > 1e-3
    assert (c - alone(stage, STYLE)).abs().max() > 1e-3
    context, own = stage.unet.prepare(TEXT, STYLE), stage.unet.prepare(TEXT)
    assert torch.equal(context.pooled, stage.unet.prepare(STYLE).pooled)
    assert torch.equal(context.keys_values[0][0], own.keys_values[0][0])


def test_one_style_serves_many_prompts(stage):
    many = EncodedPrompt(states(5, 2), NULL, style=STYLE)
    single = EncodedPrompt(states(5, 2), NULL, style=STYLE.expand(2))
    assert torch.allclose(estimate(stage, many), estimate(stage, single), atol=1e-6)


def test_some_rows_keep_the_second_prompt_and_the_style(stage):
    """What is done where memory is short: the batch in parts."""
    prompt = EncodedPrompt(states(5, 2), NULL, states(6, 2), 0.3, STYLE)
    whole = estimate(stage, prompt)
    for k in range(2):
        sigmas = torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64)
        part = prompt.take(slice(k, k + 1))
        with torch.no_grad():
            made = denoiser_of(stage, part, W, sigmas, 1)(X[k : k + 1], 1).x0
        assert torch.allclose(made, whole[k : k + 1], atol=1e-4)


def test_a_learned_variance_is_the_prompts_own():
    rows = [torch.full((1, 2, 1, 1), value) for value in (1.0, 2.0, 5.0)]
    assert guide(rows, [0.5, 0.5], 3.0, 1).flatten().tolist() == [5.0 + 3.0 * (1.5 - 5.0), 1.0]


def test_states_of_another_encoder_are_refused():
    other = TextEmbedding(torch.zeros(1, 7, 16), torch.ones(1, 7, dtype=torch.bool))
    for field in ({"second": other, "mixer": 0.5}, {"style": other}):
        with pytest.raises(ValueError, match=r"expected 5 tokens of width 16 .* got \(7, 16\)"):
            EncodedPrompt(TEXT, NULL, **field)
    with pytest.raises(ValueError, match="mixer must be in"):
        EncodedPrompt(TEXT, NULL, SECOND, 1.5)
    with pytest.raises(ValueError, match="mixer: needs a second prompt"):
        EncodedPrompt(TEXT, NULL, mixer=0.5)


@pytest.mark.parametrize("part", [0.0, 0.4, 1.0])
@torch.no_grad()
def test_guidance_along_the_own_estimate_is_kept_in_part(stage, part):
    """APG: the difference that guidance makes, split along the prompt's own estimate and across it."""
    prompt, sigmas = EncodedPrompt(TEXT, NULL), torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64)
    network = stage.unet, stage.schedule, stage.prediction
    chosen = Guidance(W, "none", parallel=part)
    made = make_denoiser(*network, prompt, chosen, sigmas, 2)(X, 1).x0
    own, plain = alone(stage, TEXT), estimate(stage, prompt)
    axes = (1, 2, 3)
    along = ((plain - own) * own).sum(axes, keepdim=True) / own.square().sum(axes, keepdim=True)
    assert (along * own).abs().max() > 1e-3
    assert torch.allclose(made, plain - (1 - part) * along * own, atol=1e-4)
