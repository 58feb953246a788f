"""Bridges to the rest of ComfyUI: guidance on any MODEL, text as CONDITIONING, a stage as a MODEL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import host
from .checks import named, require_input_size, require_stage
from .widgets import OWN_LEVEL, SEED, level_input, number, wire

if TYPE_CHECKING:
    from torch import Tensor

CATEGORY = "imagen/bridges"


class ImagenPatchModel:
    """Imagen's guidance and dynamic thresholding on any MODEL."""

    DESCRIPTION = (
        "Applies guidance to any model: the scale, the interval of the schedule, and the "
        "threshold on each step's estimate of the clean image (Imagen, section 2.3). It runs "
        "after the sampler's own guidance and beside other patches. Its guidance_scale replaces "
        "the sampler's cfg."
    )
    CATEGORY = CATEGORY
    FUNCTION = "patch"
    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("A patched copy for any sampler; the input model is not changed.",)
    SEARCH_ALIASES = ["dynamic thresholding", "cfg", "rescale cfg", "guidance interval"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {
            "required": {
                "model": wire("MODEL", "Any diffusion model of ComfyUI."),
                "guidance": wire("IMAGEN_GUIDANCE", "From Dynamic-Threshold Guidance."),
                "data_range": number(
                    (1.0, 0.1, 100.0, 0.1),
                    "The largest absolute value of clean data: 1 for pixels, about 4 for Stable "
                    "Diffusion's latents.",
                ),
            }
        }

    def patch(self, model: Any, guidance: Any, data_range: float) -> tuple:
        """A copy of the model with the guidance as a post-CFG hook."""
        patched = model.clone()
        patched.set_model_sampler_post_cfg_function(
            post_cfg(guidance, data_range), disable_cfg1_optimization=guidance.guidance_scale != 1.0
        )
        return (patched,)


def post_cfg(guidance: Any, data_range: float = 1.0) -> Any:
    """ComfyUI's post-CFG hook of a guidance.

    data_range   what stands for the 1 of pixels in [-1, 1]

    The scale enters as a correction to what came before, so that the effect of earlier hooks is kept.
    """
    scales = Scales(guidance)

    def guide(args: dict[str, Any]) -> Tensor:
        x0 = args["denoised"].float()
        sampling = getattr(args.get("model"), "model_sampling", None)
        scale = scales.at(args["sigma"], sample_sigmas(args["model_options"]), sampling)
        known = isinstance(scale, float) and scale == args["cond_scale"]
        if args["uncond"] is not None and not known:
            pull = args["cond_denoised"].float() - args["uncond_denoised"].float()
            x0 = x0 + (scale - args["cond_scale"]) * pull
        flat = x0.reshape(len(x0), -1, 1, 1)  # latents of video have a fifth axis
        x0 = (guidance.apply_threshold(flat / data_range) * data_range).reshape(x0.shape)
        return x0.to(args["denoised"].dtype)

    return guide


def sample_sigmas(model_options: dict[str, Any]) -> Tensor | None:
    """The noise levels of the run; None where the sampler does not say.

    model_options   as a hook gets them
    """
    return model_options.get("transformer_options", {}).get("sample_sigmas")


class Scales:
    """A guidance's scale at the noise levels of a run, found on their device: no step waits."""

    def __init__(self, guidance: Any):
        self.guidance = guidance
        self.sigmas: Tensor | None = None
        self.levels: Any = None
        self.scales: Any = None

    def at(self, sigma: Tensor, sigmas: Tensor | None, sampling: Any = None) -> float | Tensor:
        """The scale of an evaluation: a tensor of no dimension where an interval is set.

        sigma      (b,), of the evaluation
        sigmas     (num_steps + 1,), decreasing; None = unknown, and the interval does not act
        sampling   ComfyUI's model_sampling, which knows the whole schedule; None = the run is all of it
        """
        if sigmas is None or len(sigmas) < 2:
            return self.guidance.guidance_scale
        if sigmas is not self.sigmas or self.levels.device != sigma.device:
            self._begin(sigma, sigmas, sampling)
        passed = (self.levels > sigma.max() * 1.0001).sum().clamp_max(len(self.scales) - 1)
        return self.scales.index_select(0, passed.view(1))[0]

    def _begin(self, sigma: Tensor, sigmas: Tensor, sampling: Any) -> None:
        from dataclasses import replace

        guidance = replace(self.guidance, skipped=skipped_steps(sigmas, sampling))
        self.sigmas, self.levels = sigmas, sigmas.to(sigma.device)
        self.scales = sigma.new_tensor(guidance.scales(len(sigmas) - 1))


def skipped_steps(sigmas: Tensor, sampling: Any) -> int:
    """About how many steps of the schedule come before a run that begins within it, as with denoise < 1.

    sigmas     (num_steps + 1,), of the run
    sampling   ComfyUI's model_sampling, whose timesteps are even in the schedule's time; or None
    """
    if sampling is None:
        return 0
    first = sigmas[:1].float()
    top = first.new_tensor([float(sampling.sigma_max)])
    part = float(sampling.timestep(first)) / float(sampling.timestep(top))
    num_steps = len(sigmas) - 1
    return max(0, round(num_steps / part) - num_steps) if 0.01 < part < 1 else 0


class ImagenTextToConditioning:
    """T5 states as ComfyUI's CONDITIONING."""

    DESCRIPTION = (
        "Turns encoded text into two conditionings, prompt and negative prompt, for KSampler and "
        "ComfyUI's other nodes."
    )
    CATEGORY = CATEGORY
    FUNCTION = "convert"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("positive", "negative")
    OUTPUT_TOOLTIPS = ("The prompt.", "The negative prompt; the empty prompt if there is none.")
    SEARCH_ALIASES = ["conditioning", "t5 to conditioning"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {"required": {"text": wire("IMAGEN_TEXT", "From T5 Encode.")}}

    def convert(self, text: Any) -> tuple:
        """Positive and negative."""
        positive = [
            entry(text.at(span[0]), pooled.at(span[0]), share, mask, span)
            for text, pooled, share, mask in text.positives
            for span in spans(text, pooled)
        ]
        nulls = [(text.null_text.at(span[0]), span) for span in spans(text.null_text)]
        negative = [entry(null, null, 1.0, None, span) for null, span in nulls]
        return positive, negative


class ImagenConditioningToText:
    """ComfyUI's CONDITIONING as T5 states."""

    DESCRIPTION = (
        "Turns conditionings back into encoded text, after ComfyUI's nodes have averaged or "
        "concatenated them. They must come from the T5 that the stage was trained with."
    )
    CATEGORY = CATEGORY
    FUNCTION = "convert"
    RETURN_TYPES = ("IMAGEN_TEXT",)
    RETURN_NAMES = ("text",)
    OUTPUT_TOOLTIPS = ("Connect to the sampling nodes.",)
    SEARCH_ALIASES = ["conditioning", "conditioning to t5"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {
            "required": {
                "positive": wire("CONDITIONING", "The prompt."),
                "negative": wire(
                    "CONDITIONING", "The negative prompt: what guidance should steer away from."
                ),
            }
        }

    def convert(self, positive: Any, negative: Any) -> tuple:
        """The encoded prompt."""
        from ..imagen_core import EncodedPrompt

        with named("Conditioning to Imagen Text"):
            text, null_text = embedding_of(positive, "positive"), embedding_of(negative, "negative")
            lengths = [part.embeds.shape[1] for part in (text, null_text)]
            if lengths[0] != lengths[1]:
                raise ValueError(
                    f"negative: expected {lengths[0]} states as in positive, got {lengths[1]}; "
                    f"concatenate as many prompts to the one as to the other"
                )
            return (EncodedPrompt(text, null_text, style=style_of(positive)),)


def spans(*texts: Any) -> list[tuple[float, float]]:
    """The parts of the schedule, from where to where, in which none of the texts changes."""
    from ..imagen_core.text.embedding import starts_of

    starts = starts_of(list(texts))
    return list(zip(starts, [*starts[1:], 1.0], strict=True))


def entry(
    text: Any, pooled: Any, weight: float, mask: Tensor | None, span: tuple[float, float]
) -> list:
    """An entry of a CONDITIONING; ComfyUI averages those of a step by strength and mask.

    text     TextEmbedding that is attended to
    pooled   TextEmbedding that is pooled
    weight   of the prediction that it leads to
    mask     h w, where it acts; None = everywhere
    span     part of the schedule at which it begins, and ends
    """
    given = {"attention_mask": text.mask, "pooled_output": None, "strength": weight}
    if pooled is not text:
        given[host.STYLE] = pooled.embeds
    if mask is not None:
        given |= {"mask": mask[None], "mask_strength": 1.0, "set_area_to_bounds": False}
    if span != (0.0, 1.0):
        given |= {"start_percent": span[0], "end_percent": span[1]}
    return [text.embeds, given]


def embedding_of(conditioning: Any, name: str) -> Any:
    """The states of a CONDITIONING as a TextEmbedding.

    conditioning   of one entry
    """
    from ..imagen_core import TextEmbedding

    if len(conditioning) != 1:
        raise ValueError(
            f"{name}: expected one entry, got {len(conditioning)}; join them with Conditioning (Concat) "
            f"or (Average) in place of (Combine). A text with regions, or one that changes with the "
            f"steps, has several: use it without conversion"
        )
    ((embeds, given),) = conditioning
    limited = [key for key in ("mask", "area", "start_percent", "end_percent") if key in given]
    if limited:
        raise ValueError(
            f"{name}: expected a text for the whole image and all steps, got one with {', '.join(limited)}; "
            f"use Imagen Regional Prompt, or [from:to:0.4] in the prompt, and no conversion"
        )
    return TextEmbedding(embeds, host.text_mask(embeds, given.get("attention_mask")))


def style_of(conditioning: Any) -> Any:
    """The states that a CONDITIONING is pooled from as a TextEmbedding; None = its own.

    conditioning   of one entry
    """
    from ..imagen_core import TextEmbedding

    ((_, given),) = conditioning
    style = given.get(host.STYLE)
    if style is None:
        return None
    return TextEmbedding(style, host.text_mask(style, given.get("attention_mask")))


class ImagenStageToModel:
    """A stage as ComfyUI's MODEL, with the VAE of pixels."""

    DESCRIPTION = (
        "Turns a stage into a MODEL for ComfyUI's own samplers, schedulers and LoRA loaders. Its "
        "latents are pixels: start from an empty latent with 3 channels, or from VAE Encode with "
        "this VAE, and decode with this VAE."
    )
    CATEGORY = CATEGORY
    FUNCTION = "convert"
    RETURN_TYPES = ("MODEL", "VAE")
    RETURN_NAMES = ("model", "vae")
    OUTPUT_TOOLTIPS = (
        "Connect to KSampler or another sampler.",
        "Turns pixels into latents and back without changing them.",
    )
    SEARCH_ALIASES = ["model", "ksampler", "native"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {"required": {"stage": wire("IMAGEN_STAGE", "From a loader.")}}

    def convert(self, stage: Any) -> tuple:
        """The model and its VAE."""
        with named("Imagen Stage to Model"):
            require_stage(stage)
        return host.native_model(stage), host.pixel_vae()


class ImagenSRConditioning:
    """What an SR stage needs when ComfyUI's sampler drives it."""

    DESCRIPTION = (
        "Puts the image to enlarge, with its augmentation noise, into the conditionings, and "
        "makes an empty latent of the enlarged size. For a sampler that runs a super-resolution "
        "stage through Imagen Stage to Model."
    )
    CATEGORY = CATEGORY
    FUNCTION = "convert"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING", "LATENT")
    RETURN_NAMES = ("positive", "negative", "latent")
    OUTPUT_TOOLTIPS = (
        "Connect to the sampler.",
        "Connect to the sampler.",
        "An empty latent of the enlarged size.",
    )
    SEARCH_ALIASES = ["upscale conditioning", "super resolution conditioning"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {
            "required": {
                "stage": wire(
                    "IMAGEN_STAGE", "The super-resolution stage that the model was made from."
                ),
                "image": wire("IMAGE", "The image to enlarge."),
                "positive": wire("CONDITIONING", "From Imagen Text to Conditioning."),
                "negative": wire("CONDITIONING", "From Imagen Text to Conditioning."),
                "seed": SEED,
                "aug_level": level_input("Noise added to `image` first: 0 keeps it as it is."),
            }
        }

    def convert(
        self, stage: Any, image: Any, positive: Any, negative: Any, seed: int, aug_level: float
    ) -> tuple:
        """Both conditionings with the picture, and the latent."""
        import torch

        with named("Imagen SR Conditioning"):
            require_stage(stage, "sr")
            lowres = lowres_of(stage, image, seed, aug_level)
        extra = {host.LOWRES: lowres.image, host.AUG: lowres.timestep}
        both = [[[e, {**given, **extra}] for e, given in cond] for cond in (positive, negative)]
        return (*both, {"samples": torch.zeros_like(lowres.image)})


def lowres_of(stage: Any, image: Any, seed: int, aug_level: float) -> Any:
    """What an SR stage sees of a picture: the same as in the SR nodes at this seed and level.

    image       b h w c in 0..1
    seed        picture i draws from seed + i
    aug_level   0..1, or OWN_LEVEL
    """
    import torch

    from ..imagen_core.checks import check_image
    from ..imagen_core.diffusion.lowres import augmentation, upsample
    from ..imagen_core.diffusion.noise import ImageNoise
    from ..imagen_core.sampling import to_network
    from ..imagen_core.settings import Settings
    from ..imagen_core.stage import check_sides

    check_image(image, "image")
    require_input_size(stage, image)
    small = to_network(image, torch.device("cpu"))
    large = upsample(small, stage.config.scale, stage.config.align_corners)
    multiple = stage.unet.size_multiple  # ComfyUI's samplers do not pad
    check_sides(*small.shape[2:], multiple=multiple, scale=stage.config.scale, name="image")
    noise = ImageNoise(seed, len(large))
    noise.randn(*large.shape[1:])  # the start of sampling, which is the sampler's own affair here
    level = Settings(aug_level=None if aug_level == OWN_LEVEL else aug_level).level(stage.config)
    lowres = augmentation(stage.schedule, large, level, "once", noise)()
    return lowres._replace(image=lowres.image.float(), timestep=lowres.timestep.float())
