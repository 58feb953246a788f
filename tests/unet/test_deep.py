"""Deep features that are kept between evaluations, and what of a noise level is made once."""

import pytest
import torch

from imagen_nodes.imagen_core import PRESETS, TextEmbedding
from imagen_nodes.imagen_core.stage import build_unet
from imagen_nodes.imagen_core.unet.layers import Deep, ResBlock, modulations

NETWORKS = pytest.mark.parametrize(
    ("preset", "levels"), [("tiny-base", 1), ("tiny-sr", 0), ("tiny-sr", 1)]
)


def network(preset):
    torch.manual_seed(0)
    unet = build_unet(PRESETS[preset])
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter))
    return unet


def inputs(preset, unet):
    context = unet.prepare(TextEmbedding(torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.bool)))
    x, t = torch.randn(2, 3, 16, 16), torch.full((2,), 500.0)
    lowres = (torch.randn(2, 3, 16, 16), torch.full((2,), 100.0)) if "sr" in preset else ()
    return x, t, context, *lowres


@NETWORKS
@torch.no_grad()
def test_kept_features_stand_for_the_levels_below(preset, levels):
    unet = network(preset)
    x, *rest = inputs(preset, unet)
    whole, deep, ran = unet(x, *rest), Deep(levels), []
    for block in unet.modules():
        if isinstance(block, ResBlock):
            block.register_forward_hook(lambda block, given, made: ran.append(block.index))
    assert torch.equal(unet(x, *rest, deep=deep), whole)
    everything, features = list(ran), deep.features.clone()
    ran.clear()
    assert torch.equal(unet(x, *rest, deep=deep), whole)
    assert len(ran) < len(everything)
    other = unet(x + 0.5, *rest, deep=deep)
    assert torch.equal(deep.features, features)  # and nothing wrote over them
    assert not torch.equal(other, whole)  # the highest levels see the new picture
    assert not torch.equal(other, unet(x + 0.5, *rest))  # the others do not


@pytest.mark.parametrize("preset", ["tiny-base", "tiny-sr"])
@torch.no_grad()
def test_scales_and_shifts_of_all_levels_are_those_of_each(preset):
    unet = network(preset)
    x, _, context, *lowres = inputs(preset, unet)
    levels = torch.tensor([20.0, 500.0, 900.0])
    aug = lowres[1] if lowres else None
    made = modulations(unet, levels, context.pooled_for(2), aug)
    outputs = [unet(x, each, context, *lowres) for each in made]
    for level, output in zip(levels, outputs, strict=True):
        reference = unet(x, level.expand(2), context, *lowres)
        assert (output - reference).abs().max() < 1e-5 * reference.abs().max()
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3 * outputs[0].abs().max()
