"""Sampling: text to a 64 picture, and each super-resolution stage from picture to picture.

Pictures between stages are b h w c in 0..1, as ComfyUI's IMAGE, so anything may stand between them.
Here samplers, denoiser and U-Net meet. Gradients flow to whatever asks for them; call these under
`torch.no_grad()` to do without.

Imagen, arXiv:2205.11487, section 2.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .checks import check_base, check_sampled, check_sr
from .diffusion.denoiser import Denoise, make_denoiser
from .diffusion.editing import Inpainting, Kept, fit_mask
from .diffusion.guidance import Guidance
from .diffusion.lowres import AugNoise, augmentation, upsample
from .diffusion.noise import ImageNoise
from .diffusion.respacing import Spacing
from .diffusion.samplers import Noise, Sampler
from .diffusion.samplers import OnStep as StepDone
from .diffusion.tiles import Tiles, windows
from .diffusion.trace import Trace
from .settings import OnStep, Quality, Settings, Sigmas
from .stage import Stage
from .text.prompt import EncodedPrompt
from .unet.reuse import Reuse, Reusing


def sample_base(
    stage: Stage,
    text: EncodedPrompt,
    *,
    guidance: Guidance | None = None,
    image: Tensor | None = None,
    mask: Tensor | None = None,
    width: int | None = None,
    height: int | None = None,
    batch_size: int = 1,
    seed: int | Sequence[int] = 0,
    steps: Spacing | None = None,
    sampler: str | Sampler | None = None,
    strength: float = 1.0,
    inpainting: Inpainting = Inpainting(),
    on_step: OnStep | None = None,
    trace: Trace | None = None,
    sigmas: Sigmas | None = None,
    quality: Quality = "full",
    reuse: Reuse | None = None,
) -> Tensor:
    """Pictures of the text, from noise or from a given picture: b h w c in 0..1.

    stage, text   a base stage, and an encoded prompt of 1 or batch_size rows
    image         b h w c in 0..1, to start from; it gives the size and the batch
    mask          b h w in 0..1, 1 = repaint; pixels where it is 0 come back exactly as in image
    width, height, batch_size   pixels (None = the stage's own) and pictures; not used with image
    guidance, seed, steps, sigmas, sampler, strength, inpainting, on_step, trace, quality, reuse   as in
                  `Settings`; strength is not used without image, nor inpainting without mask

    Imagen, arXiv:2205.11487, section 2.
    """
    strength = 1.0 if image is None else strength
    settings = Settings(
        guidance, seed, steps, sigmas, sampler, strength, inpainting, quality=quality, reuse=reuse
    )
    batch, height, width = check_base(
        stage, text, settings, image, mask, (batch_size, height, width)
    )
    grid = settings.grid(stage.config)
    known = None if image is None else to_network(image, stage.device)
    noise = ImageNoise(settings.seed, batch, stage.device)
    x = start(noise.randn(3, height, width), grid, known)
    kept = None if known is None or mask is None else inpainting.keep(known, mask)
    unet: Any = stage.unet if reuse is None else Reusing(stage.unet, reuse)
    denoise = make_denoiser(
        unet, stage.schedule, stage.prediction, text, settings.guidance_of(stage.config), grid,
        batch, trace=trace,
    )  # fmt: skip
    sample, draw = settings.sampler_of(stage.config), lambda: noise.randn(*x.shape[1:])
    for leg in legs(denoise, grid, kept, on_step):
        x = check_sampled(sample(leg.denoise, leg.begin(x, draw), leg.sigmas, draw, leg.on_step), x)
    made = to_image(x)
    return made if kept is None or image is None else kept.composite(made, image)


def super_resolve(
    stage: Stage,
    image: Tensor,
    text: EncodedPrompt,
    *,
    guidance: Guidance | None = None,
    seed: int | Sequence[int] = 0,
    steps: Spacing | None = None,
    sampler: str | Sampler | None = None,
    aug_level: float | None = None,
    aug_noise: AugNoise = "once",
    tile: int = 0,
    original: Tensor | None = None,
    mask: Tensor | None = None,
    strength: float = 1.0,
    inpainting: Inpainting = Inpainting(),
    on_step: OnStep | None = None,
    trace: Trace | None = None,
    sigmas: Sigmas | None = None,
    quality: Quality = "full",
    reuse: Reuse | None = None,
) -> Tensor:
    """The pictures enlarged by the stage's scale: b (scale h) (scale w) c in 0..1.

    stage, text   an SR stage, and an encoded prompt of 1 or b rows
    image         b h w c in 0..1, any aspect ratio; an ADM network wants sides that it can halve often
                  enough (DeepFloyd IF: multiples of 4), the Efficient U-Net takes any
    original      b h w c in 0..1, 1 or b rows as large as the output: sampling starts from it, and image
                  still says what is seen; None = from noise
    mask          b h w in 0..1, 1 = repaint; pixels where it is 0 come back exactly as in original
    guidance, seed, steps, sigmas, sampler, aug_level, aug_noise, tile, strength, inpainting, on_step,
    trace, quality, reuse   as in `Settings`; strength is not used without original, nor inpainting
                  without mask

    Imagen, arXiv:2205.11487, sections 2.4 and 2.5.
    """
    strength = 1.0 if original is None else strength
    settings = Settings(
        guidance, seed, steps, sigmas, sampler, strength, inpainting, aug_level, aug_noise, tile,
        quality=quality, reuse=reuse,
    )  # fmt: skip
    batch, height, width = check_sr(stage, text, settings, image, original, mask)
    config, grid = stage.config, settings.grid(stage.config)
    large = enlarged(stage, image)
    known, kept = started_from(stage, batch, original, mask, inpainting)
    noise = ImageNoise(settings.seed, batch, stage.device)
    x = start(noise.randn(*large.shape[1:]), grid, known)
    lowres = augmentation(stage.schedule, large, settings.level(config), aug_noise, noise)
    tiles = tiles_of(stage, large, settings.tile)
    del large  # a picture of the output's size; who needs it to draw from has it
    unet: Any = stage.unet if reuse is None or tiles is not None else Reusing(stage.unet, reuse)
    denoise = make_denoiser(
        unet, stage.schedule, stage.prediction, text, settings.guidance_of(config), grid, batch,
        lowres, tiles, trace,
    )  # fmt: skip
    sample, draw = settings.sampler_of(config), lambda: noise.randn(*x.shape[1:])
    for leg in legs(denoise, grid, kept, cropped(on_step, height, width)):
        x = check_sampled(sample(leg.denoise, leg.begin(x, draw), leg.sigmas, draw, leg.on_step), x)
    made = to_image(x[..., :height, :width])
    return made if kept is None or original is None else kept.composite(made, original)


def enlarged(stage: Stage, image: Tensor) -> Tensor:
    """The picture in the size of the result, padded as an SR stage's network takes it: b 3 h w in [-1, 1].

    image    b h w c in 0..1
    """
    config = stage.config
    large = upsample(to_network(image, stage.device), config.scale, config.align_corners)
    return pad_to_multiple(large, stage.unet.size_multiple)


def to_network(image: Tensor, device: torch.device) -> Tensor:
    """A picture as the networks see it: b 3 h w in [-1, 1], float32.

    image    b h w c in 0..1; grey is taken for all three channels, alpha is dropped
    """
    return rearrange(rgb(image), "b h w c -> b c h w").to(device, torch.float32) * 2 - 1


def to_image(x: Tensor) -> Tensor:
    """The inverse of `to_network`, clipped: b h w c in 0..1, contiguous, on the CPU.

    x   b c h w, about [-1, 1]
    """
    return rearrange((x.cpu() + 1) / 2, "b c h w -> b h w c").clamp(0, 1).contiguous()


class Leg(NamedTuple):
    """What a sampler does at once: all of a run, or one pass over a segment of it.

    denoise   (x, i) -> estimate of x0 at sigmas[i]
    sigmas    the grid of the leg
    again     noise to put back before it
    on_step   called with (i, x0) after each of its steps
    """

    denoise: Denoise
    sigmas: Tensor
    again: float
    on_step: StepDone

    def begin(self, x: Tensor, draw: Noise) -> Tensor:
        """x where the leg begins.

        x      where the one before it ended
        draw   unit-normal noise
        """
        return x + self.again * draw() if self.again else x


def legs(
    denoise: Denoise, sigmas: Tensor, kept: Kept | None, on_step: OnStep | None
) -> Iterator[Leg]:
    """The legs of a run: one, but for inpainting that passes over segments of the schedule several times.

    denoise   (x, i) -> estimate of x0 at sigmas[i]
    kept      what is kept of a picture; None = nothing
    on_step   None, or called with (step, num_steps, x0)
    """
    total, done = len(sigmas) - 1, 0
    told = on_step or (lambda step, num_steps, x0: None)

    def report(before: int) -> StepDone:
        return lambda i, x0: told(before + i + 1, total, x0)

    if kept is None:
        yield Leg(denoise, sigmas, 0.0, report(0))
        return
    total *= kept.inpainting.resample
    for part in kept.inpainting.passes(sigmas):
        keeping = kept.denoiser(denoise, sigmas, part.first)
        yield Leg(keeping, part.sigmas, part.again, report(done))
        done += len(part.sigmas) - 1


def start(noise: Tensor, sigmas: Tensor, known: Tensor | None) -> Tensor:
    """Where a run begins: at a picture with the noise of the grid's first level, or at noise alone.

    noise    b c h w, unit normal
    known    b c h w in [-1, 1]; None: x_t is the noise itself, whatever level the grid begins at
    """
    if known is not None:
        return known + sigmas[0].item() * noise
    return math.sqrt(1 + sigmas[0].item() ** 2) * noise  # x = x_t / alpha_t


def started_from(
    stage: Stage, batch: int, original: Tensor | None, mask: Tensor | None, inpainting: Inpainting
) -> tuple[Tensor | None, Kept | None]:
    """The picture that super-resolution starts from, padded as the network takes it, and what is kept.

    original     b h w c in 0..1, or None
    mask         b h w in 0..1, 1 = repaint, or None
    inpainting   how the pixels outside the mask are kept
    """
    if original is None:
        return None, None
    multiple = stage.unet.size_multiple
    known = to_network(original.expand(batch, -1, -1, -1), stage.device)
    padded = pad_to_multiple(known, multiple)
    if mask is None:
        return padded, None
    return padded, inpainting.keep(padded, pad_to_multiple(fit_mask(mask, known), multiple))


def rgb(image: Tensor) -> Tensor:
    """Grey in all three channels, alpha dropped (views).

    image   b h w c; 1, 3 or 4 channels
    """
    return image.expand(-1, -1, -1, 3) if image.shape[-1] == 1 else image[..., :3]


def cropped(on_step: OnStep | None, height: int, width: int) -> OnStep | None:
    """A callback that is shown the picture without the padding.

    on_step         called with (step, num_steps, x0), or None
    """
    if on_step is None:
        return None
    return lambda step, num_steps, x0: on_step(step, num_steps, x0[..., :height, :width])


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """x with its last rows and columns repeated until both sides are multiples.

    x          b c h w
    multiple   of the sides of the result
    """
    height, width = x.shape[2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")


def tiles_of(stage: Stage, large: Tensor, tile: int) -> Tiles | None:
    """Tiles for the evaluations; None where the whole picture is one tile or tiling is off.

    stage   its U-Net says what sides must be multiples of
    large   b 3 h w, as large as the output, padded
    tile    side of a tile in pixels; 0 = off
    """
    height, width = large.shape[2:]
    if tile == 0 or (tile >= height and tile >= width):
        return None
    multiple = stage.unet.size_multiple
    return Tiles(windows(height, width, tile // multiple * multiple, multiple), large.device)
