"""Noise schedules in log signal-to-noise ratio, variance preserving: alpha_t^2 + sigma_t^2 = 1.

A schedule maps t (0 = data, 1 = noise) to logsnr and back. Where the two conventions meet:
`sigma` = sigma_t / alpha_t = exp(-logsnr / 2).

References: VDM, arXiv:2107.00630; cosine, arXiv:2102.09672; shifted cosine, arXiv:2301.11093, section 2.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ScheduleName = Literal["cosine", "linear"]
LOGSNR_MAX = 15.0


def alpha_sigma(logsnr: Tensor) -> tuple[Tensor, Tensor]:
    """Signal and noise amplitudes of a noise level: alpha_t^2 + sigma_t^2 = 1.

    logsnr   any shape
    """
    return logsnr.sigmoid().sqrt(), (-logsnr).sigmoid().sqrt()


@dataclass(frozen=True)
class Schedule:
    """How noise grows with t.

    name    "cosine": logsnr = -2 log tan(pi t / 2), cut to [-15, 15] by moving t's end points;
            "linear": the continuous form of betas from 1e-4 to 0.02 over 1000 steps, as in Imagen's SR 1024
    shift   resolution ratio: logsnr moves by 2 log shift, so 0.25 adds the noise that a 256 picture
            needs to look like a 64 one does; 1 = none (arXiv:2301.11093, Eq. 4)
    """

    name: ScheduleName = "cosine"
    shift: float = 1.0

    def __post_init__(self):
        if self.name not in ("cosine", "linear"):
            raise ValueError(f"schedule must be 'cosine' or 'linear', got {self.name!r}")
        if not self.shift > 0:
            raise ValueError(f"shift must be > 0, got {self.shift}")

    def logsnr(self, t: Tensor) -> Tensor:
        """Log signal-to-noise ratio at t.

        t   any shape, 0 (data) to 1 (noise)
        """
        base = _cosine_logsnr(t) if self.name == "cosine" else _linear_logsnr(t)
        return base + 2 * math.log(self.shift)

    def t(self, logsnr: Tensor) -> Tensor:
        """The t at which the schedule has this log signal-to-noise ratio, cut to 0..1.

        logsnr   any shape
        """
        base = logsnr - 2 * math.log(self.shift)
        return (_cosine_t(base) if self.name == "cosine" else _linear_t(base)).clamp(0, 1)

    def sigmas(self, num_steps: int) -> Tensor:
        """Noise levels sigma_t / alpha_t of a sampling run: strictly falling, the last is 0.

        num_steps   number of steps, at least 1
        returns     (num_steps + 1,) float64 on the CPU, evenly spaced in t from 1
        """
        if num_steps < 1:
            raise ValueError(f"steps must be at least 1, got {num_steps}")
        t = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
        sigmas = (-0.5 * self.logsnr(t)).exp()
        sigmas[-1] = 0.0
        return sigmas


_T_MIN = math.atan(math.exp(-0.5 * LOGSNR_MAX))
_T_MAX = math.atan(math.exp(0.5 * LOGSNR_MAX))


def _cosine_logsnr(t: Tensor) -> Tensor:
    return -2 * torch.log(torch.tan(_T_MIN + t * (_T_MAX - _T_MIN)))


def _cosine_t(logsnr: Tensor) -> Tensor:
    return (torch.atan(torch.exp(-0.5 * logsnr)) - _T_MIN) / (_T_MAX - _T_MIN)


# alpha_t^2 = exp(-(1e-4 + 10 t^2)): betas from 1e-4 to 0.02 over 1000 steps in the limit of small steps.
def _linear_logsnr(t: Tensor) -> Tensor:
    return -torch.log(torch.expm1(1e-4 + 10 * t.square()))


def _linear_t(logsnr: Tensor) -> Tensor:
    return ((torch.nn.functional.softplus(-logsnr) - 1e-4).clamp_min(0) / 10).sqrt()
