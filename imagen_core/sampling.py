"""Sampling: text to a 64 picture, and each super-resolution stage from picture to picture.

Pictures between stages are b h w c in 0..1, as ComfyUI's IMAGE, so anything may stand between them.
Here samplers, denoiser and U-Net meet.

Imagen, arXiv:2205.11487, section 2.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .diffusion.denoiser import Denoise, make_denoiser
from .diffusion.editing import Inpainting, Kept, fit_mask, partial_grid
from .diffusion.guidance import Guidance
from .diffusion.lowres import AUG_NOISES, AugNoise, Lowres, augment, upsample
from .diffusion.noise import ImageNoise
from .diffusion.respacing import Spacing
from .diffusion.samplers import SAMPLERS, Sampler
from .diffusion.tiles import Window, windows
from .diffusion.trace import Trace
from .stage import Stage
from .text.embedding import EncodedPrompt

OnStep = Callable[[int, int, Tensor], None]


def to_network(image: Tensor, device: torch.device) -> Tensor:
    """A picture as the networks see it: b c h w in [-1, 1], float32.

    image    b h w c in 0..1; only the first three channels are taken
    device   where the result goes
    """
    return rearrange(image[..., :3], "b h w c -> b c h w").to(device, torch.float32) * 2 - 1


def to_image(x: Tensor) -> Tensor:
    """The inverse of `to_network`, clipped: b h w c in 0..1, contiguous, on the CPU.

    x   b c h w, about [-1, 1]
    """
    return rearrange((x.cpu() + 1) / 2, "b c h w -> b h w c").clamp(0, 1).contiguous()


@torch.no_grad()
def sample_base(
    stage: Stage,
    text: EncodedPrompt,
    *,
    guidance: Guidance | None = None,
    image: Tensor | None = None,
    mask: Tensor | None = None,
    width: int = 64,
    height: int = 64,
    batch_size: int = 1,
    seed: int = 0,
    steps: Spacing | None = None,
    sampler: str | None = None,
    strength: float = 1.0,
    inpainting: Inpainting = Inpainting(),
    on_step: OnStep | None = None,
    trace: Trace | None = None,
) -> Tensor:
    """Pictures of the text, from noise or from a given picture: b h w c in 0..1.

    stage       a base stage
    text        encoded prompt of 1 or batch_size rows
    guidance    None = the stage's default scale and threshold
    image       b h w c in 0..1, the picture to start from; gives the size and the batch
    mask        b h w in 0..1, 1 = repaint; pixels where it is 0 come back exactly as in image
    width       pixels, multiple of the network's size_multiple; not used with image
    height      the same
    batch_size  pictures, the i-th from seed + i; not used with image
    seed        0 to 2**64 - 1
    steps       sampler steps for the whole schedule, or for a discrete one also a preset or
                timesteps; None = the stage's default
    sampler     name in SAMPLERS; None = the stage's default
    strength    part of the steps that is run on an image, (0, 1]; 1 = all of them
    inpainting  how the pixels outside the mask are kept; not used without mask
    on_step     called with (step, num_steps, x0) after each step
    trace       keeps what the threshold did at each step, to be read afterwards

    Imagen, arXiv:2205.11487, section 2.
    """
    stage.check_kind("base")
    check_inputs(text, image)
    defaults = stage.config.defaults
    guidance = guidance or stage.guidance()
    if mask is not None and image is None:
        raise ValueError("mask: needs an image whose unmasked pixels are to be kept, got none")
    known = None if image is None else to_network(image, stage.device)
    shape = (batch_size, 3, height, width) if known is None else tuple(known.shape)
    stage.check_size(*shape[2:], name="width and height" if known is None else "image")

    sigmas = partial_grid(
        stage.schedule.sigmas(defaults.steps if steps is None else steps),
        1.0 if image is None else strength,
    )
    noise = ImageNoise(seed, shape[0], stage.device)
    x = start(noise.randn(*shape[1:]), sigmas, known)
    kept = None if known is None or mask is None else inpainting.keep(known, mask)
    denoise = make_denoiser(stage, text, guidance, sigmas, shape[0], trace=trace)
    x = run(choose_sampler(sampler or defaults.sampler), denoise, x, sigmas, noise, on_step, kept)
    return to_image(x) if kept is None or image is None else kept.composite(to_image(x), image)


@torch.no_grad()
def super_resolve(
    stage: Stage,
    image: Tensor,
    text: EncodedPrompt,
    *,
    guidance: Guidance | None = None,
    seed: int = 0,
    steps: Spacing | None = None,
    sampler: str | None = None,
    aug_level: float | None = None,
    aug_noise: AugNoise = "once",
    tile: int = 0,
    original: Tensor | None = None,
    mask: Tensor | None = None,
    strength: float = 1.0,
    inpainting: Inpainting = Inpainting(),
    on_step: OnStep | None = None,
    trace: Trace | None = None,
) -> Tensor:
    """The pictures enlarged by the stage's scale: b (scale h) (scale w) c in 0..1.

    stage       an SR stage
    image       b h w c in 0..1, any aspect ratio; an ADM network wants sides that it can halve often
                enough (DeepFloyd IF: multiples of 4), the Efficient U-Net takes any
    text        encoded prompt of 1 or b rows
    guidance    None = the stage's default scale, static thresholding
    seed        picture i draws its noise from seed + i; 0 to 2**64 - 1
    steps       sampler steps, or for a discrete schedule also a preset or timesteps; None = the
                stage's default
    sampler     name in SAMPLERS; None = the stage's default
    aug_level   noise put on the picture before it is enlarged, 0..1; None = the stage's default
    aug_noise   "once" draws that noise before the first step; "each step" draws it anew
    tile        side of the tiles of the output in pixels; 0 = the whole picture at once
    original    b h w c in 0..1, 1 or b rows as large as the output: sampling starts from it, and image
                still says what is seen; None = from noise
    mask        b h w in 0..1, 1 = repaint; pixels where it is 0 come back exactly as in original
    strength    part of the steps that is run on an original, (0, 1]; 1 = all of them
    inpainting  how the pixels outside the mask are kept; not used without mask
    on_step     called with (step, num_steps, x0) after each step
    trace       keeps what the threshold did at each step, to be read afterwards

    Imagen, arXiv:2205.11487, sections 2.4 and 2.5.
    """
    stage.check_kind("sr")
    check_inputs(text, image)
    defaults = stage.config.defaults
    guidance = guidance or stage.guidance()
    aug_level = defaults.aug_level if aug_level is None else aug_level
    if not 0 <= aug_level <= 1:
        raise ValueError(f"aug_level must be in [0, 1], got {aug_level}")
    sigmas = partial_grid(
        stage.schedule.sigmas(defaults.steps if steps is None else steps),
        1.0 if original is None else strength,
    )

    small = to_network(image, stage.device)
    stage.check_size(*small.shape[2:], name="image")
    height, width = (side * stage.config.scale for side in small.shape[2:])
    large = pad_to_multiple(
        upsample(small, stage.config.scale, stage.config.align_corners), stage.unet.size_multiple
    )
    known, kept = started_from(stage, image, original, mask, inpainting)
    noise = ImageNoise(seed, len(small), stage.device)
    x = start(noise.randn(*large.shape[1:]), sigmas, known)
    lowres = augmentation(stage, large, aug_level, aug_noise, noise)
    tiles = tile_windows(stage, large.shape[2], large.shape[3], tile)
    denoise = make_denoiser(stage, text, guidance, sigmas, len(small), lowres, tiles, trace)
    cropped = None if on_step is None else lambda i, n, x0: on_step(i, n, x0[..., :height, :width])
    x = run(choose_sampler(sampler or defaults.sampler), denoise, x, sigmas, noise, cropped, kept)
    result = to_image(x[..., :height, :width])
    return result if kept is None or original is None else kept.composite(result, original)


def check_inputs(text: EncodedPrompt, image: Tensor | None) -> None:
    """Raise TypeError or ValueError with what to give instead where these are something else.

    text    encoded prompt
    image   b h w c, or None
    """
    if not isinstance(text, EncodedPrompt):
        raise TypeError(
            f"text: expected an EncodedPrompt, as text_encoder.encode_prompt gives it, got "
            f"{type(text).__name__}"
        )
    if image is not None and (image.ndim != 4 or image.shape[-1] not in (3, 4)):
        raise ValueError(
            f"image: expected batch x height x width x 3 channels in 0..1, got {list(image.shape)}"
        )


def start(noise: Tensor, sigmas: Tensor, known: Tensor | None) -> Tensor:
    """Where a run begins: at a picture with the noise of the grid's first level, or at noise alone.

    noise    b c h w, unit normal
    sigmas   the grid
    known    b c h w in [-1, 1]; None: x_t is the noise itself, whatever level the grid begins at
    """
    if known is not None:
        return known + sigmas[0].item() * noise
    return math.sqrt(1 + sigmas[0].item() ** 2) * noise  # x = x_t / alpha_t


def started_from(
    stage: Stage,
    image: Tensor,
    original: Tensor | None,
    mask: Tensor | None,
    inpainting: Inpainting,
) -> tuple[Tensor | None, Kept | None]:
    """The picture that super-resolution starts from, padded as the network takes it, and what is kept.

    stage        an SR stage
    image        b h w c, what is enlarged
    original     b h w c in 0..1, or None
    mask         b h w in 0..1, 1 = repaint, or None
    inpainting   how the pixels outside the mask are kept
    """
    if original is None:
        if mask is not None:
            raise ValueError(
                "mask: needs an original whose unmasked pixels are to be kept, got none"
            )
        return None, None
    stage.check_original(original.shape, image.shape)
    multiple = stage.unet.size_multiple
    known = to_network(original.expand(len(image), -1, -1, -1), stage.device)
    padded = pad_to_multiple(known, multiple)
    if mask is None:
        return padded, None
    return padded, inpainting.keep(padded, pad_to_multiple(fit_mask(mask, known), multiple))


def choose_sampler(name: str) -> Sampler:
    """The sampler of that name; an unknown one raises ValueError.

    name   a key of SAMPLERS
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler must be one of {sorted(SAMPLERS)}, got {name!r}")
    return SAMPLERS[name]


def run(
    sampler: Sampler,
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: ImageNoise,
    on_step: OnStep | None,
    kept: Kept | None,
) -> Tensor:
    """The sampler's result, its noise and its callback bound to this run.

    sampler   one of SAMPLERS
    denoise   (x, i) -> estimate of x0
    x         b c h w, at sigmas[0]
    sigmas    the grid
    noise     the batch's generators
    on_step   None, or called with (step, num_steps, x0)
    kept      what is kept of a picture; None = nothing
    """
    num_steps = len(sigmas) - 1
    if kept is not None:
        sampler, denoise = kept.sampler(sampler), kept.denoiser(denoise, sigmas)
        num_steps *= kept.inpainting.resample

    def report(i: int, x0: Tensor) -> None:
        if on_step is not None:
            on_step(i + 1, num_steps, x0)

    return sampler(denoise, x, sigmas, lambda: noise.randn(*x.shape[1:]), report)


def augmentation(
    stage: Stage, large: Tensor, aug_level: float, aug_noise: AugNoise, noise: ImageNoise
) -> Callable[[], Lowres]:
    """What an SR stage is given at each step: the same picture with noise, or one with fresh noise.

    stage       its schedule says how much noise a level is
    large       b 3 h w in [-1, 1], up-sampled
    aug_level   0..1
    aug_noise   "once" or "each step"
    noise       the batch's generators
    """
    level = torch.full((len(large),), aug_level, dtype=torch.float64, device="cpu")

    def draw() -> Lowres:
        return augment(large, noise.randn(*large.shape[1:]), level, stage.schedule)

    if aug_noise not in AUG_NOISES:
        raise ValueError(f"aug_noise must be one of {AUG_NOISES}, got {aug_noise!r}")
    if aug_noise == "each step":
        return draw
    lowres = draw()
    return lambda: lowres


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """x with its last rows and columns repeated until both sides are multiples.

    x          b c h w
    multiple   of the sides of the result
    """
    height, width = x.shape[2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")


def tile_windows(stage: Stage, height: int, width: int, tile: int) -> list[Window] | None:
    """Windows for tiled evaluation; None where the whole picture is one tile or tiling is off.

    stage           its U-Net says what sides must be multiples of
    height, width   of the output in pixels, padded
    tile            side of a tile in pixels; 0 = off
    """
    multiple = stage.unet.size_multiple
    if tile < 0 or 0 < tile < 4 * multiple:
        raise ValueError(f"tile must be 0 (whole picture) or at least {4 * multiple}, got {tile}")
    if tile == 0 or (tile >= height and tile >= width):
        return None
    return windows(height, width, tile // multiple * multiple, multiple)
