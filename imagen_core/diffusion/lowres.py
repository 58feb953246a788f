"""Low-resolution conditioning of the SR stages: up-sampling and noise conditioning augmentation.

Imagen, arXiv:2205.11487, section 2.4 and figure A.32; CDM, arXiv:2106.15282.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .noise import ImageNoise
from .schedules import AnySchedule, alpha_sigma
from .tiles import Window

AugNoise = Literal["once", "each step"]
AUG_NOISES: tuple[AugNoise, ...] = ("once", "each step")


class Lowres(NamedTuple):
    """What an SR net sees of the picture to enlarge.

    image      b 3 h w, at the output's resolution, with noise of the augmentation level
    timestep   (b,), that level as the net's sinusoid sees it, 0..1000
    """

    image: Tensor
    timestep: Tensor

    def crop(self, window: Window) -> "Lowres":
        """The part of the conditioning under a window."""
        return Lowres(window.crop(self.image), self.timestep)

    def repeat(self, rows: int) -> "Lowres":
        """The batch `rows` times over."""
        return Lowres(self.image.repeat(rows, 1, 1, 1), self.timestep.repeat(rows))

    def to(self, dtype: torch.dtype) -> "Lowres":
        """The picture in the network's dtype; the level stays float32."""
        return Lowres(self.image.to(dtype), self.timestep)


def upsample(lowres: Tensor, scale: int, align_corners: bool = False) -> Tensor:
    """The picture at the SR stage's resolution, bilinear.

    lowres          b 3 h w
    scale           whole number
    align_corners   corners stay corners, as DeepFloyd IF has it; else every pixel moves alike
    returns         b 3 (scale h) (scale w)
    """
    height, width = (scale * side for side in lowres.shape[2:])
    size = (height, width)
    return F.interpolate(lowres, size=size, mode="bilinear", align_corners=align_corners)


def augment(image: Tensor, noise: Tensor, aug_t: Tensor, schedule: AnySchedule) -> Lowres:
    """Noise conditioning augmentation: the picture with noise, and the level that the net is told.

    image      b 3 h w in [-1, 1], up-sampled
    noise      b 3 h w, unit normal
    aug_t      (b,), augmentation level as a t of the schedule, 0 = none
    """
    alpha_t, sigma_t, timestep = augmented(image, aug_t, schedule)
    return Lowres(alpha_t * image + sigma_t * noise, timestep)


def augmented(image: Tensor, aug_t: Tensor, schedule: AnySchedule) -> tuple[Tensor, Tensor, Tensor]:
    """What `augment` scales image and noise by, and the level that the net is told: b 1 1 1 and (b,).

    image      b 3 h w, gives device and dtype
    aug_t      (b,), augmentation level as a t of the schedule, 0 = none
    """
    logsnr = schedule.logsnr(aug_t)
    alpha_t, sigma_t = (part.to(image) for part in alpha_sigma(logsnr[:, None, None, None]))
    return alpha_t, sigma_t, (1000 * schedule.t(logsnr)).to(image)


class Shown:
    """What the net is given at each step, in its dtype, made anew only where the conditioning is."""

    def __init__(self, lowres: Callable[[], Lowres], dtype: torch.dtype):
        self.lowres, self.dtype = lowres, dtype
        self.drawn: Lowres | None = None
        self.cast: Lowres | None = None
        self.made: dict[int, Lowres] = {}

    def step(self) -> Lowres:
        """The conditioning of the step that begins."""
        drawn = self.lowres()
        if self.cast is None or drawn is not self.drawn:
            self.drawn, self.cast, self.made = drawn, drawn.to(self.dtype), {}
        return self.cast

    def under(self, window: Window | None, rows: int) -> Lowres:
        """The step's conditioning under a window, the batch `rows` times over; None = the whole picture."""
        assert self.cast is not None, "step() comes first"
        if window is not None:
            return self.cast.crop(window).repeat(rows)
        if rows not in self.made:
            self.made[rows] = self.cast.repeat(rows)
        return self.made[rows]


def augmentation(
    schedule: AnySchedule, large: Tensor, aug_level: float, aug_noise: AugNoise, noise: ImageNoise
) -> Callable[[], Lowres]:
    """What an SR stage is given at each step: the same picture with noise, or one with fresh noise.

    schedule    says how much noise a level is
    large       b 3 h w in [-1, 1], up-sampled
    aug_level   0..1
    """
    level = torch.full((len(large),), aug_level, dtype=torch.float64, device="cpu")

    alpha_t, sigma_t, timestep = augmented(large, level, schedule)

    def draw() -> Lowres:
        return Lowres(alpha_t * large + sigma_t * noise.randn(*large.shape[1:]), timestep)

    if aug_noise == "each step":
        return draw
    lowres = draw()
    return lambda: lowres
