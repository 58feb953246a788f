"""A stage as ComfyUI's own MODEL, whose latents are pixels in [-1, 1], for its samplers and schedulers.

The classes are made when they are first wanted, since ComfyUI's are not there to derive from before.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from .adapter import comfy
from .memory import keep_patcher
from .model_text import Text, TextCond
from .progress import note

if TYPE_CHECKING:
    from torch import Tensor

LOWRES, AUG, STYLE = "imagen_lowres", "imagen_aug", "imagen_style"
"""Keys of a CONDITIONING: what an SR stage enlarges, the level of its noise, states that are pooled."""

TABLE = 1000  # noise levels that schedulers may pick from


def native_model(stage: Any) -> Any:
    """A MODEL for ComfyUI's samplers. It shares the stage's weights and their one patcher.

    stage   imagen_core.Stage
    """
    if comfy("comfy.model_base") is None:
        raise RuntimeError(
            "Imagen Stage to Model: makes a MODEL for ComfyUI, so it runs there only"
        )
    if stage.plain is not None:
        patcher = native_model(stage.plain)
        for lora, strength in stage.loras:
            patcher.add_patches(weight_patches(lora, stage.plain), strength)
        return patcher
    patcher = stage.unet.__dict__.get("comfy_patcher")
    if patcher is None or not isinstance(patcher.model, _model_class()):
        patcher = keep_patcher(stage.unet, _model_class()(stage), "unet")
    return patcher.clone()


def weight_patches(lora: Any, stage: Any) -> dict[str, Any]:
    """A LoRA as ComfyUI patches weights: low-rank where it is, else as differences.

    lora    imagen_core.LoRA
    stage   without LoRAs, whose weights DoRA depends on
    """
    adapters = comfy("comfy.weight_adapter")
    patches: dict[str, Any] = {}
    for name, update in lora.updates.items():
        key, layer = f"diffusion_model.{name}", stage.unet.get_submodule(name)
        plain = update.rank and update.magnitude is None and update.weight is None
        if plain and adapters is not None:
            parts = (update.up, update.down.flatten(1), None, None, None, None)
            patches[f"{key}.weight"] = adapters.LoRAAdapter(set(), parts)
        elif update.rank or update.full:
            patches[f"{key}.weight"] = ("diff", (update.delta(layer.weight),))
        if update.bias is not None:
            patches[f"{key}.bias"] = ("diff", (update.bias,))
    return patches


def pixel_vae() -> Any:
    """ComfyUI's VAE that turns pixels into latents and back without changing them."""
    import torch

    if comfy("comfy.sd") is None:
        raise RuntimeError("Imagen Stage to Model: makes a VAE for ComfyUI, so it runs there only")
    return comfy("comfy.sd").VAE(sd={"pixel_space_vae": torch.tensor(1.0)})


@lru_cache(maxsize=1)
def _config_class() -> type:
    class Pixels(comfy("comfy.latent_formats").LatentFormat):
        latent_channels = 3
        spacial_downscale_ratio = 1  # an empty latent of 64 x 64 is an image of 64 x 64
        latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]

    class StageModelConfig(comfy("comfy.supported_models_base").BASE):
        latent_format = Pixels

    return StageModelConfig


@lru_cache(maxsize=1)
def _sampling_class() -> type:
    import torch

    from ...imagen_core.diffusion.schedules import precise

    class StageSampling(torch.nn.Module, comfy("comfy.model_sampling").EPS):
        """A stage's schedule as ComfyUI asks for it: sigma = sigma_t / alpha_t, timestep = 1000 t."""

        sigma_data = 1.0

        def __init__(self, schedule: Any):
            super().__init__()
            self.schedule = schedule
            t = (torch.arange(TABLE, dtype=torch.float64) + 1) / TABLE
            if hasattr(schedule, "table"):
                t = torch.arange(TABLE, dtype=torch.float64) / TABLE  # a discrete model's own
            sigmas = (-0.5 * schedule.logsnr(t)).exp()
            self.register_buffer("sigmas", sigmas.float())
            self.register_buffer("log_sigmas", sigmas.log().float())

        @property
        def sigma_min(self) -> Tensor:
            return self.sigmas[0]

        @property
        def sigma_max(self) -> Tensor:
            return self.sigmas[-1]

        def timestep(self, sigma: Tensor) -> Tensor:
            return TABLE * self.schedule.t(-2 * precise(sigma).log()).to(sigma)

        def sigma(self, timestep: Tensor) -> Tensor:
            logsnr = self.schedule.logsnr(precise(timestep) / TABLE)
            return (-0.5 * logsnr).exp().float().to(timestep.device)

        def percent_to_sigma(self, percent: float) -> float:
            if percent <= 0.0:
                return 999999999.9
            if percent >= 1.0:
                return 0.0
            return self.sigma(TABLE * (1.0 - torch.tensor(percent))).item()

    return StageSampling


@lru_cache(maxsize=1)
def _model_class() -> type:
    import torch

    from ...imagen_core.diffusion.denoiser import x0_from_output

    base = comfy("comfy.model_base")

    class StageModel(base.BaseModel):
        """A stage behind ComfyUI's interface; precision is decided here as it is in the denoiser."""

        def __init__(self, stage: Any):
            config = _config_class()({"disable_unet_model_creation": True})
            super().__init__(config, base.ModelType.EPS)
            self.model_sampling = _sampling_class()(stage.schedule)
            self.diffusion_model = stage.unet
            self.stage = stage

        def get_dtype(self) -> torch.dtype:
            return self.stage.dtype

        def memory_required(self, input_shape: Any, cond_shapes: Any = None) -> float:
            return self.stage.running_bytes(input_shape[0], *input_shape[-2:])

        def extra_conds(self, **given: Any) -> dict[str, Any]:
            return stage_conds(self.stage, given)

        def _apply_model(
            self,
            x: Tensor,
            t: Tensor,
            c_concat: Any = None,
            c_crossattn: Any = None,
            control: Any = None,
            transformer_options: Any = None,
            **given: Any,
        ) -> Tensor:
            stage, sigma = self.stage, t.float()
            x_t = self.model_sampling.calculate_input(sigma, x.float())
            shown = [x_t.to(stage.dtype), self.model_sampling.timestep(sigma)]
            shown.append(given["texts"].context(stage, self.current_weight_patches_uuid))
            if stage.config.kind == "sr":
                shown += [given["lowres"], given["aug"]]
            output = stage.unet(*shown)[:, : x.shape[1]].float()
            logsnr = -2 * sigma.log()[:, None, None, None]
            return x0_from_output(stage.prediction, output, x_t, logsnr)

    return StageModel


def stage_conds(stage: Any, given: dict[str, Any]) -> dict[str, Any]:
    """What a stage is told beside x and sigma, as ComfyUI batches it.

    stage   reads the text
    given   of ComfyUI: the conditioning's states and keys, the noise, the device
    """
    conds = comfy("comfy.conds")
    embeds = given["cross_attn"]
    stage.check_text(embeds)
    mask = text_mask(embeds, given.get("attention_mask"))
    out: dict[str, Any] = {"texts": TextCond([(Text(embeds, mask, given.get(STYLE, embeds)), 1)])}
    if stage.config.kind == "sr":
        require_lowres(given.get(LOWRES), given["noise"])
        lowres = given[LOWRES].to(given["device"], stage.dtype)
        out["lowres"] = conds.CONDNoiseShape(lowres)
        out["aug"] = conds.CONDRegular(given[AUG].to(given["device"]))
    elif max(given["noise"].shape[-2:]) < stage.config.resolution / 4:
        height, width = given["noise"].shape[-2:]
        note(
            f"Imagen Stage to Model: the latent is {width} x {height}, and this stage's latents are pixels, "
            f"about {stage.config.resolution} x {stage.config.resolution}. This ComfyUI's Empty Latent Image "
            f"divides its sides by 8: give it sides 8 times as large, or scale the latent up"
        )
    return out


def text_mask(embeds: Tensor, mask: Tensor | None) -> Tensor:
    """Which states of a CONDITIONING are real: all where it does not say, and those joined to it.

    embeds   b n d
    mask     b m, or None
    """
    import torch

    real = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    if mask is not None:
        real[:, : mask.shape[1]] = mask.to(real)[:, : real.shape[1]]
    return real


def require_lowres(lowres: Tensor | None, noise: Tensor) -> None:
    """Raise ValueError unless an SR stage has a picture to enlarge, of the latent's size.

    lowres   b 3 h w, or None
    noise    b 3 h w
    """
    if lowres is None:
        raise ValueError(
            "Imagen Stage to Model: a super-resolution stage needs an image to enlarge; "
            "put Imagen SR Conditioning between the text and the sampler"
        )
    if lowres.shape[2:] != noise.shape[2:]:
        sizes = [f"{x.shape[3]} x {x.shape[2]}" for x in (lowres, noise)]
        raise ValueError(
            f"latent_image: expected {sizes[0]}, got {sizes[1]}; use the latent that Imagen SR "
            f"Conditioning puts out"
        )
