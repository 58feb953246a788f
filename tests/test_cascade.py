"""Sampling a tiny cascade: seeds and batches, editing, sizes, tiles, and what bad input is told."""

import pytest
import torch

from imagen_nodes.imagen_core import memory
from imagen_nodes.imagen_core.cascade import Cascade, per_stage, sizes_of, stages_upto
from imagen_nodes.imagen_core.diffusion.editing import Inpainting
from imagen_nodes.imagen_core.diffusion.guidance import Guidance
from imagen_nodes.imagen_core.diffusion.noise import ImageNoise
from imagen_nodes.imagen_core.diffusion.samplers import SAMPLERS
from imagen_nodes.imagen_core.sampling import sample_base, super_resolve
from imagen_nodes.imagen_core.settings import Settings
from imagen_nodes.imagen_core.stage import SamplingDefaults, StageConfig
from imagen_nodes.imagen_core.text.embedding import TextEmbedding
from imagen_nodes.imagen_core.text.prompt import EncodedPrompt
from imagen_nodes.imagen_core.unet.presets import PRESETS


@pytest.fixture(scope="module")
def base(as_trained):
    return as_trained(
        StageConfig("base", 16, 1, PRESETS["tiny-base"], defaults=SamplingDefaults(5))
    )


@pytest.fixture(scope="module")
def sr(as_trained):
    defaults = SamplingDefaults(steps=3, guidance_scale=1.0, aug_level=0.1)
    return as_trained(StageConfig("sr", 64, 4, PRESETS["tiny-sr"], defaults=defaults))


def encoded(rows=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    text, null = torch.randn(2, rows, 5, 16, generator=generator)
    mask = torch.ones(rows, 5, dtype=torch.bool)
    return EncodedPrompt(TextEmbedding(text, mask), TextEmbedding(null, mask))


@pytest.fixture(scope="module")
def picture():
    return torch.rand(2, 16, 24, 3, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_seed_gives_the_same_picture_in_any_batch(base, sampler):
    batch = sample_base(base, encoded(), width=16, height=16, batch_size=4, seed=7, sampler=sampler)
    single = sample_base(base, encoded(), width=16, height=16, seed=9, sampler=sampler)
    assert batch.shape == (4, 16, 16, 3)
    assert torch.allclose(batch[2], single[0], atol=1e-4)
    assert (batch[1] - batch[2]).abs().max() > 0.05


def test_a_seed_gives_the_same_enlargement_in_any_batch(sr, picture):
    batch = super_resolve(sr, picture, encoded(), seed=3, sampler="ddpm")
    single = super_resolve(sr, picture[1:], encoded(), seed=4, sampler="ddpm")
    assert batch.shape == (2, 64, 96, 3)
    assert torch.allclose(batch[1], single[0], atol=1e-4)


def test_first_draw_is_that_of_a_torch_generator():
    expected = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(11))
    assert torch.equal(ImageNoise(10, 2).randn(3, 4, 5)[1], expected)


def test_prompt_negative_prompt_and_guidance_each_matter(base):
    text, other = encoded(), encoded(seed=1)
    settings = dict(width=16, height=16, seed=1, guidance=Guidance(4.0))
    reference = sample_base(base, text, **settings)
    negative = EncodedPrompt(text.text, other.null_text)
    for result in (
        sample_base(base, EncodedPrompt(other.text, text.null_text), **settings),
        sample_base(base, negative, **settings),
        sample_base(base, text, **{**settings, "guidance": Guidance(1.0)}),
    ):
        assert (result - reference).abs().max() > 1e-3
    off = {**settings, "guidance": Guidance(1.0)}
    assert torch.equal(sample_base(base, text, **off), sample_base(base, negative, **off))


def test_guidance_one_in_both_rows_is_guidance_off(base):
    """With equal texts the guided mean is the prediction itself, whatever the scale."""
    text = encoded().text
    same = EncodedPrompt(text, text)
    settings = dict(width=16, height=16, seed=1)
    guided = sample_base(base, same, guidance=Guidance(8.0), **settings)
    plain = sample_base(base, same, guidance=Guidance(1.0), **settings)
    assert torch.allclose(guided, plain, atol=1e-4)


def test_pixels_outside_the_mask_come_back_bit_for_bit(base, picture):
    mask = torch.zeros(1, 16, 24)
    mask[:, :, 12:] = 1
    result = sample_base(base, encoded(), image=picture, mask=mask, seed=2)
    assert torch.equal(result[:, :, :12], picture[:, :, :12])
    assert (result[:, :, 12:] - picture[:, :, 12:]).abs().mean() > 0.05


def test_a_mask_of_another_size_is_fitted(base, picture):
    mask = torch.zeros(4, 6)
    mask[:, 3:] = 1
    result = sample_base(base, encoded(), image=picture, mask=mask, seed=2)
    assert torch.equal(result[:, :, :8], picture[:, :, :8])


def test_each_walk_of_the_schedule_is_reported_and_changes_only_the_masked_part(base, picture):
    mask = torch.zeros(1, 16, 24)
    mask[:, :, 12:] = 1
    seen = []
    settings = dict(image=picture, mask=mask, seed=2, steps=5)
    plain = sample_base(base, encoded(), **settings)
    again = sample_base(
        base, encoded(), inpainting=Inpainting(resample=3, jump=2),
        on_step=lambda step, count, x0: seen.append((step, count)), **settings,
    )  # fmt: skip
    assert seen == [(i, 15) for i in range(1, 16)]
    assert torch.equal(again[:, :, :12], picture[:, :, :12])
    assert (again - plain)[:, :, 12:].abs().mean() > 0.01


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_clean_inpainting_shows_the_network_the_picture_itself(base, picture, sampler):
    """Where nothing is painted, the network sees the picture at every level, without noise."""
    seen = []
    unet = base.unet
    handle = unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][:1]))
    mask = torch.zeros(1, 16, 24)
    mask[:, :, 12:] = 1
    settings = dict(image=picture[:1], mask=mask, seed=2, steps=4, sampler=sampler)
    try:
        result = sample_base(base, encoded(), inpainting=Inpainting("clean"), **settings)
    finally:
        handle.remove()
    known = picture[:1].movedim(-1, 1) * 2 - 1
    assert all(torch.allclose(x[..., :12], known[..., :12], atol=1e-4) for x in seen)
    assert torch.equal(result[:, :, :12], picture[:1, :, :12])
    assert (result - sample_base(base, encoded(), **settings)).abs().mean() > 1e-3


def test_clean_inpainting_cuts_a_soft_mask_at_one_half(base, picture):
    soft, hard = torch.full((1, 16, 24), 0.4), torch.zeros(1, 16, 24)
    soft[:, :, 12:], hard[:, :, 12:] = 0.6, 1.0
    settings = dict(image=picture, seed=2, inpainting=Inpainting("clean"))
    cut = sample_base(base, encoded(), mask=soft, **settings)
    assert torch.equal(cut, sample_base(base, encoded(), mask=hard, **settings))


def test_bad_inpainting_is_named():
    with pytest.raises(ValueError, match="inpaint must be one of .*clean.*got 'dirty'"):
        Inpainting("dirty")
    with pytest.raises(ValueError, match="resample and jump must be at least 1, got 0 and 10"):
        Inpainting(resample=0)


def test_strength_says_how_much_of_a_picture_is_left(base, picture):
    def distance(strength):
        result = sample_base(base, encoded(), image=picture, strength=strength, steps=20, seed=2)
        return (result - picture).abs().mean()

    assert distance(0.05) < distance(0.4) < distance(1.0)


def test_image_to_image_of_full_strength_hardly_sees_the_picture(base, picture):
    """At the noisy end of this schedule half a thousandth of a picture is left."""
    settings = dict(seed=2, strength=1.0)
    one = sample_base(base, encoded(), image=picture, **settings)
    other = sample_base(base, encoded(), image=1 - picture, **settings)
    assert (one - other).abs().max() < 0.01


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (16, 16)])
def test_any_size_is_enlarged_by_the_scale(sr, size):
    image = torch.rand(1, *size, 3)
    assert super_resolve(sr, image, encoded()).shape == (1, 4 * size[0], 4 * size[1], 3)


@pytest.mark.parametrize("tile", [0, 48])
def test_an_enlargement_starts_from_an_original_and_keeps_what_is_not_masked(sr, tile):
    """At sides that the network does not take, so that picture and mask are padded and cut again."""
    generator = torch.Generator().manual_seed(4)
    image = torch.rand(2, 13, 17, 3, generator=generator)
    original = torch.rand(1, 52, 68, 3, generator=generator)
    mask = torch.zeros(1, 52, 68)
    mask[:, :, 30:] = 1
    settings = dict(original=original, seed=2, steps=4, tile=tile)
    kept = super_resolve(sr, image, encoded(), mask=mask, **settings)
    assert kept.shape == (2, 52, 68, 3)
    assert torch.equal(kept[:, :, :30], original.expand(2, -1, -1, -1)[:, :, :30])
    assert (kept - original)[:, :, 30:].abs().mean() > 0.05
    clean = super_resolve(
        sr, image, encoded(), mask=mask, inpainting=Inpainting("clean"), **settings
    )
    assert (clean - kept).abs().mean() > 1e-4
    single = super_resolve(sr, image[1:], encoded(), mask=mask, **{**settings, "seed": 3})
    assert torch.allclose(kept[1], single[0], atol=1e-4)


def test_strength_says_how_much_of_an_original_is_left(sr, picture):
    original = torch.rand(2, 64, 96, 3, generator=torch.Generator().manual_seed(4))

    def distance(strength):
        settings = dict(original=original, strength=strength, steps=20, seed=2)
        return (super_resolve(sr, picture, encoded(), **settings) - original).abs().mean()

    assert distance(0.05) < distance(0.4) < distance(1.0)


def test_strength_without_a_picture_changes_nothing(base, sr, picture):
    small = [sample_base(base, encoded(), width=16, height=16, strength=s) for s in (1.0, 0.5)]
    assert torch.equal(*small)
    large = [super_resolve(sr, picture, encoded(), strength=s) for s in (1.0, 0.5)]
    assert torch.equal(*large)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask": torch.ones(1, 64, 96)}, "mask: needs an original whose unmasked"),
        (
            {"original": torch.rand(1, 64, 64, 3)},
            "original: expected 1 or 2 images of 96 x 64, 4 times as large as image, got 1 of 64 x 64",
        ),
        ({"original": torch.rand(3, 64, 96, 3)}, "got 3 of 96 x 64; scale it to that size"),
        ({"original": torch.rand(1, 64, 96, 3), "strength": 0.0}, "strength must be in"),
    ],
)
def test_bad_originals_are_named(sr, picture, settings, message):
    with pytest.raises(ValueError, match=message):
        super_resolve(sr, picture, encoded(), **settings)


def test_alpha_is_dropped_and_inputs_are_not_changed(sr):
    image = torch.rand(1, 8, 8, 4)
    before = image.clone()
    result = super_resolve(sr, image, encoded())
    assert torch.equal(image, before)
    assert torch.equal(result, super_resolve(sr, image[..., :3], encoded()))


def test_tiles_that_cover_the_picture_change_nothing(sr, picture):
    whole = super_resolve(sr, picture, encoded())
    assert torch.equal(super_resolve(sr, picture, encoded(), tile=128), whole)
    tiled = super_resolve(sr, picture, encoded(), tile=48)
    assert 0 < (tiled - whole).abs().mean() < 0.05


def test_augmentation_level_reaches_the_network(sr, picture):
    results = [super_resolve(sr, picture, encoded(), aug_level=level) for level in (0.0, 0.3)]
    assert (results[0] - results[1]).abs().mean() > 1e-3


def test_augmentation_noise_is_drawn_once_or_at_each_step(sr, picture):
    drawn = {}
    for policy in ("once", "each step"):
        seen = []
        handle = sr.unet.register_forward_pre_hook(
            lambda module, inputs, seen=seen: seen.append(inputs[3])
        )
        super_resolve(sr, picture, encoded(), aug_level=0.3, aug_noise=policy)
        handle.remove()
        drawn[policy] = len({given.sum().item() for given in seen})
    assert drawn == {"once": 1, "each step": 3}
    with pytest.raises(ValueError, match="aug_noise must be one of .*got 'never'"):
        super_resolve(sr, picture, encoded(), aug_noise="never")


def test_steps_are_reported_and_may_interrupt(base):
    seen = []
    sample_base(base, encoded(), width=16, height=16, on_step=lambda *step: seen.append(step))
    assert [(step, count) for step, count, _ in seen] == [(i, 5) for i in range(1, 6)]
    assert all(x0.shape == (1, 3, 16, 16) and x0.abs().max() <= 1 for _, _, x0 in seen)

    def stop(step, count, x0):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_base(base, encoded(), width=16, height=16, on_step=stop)


def test_half_precision_weights_give_nearly_the_same_picture(base, as_trained):
    settings = dict(width=16, height=16, seed=1, steps=8)
    full = sample_base(base, encoded(), **settings)
    half = sample_base(as_trained(base.config).to(dtype=torch.bfloat16), encoded(), **settings)
    assert half.dtype == torch.float32
    assert (half - full).abs().mean() < 0.02


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"width": 17},
            "multiples of 2, got 17 x 16; the nearest good sizes are 16 x 16 and 18 x 16",
        ),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"seed": -1}, "seed must be an integer from 0"),
        ({"sampler": "euler"}, "sampler must be one of .*ddim.*got 'euler'"),
        ({"mask": torch.ones(1, 16, 16)}, "mask: needs an image"),
        ({"strength": 0.0, "image": torch.rand(1, 16, 16, 3)}, "strength must be in"),
    ],
)
def test_bad_input_is_named(base, settings, message):
    with pytest.raises(ValueError, match=message):
        sample_base(base, encoded(), **{"width": 16, "height": 16, **settings})


def test_results_may_be_changed_in_place_and_learned_from(base, sr, picture):
    for image in (sample_base(base, encoded(), steps=1), super_resolve(sr, picture, encoded())):
        image.mul_(255)
        weight = torch.ones(3, requires_grad=True)
        (image * weight).sum().backward()
        assert weight.grad is not None


def test_previews_of_a_padded_picture_have_its_size(sr, monkeypatch):
    monkeypatch.setattr(type(sr.unet), "size_multiple", 16)
    seen = []
    made = super_resolve(
        sr, torch.rand(1, 9, 7, 3), encoded(), on_step=lambda i, n, x0: seen.append(x0.shape)
    )
    assert set(seen) == {(1, 3, 36, 28)}
    assert made.shape == (1, 36, 28, 3)


def test_global_defaults_of_torch_do_not_reach_a_picture(base):
    text = encoded()
    expected = sample_base(base, text, steps=2, sampler="ddpm")
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(sample_base(base, text, steps=2, sampler="ddpm"), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_bad_masks_and_batches_are_named(base, picture):
    with pytest.raises(
        ValueError, match=r"mask: expected 1 or 1 x height x width, .* got \[2, 8, 8\]"
    ):
        sample_base(base, encoded(), image=picture[:1], mask=torch.ones(2, 8, 8))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        sample_base(base, encoded(), batch_size=0)


def test_what_is_no_stage_text_or_picture_of_the_kind_is_named(base, sr, picture):
    with pytest.raises(ValueError, match=r"stage: expected a base stage, got a super-resolution"):
        sample_base(sr, encoded())
    with pytest.raises(ValueError, match=r"stage: expected a super-resolution stage, got a base"):
        super_resolve(base, picture, encoded())
    with pytest.raises(TypeError, match=r"text: expected an EncodedPrompt.+encode_prompt.+got str"):
        sample_base(base, "a red apple")
    with pytest.raises(
        ValueError, match=r"batch x height x width x 3 channels in 0..1, got \[2, 3"
    ):
        super_resolve(sr, picture.movedim(-1, 1), encoded())
    with pytest.raises(ValueError, match=r"aug_level must be in \[0, 1\], got 5"):
        super_resolve(sr, picture, encoded(), aug_level=5)
    for scale in (float("nan"), -1.0, float("inf")):
        with pytest.raises(ValueError, match="guidance_scale must be at least 0"):
            Guidance(scale)


def test_bad_tiles_are_named(sr, picture):
    with pytest.raises(ValueError, match="tile must be 0 .* or at least 16, got 5"):
        super_resolve(sr, picture, encoded(), tile=5)


def test_one_value_or_one_a_stage():
    assert per_stage("steps", None, 3) == [None] * 3
    assert per_stage("steps", 4, 3) == [4, 4, 4]
    assert per_stage("steps", (4,), 2) == [4, 4]
    assert per_stage("steps", (4, 3, 2), 2) == [4, 3]
    with pytest.raises(ValueError, match="steps: expected 1 or 3 values, got 2"):
        per_stage("steps", (1, 2), 3)


def test_a_sampler_may_be_any_function_of_the_protocol(base):
    """Written as diffusion/samplers.py says, and told the same grid, noise and callback as ours."""
    seen = []

    def euler(denoise, x, sigmas, noise, on_step):
        for i in range(len(sigmas) - 1):
            x0 = denoise(x, i).x0
            x = x0 + (sigmas[i + 1] / sigmas[i]).item() * (x - x0)
            on_step(i, x0)
        assert noise().shape == x.shape
        return x

    settings = dict(width=16, height=16, seed=3, steps=6)
    made = sample_base(
        base, encoded(), sampler=euler, on_step=lambda *step: seen.append(step[:2]), **settings
    )
    assert torch.allclose(made, sample_base(base, encoded(), sampler="ddim", **settings), atol=1e-4)
    assert seen == [(i, 6) for i in range(1, 7)]


def test_noise_levels_may_be_given_in_place_of_steps(base, sr, picture):
    grid = base.schedule.sigmas(4)
    settings = dict(width=16, height=16, seed=3)
    expected = sample_base(base, encoded(), steps=4, **settings)
    for sigmas in (grid, grid.tolist()):
        assert torch.equal(sample_base(base, encoded(), sigmas=sigmas, **settings), expected)
    large = super_resolve(sr, picture, encoded(), steps=3)
    again = super_resolve(sr, picture, encoded(), sigmas=sr.schedule.sigmas(3))
    assert torch.equal(large, again)
    for bad in ([3.0, 1.0], [1.0, 2.0, 0.0], [0.0], [[1.0, 0.0]], [float("inf"), 1.0, 0.0]):
        with pytest.raises(ValueError, match="sigmas: expected noise levels that are strictly"):
            sample_base(base, encoded(), sigmas=bad, **settings)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_gradients_flow_to_what_asks_for_them(base, sr, picture, sampler):
    text = encoded()
    text.text.embeds.requires_grad_()
    small = sample_base(base, text, width=16, height=16, steps=2, sampler=sampler)
    image = picture[:1].clone().requires_grad_()
    large = super_resolve(sr, image, text, steps=2, sampler=sampler, guidance=Guidance(2.0))
    (small.mean() + large.mean()).backward()
    assert text.text.embeds.grad.abs().max() > 0
    assert image.grad.abs().max() > 0
    with torch.no_grad():
        assert not sample_base(base, text, width=16, height=16, steps=1).requires_grad


def test_a_gradient_is_the_slope(sr):
    """Against a finite difference, through two steps and tiles."""
    image = torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(8)) * 0.4 + 0.3
    direction = torch.randn(image.shape, generator=torch.Generator().manual_seed(9))
    settings = dict(steps=2, tile=48, guidance=Guidance(1.0, "none"), seed=1)
    image.requires_grad_()
    super_resolve(sr, image, encoded(), **settings).mean().backward()
    with torch.no_grad():
        ahead, behind = (
            super_resolve(sr, image + step * direction, encoded(), **settings).double().mean()
            for step in (1e-2, -1e-2)
        )
    slope = (image.grad * direction).sum().item()
    assert slope == pytest.approx((ahead - behind).item() / 2e-2, rel=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image": torch.full((1, 16, 24, 3), float("nan"))}, "image: has values that are not"),
        ({"image": torch.rand(1, 16, 24, 2)}, r"image: expected .*got \[1, 16, 24, 2\]; convert"),
        (
            {"image": torch.rand(1, 16, 24, 3), "mask": torch.full((1, 4, 4), torch.inf)},
            "mask: has values that are not numbers",
        ),
        ({"batch_size": 2, "text": encoded(3)}, "text: expected 1 prompt or 2, .* got 3"),
        ({"text": encoded(2)}, "text: expected 1 prompt, got 2; set batch_size to 2"),
    ],
)
def test_the_library_is_told_what_the_nodes_are(base, settings, message):
    settings = dict(settings)
    text = settings.pop("text", encoded())
    with pytest.raises(ValueError, match=message):
        sample_base(base, text, **settings)


def test_a_grey_picture_is_taken_for_all_three_channels(base, sr, picture):
    grey, mask = picture[..., :1], torch.zeros(1, 16, 24)
    mask[:, :, 12:] = 1
    for given in ({}, {"mask": mask}):
        settings = dict(seed=2, steps=2, **given)
        made = sample_base(base, encoded(), image=grey, **settings)
        assert torch.equal(
            made, sample_base(base, encoded(), image=grey.repeat(1, 1, 1, 3), **settings)
        )
    assert super_resolve(sr, grey, encoded()).shape == (2, 64, 96, 3)


def test_nothing_is_loaded_or_computed_for_a_run_that_cannot_be(base, sr):
    """Settings are checked against a stage's configuration alone."""
    for settings, stage in (
        (Settings(tile=3), sr),
        (Settings(aug_level=2.0), sr),
        (Settings(aug_noise="never"), sr),
        (Settings(steps=0), base),
        (Settings(seed=-1), base),
        (Settings(sampler="euler"), base),
        (Settings(sigmas=[0.0]), base),
        (Settings(strength=0.0), base),
    ):
        with pytest.raises(ValueError, match="got"):
            settings.check(stage.config)
    Settings(tile=16, aug_level=1.0).check(sr.config)


def test_each_picture_may_have_a_seed_of_its_own(base, sr, picture):
    seeds = [5, 2**64 - 1]
    both = sample_base(
        base, encoded(), width=16, height=16, batch_size=2, seed=seeds, sampler="ddpm"
    )
    for i, seed in enumerate(seeds):
        alone = sample_base(base, encoded(), width=16, height=16, seed=seed, sampler="ddpm")
        torch.testing.assert_close(both[i : i + 1], alone, rtol=0, atol=1e-4)
    large = super_resolve(sr, picture, encoded(), seed=seeds)
    alone = super_resolve(sr, picture[1:], encoded(), seed=seeds[1])
    torch.testing.assert_close(large[1:], alone, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="seed: expected one, or 2, one for each image, got 3"):
        sample_base(base, encoded(), width=16, height=16, batch_size=2, seed=[1, 2, 3])
    with pytest.raises(ValueError, match=r"seed must be an integer from 0 to 2\*\*64 - 1, got -1"):
        sample_base(base, encoded(), width=16, height=16, batch_size=2, seed=[1, -1])


class Encoder:
    """Stands for T5: a prompt is its number."""

    def encode_prompt(self, prompts, negative_prompt=""):
        texts = [encoded(seed=int(prompt)) for prompt in prompts]
        return EncodedPrompt(TextEmbedding.cat([each.text for each in texts]), texts[0].null_text)


def test_a_cascade_makes_many_prompts_in_parts_that_fit(base, sr, monkeypatch):
    monkeypatch.setattr(type(base.config), "guidance", lambda self, **_: Guidance(1.0))
    cascade, seen = Cascade(Encoder(), base, sr), []
    monkeypatch.setattr(memory, "free_bytes", lambda device: float("inf"))
    monkeypatch.setattr(memory, "CPU_PIXELS", float("inf"))
    whole = cascade.generate(list("01234"), seed=9)
    handle = sr.unet.conv_in.register_forward_pre_hook(lambda m, given: seen.append(len(given[0])))
    room = 2.5 * sr.running_bytes(2, 64, 64) / memory.PART
    monkeypatch.setattr(memory, "free_bytes", lambda device: room)
    parts = cascade.generate(list("01234"), seed=9)
    handle.remove()
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)
    assert set(seen) == {1, 2}
    torch.testing.assert_close(cascade.generate("3", seed=12), whole[3:4], rtol=0, atol=1e-4)
    one_each = cascade.generate(list("01234"), seed=[9, 10, 11, 12, 13])
    assert torch.equal(one_each, parts), "of images in several parts of a batch too"
    with pytest.raises(ValueError, match="seed: expected one, or 5, one for each image, got 2"):
        cascade.generate(list("01234"), seed=[1, 2])


def test_a_containers_memory_counts_without_files_that_the_system_keeps(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_available", lambda: 1e12)
    for name, text in (
        ("max", "1000"),
        ("current", "900"),
        ("stat", "anon 150\ninactive_file 700"),
    ):
        (tmp_path / f"memory.{name}").write_text(f"{text}\n")
    assert memory.free_bytes(torch.device("cpu")) == 1000 - (900 - 700)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(torch.device("cpu")) == 1e12


def test_upto_counts_what_comes_out():
    """A 2x stage in between doubles what every stage after it makes."""
    configs = [
        StageConfig("base", 64, 1, PRESETS["tiny-base"]),
        StageConfig("sr", 128, 2, PRESETS["tiny-sr"]),
        StageConfig("sr", 256, 4, PRESETS["tiny-sr"]),
    ]
    assert sizes_of(configs) == [64, 128, 512]
    assert stages_upto(configs, 512) == 3
    with pytest.raises(ValueError, match=r"upto must be one of \[64, 128, 512\], got 256"):
        stages_upto(configs, 256)
