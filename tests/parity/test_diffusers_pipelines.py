"""Whole runs against diffusers' DeepFloyd IF pipelines: same weights, same text, same generator."""

import contextlib
import io
import warnings

import pytest
import torch

from imagen_nodes.imagen_core import (
    EncodedPrompt,
    Guidance,
    Inpainting,
    TextEmbedding,
    load_stage,
    sample_base,
    super_resolve,
)
from imagen_nodes.imagen_core.diffusion.respacing import timesteps

TOLERANCE = 2e-4  # in [-1, 1]; a quarter of that is float32's rounding in 50 steps
SEED = 5


@pytest.fixture(scope="module")
def text():
    cond, null = torch.randn(2, 1, 77, 64, generator=torch.Generator().manual_seed(3))
    mask = torch.ones(1, 77, dtype=torch.bool)
    return EncodedPrompt(TextEmbedding(cond, mask), TextEmbedding(null, mask))


def pipeline(name, peer, max_value=1.5, **parts):
    """A pipeline of random weights and no filters, with the scheduler that is published."""
    import diffusers

    def scheduler(**changes):
        return diffusers.DDPMScheduler(
            beta_schedule="squaredcos_cap_v2",
            prediction_type="epsilon",
            **changes,
        )

    ddpm = scheduler(
        variance_type="learned_range",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=max_value,
    )
    if "SuperResolution" in name:
        parts["image_noising_scheduler"] = scheduler()
    absent = dict.fromkeys(
        ("tokenizer", "text_encoder", "safety_checker", "feature_extractor", "watermarker")
    )
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        made = getattr(diffusers, name)(
            unet=peer, scheduler=ddpm, requires_safety_checker=False, **absent, **parts
        )
    made.set_progress_bar_config(disable=True)
    return made


def theirs(pipe, text, spacing, **options):
    """The pipeline's picture in [-1, 1]: b c h w."""
    chosen = {"timesteps": timesteps(spacing)}
    if isinstance(spacing, str) and spacing.startswith("leading"):
        chosen = {"num_inference_steps": int(spacing.removeprefix("leading"))}
    return pipe(
        prompt_embeds=text.text.embeds,
        negative_prompt_embeds=text.null_text.embeds,
        generator=torch.Generator().manual_seed(SEED),
        output_type="pt",
        **chosen,
        **options,
    ).images


def difference(ours, theirs):
    """Largest difference in [-1, 1] of b h w c in 0..1 and b c h w in [-1, 1]."""
    return (2 * ours.movedim(-1, 1) - 1 - theirs).abs().max()


def picture(*size, seed=8):
    """One picture: as ours, b h w c in 0..1, and as theirs, b c h w in [-1, 1]."""
    image = torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(seed))
    return image, image.movedim(-1, 1) * 2 - 1


SLOW = pytest.mark.slow
SPACINGS = pytest.mark.parametrize(
    "spacing",
    [
        "leading27",
        pytest.param("smart27", marks=SLOW),
        pytest.param("leading50", marks=SLOW),
        pytest.param("smart50", marks=SLOW),
    ],
)


@SPACINGS
def test_text_to_picture(deepfloyd, text, spacing):
    peer, folder = deepfloyd(1)[1:]
    expected = theirs(
        pipeline("IFPipeline", peer), text, spacing, height=16, width=24, guidance_scale=7.0
    )
    ours = sample_base(load_stage(folder), text, height=16, width=24, steps=spacing, seed=SEED)
    assert expected.std() > 0.1
    assert difference(ours, expected) <= TOLERANCE


@SPACINGS
def test_super_resolution(deepfloyd, text, spacing):
    peer, folder = deepfloyd(2)[1:]
    image, small = picture(8, 12)
    pipe = pipeline("IFSuperResolutionPipeline", peer, max_value=1.0)
    expected = theirs(
        pipe, text, spacing, image=small, height=32, width=48, guidance_scale=4.0, noise_level=250
    )
    ours = super_resolve(load_stage(folder), image, text, steps=spacing, seed=SEED)
    assert expected.std() > 0.1
    assert difference(ours, expected) <= TOLERANCE


@pytest.mark.parametrize(
    ("steps", "strength"),
    [(27, 0.7), pytest.param(50, 0.7, marks=SLOW), pytest.param(20, 1.0, marks=SLOW)],
)
def test_image_to_image(deepfloyd, text, steps, strength):
    peer, folder = deepfloyd(1)[1:]
    image, known = picture(16, 24)
    expected = theirs(
        pipeline("IFImg2ImgPipeline", peer),
        text,
        f"leading{steps}",
        image=known,
        guidance_scale=10.0,
        strength=strength,
    )
    guidance = Guidance(10.0, percentile=0.95, max_value=1.5)
    ours = sample_base(
        load_stage(folder), text, guidance=guidance, image=image, strength=strength,
        steps=f"leading{steps}", seed=SEED,
    )  # fmt: skip
    assert difference(ours, expected) <= TOLERANCE


@pytest.mark.parametrize(("steps", "strength"), [(20, 1.0), pytest.param(50, 0.6, marks=SLOW)])
def test_inpainting(deepfloyd, text, steps, strength):
    peer, folder = deepfloyd(1)[1:]
    image, known = picture(16, 24)
    mask = torch.zeros(1, 16, 24)
    mask[:, 4:, 4:16] = 1
    expected = theirs(
        pipeline("IFInpaintingPipeline", peer),
        text,
        f"leading{steps}",
        image=known,
        mask_image=mask[:, None].clone(),
        guidance_scale=7.0,
        strength=strength,
    )
    ours = sample_base(
        load_stage(folder), text, image=image, mask=mask, strength=strength,
        steps=f"leading{steps}", inpainting=Inpainting("clean"), seed=SEED,
    )  # fmt: skip
    assert difference(ours, expected) <= TOLERANCE
    assert torch.equal(ours[:, :4], image[:, :4])


@pytest.mark.parametrize(("steps", "strength"), [(20, 0.8), pytest.param(50, 0.8, marks=SLOW)])
def test_image_to_image_of_stage_two(deepfloyd, text, steps, strength):
    peer, folder = deepfloyd(2)[1:]
    (image, small), (original, known) = picture(8, 12), picture(32, 48, seed=9)
    pipe = pipeline("IFImg2ImgSuperResolutionPipeline", peer, max_value=1.0)
    expected = theirs(
        pipe, text, f"leading{steps}", image=small, original_image=known, guidance_scale=4.0,
        noise_level=250, strength=strength,
    )  # fmt: skip
    settings = dict(steps=f"leading{steps}", seed=SEED, strength=strength)
    ours = super_resolve(load_stage(folder), image, text, original=original, **settings)
    assert expected.std() > 0.1
    assert difference(ours, expected) <= TOLERANCE


@pytest.mark.parametrize(("steps", "strength"), [(20, 0.8), pytest.param(50, 1.0, marks=SLOW)])
def test_inpainting_of_stage_two(deepfloyd, text, steps, strength):
    """With the pipeline's own noise_level, 0."""
    peer, folder = deepfloyd(2)[1:]
    (image, small), (original, known) = picture(8, 12), picture(32, 48, seed=9)
    mask = torch.zeros(1, 32, 48)
    mask[:, 8:, 8:32] = 1
    pipe = pipeline("IFInpaintingSuperResolutionPipeline", peer, max_value=1.0)
    expected = theirs(
        pipe, text, f"leading{steps}", image=small, original_image=known,
        mask_image=mask[:, None].clone(), guidance_scale=4.0, strength=strength,
    )  # fmt: skip
    ours = super_resolve(
        load_stage(folder), image, text, original=original, mask=mask, aug_level=0.0,
        strength=strength, steps=f"leading{steps}", inpainting=Inpainting("clean"), seed=SEED,
    )  # fmt: skip
    assert difference(ours, expected) <= TOLERANCE
    assert torch.equal(ours[:, :8], original[:, :8])
