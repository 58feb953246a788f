"""The bridges, without ComfyUI: the hook on a stand-in for a MODEL, and text there and back."""

from dataclasses import replace

import pytest
import torch

from imagen_nodes import NODE_CLASS_MAPPINGS
from imagen_nodes.imagen_core import EncodedPrompt, Guidance, TextEmbedding, dynamic_threshold
from imagen_nodes.nodes import host
from imagen_nodes.nodes.bridge import Scales, post_cfg


def node(node_id: str, **inputs):
    cls = NODE_CLASS_MAPPINGS[node_id]
    return getattr(cls(), cls.FUNCTION)(**inputs)


def hook_arguments(cfg: float, shape=(2, 3, 8, 8), sigma: float = 1.0, dtype=torch.float32):
    """What ComfyUI hands to a post-CFG hook."""
    generator = torch.Generator().manual_seed(0)
    cond, null = (2 * torch.randn(2, *shape, generator=generator)).to(dtype)
    sigmas = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5, 0.0])
    return {
        "denoised": null + (cond - null) * cfg,
        "cond_denoised": cond,
        "uncond_denoised": null,
        "uncond": [],
        "cond_scale": cfg,
        "sigma": torch.full((shape[0],), sigma),
        "model_options": {"transformer_options": {"sample_sigmas": sigmas}},
    }


@pytest.mark.parametrize("cfg", [1.0, 5.0, 7.5])
def test_the_scale_of_the_guidance_replaces_the_samplers(cfg):
    args = hook_arguments(cfg)
    cond, null = args["cond_denoised"], args["uncond_denoised"]
    expected = dynamic_threshold(torch.lerp(null, cond, 5.0), 0.9)
    before = args["denoised"].clone()
    made = post_cfg(Guidance(5.0, "dynamic", 0.9))(args)
    assert torch.allclose(made, expected, atol=1e-5)
    assert torch.equal(args["denoised"], before)


def test_what_hooks_before_added_stays():
    args = hook_arguments(1.0)
    plain = post_cfg(Guidance(3.0, "none"))(args)
    args["denoised"] = args["denoised"] + 0.25
    assert torch.allclose(post_cfg(Guidance(3.0, "none"))(args), plain + 0.25, atol=1e-6)


def test_the_threshold_is_each_pictures_own():
    args = hook_arguments(3.0)
    made = post_cfg(Guidance(3.0, "dynamic", 0.9))(args)
    for i in range(2):
        alone = {k: v[i : i + 1] if torch.is_tensor(v) else v for k, v in args.items()}
        assert torch.equal(post_cfg(Guidance(3.0, "dynamic", 0.9))(alone), made[i : i + 1])


@pytest.mark.parametrize("shape", [(2, 16, 4, 8, 8), (2, 4, 100)])
def test_latents_of_any_number_of_axes_are_thresholded(shape):
    args = hook_arguments(3.0, shape)
    made = post_cfg(Guidance(3.0, "dynamic", 0.9), data_range=4.0)(args)
    flat = args["denoised"].reshape(2, -1, 1, 1)
    expected = 4 * dynamic_threshold(flat / 4, 0.9).reshape(shape)
    assert torch.allclose(made, expected, atol=1e-5)
    assert made.abs().max() <= 4


def test_half_precision_is_guided_in_float32():
    args = hook_arguments(2.0, dtype=torch.float16)
    made = post_cfg(Guidance(4.0, "dynamic", 0.9))(args)
    wide = {k: v.float() if torch.is_tensor(v) else v for k, v in args.items()}
    expected = post_cfg(Guidance(4.0, "dynamic", 0.9))(wide)
    assert made.dtype == torch.float16
    assert torch.equal(made, expected.half())


def test_a_sampler_without_a_negative_prompt_is_thresholded_all_the_same():
    args = {**hook_arguments(1.0), "uncond": None, "uncond_denoised": None}
    made = post_cfg(Guidance(5.0, "static"))(args)
    assert torch.equal(made, args["denoised"].clamp(-1, 1))


def test_the_interval_counts_the_steps_of_the_run():
    guidance = Guidance(6.0, start=0.4, end=0.8)
    sigmas = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5, 0.0])
    scales = [Scales(guidance).at(sigma.expand(2), sigmas) for sigma in sigmas[:-1]]
    assert scales == guidance.scales(5) == [1.0, 1.0, 6.0, 6.0, 1.0]
    assert Scales(guidance).at(torch.tensor([3.0]), sigmas) == 6.0  # between two steps
    assert Scales(guidance).at(torch.tensor([3.0]), None) == 6.0


class Model:
    """A stand-in for ComfyUI's MODEL."""

    def __init__(self):
        self.hooks = []

    def clone(self):
        copy = Model()
        copy.hooks = [*self.hooks]
        return copy

    def set_model_sampler_post_cfg_function(self, hook, disable_cfg1_optimization=False):
        self.hooks.append((hook, disable_cfg1_optimization))


def test_a_copy_is_patched_and_keeps_the_hooks_that_were_there():
    model = Model()
    model.set_model_sampler_post_cfg_function("other")
    (patched,) = node("ImagenPatchModel", model=model, guidance=Guidance(4.0), data_range=1.0)
    assert model.hooks == [("other", False)]
    assert [asked for _, asked in patched.hooks] == [False, True]
    (thresholded,) = node("ImagenPatchModel", model=model, guidance=Guidance(1.0), data_range=1.0)
    assert thresholded.hooks[1][1] is False  # scale 1 needs no negative prompt


@pytest.fixture
def texts():
    states = torch.randn(4, 1, 5, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(5)[None] < 3
    return [TextEmbedding(each, mask) for each in states]


def test_text_goes_to_conditioning_and_back(texts):
    text = EncodedPrompt(*texts[:2])
    positive, negative = node("ImagenTextToConditioning", text=text)
    (back,) = node("ImagenConditioningToText", positive=positive, negative=negative)
    for part in ("text", "null_text"):
        assert torch.equal(getattr(back, part).embeds, getattr(text, part).embeds)
        assert torch.equal(getattr(back, part).mask, getattr(text, part).mask)


def test_a_second_prompt_is_a_second_entry_and_a_style_travels_along(texts):
    text = EncodedPrompt(*texts[:3], 0.25, texts[3])
    positive, negative = node("ImagenTextToConditioning", text=text)
    assert [given["strength"] for _, given in positive] == [0.75, 0.25]
    assert all(torch.equal(given[host.STYLE], texts[3].embeds) for _, given in positive)
    assert host.STYLE not in negative[0][1]
    (back,) = node("ImagenConditioningToText", positive=positive[:1], negative=negative)
    assert torch.equal(back.style.embeds, texts[3].embeds)
    with pytest.raises(ValueError, match=r"positive: expected one entry, got 2; join them with"):
        node("ImagenConditioningToText", positive=positive, negative=negative)


def test_what_changes_with_the_steps_is_an_entry_for_each_part(texts):
    text = replace(texts[0], later=((0.4, texts[1]), (0.7, texts[2])))
    positive, negative = node("ImagenTextToConditioning", text=EncodedPrompt(text, texts[3]))
    spans = [(given["start_percent"], given["end_percent"]) for _, given in positive]
    assert spans == [(0.0, 0.4), (0.4, 0.7), (0.7, 1.0)]
    for (states, _), expected in zip(positive, texts, strict=False):
        assert torch.equal(states, expected.embeds)
    assert len(negative) == 1 and "start_percent" not in negative[0][1]
    with pytest.raises(ValueError, match="one that changes with the steps, has several"):
        node("ImagenConditioningToText", positive=positive, negative=negative)
    with pytest.raises(
        ValueError, match="for the whole image and all steps, got one with start_perc"
    ):
        node("ImagenConditioningToText", positive=positive[:1], negative=negative)


def test_regions_are_masked_entries_that_together_make_one(texts):
    left = torch.zeros(1, 8, 8)
    left[..., :4] = 1
    region = EncodedPrompt(texts[2], texts[3])
    (text,) = node(
        "ImagenRegionalPrompt",
        text=EncodedPrompt(*texts[:2]),
        region=region,
        mask=left,
        strength=0.75,
    )
    positive, _ = node("ImagenTextToConditioning", text=text)
    base, inside = (given["mask"] for _, given in positive)
    assert torch.equal(inside, 0.75 * left) and torch.equal(base + inside, torch.ones(1, 8, 8))
    assert torch.equal(positive[1][0], texts[2].embeds)
    with pytest.raises(
        ValueError, match="Imagen Regional Prompt: mask: expected one of height x width"
    ):
        node(
            "ImagenRegionalPrompt", text=text, region=region, mask=torch.ones(2, 8, 8), strength=1.0
        )


def test_conditionings_of_unequal_length_are_refused(texts):
    positive, negative = node("ImagenTextToConditioning", text=EncodedPrompt(*texts[:2]))
    longer = [[torch.cat([positive[0][0]] * 2, 1), positive[0][1]]]
    with pytest.raises(ValueError, match="negative: expected 10 states as in positive, got 5"):
        node("ImagenConditioningToText", positive=longer, negative=negative)


def test_states_that_a_mask_does_not_cover_are_real():
    mask = host.text_mask(torch.zeros(1, 5, 2), torch.tensor([[1, 0, 0]]))
    assert mask.tolist() == [[True, False, False, True, True]]


def test_outside_comfyui_a_stage_is_no_model():
    stage = type("Stage", (), {})()
    with pytest.raises(RuntimeError, match="runs there only"):
        node("ImagenStageToModel", stage=stage)
