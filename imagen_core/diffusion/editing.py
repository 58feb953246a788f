"""Sampling that starts from a picture, and sampling that keeps part of one.

Two ways to keep the pixels outside a mask, both around any denoiser and any sampler. "repaint": they
carry the noise of each level, and the part to paint is drawn to fit (RePaint, arXiv:2201.09865, which
also goes back up the schedule and down again). "clean": the network sees them without noise at every
level, as DeepFloyd IF does.

SDEdit, arXiv:2108.01073 (strength).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .denoiser import Denoise, Denoised
from .respacing import number, whole

InpaintName = Literal["repaint", "clean"]
INPAINTS: tuple[InpaintName, ...] = ("repaint", "clean")


class Pass(NamedTuple):
    """One pass of a sampler over a segment of the grid.

    first    level of the grid that the segment begins with
    sigmas   of the segment
    again    noise that is put back before it, which leads from the segment's end to its start; 0 = none
    """

    first: int
    sigmas: Tensor
    again: float


@dataclass(frozen=True)
class Inpainting:
    """How the pixels outside a mask are kept, and how often the schedule is passed over.

    method     "repaint": kept pixels carry the noise of each level; "clean": the network sees them
               without noise, and the mask is cut at one half, as DeepFloyd IF does
    resample   passes over each segment of the schedule, with noise put back in between; 1 = plain
    jump       steps of a segment
    """

    method: InpaintName = "repaint"
    resample: int = 1
    jump: int = 10

    def __post_init__(self):
        if self.method not in INPAINTS:
            raise ValueError(f"inpaint must be one of {INPAINTS}, got {self.method!r}")
        for name in ("resample", "jump"):
            object.__setattr__(self, name, whole(name, getattr(self, name)))
        if self.resample < 1 or self.jump < 1:
            raise ValueError(
                f"resample and jump must be at least 1, got {self.resample} and {self.jump}"
            )

    def passes(self, sigmas: Tensor) -> Iterator[Pass]:
        """The passes of a run in order: one over the whole grid, or several over each segment of it.

        RePaint, arXiv:2201.09865, section 4.2.
        """
        num_steps = len(sigmas) - 1
        jump = num_steps if self.resample == 1 else self.jump
        for first in range(0, num_steps, jump):
            segment = sigmas[first : first + jump + 1]
            again = math.sqrt(segment[0].item() ** 2 - segment[-1].item() ** 2)
            for time in range(self.resample):
                yield Pass(first, segment, again if time else 0.0)

    def keep(self, known: Tensor, mask: Tensor) -> "Kept":
        """What a run is to keep of a picture.

        known   b c h w in [-1, 1]
        mask    b h w, h w or b 1 h w, any size, 1 = repaint
        """
        mask = fit_mask(mask, known)
        return Kept(known, (mask >= 0.5).to(mask) if self.method == "clean" else mask, self)


@dataclass(frozen=True)
class Kept:
    """The part of a picture that a run keeps.

    known        b c h w in [-1, 1]
    mask         b 1 h w in 0..1, 1 = repaint
    inpainting   how it is kept
    """

    known: Tensor
    mask: Tensor
    inpainting: Inpainting

    def denoiser(self, denoise: Denoise, sigmas: Tensor, first: int) -> Denoise:
        """A denoiser that keeps the picture where the mask is 0.

        denoise   (x, i) -> estimate of x0 at sigmas[i]
        first     level of it that the sampler calls 0
        """
        shown = self.mask == 1 if self.inpainting.method == "clean" else None
        scales = (1 + sigmas.square()).sqrt().tolist()  # x = x_t / alpha_t

        def denoise_unknown(x: Tensor, i: int) -> Denoised:
            if shown is not None:
                x = torch.where(shown, x, scales[first + i] * self.known)
            denoised = denoise(x, first + i)
            return denoised._replace(x0=torch.lerp(self.known, denoised.x0, self.mask))

        return denoise_unknown

    def composite(self, result: Tensor, image: Tensor) -> Tensor:
        """The result where the mask is 1 and the picture, bit for bit, where it is 0.

        result   b h w c, the mask's size or the top left part of it
        image    b h w c, the same size
        """
        height, width = result.shape[1:3]
        mask = rearrange(self.mask[..., :height, :width], "b 1 h w -> b h w 1").cpu()
        image = image[..., :3].to(result)  # grey broadcasts
        return torch.where(
            mask == 0, image, torch.where(mask == 1, result, torch.lerp(image, result, mask))
        )


def partial_grid(sigmas: Tensor, strength: float) -> Tensor:
    """The last part of a sampling grid: at least one step of it.

    sigmas     (num_steps + 1,)
    strength   part of the steps to keep, rounded down, (0, 1]
    """
    strength = number("strength", strength)
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be in (0, 1], got {strength}")
    num_steps = len(sigmas) - 1
    return sigmas[num_steps - max(1, int(num_steps * strength)) :]


def fit_mask(mask: Tensor, known: Tensor) -> Tensor:
    """The mask at the picture's size and batch: b 1 h w in 0..1.

    mask    b h w, h w or b 1 h w, any size
    known   b c h w
    """
    rows = 1 if mask.ndim == 2 else len(mask)
    if mask.numel() != rows * mask.shape[-1] * mask.shape[-2] or rows not in (1, len(known)):
        raise ValueError(
            f"mask: expected 1 or {len(known)} x height x width, got {list(mask.shape)}"
        )
    mask = mask.to(known).reshape(-1, 1, *mask.shape[-2:])
    if mask.shape[2:] != known.shape[2:]:
        mask = F.interpolate(mask, size=known.shape[2:], mode="bilinear", align_corners=False)
    return mask.expand(len(known), -1, -1, -1).clamp(0, 1)
