"""The bridges in ComfyUI's own process: its samplers drive our stages to the pictures that ours make."""

STAGE = """
cascade = core.load_cascade(path / "imagen_core/pretrained/emoji")
text = cascade.text_encoder.encode_prompt("a red apple, noto style", "a dog")
positive, negative = node("ImagenTextToConditioning", text=text)
guidance = core.Guidance(4.0, "dynamic", 0.9)

def draws(seed):
    generator = torch.Generator("cpu").manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)

def ours(stage, sigmas, seed, guidance, sampler="ddpm"):
    from imagen_pack.imagen_core.diffusion.denoiser import make_denoiser
    network = stage.unet, stage.schedule, stage.prediction
    denoise = make_denoiser(*network, text, guidance, sigmas.double(), 1)
    # ComfyUI's start, and its own draws of the steps: versions differ in how they seed them.
    x = (1 + sigmas[0].double() ** 2).sqrt().float() * draws(seed)(1, 3, 64, 64)
    later = comfy.k_diffusion.sampling.default_noise_sampler(x, seed=seed)
    return core.SAMPLERS[sampler](
        denoise, x, sigmas.double(), lambda: later(None, None), lambda i, x0: None
    )

def theirs(model, positive, negative, latent, seed, steps, sampler, scheduler, cfg=1.0):
    with torch.inference_mode():
        (made,) = nodes.common_ksampler(
            model, seed, steps, cfg, sampler, scheduler, positive, negative, {"samples": latent}
        )
    return made["samples"]

def sigmas_of(model, scheduler, steps):
    return comfy.samplers.calculate_sigmas(
        model.get_model_object("model_sampling"), scheduler, steps
    )
"""


def test_ksampler_with_the_threshold_hook_equals_our_ddpm(inside_comfy):
    """Same sigmas, same noise, fixed variance. What is left is ComfyUI's float32 step against ours."""
    got = inside_comfy(
        STAGE
        + """
model, vae = node("ImagenStageToModel", stage=cascade.base)
(patched,) = node("ImagenPatchModel", model=model, guidance=guidance, data_range=1.0)
with torch.inference_mode():
    made = theirs(patched, positive, negative, torch.zeros(1, 3, 64, 64), 7, 12, "ddpm", "normal")
    expected = ours(cascade.base, sigmas_of(model, "normal", 12), 7, guidance)
    image = vae.decode(made)
    plain = theirs(model, positive, negative, torch.zeros(1, 3, 64, 64), 7, 12, "ddpm", "normal", 4.0)
told(
    difference=(made - expected).abs().max().item(), spread=expected.std().item(),
    hook_matters=(plain - made).abs().max().item(), picture=list(image.shape),
    low=image.min().item(), high=image.max().item(),
)
"""
    )
    assert got["difference"] < 1e-3, got
    assert got["spread"] > 0.1
    assert got["hook_matters"] > 0.05
    assert got["picture"] == [1, 64, 64, 3]
    assert got["low"] >= 0
    assert got["high"] <= 1


def test_a_guidance_interval_acts_on_the_same_steps_in_both(inside_comfy):
    got = inside_comfy(
        STAGE
        + """
model, _ = node("ImagenStageToModel", stage=cascade.base)
part = core.Guidance(5.0, "static", start=0.25, end=0.75)
(patched,) = node("ImagenPatchModel", model=model, guidance=part, data_range=1.0)
with torch.inference_mode():
    latent = torch.zeros(1, 3, 64, 64)
    made = theirs(patched, positive, negative, latent, 3, 8, "euler", "normal")
    expected = ours(cascade.base, sigmas_of(model, "normal", 8), 3, part, sampler="ddim")
    whole = ours(
        cascade.base, sigmas_of(model, "normal", 8), 3, core.Guidance(5.0, "static"),
        sampler="ddim",
    )
told(
    difference=(made - expected).abs().max().item(), whole=(made - whole).abs().max().item()
)
"""
    )
    assert got["difference"] < 1e-3, got
    assert got["whole"] > 0.05


def test_comfys_sampler_makes_the_same_picture_of_an_sr_stage(inside_comfy):
    got = inside_comfy(
        STAGE
        + """
torch.manual_seed(0)
image = torch.rand(1, 32, 32, 3)
model, vae = node("ImagenStageToModel", stage=cascade.sr256)
positive_sr, negative_sr, latent = node(
    "ImagenSRConditioning", stage=cascade.sr256, image=image, positive=positive,
    negative=negative, seed=5, aug_level=0.2,
)
static = core.Guidance(2.0, "static")
(patched,) = node("ImagenPatchModel", model=model, guidance=static, data_range=1.0)
with torch.inference_mode():
    made = vae.decode(comfy.sample.sample_custom(
        patched, comfy.sample.prepare_noise(latent["samples"], 5), 1.0,
        comfy.samplers.sampler_object("dpmpp_2m"), cascade.sr256.schedule.sigmas(4).float(),
        positive_sr, negative_sr, latent["samples"], seed=5,
    ))
    expected = core.super_resolve(
        cascade.sr256, image, text, guidance=static, seed=5, steps=4, sampler="dpmpp_2m",
        aug_level=0.2,
    )
try:
    theirs(model, positive, negative, latent["samples"], 5, 1, "euler", "normal")
    message = "no error"
except ValueError as error:
    message = str(error)
told(difference=(made - expected).abs().max().item(), shape=list(made.shape), message=message)
"""
    )
    assert got["shape"] == [1, 128, 128, 3]
    assert got["difference"] < 1e-3, got
    assert "put Imagen SR Conditioning" in got["message"]


def test_samplers_schedulers_and_loras_of_comfyui_work_on_a_stage(inside_comfy):
    got = inside_comfy(
        STAGE
        + """
model, _ = node("ImagenStageToModel", stage=cascade.base)
latent = torch.zeros(1, 3, 64, 64)
finite = {}
for sampler, scheduler in [("euler", "simple"), ("dpmpp_2m_sde", "karras"), ("ddim", "ddim_uniform"),
                           ("heun", "sgm_uniform"), ("uni_pc", "beta"), ("lcm", "exponential")]:
    made = theirs(model, positive, negative, latent, 1, 4, sampler, scheduler, 2.0)
    finite[f"{sampler} {scheduler}"] = bool(made.isfinite().all()) and made.std().item() > 0.05
before = theirs(model, positive, negative, latent, 1, 4, "euler", "normal", 2.0)
key = next(k for k in cascade.base.unet.state_dict() if k.endswith("conv_in.weight"))
weight = cascade.base.unet.state_dict()[key]
lora = {
    f"diffusion_model.{key[:-7]}.lora_up.weight": torch.randn(weight.shape[0], 2, 1, 1),
    f"diffusion_model.{key[:-7]}.lora_down.weight": torch.randn(2, *weight.shape[1:]),
}
changed, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
with_lora = theirs(changed, positive, negative, latent, 1, 4, "euler", "normal", 2.0)
chosen = dict(width=64, height=64, batch_size=1, seed=1, steps=4, sampler="dpmpp_2m", strength=1.0)
(through_node,) = node("ImagenBaseSample", stage=cascade.base, text=text, **chosen)
fresh = core.load_cascade(path / "imagen_core/pretrained/emoji")
(untouched,) = node("ImagenBaseSample", stage=fresh.base, text=text, **chosen)
after = theirs(model, positive, negative, latent, 1, 4, "euler", "normal", 2.0)
told(
    finite=finite, lora=(with_lora - before).abs().max().item(), again=torch.equal(before, after),
    our_node_sees_no_lora=torch.equal(through_node, untouched),
)
"""
    )
    assert all(got["finite"].values()), got["finite"]
    assert got["lora"] > 0.01
    assert got["again"]
    assert got["our_node_sees_no_lora"]


def test_conditioning_goes_there_and_back(inside_comfy):
    got = inside_comfy(
        STAGE
        + """
(back,) = node("ImagenConditioningToText", positive=positive, negative=negative)
(joined,) = nodes.ConditioningConcat().concat(positive, negative)
(longer,) = node("ImagenConditioningToText", positive=joined, negative=joined)
told(
    same=all(
        torch.equal(getattr(getattr(back, part), name), getattr(getattr(text, part), name))
        for part in ("text", "null_text") for name in ("embeds", "mask")
    ),
    length=[longer.text.embeds.shape[1], int(longer.text.mask.sum()), int(text.text.mask.sum())],
)
"""
    )
    assert got["same"]
    assert got["length"][0] == 64
    assert got["length"][1] == got["length"][2] + 32


def test_mixed_prompts_and_styles_cross_the_bridge(inside_comfy):
    got = inside_comfy(
        STAGE
        + """
second = cascade.text_encoder.encode_prompt("a green pear, noto style")
(text,) = node("ImagenMixPrompts", text=text, mixer=0.3, second=second, style=second)
positive, negative = node("ImagenTextToConditioning", text=text)
model, _ = node("ImagenStageToModel", stage=cascade.base)
(patched,) = node("ImagenPatchModel", model=model, guidance=guidance, data_range=1.0)
with torch.inference_mode():
    latent = torch.zeros(1, 3, 64, 64)
    made = theirs(patched, positive, negative, latent, 3, 6, "euler", "normal")
    expected = ours(cascade.base, sigmas_of(model, "normal", 6), 3, guidance, "ddim")
    text = cascade.text_encoder.encode_prompt("a red apple, noto style", "a dog")
    plain = ours(cascade.base, sigmas_of(model, "normal", 6), 3, guidance, "ddim")
told(
    difference=(made - expected).abs().max().item(), mixed=(made - plain).abs().max().item()
)
"""
    )
    assert got["difference"] < 1e-3, got
    assert got["mixed"] > 0.05


def test_changes_and_regions_cross_the_bridge(inside_comfy):
    """Six even steps: a change at half of the schedule is one after three of them in both."""
    got = inside_comfy(
        STAGE
        + """
encode = cascade.text_encoder.encode_prompt
left = torch.zeros(1, 64, 64)
left[..., :32] = 1
text = encode("a [red apple:green pear:0.45], noto style", "a dog")
(text,) = node(
    "ImagenRegionalPrompt", text=text, region=encode("a house"), mask=left, strength=0.8
)
positive, negative = node("ImagenTextToConditioning", text=text)
model, _ = node("ImagenStageToModel", stage=cascade.base)
(patched,) = node("ImagenPatchModel", model=model, guidance=guidance, data_range=1.0)
with torch.inference_mode():
    latent = torch.zeros(1, 3, 64, 64)
    made = theirs(patched, positive, negative, latent, 3, 6, "euler", "normal")
    expected = ours(cascade.base, sigmas_of(model, "normal", 6), 3, guidance, "ddim")
    text = encode("a red apple, noto style", "a dog")
    plain = ours(cascade.base, sigmas_of(model, "normal", 6), 3, guidance, "ddim")
told(
    difference=(made - expected).abs().max().item(), changed=(made - plain).abs().max().item(),
    entries=len(positive),
)
"""
    )
    assert got["difference"] < 1e-3, got
    assert got["changed"] > 0.05 and got["entries"] == 3


CUSTOM = (
    STAGE
    + """
from comfy_extras import nodes_custom_sampler, nodes_model_advanced

def call(cls, **inputs):
    # Nodes of ComfyUI's newer kind have `execute`; of the older kind, an instance and FUNCTION.
    old = not hasattr(cls, "execute")
    made = getattr(cls(), cls.FUNCTION)(**inputs) if old else cls.execute(**inputs)
    return getattr(made, "result", made)

def custom(name, **inputs):
    return call(getattr(nodes_custom_sampler, name), **inputs)[0]

def advanced(guider, model, sampler, scheduler, steps, seed):
    sigmas = custom("BasicScheduler", model=model, scheduler=scheduler, steps=steps, denoise=1.0)
    with torch.inference_mode():
        made = custom(
            "SamplerCustomAdvanced", noise=custom("RandomNoise", noise_seed=seed), guider=guider,
            sampler=custom("KSamplerSelect", sampler_name=sampler), sigmas=sigmas,
            latent_image={"samples": torch.zeros(1, 3, 64, 64)},
        )
    return made["samples"], sigmas

model, _ = node("ImagenStageToModel", stage=cascade.base)
"""
)


def test_sampler_custom_advanced_drives_a_stage_through_its_own_nodes(inside_comfy):
    """With either guider, and with the guidance of Imagen Patch Model; each picture is ours."""
    got = inside_comfy(
        CUSTOM
        + """
static = core.Guidance(5.0, "static", start=0.2)
(patched,) = node("ImagenPatchModel", model=model, guidance=static, data_range=1.0)
cfg = dict(positive=positive, negative=negative)
guiders = {
    "BasicGuider": (custom("BasicGuider", model=model, conditioning=positive), core.Guidance(1.0, "none")),
    "CFGGuider": (custom("CFGGuider", model=model, cfg=3.0, **cfg), core.Guidance(3.0, "none")),
    "patched": (custom("CFGGuider", model=patched, cfg=1.0, **cfg), static),
}
difference, made = {}, {}
for name, (guider, same) in guiders.items():
    made[name], sigmas = advanced(guider, model, "ddpm", "normal", 10, 7)
    with torch.inference_mode():
        expected = ours(cascade.base, sigmas, 7, same)
    difference[name] = (made[name] - expected).abs().max().item()
told(
    difference=difference, steps=len(sigmas) - 1,
    apart=min(
        (made[a] - made[b]).abs().max().item()
        for a, b in (("BasicGuider", "CFGGuider"), ("CFGGuider", "patched"))
    ),
)
"""
    )
    assert got["steps"] == 10
    assert max(got["difference"].values()) < 1e-3, got
    assert got["apart"] > 0.05


def test_patches_of_comfyui_stack_on_a_stage(inside_comfy):
    """Two LoRAs of half strength are one; Rescale CFG changes the picture, and not the stage itself."""
    got = inside_comfy(
        CUSTOM
        + """
key = next(k for k in cascade.base.unet.state_dict() if k.endswith("conv_in.weight"))
weight = cascade.base.unet.state_dict()[key]
torch.manual_seed(0)
lora = {
    f"diffusion_model.{key[:-7]}.lora_up.weight": torch.randn(weight.shape[0], 2, 1, 1),
    f"diffusion_model.{key[:-7]}.lora_down.weight": 0.1 * torch.randn(2, *weight.shape[1:]),
}

def with_lora(start, strength):
    return comfy.sd.load_lora_for_models(start, None, lora, strength, 0.0)[0]

def sampled(used):
    guider = custom("CFGGuider", model=used, positive=positive, negative=negative, cfg=4.0)
    return advanced(guider, used, "euler", "simple", 4, 1)[0]

plain, once = sampled(model), sampled(with_lora(model, 1.0))
twice = sampled(with_lora(with_lora(model, 0.5), 0.5))
(rescaled,) = call(nodes_model_advanced.RescaleCFG, model=model, multiplier=0.7)
both = sampled(with_lora(rescaled, 1.0))
rescaled = sampled(rescaled)
told(
    stack=(twice - once).abs().max().item(), lora=(once - plain).abs().max().item(),
    rescaled=(rescaled - plain).abs().max().item(), both=(both - rescaled).abs().max().item(),
    again=torch.equal(plain, sampled(model)),
)
"""
    )
    assert got["stack"] < 1e-3, got
    assert min(got["lora"], got["rescaled"], got["both"]) > 0.01, got
    assert got["again"]


def test_a_plain_empty_latent_gives_a_picture_of_its_own_size(inside_comfy):
    """Where the host tells how far a latent is scaled down; older ones divide by 8, and a note says so."""
    got = inside_comfy(
        STAGE
        + """
import logging
said = []
logging.getLogger("imagen_nodes").addFilter(lambda record: said.append(record.getMessage()) or True)
model, vae = node("ImagenStageToModel", stage=cascade.base)
(latent,) = nodes.EmptyLatentImage().generate(64, 64)
(made,) = nodes.common_ksampler(
    model, 0, 2, 1.0, "euler", "normal", positive, negative, latent
)
told(sides=list(made["samples"].shape[2:]), known="downscale_ratio_spacial" in latent, said=said)
"""
    )
    if got["known"]:
        assert (got["sides"], got["said"]) == ([64, 64], [])
    else:
        assert any("8 times as large" in text for text in got["said"])
