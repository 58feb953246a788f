"""Both U-Nets: the paper's shapes, prepared text, resampling blocks, batch rows kept apart."""

from dataclasses import replace

import pytest
import torch

from imagen_nodes.imagen_core.stage import build_unet
from imagen_nodes.imagen_core.text.embedding import TextEmbedding
from imagen_nodes.imagen_core.unet.attention import TextAttention
from imagen_nodes.imagen_core.unet.layers import (
    Resample,
    ResBlock,
    TextContext,
    sinusoidal_embedding,
)
from imagen_nodes.imagen_core.unet.presets import PRESETS


def nonzero(unet):
    """The network with its zero-initialised layers filled, so that every path counts."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in unet.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1, generator=generator)
    return unet


def text_of(config, rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(rows, 5, config.text_dim, generator=generator)
    return TextEmbedding(embeds, torch.ones(rows, 5, dtype=torch.bool))


def arguments(name, rows, size=16) -> tuple[tuple, tuple]:
    x, lowres = torch.randn(2, rows, 3, size, size, generator=torch.Generator().manual_seed(2))
    t = torch.linspace(10, 900, rows)
    return (x, t), (lowres, t / 3) if name.endswith("sr") else ()


@pytest.fixture(params=["tiny-base", "tiny-sr"])
def tiny(request):
    torch.manual_seed(0)
    return request.param, nonzero(build_unet(PRESETS[request.param]))


def test_paper_base_has_the_published_size():
    with torch.device("meta"):
        unet = build_unet(PRESETS["paper-base64"])
    assert sum(p.numel() for p in unet.parameters()) == pytest.approx(2.305e9, rel=1e-3)


@pytest.mark.parametrize(("name", "millions"), [("paper-sr256", 547), ("paper-sr1024", 539)])
def test_paper_sr_nets_are_what_appendix_f_states(name, millions):
    """And count what README and presets.py say beside the paper's own numbers."""
    config = PRESETS[name]
    with torch.device("meta"):
        unet = build_unet(config)
    assert config.channels == (128, 256, 512, 1024)
    assert config.num_res_blocks == (2, 4, 8, 8)
    assert config.attention == (False, False, False, True)
    assert config.self_attention == (name == "paper-sr256")
    assert config.attention_widening * config.channels[-1] // config.head_dim == 8  # heads
    assert unet.size_multiple == 16
    assert round(sum(p.numel() for p in unet.parameters()) / 1e6) == millions
    layer = next(m for m in unet.modules() if isinstance(m, TextAttention))
    assert layer.proj_out.in_features == 2 * layer.proj_out.out_features


@torch.no_grad()
def test_rows_of_a_batch_do_not_mix(tiny):
    name, unet = tiny
    (x, t), extra = arguments(name, 3)
    text = text_of(unet.config, 3)
    whole = unet(x, t, unet.prepare(text), *extra)
    for i in range(3):
        row = TextEmbedding(text.embeds[i : i + 1], text.mask[i : i + 1])
        single = unet(
            *(a[i : i + 1] for a in (x, t)), unet.prepare(row), *(a[i : i + 1] for a in extra)
        )
        assert torch.allclose(single, whole[i : i + 1], atol=1e-5)


@torch.no_grad()
def test_every_input_reaches_the_output(tiny):
    name, unet = tiny
    (x, t), extra = arguments(name, 1)
    context = unet.prepare(text_of(unet.config, 1))
    base = unet(x, t, context, *extra)
    assert base.std() > 1e-3
    others = [unet(x + 1, t, context, *extra), unet(x, t + 50, context, *extra)]
    prompt = unet.prepare(text_of(unet.config, 1, seed=9))
    others.append(unet(x, t, TextContext(prompt.pooled, context.keys_values), *extra))
    others.append(unet(x, t, TextContext(context.pooled, prompt.keys_values), *extra))
    if extra:
        others += [
            unet(x, t, context, extra[0] + 1, extra[1]),
            unet(x, t, context, extra[0], extra[1] + 50),
        ]
    for other in others:
        assert (other - base).abs().max() > 1e-4


@torch.no_grad()
def test_prepared_text_covers_each_attention_layer_once(tiny):
    name, unet = tiny
    (x, t), extra = arguments(name, 1)
    context = unet.prepare(text_of(unet.config, 1))
    reference = unet(x, t, context, *extra)
    for i in range(len(context.keys_values)):
        changed = list(context.keys_values)
        changed[i] = (changed[i][0], changed[i][1] + 1)
        other = unet(x, t, TextContext(context.pooled, tuple(changed)), *extra)
        assert (other - reference).abs().max() > 1e-5, f"keys and values {i} are not used"


@torch.no_grad()
def test_second_stage_switches_of_the_base_graph_work_together():
    config = replace(
        PRESETS["tiny-base"],
        lowres=True,
        self_attention=False,
        activate_embedding_once=True,
        residual_scale=0.7071,
        out_channels=6,
    )
    unet = nonzero(build_unet(config))
    (x, t), _ = arguments("tiny-base", 2)
    output = unet(x, t, unet.prepare(text_of(config, 2)), x, t)
    assert output.shape == (2, 6, 16, 16)


@torch.no_grad()
def test_residual_block_resamples_both_branches_between_act_and_conv():
    torch.manual_seed(0)
    block = ResBlock(8, 8, 4, groups=4, act="gelu", resample="down", residual_scale=0.5)
    torch.nn.init.normal_(block.conv_2.weight)
    x, embedding = torch.randn(2, 8, 6, 6), torch.randn(2, 4)
    pool, act = torch.nn.functional.avg_pool2d, torch.nn.functional.gelu
    h = block.conv_1(pool(act(block.norm_1(x)), 2))
    scale, shift = block.embedding(act(embedding))[..., None, None].chunk(2, dim=1)
    h = block.conv_2(act(block.norm_2(h) * (1 + scale) + shift))
    assert torch.allclose(block(x, embedding), 0.5 * (h + pool(x, 2)), atol=1e-5)


def test_down_then_up_keeps_a_blocky_picture():
    x = torch.randn(1, 2, 4, 4).repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert torch.allclose(Resample("up")(Resample("down")(x)), x, atol=1e-6)


def test_sinusoid_has_cosines_first_and_no_frequency_shift():
    embedding = sinusoidal_embedding(torch.tensor([0.0, 3.0]), 8)
    assert torch.equal(embedding[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    frequencies = torch.tensor([1.0, 0.1, 0.01, 0.001])
    assert torch.allclose(
        embedding[1], torch.cat([(3 * frequencies).cos(), (3 * frequencies).sin()])
    )


def test_context_rows_expand_and_join():
    unet = build_unet(PRESETS["tiny-base"])
    one, other = (
        unet.prepare(text_of(unet.config, 1)),
        unet.prepare(text_of(unet.config, 1, seed=4)),
    )
    both = TextContext.cat([one.expand(3), other.expand(3)])
    assert len(both) == 6 and both.keys_values[0][0].shape[0] == 6
    assert torch.equal(both.pooled[2], one.pooled[0]) and torch.equal(
        both.pooled[3], other.pooled[0]
    )
    with pytest.raises(ValueError, match="2 prompts does not fit 3"):
        TextContext.cat([one, other]).expand(3)


def test_levels_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="one entry a level"):
        replace(PRESETS["tiny-base"], num_res_blocks=(1,))
    with pytest.raises(ValueError, match="one entry a level"):
        replace(PRESETS["tiny-sr"], attention=(True,))


def test_a_residual_network_starts_from_the_enlarged_picture():
    plain, residual = (
        build_unet(replace(PRESETS["tiny-sr"], residual=flag)) for flag in (False, True)
    )
    inputs, (lowres, aug) = arguments("tiny-sr", 2)
    context = plain.prepare(text_of(plain.config, 2))
    residual.load_state_dict(nonzero(plain).state_dict())
    difference = residual(*inputs, context, lowres, aug) - plain(*inputs, context, lowres, aug)
    torch.testing.assert_close(difference, lowres)


@pytest.mark.parametrize("stem_blocks", [0, 2])
def test_only_stem_blocks_let_the_noise_level_act_at_full_resolution(stem_blocks):
    unet = nonzero(build_unet(replace(PRESETS["tiny-sr"], stem_blocks=stem_blocks)))
    torch.nn.init.zeros_(unet.upsample[-1].conv.weight)  # nothing comes from lower resolutions
    (x, _), (lowres, aug) = arguments("tiny-sr", 1)
    context = unet.prepare(text_of(unet.config, 1))
    low, high = (unet(x, torch.full((1,), t), context, lowres, aug) for t in (10.0, 900.0))
    assert torch.equal(low, high) == (stem_blocks == 0)
