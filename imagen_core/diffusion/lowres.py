"""Low-resolution conditioning of the SR stages: up-sampling and noise conditioning augmentation.

Imagen, arXiv:2205.11487, section 2.4 and figure A.32; CDM, arXiv:2106.15282.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from .schedules import Schedule, alpha_sigma
from .tiles import Window


class Lowres(NamedTuple):
    """What an SR net sees of the picture to enlarge.

    image      b 3 h w, at the output's resolution, with noise of the augmentation level
    timestep   (b,), that level as the net's sinusoid sees it, 0..1000
    """

    image: Tensor
    timestep: Tensor

    def crop(self, window: Window | None) -> "Lowres":
        """The part of the conditioning under a window; all of it for None."""
        return self if window is None else Lowres(window.crop(self.image), self.timestep)

    def repeat(self, rows: int) -> "Lowres":
        """The batch `rows` times over."""
        return Lowres(self.image.repeat(rows, 1, 1, 1), self.timestep.repeat(rows))


def upsample(lowres: Tensor, scale: int) -> Tensor:
    """The picture at the SR stage's resolution, bilinear.

    lowres    b 3 h w
    scale     whole number
    returns   b 3 (scale h) (scale w)
    """
    return F.interpolate(lowres, scale_factor=scale, mode="bilinear", align_corners=False)


def augment(image: Tensor, noise: Tensor, aug_t: Tensor, schedule: Schedule) -> Lowres:
    """Noise conditioning augmentation: the picture with noise, and the level that the net is told.

    image      b 3 h w in [-1, 1], up-sampled
    noise      b 3 h w, unit normal
    aug_t      (b,), augmentation level as a t of the schedule, 0 = none
    schedule   the stage's schedule
    """
    alpha_t, sigma_t = alpha_sigma(schedule.logsnr(aug_t)[:, None, None, None])
    return Lowres(alpha_t * image + sigma_t * noise, 1000 * aug_t)
