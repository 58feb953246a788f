"""Numbers and pictures from elsewhere: numpy's whole numbers, pictures of 0..255 and other ranges."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from imagen_nodes.imagen_core import (
    PRESETS,
    EncodedPrompt,
    Guidance,
    Inpainting,
    Stage,
    StageConfig,
    TextEmbedding,
    sample_base,
    super_resolve,
)
from imagen_nodes.imagen_core.cascade import per_stage
from imagen_nodes.imagen_core.diffusion.samplers import SAMPLERS
from imagen_nodes.imagen_core.diffusion.schedules import DiscreteSchedule
from imagen_nodes.imagen_core.formats.deepfloyd import stage_config
from imagen_nodes.imagen_core.settings import Settings
from imagen_nodes.imagen_core.stage import SamplingDefaults


def prompt(rows=1, null_rows=1):
    states = torch.randn(2, 4, 5, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(4, 5, dtype=torch.bool)
    cond, null = states[0, :rows], states[1, :null_rows]
    return EncodedPrompt(TextEmbedding(cond, mask[:rows]), TextEmbedding(null, mask[:null_rows]))


def random_stage(kind):
    torch.manual_seed(0)
    config = {"base": ("base", 16, 1, "tiny-base"), "sr": ("sr", 64, 4, "tiny-sr")}[kind]
    stage = Stage(StageConfig(*config[:3], PRESETS[config[3]]))
    with torch.no_grad():
        for parameter in stage.unet.parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter))
    return stage


@pytest.fixture(scope="module")
def base():
    return random_stage("base")


@pytest.fixture(scope="module")
def sr():
    return random_stage("sr")


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({"seed": np.int64(5)}, {"seed": 5}),
        ({"seed": np.uint64(2**63)}, {"seed": 2**63}),
        ({"seed": torch.tensor(5)}, {"seed": 5}),
        ({"steps": np.int64(3)}, {"steps": 3}),
        ({"batch_size": np.int32(2)}, {"batch_size": 2}),
        ({"width": np.int64(32), "height": np.int16(16)}, {"width": 32, "height": 16}),
        ({"sigmas": np.array([8, 1, 0])}, {"sigmas": [8.0, 1.0, 0.0]}),
    ],
)
@torch.no_grad()
def test_whole_numbers_of_other_libraries_are_whole_numbers(base, given, plain):
    default = {"width": 16, "height": 16} | ({} if "sigmas" in given else {"steps": 1})
    made = [sample_base(base, prompt(), **{**default, **each}) for each in (given, plain)]
    assert torch.equal(*made)


@pytest.mark.parametrize("name", ["seed", "steps", "batch_size", "width", "height"])
@pytest.mark.parametrize(
    "value", [1.5, 2.0, np.float64(16), "x", None, [1.5], torch.tensor([1.0, 2.0])]
)
def test_what_is_no_whole_number_is_refused_by_name(base, name, value):
    if name in ("steps", "width", "height") and value is None:
        return  # the stage's own
    with pytest.raises(ValueError, match="steps" if name == "steps" else name):
        sample_base(base, prompt(), **{"steps": 1, "width": 16, "height": 16, name: value})


def test_the_same_holds_of_tiles_and_of_inpainting_and_of_timesteps(sr):
    with pytest.raises(ValueError, match="tile: expected a whole number, got 16.0"):
        super_resolve(sr, torch.rand(1, 4, 4, 3), prompt(), tile=16.0)
    with pytest.raises(ValueError, match="jump: expected a whole number"):
        Inpainting(jump=2.5)
    assert Inpainting(resample=np.int64(2)).resample == 2
    config = stage_config(PRESETS["tiny-base"])
    grids = [
        Settings(steps=steps).grid(config) for steps in ([999, 500, 0], np.array([999, 500, 0]))
    ]
    assert torch.equal(*grids)
    assert per_stage("steps", np.array([3, 4]), 2) == [3, 4]
    with pytest.raises(ValueError, match="steps must be at most"):
        Settings(steps=10**12).grid(sr.config)


@pytest.mark.parametrize("value", ["x", "0.5", None, [0.5], torch.tensor([0.5, 0.5])])
def test_what_is_no_number_is_refused_by_name(base, sr, value):
    for name in ("guidance_scale", "percentile", "max_value", "start", "end", "parallel"):
        if name != "max_value" or value is not None:  # None: no limit
            with pytest.raises(ValueError, match=f"{name}: expected a number"):
                Guidance(**{name: value})
    image = torch.rand(1, 16, 16, 3)
    with pytest.raises(ValueError, match="strength: expected a number"):
        sample_base(base, prompt(), image=image, strength=value)
    if value is not None:  # the stage's own
        with pytest.raises(ValueError, match="aug_level: expected a number"):
            super_resolve(sr, torch.rand(1, 4, 4, 3), prompt(), aug_level=value)


def test_numbers_of_other_libraries_are_numbers():
    assert Guidance(np.float32(2.5), end=torch.tensor(0.5)) == Guidance(2.5, end=0.5)
    assert Settings(aug_level=np.float64(0.25)).level(stage_config(PRESETS["tiny-base"])) == 0.25


BAD_PICTURES = {
    "bytes": ((torch.rand(1, 16, 16, 3) * 255).byte(), "divide by 255"),
    "0 to 255": (torch.rand(1, 16, 16, 3) * 255, "divide by 255"),
    "16 bits": ((torch.rand(1, 16, 16, 3) * 65535).int(), "divide by 255"),
    "-1 to 1": (torch.rand(1, 16, 16, 3) * 2 - 1, "of -1..1, take"),
    "yes and no": (torch.rand(1, 16, 16, 3) > 0.5, "torch.bool"),
    "NaN": (torch.full((1, 16, 16, 3), torch.nan), "not numbers"),
}


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_a_picture_outside_0_to_1_is_named_wherever_it_goes(base, sr, kind):
    picture, message = BAD_PICTURES[kind]
    with pytest.raises(ValueError, match=f"image: .*{message}"):
        sample_base(base, prompt(), image=picture, strength=0.5, steps=2)
    with pytest.raises(ValueError, match=f"image: .*{message}"):
        super_resolve(sr, picture, prompt(), steps=1)
    with pytest.raises(ValueError, match=f"original: .*{message}"):
        super_resolve(sr, torch.rand(1, 4, 4, 3), prompt(), original=picture, steps=1)


def test_a_mask_of_0_to_255_is_named_and_what_resampling_adds_passes(base):
    picture = torch.rand(1, 16, 16, 3)
    for mask in (torch.rand(1, 16, 16) * 255, (torch.rand(1, 16, 16) * 255).byte()):
        with pytest.raises(ValueError, match="mask: expected values in 0..1"):
            sample_base(base, prompt(), image=picture, mask=mask, steps=1)
    with pytest.raises(TypeError, match="image: expected a torch.Tensor, got ndarray"):
        sample_base(base, prompt(), image=picture.numpy(), steps=1)
    with torch.no_grad():
        sample_base(base, prompt(), image=picture * 1.3 - 0.15, mask=picture[..., 0] > 0.5, steps=1)


@pytest.mark.parametrize(
    ("rows", "null_rows", "batch"), [(3, 1, 1), (2, 1, 4), (1, 2, 1), (4, 3, 4)]
)
def test_every_prompt_is_for_a_picture(base, rows, null_rows, batch):
    with pytest.raises(
        ValueError, match=r"text: expected 1 prompt( or \d, one for each image)?, got \d"
    ):
        sample_base(base, prompt(rows, null_rows), width=16, height=16, batch_size=batch, steps=1)


def test_the_guidance_interval_is_of_the_whole_schedule_when_a_run_starts_at_a_picture(base):
    guidance = Guidance(5.0, start=0.5, end=0.75)
    settings = Settings(guidance, steps=8, strength=0.5)
    assert settings.guidance_of(base.config).scales(4) == guidance.scales(8)[4:] == [5, 5, 1, 1]
    late = Settings(Guidance(5.0, end=0.5), steps=8, strength=0.5)
    assert late.guidance_of(base.config).scales(4) == [1.0] * 4
    picture = torch.rand(1, 16, 16, 3)
    with torch.no_grad():
        never, off = (
            sample_base(base, prompt(), image=picture, strength=0.5, steps=8, guidance=guidance)
            for guidance in (Guidance(5.0, end=0.5), Guidance(1.0))
        )
    assert torch.equal(never, off)
    swung = Guidance(5.0, oscillate=True)
    assert (
        Settings(swung, steps=8, strength=0.4).guidance_of(base.config).scales(3)
        == swung.scales(8)[5:]
    )


@pytest.mark.parametrize(
    ("kind", "full", "fast"), [("base", 32, 28), ("base", 100, 63), ("sr", 12, 5), ("sr", 1, 1)]
)
def test_fast_is_fewer_steps_by_the_sampler_that_needs_few(kind, full, fast):
    config = StageConfig(kind, 64, 4 if kind == "sr" else 1, PRESETS["tiny-sr"])
    config = replace(config, defaults=SamplingDefaults(full, "ddpm"))
    settings = Settings(quality="fast")
    assert len(settings.grid(config)) == fast + 1
    assert len(Settings(quality="fast", steps=16).grid(config)) == (17 if kind == "base" else 7)
    assert settings.sampler_of(config) is SAMPLERS["unipc"]
    assert Settings(quality="fast", sampler="heun").sampler_of(config) is SAMPLERS["heun"]
    assert Settings(quality="fast", sigmas=[2.0, 1.0, 0.0]).grid(config).tolist() == [2.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="quality must be one of"):
        Settings(quality="good").check(config)


@pytest.mark.parametrize("steps", ["smart50", "40,40,0", list(range(999, 0, -25)), [400]])
def test_fast_visits_every_few_of_the_timesteps_that_are_given(steps):
    config = StageConfig(
        "base", 64, 1, PRESETS["tiny-base"], schedule=DiscreteSchedule(), prediction="eps"
    )
    own = replace(config, defaults=SamplingDefaults(steps))
    grid = Settings(steps=steps).grid(config).tolist()
    fast = Settings(steps=steps, quality="fast").grid(config).tolist()
    assert len(fast) - 1 == max(math.ceil((len(grid) - 1) * 5 / 8), min(28, len(grid) - 1))
    assert set(fast) <= set(grid) and sorted(fast, reverse=True) == fast
    assert (fast[0], fast[-1]) == (grid[0], 0)
    assert len(fast) == 2 or fast[-2] == grid[-2], "the last of them too"
    assert Settings(quality="fast").grid(own).tolist() == fast
    assert len(Settings(steps=50, quality="fast").grid(config)) == 33


@pytest.mark.parametrize("name", ["IMAGEN_ATTENTION", "IMAGEN_NORM", "IMAGEN_CONVOLUTION"])
def test_a_word_of_the_environment_that_means_nothing_is_refused(name, monkeypatch, base):
    monkeypatch.setenv(name, "winograd")
    with pytest.raises(ValueError, match=f"{name}: expected .* got 'winograd'"):
        Settings().check(base.config)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"width": -16}, ValueError, "nearest good size is 2 x 16"),
        ({"mask": torch.zeros(1, 0, 4)}, ValueError, "mask: expected 1 or 1 x height x width"),
        ({"guidance": 3.0}, TypeError, r"guidance: expected Guidance\(…\), got 3.0"),
        ({"inpainting": "clean"}, TypeError, r"inpainting: expected Inpainting\(…\), got 'clean'"),
        ({"sampler": ["ddim"]}, ValueError, r"sampler must be one of .*, got \['ddim'\]"),
    ],
)
def test_a_slip_in_python_is_told(given, kind, message, base):
    image = {"image": torch.rand(1, 16, 16, 3)} if "mask" in given else {"height": 16}
    with pytest.raises(kind, match=message):
        sample_base(base, prompt(), steps=1, **{**image, **given})


def test_what_a_sampler_returns_is_looked_at(base):
    with pytest.raises(
        TypeError, match="sampler: expected it to return x at level 0, a tensor, got NoneType"
    ):
        sample_base(base, prompt(), width=16, height=16, steps=1, sampler=lambda *given: None)
    with pytest.raises(ValueError, match="sampler: expected x at level 0 of shape"):
        sample_base(base, prompt(), width=16, height=16, steps=1, sampler=lambda d, x, *_: x[:, :1])


def test_steps_and_sigmas_are_not_both_given(base):
    with pytest.raises(ValueError, match="steps: sigmas are given"):
        sample_base(base, prompt(), width=16, height=16, steps=1, sigmas=[1.0, 0.0])


def test_channels_first_is_recognised(base):
    with pytest.raises(ValueError, match="put channels last: permute"):
        sample_base(base, prompt(), image=torch.zeros(1, 3, 16, 16), steps=1)
