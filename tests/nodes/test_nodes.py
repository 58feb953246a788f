"""The nodes themselves, on a tiny cascade: what passes through them, and what bad input is told."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from imagen_nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from imagen_nodes.imagen_core import (
    PRESETS,
    EncodedPrompt,
    Guidance,
    Inpainting,
    SamplingDefaults,
    Stage,
    StageConfig,
    TextEmbedding,
    load_text_encoder,
    sample_base,
    super_resolve,
)
from imagen_nodes.imagen_core.diffusion.schedules import DiscreteSchedule
from imagen_nodes.nodes import host, oom

BASE = {"width": 16, "height": 16, "batch_size": 1, "seed": 0, "steps": 2}
BASE |= {"sampler": "dpmpp_2m", "strength": 1.0}
SR = {"seed": 0, "steps": 2, "sampler": "dpmpp_2m", "aug_level": 0.1, "tile": 0}


TINY = [
    StageConfig("base", 16, 1, PRESETS["tiny-base"], defaults=SamplingDefaults(2)),
    StageConfig("sr", 64, 4, PRESETS["tiny-sr"], defaults=SamplingDefaults(2)),
]


@pytest.fixture(scope="module")
def base(as_trained):
    return as_trained(TINY[0])


@pytest.fixture(scope="module")
def sr(as_trained):
    return as_trained(TINY[1])


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


def test_second_prompt_and_style_reach_the_core(text):
    other = EncodedPrompt(text.null_text, text.text)
    (mixed,) = node("ImagenMixPrompts", text=text, mixer=0.4, second=other, style=other)
    assert mixed == EncodedPrompt(text.text, text.null_text, other.text, 0.4, other.text)
    assert node("ImagenMixPrompts", text=text, mixer=0.4) == (text,)


def test_strength_and_the_picture_reach_the_core(base, text, picture):
    chosen = {**BASE, "steps": 4, "strength": 0.3, "image": picture}
    (made,) = node("ImagenBaseSample", stage=base, text=text, **chosen)
    assert torch.equal(made, sample_base(base, text, **chosen))
    assert not torch.equal(made, sample_base(base, text, **{**chosen, "strength": 1.0}))


def test_an_original_its_mask_and_strength_reach_the_core(sr, text, picture):
    generator = torch.Generator().manual_seed(6)
    original, mask = torch.rand(1, 64, 64, 3, generator=generator), torch.zeros(1, 64, 64)
    mask[:, 32:] = 1
    chosen = {**SR, "original": original, "mask": mask, "strength": 0.5}
    (made,) = node("ImagenSR256", stage=sr, text=text, image=picture, inpaint="clean", **chosen)
    expected = super_resolve(sr, picture, text, inpainting=Inpainting("clean"), **chosen)
    assert torch.equal(made, expected)
    assert not torch.equal(
        made, node("ImagenSR256", stage=sr, text=text, image=picture, **chosen)[0]
    )
    assert torch.equal(made[:, :32], original[:, :32].expand(2, -1, -1, -1))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"mask": torch.zeros(1, 8, 8)}, "SR 256: mask: needs an original whose"),
        (
            {"mask": torch.zeros(3, 8, 8), "original": torch.rand(1, 64, 64, 3)},
            r"SR 256: mask: expected 1 or 2 x height x width, .* got \[3, 8, 8\]",
        ),
        ({"original": torch.rand(64, 64, 3)}, "SR 256: original: expected batch x height"),
        (
            {"original": torch.rand(1, 32, 64, 3)},
            "SR 256: original: expected 1 or 2 images of 64 x 64, .*",
        ),
    ],
)
def test_an_original_that_does_not_fit_is_refused(sr, text, picture, inputs, message):
    with pytest.raises(ValueError, match=message):
        node("ImagenSR256", stage=sr, text=text, image=picture, **SR, **inputs)


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
        (
            torch.rand(1, 8, 8, 2),
            r"SR 256: image: expected .* 3 channels in 0..1, got \[1, 8, 8, 2\]",
        ),
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


def test_a_grey_picture_is_one_of_three_equal_channels(sr, text, picture):
    grey = picture[..., :1]
    expected = node("ImagenSR256", stage=sr, text=text, image=grey.repeat(1, 1, 1, 3), **SR)[0]
    made = node("ImagenSR256", stage=sr, text=text, image=grey, **SR)[0]
    assert torch.equal(made, expected)


@pytest.mark.parametrize(
    ("node_id", "name", "advice"),
    [
        ("ImagenLoadCascade", "cascade", "put its folder into {}/imagen, or choose one of: emoji"),
        ("ImagenLoadStage", "stage", "put it into {}/diffusion_models, or choose one of: emoji/ba"),
        ("ImagenLoadTextEncoder", "text_encoder", "put it into {}/text_encoders, or choose one of"),
        ("ImagenLoadText", "saved_text", "save one with Imagen Save Text first"),
    ],
)
def test_a_model_that_is_not_there_says_where_to_put_it(
    tmp_path, monkeypatch, node_id, name, advice
):
    monkeypatch.setenv("IMAGEN_MODELS", str(tmp_path))
    check = NODE_CLASS_MAPPINGS[node_id].VALIDATE_INPUTS
    assert f"'gone' is not there; {advice.format(tmp_path)}" in check(**{name: "gone"})
    assert check() is True
    for known in NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES()["required"][name][0]:
        assert check(**{name: known}) is True or known.startswith(host.NONE)


def test_a_model_is_put_into_the_folder_of_its_name(monkeypatch):
    """ComfyUI lists models/unet, the older name, first."""
    places = [Path("models/unet"), Path("models/diffusion_models")]
    monkeypatch.setattr(host.files, "folders", lambda kind: places)
    assert host.home("diffusion_models") == places[1]


def test_a_long_list_of_models_is_cut_in_a_message():
    said = host.offered([f"model {i}" for i in range(100)], "gone", "put it there")
    assert said.endswith("model 6, model 7, …")


def test_an_empty_folder_of_files_says_so_in_its_list(monkeypatch, tmp_path):
    monkeypatch.setenv("IMAGEN_MODELS", str(tmp_path))
    loader = NODE_CLASS_MAPPINGS["ImagenLoadText"]
    names, options = loader.INPUT_TYPES()["required"]["saved_text"]
    assert names == [options["default"]] == ["none in models/imagen/texts"]
    assert loader.VALIDATE_INPUTS(names[0]).startswith("there is none yet; save one with ")


def test_a_size_that_does_not_fit_names_the_nearest(base, text):
    with pytest.raises(ValueError, match="Base Sample: width and height: .*sizes are 16 x 16 and"):
        node("ImagenBaseSample", stage=base, text=text, **{**BASE, "width": 17})
    with pytest.raises(
        ValueError, match="Base Sample: image: .*got 17 x 16; .*16 x 16 and 18 x 16"
    ):
        node("ImagenBaseSample", stage=base, text=text, image=torch.rand(1, 16, 17, 3), **BASE)


def test_an_odd_picture_is_refused_by_an_adm_stage_alone(sr, text):
    """Before its weights are brought to the device; the Efficient U-Net's stages take any size."""
    deeper = dict(channels=(16,) * 4, num_res_blocks=(1,) * 4, attention=(False,) * 4)
    adm = replace(PRESETS["tiny-base"], lowres=True, **deeper)
    stage, odd = Stage(StageConfig("sr", 64, 4, adm)), torch.rand(1, 13, 17, 3)
    with pytest.raises(ValueError, match="SR 256: image: .*got 17 x 13; .*16 x 12 and 18 x 14"):
        node("ImagenSR256", stage=stage, text=text, image=odd, **SR)
    (made,) = node("ImagenSR256", stage=sr, text=text, image=odd, **SR)
    assert made.shape == (1, 52, 68, 3)


def test_a_picture_far_too_small_for_a_stage_names_what_to_do(sr, text):
    with pytest.raises(ValueError, match=r"about 16 x 16, got 4 x 4; run the stage before it"):
        node("ImagenSR1024", stage=sr, text=text, image=torch.rand(1, 4, 4, 3), **SR)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(3, 16, 16), r"mask: expected 1 or 2 x height x width, .* got \[3, 16, 16\]"),
        (torch.full((1, 16, 16), float("nan")), "mask: has values that are not numbers"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(base, text, picture, mask, message):
    with pytest.raises(ValueError, match=message):
        node("ImagenBaseSample", stage=base, text=text, image=picture, mask=mask, **BASE)


def test_a_mask_of_another_size_is_scaled(base, text, picture):
    mask = torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    (made,) = node("ImagenBaseSample", stage=base, text=text, image=picture, mask=mask, **BASE)
    assert torch.equal(made[:, 9:], picture[:, 9:])


class Shortage:
    """A GPU on which a network may see only so many pixels at once."""

    def __init__(self, monkeypatch, stage, pixels: float):
        self.seen, forward = [], stage.unet.forward

        def limited(x, *args):
            self.seen.append(tuple(x.shape))
            if x.shape[0] * x.shape[2] * x.shape[3] > pixels:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
            return forward(x, *args)

        monkeypatch.setattr(stage.unet, "forward", limited)


SCALE_ONE = Guidance(1.0, "static")


def test_a_batch_that_does_not_fit_is_made_in_smaller_ones(
    base, text, picture, monkeypatch, caplog
):
    mask = (torch.arange(16) < 8).float().expand(2, 16, 16)
    chosen = {**BASE, "image": picture, "mask": mask, "guidance": SCALE_ONE, "seed": 2**64 - 1}
    (expected,) = node("ImagenBaseSample", stage=base, text=text, **chosen)
    Shortage(monkeypatch, base, 16 * 16)
    (made,) = node("ImagenBaseSample", stage=base, text=text, **chosen)
    assert torch.allclose(made, expected, atol=1e-5)
    assert "Base Sample: out of memory with 2 images at a time; trying with less" in caplog.text


def test_a_picture_that_does_not_fit_is_made_in_tiles(sr, text, monkeypatch, caplog):
    monkeypatch.setattr(oom, "TILES", (64, 32))
    image = torch.rand(2, 24, 24, 3)
    seen = Shortage(monkeypatch, sr, 32 * 32).seen
    (made,) = node("ImagenSR256", stage=sr, text=text, image=image, guidance=SCALE_ONE, **SR)
    assert made.shape == (2, 96, 96, 3)
    assert seen[:4] == [(2, 3, 96, 96), (1, 3, 96, 96), (1, 3, 56, 56), (1, 3, 32, 32)]
    alone = [
        super_resolve(
            sr, image[i : i + 1], text, guidance=SCALE_ONE, **{**SR, "seed": i, "tile": 32}
        )
        for i in range(2)
    ]
    assert torch.equal(made, torch.cat(alone))
    assert "with 1 image at a time in tiles of 64; trying with less" in caplog.text


def test_a_picture_that_never_fits_ends_in_a_clear_message(base, text, monkeypatch):
    Shortage(monkeypatch, base, 0)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="even with 1 image at a time; make a"):
        node("ImagenBaseSample", stage=base, text=text, **{**BASE, "batch_size": 3})


def test_other_errors_are_not_taken_for_a_shortage(base, text, monkeypatch):
    def broken(*args):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(base.unet, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        node("ImagenBaseSample", stage=base, text=text, **BASE)


def test_one_prompt_a_picture_stays_with_its_picture(base, monkeypatch):
    states = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(3))
    mask = torch.ones(2, 5, dtype=torch.bool)
    text = EncodedPrompt(TextEmbedding(states[:2], mask), TextEmbedding(states[2:], mask))
    chosen = {**BASE, "batch_size": 2}
    (expected,) = node("ImagenBaseSample", stage=base, text=text, guidance=SCALE_ONE, **chosen)
    Shortage(monkeypatch, base, 16 * 16)
    (made,) = node("ImagenBaseSample", stage=base, text=text, guidance=SCALE_ONE, **chosen)
    assert torch.allclose(made, expected, atol=1e-5)


def test_how_a_prompt_is_read_is_told(t5_folder):
    from imagen_nodes.imagen_core import load_text_encoder

    encoder = load_text_encoder(t5_folder)
    told = node("ImagenT5Encode", text_encoder=encoder, prompt=" A Red Apple", negative_prompt="")
    assert told["ui"]["text"] == ["reads: a red apple\n4 of 8 tokens: ▁a ▁red ▁apple </s>"]
    (reading,) = told["ui"]["imagen_reading"]
    assert (reading["text"], reading["tokens"], reading["limit"]) == ("a red apple", 4, 8)
    expected = encoder.encode_prompt("a red apple")
    assert torch.equal(told["result"][0].text.embeds, expected.text.embeds)
    with pytest.warns(UserWarning, match="is cut"):
        told = node(
            "ImagenT5Encode", text_encoder=encoder, prompt="a red dog sat on the hill of blue",
            negative_prompt="",
        )  # fmt: skip
    assert told["ui"]["text"][0].endswith("cut: of blue")


@pytest.mark.parametrize(
    ("node_id", "inputs", "message"),
    [
        ("ImagenT5Encode", {"prompt": "(a:900)", "negative_prompt": ""}, "prompt: expected weights"),
        ("ImagenMixPrompts", {"mixer": 2.0, "second": True}, "mixer must be in"),
        (
            "ImagenDynamicThreshold",
            {"guidance_scale": -1, "threshold": "none", "percentile": 0.9, "max_value": 1, "start": 0,
             "end": 1},
            "guidance_scale must be at least 0",
        ),
        ("ImagenLoadCascade", {"cascade": "../x", "dtype": "auto"}, "cascade: "),
        ("ImagenLoadTextEncoder", {"text_encoder": "../x", "dtype": "auto"}, "text_encoder: "),
        ("ImagenLoadStage", {"stage": "../x", "dtype": "auto"}, "stage: "),
        ("ImagenLoadText", {"saved_text": "../x"}, "saved_text: "),
        ("ImagenSaveText", {"name": "../x"}, "name: "),
    ],
)  # fmt: skip
def test_an_error_begins_with_the_nodes_name(node_id, inputs, message, text, t5_folder):
    given = dict(inputs)
    if node_id == "ImagenT5Encode":
        given["text_encoder"] = load_text_encoder(t5_folder)
    if node_id in ("ImagenMixPrompts", "ImagenSaveText"):
        given["text"] = text
    if "second" in given:
        given["second"] = text
    with pytest.raises(ValueError, match=f"^{NODE_DISPLAY_NAME_MAPPINGS[node_id]}: {message}"):
        node(node_id, **given)


def test_clean_caption_reaches_both_prompts(t5_folder):
    pytest.importorskip("ftfy")
    pytest.importorskip("bs4")
    from imagen_nodes.imagen_core import load_text_encoder

    encoder = load_text_encoder(t5_folder)
    told = node(
        "ImagenT5Encode", text_encoder=encoder, prompt="(A) [Red] Apple", negative_prompt="{cat}",
        clean_caption=True,
    )  # fmt: skip
    expected = encoder.encode_prompt("a red apple", "cat")
    assert torch.equal(told["result"][0].text.embeds, expected.text.embeds)
    assert torch.equal(told["result"][0].null_text.embeds, expected.null_text.embeds)
    assert told["ui"]["text"][0].startswith("reads: a red apple\n")


def test_a_saved_text_is_offered_and_loads(monkeypatch, tmp_path, text):
    monkeypatch.setenv("IMAGEN_MODELS", str(tmp_path))
    told = node("ImagenSaveText", text=text, name="fruit/apple")
    path = tmp_path / "imagen" / "texts" / "fruit" / "apple.safetensors"
    assert told == {"ui": {"text": [str(path.resolve())]}, "result": (text,)}
    assert host.text_names() == ["texts/fruit/apple.safetensors"]
    assert host.stage_names() == [name for name in host.stage_names() if "apple" not in name]
    (loaded,) = node("ImagenLoadText", saved_text="texts/fruit/apple.safetensors")
    assert torch.equal(loaded.text.embeds, text.text.embeds)
    changed = NODE_CLASS_MAPPINGS["ImagenLoadText"].IS_CHANGED
    before = changed("texts/fruit/apple.safetensors")
    path.touch()
    assert changed("texts/fruit/apple.safetensors") > before
    for name in ("../stage", "/etc/x", "", "a/../../b", "..", " "):
        with pytest.raises(ValueError, match="Imagen Save Text: name: expected a name inside"):
            node("ImagenSaveText", text=text, name=name)
    for name in ("../x.safetensors", "texts/none.safetensors"):
        with pytest.raises(ValueError, match="saved_text: expected a name inside"):
            node("ImagenLoadText", saved_text=name)


def test_lone_text_encoders_are_offered_and_comfyui_lends_its_tokenizer(monkeypatch, tmp_path):
    import sys
    import types

    folder = tmp_path / "text_encoders"
    (folder / "t5").mkdir(parents=True)
    for name in ("t5/config.json", "t5/model.safetensors", "t5xxl_fp8.safetensors", "t5-q4.gguf"):
        (folder / name).touch()
    monkeypatch.setenv("IMAGEN_MODELS", str(tmp_path))
    monkeypatch.delitem(
        sys.modules, "comfy", raising=False
    )  # pytest's, where a checkout is so named
    names = host.text_encoder_names()
    assert names[:3] == ["t5", "t5xxl_fp8.safetensors", "t5-q4.gguf"]
    assert "t5/model.safetensors" not in names
    assert host.tokenizer_folders() == []
    package = types.ModuleType("comfy")
    package.__path__ = [str(tmp_path / "comfy")]
    monkeypatch.setitem(sys.modules, "comfy", package)
    assert host.tokenizer_folders() == [tmp_path / "comfy" / "text_encoders" / "t5_tokenizer"]


def test_text_of_another_encoder_is_refused(base, sr, picture):
    states, mask = torch.randn(1, 5, 24), torch.ones(1, 5, dtype=torch.bool)
    text = EncodedPrompt(TextEmbedding(states, mask), TextEmbedding(states, mask))
    with pytest.raises(
        ValueError, match="Base Sample: text: expected text states of width 16, got 24"
    ):
        node("ImagenBaseSample", stage=base, text=text, **BASE)
    with pytest.raises(ValueError, match="SR 256: text: expected text states of width 16, got 24"):
        node("ImagenSR256", stage=sr, text=text, image=picture, **SR)


def test_editing_widgets_reach_the_core(base, text, picture):
    mask = torch.zeros(2, 16, 16)
    mask[:, :8] = 1
    shared = {**BASE, "image": picture, "mask": mask, "steps": 4}
    (made,) = node(
        "ImagenBaseSample", stage=base, text=text, inpaint="clean", resample=2, jump=3, **shared
    )
    wanted = Inpainting("clean", resample=2, jump=3)
    assert torch.equal(made, sample_base(base, text, inpainting=wanted, **shared))
    assert not torch.equal(made, sample_base(base, text, **shared))


def test_fresh_augmentation_noise_reaches_the_core(sr, text, picture):
    chosen = {**SR, "aug_noise": "each step"}
    (made,) = node("ImagenSR256", stage=sr, image=picture, text=text, **chosen)
    assert torch.equal(made, super_resolve(sr, picture, text, **chosen))
    assert not torch.equal(made, super_resolve(sr, picture, text, **SR))


def test_timesteps_go_before_steps(text, picture):
    """Of a stage with discrete time; another one says that it takes steps."""
    stages = [Stage(replace(c, schedule=DiscreteSchedule(), prediction="eps")) for c in TINY]
    (made,) = node("ImagenBaseSample", stage=stages[0], text=text, timesteps=" leading3 ", **BASE)
    assert torch.equal(made, sample_base(stages[0], text, **{**BASE, "steps": "leading3"}))
    (made,) = node(
        "ImagenSR256", stage=stages[1], text=text, image=picture, timesteps="[999, 0]", **SR
    )
    assert torch.equal(made, super_resolve(stages[1], picture, text, **{**SR, "steps": [999, 0]}))
    with pytest.raises(ValueError, match="timesteps: expected a number, one of fast27"):
        node("ImagenBaseSample", stage=stages[0], text=text, timesteps="quick", **BASE)


def test_timesteps_of_a_continuous_stage_are_refused(base, text):
    with pytest.raises(ValueError, match="leave timesteps empty and set steps"):
        node("ImagenBaseSample", stage=base, text=text, timesteps="smart27", **BASE)


OWN = {"steps": 0, "sampler": "auto"}


def test_a_new_node_runs_a_stage_as_it_is_meant_to_be(text, picture):
    """With the widgets' defaults, of any stage: here as DeepFloyd IF's are."""
    own = {
        "base": SamplingDefaults("smart27", "ddpm", 3.0, threshold="static"),
        "sr": SamplingDefaults([999, 500, 0], "ddim", 2.0, aug_level=0.4),
    }
    stages = {
        c.kind: Stage(
            replace(c, schedule=DiscreteSchedule(), prediction="eps", defaults=own[c.kind])
        )
        for c in TINY
    }
    for node_id in ("ImagenBaseSample", "ImagenSR256", "ImagenSR1024"):
        declared = NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES()["required"]
        given = {
            name: spec[1]["default"] for name, spec in declared.items() if "default" in spec[1]
        }
        given |= (
            {"width": 16, "height": 16} if node_id == "ImagenBaseSample" else {"image": picture}
        )
        kind = "base" if node_id == "ImagenBaseSample" else "sr"
        (made,) = node(node_id, stage=stages[kind], text=text, **given)
        if kind == "base":
            assert torch.equal(made, sample_base(stages[kind], text, width=16, height=16))
        else:
            assert torch.equal(made, super_resolve(stages[kind], picture, text))
            named = {"steps": [999, 500, 0], "sampler": "ddim", "aug_level": 0.4}
            assert torch.equal(made, super_resolve(stages[kind], picture, text, **named))


def test_each_of_a_stage_s_own_settings_is_taken_by_itself(sr, text, picture):
    for name, value in {**OWN, "aug_level": -1.0}.items():
        chosen = {**SR, "steps": 3, "sampler": "ddpm", "aug_level": 0.3, name: value}
        (made,) = node("ImagenSR256", stage=sr, text=text, image=picture, **chosen)
        assert torch.equal(made, super_resolve(sr, picture, text, **{**chosen, name: None})), name
    with pytest.raises(ValueError, match=r"SR 256: aug_level must be in \[0, 1\], got -0.5"):
        node("ImagenSR256", stage=sr, text=text, image=picture, **{**SR, "aug_level": -0.5})


def graph_of(source, slot, taker="ImagenBaseSample"):
    """A loader's output wired to a sampler's stage, in the API format."""
    text = {"class_type": "ImagenT5Encode", "inputs": {"text_encoder": ["1", 0], "prompt": "x"}}
    text["inputs"]["negative_prompt"] = ""
    node = {"class_type": taker, "inputs": {"stage": [source, slot], "text": ["2", 0]}}
    node["inputs"] |= BASE if taker == "ImagenBaseSample" else {**SR, "image": ["4", 0]}
    loader = {"class_type": "ImagenLoadCascade", "inputs": {"cascade": "emoji", "dtype": "auto"}}
    base = {
        "class_type": "ImagenBaseSample",
        "inputs": {"stage": ["1", 1], "text": ["2", 0], **BASE},
    }
    save = {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "x"}}
    return {"1": loader, "2": text, "3": node, "4": base, "5": save}


@pytest.mark.parametrize(
    ("taker", "slot", "said"),
    [
        ("ImagenBaseSample", 1, None),
        (
            "ImagenBaseSample",
            2,
            r"expected a base stage, got a super-resolution stage; connect `base`",
        ),
        ("ImagenSR256", 1, r"expected a super-resolution stage, got a base stage; connect `sr256`"),
        ("ImagenSR1024", 3, None),
        (
            "ImagenSR1024",
            0,
            r"stage: expected a link that carries IMAGEN_STAGE, got IMAGEN_TEXT_ENC",
        ),
    ],
)
def test_a_stage_of_the_wrong_kind_is_told_before_anything_runs(taker, slot, said):
    from imagen_nodes.cli.node_classes import default_registry
    from imagen_nodes.headless.engine.validate import check
    from imagen_nodes.headless.formats.workflow import parse_api

    problems = check(parse_api(graph_of("1", slot, taker)), default_registry()).problems
    assert len(problems) == (said is not None)
    if said:
        assert problems[0].node == "3"
        assert re.search(said, problems[0].line)
        assert "\n" not in problems[0].line


def test_missing_weights_of_deepfloyd_say_where_to_get_and_put_them():
    said = NODE_CLASS_MAPPINGS["ImagenLoadStage"].VALIDATE_INPUTS(stage="IF-I-XL-v1.0")
    assert re.search(
        r"licence at huggingface\.co/DeepFloyd, .* put it into \S*diffusion_models", said
    )
    said = NODE_CLASS_MAPPINGS["ImagenLoadTextEncoder"].VALIDATE_INPUTS(text_encoder="t5-v1_1-xxl")
    assert re.search(r"huggingface\.co/google and put it into \S*text_encoders", said)
    assert "huggingface" not in NODE_CLASS_MAPPINGS["ImagenLoadStage"].VALIDATE_INPUTS(stage="x")
