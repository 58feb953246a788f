"""Noise schedules in log signal-to-noise ratio, variance preserving: alpha_t^2 + sigma_t^2 = 1.

A schedule maps t (0 = data, 1 = noise) to logsnr and back. Where the two conventions meet:
`sigma` = sigma_t / alpha_t = exp(-logsnr / 2).

References: VDM, arXiv:2107.00630; cosine, arXiv:2102.09672; shifted cosine, arXiv:2301.11093, section 2.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from .respacing import Spacing, plain, timesteps

ScheduleName = Literal["cosine", "linear"]
LOGSNR_MAX = 15.0
MOST_TIMESTEPS = MOST_STEPS = 100_000
NO_FLOAT64 = ("mps",)  # devices
T_ROUNDING = 1e-4  # timesteps; what a float32 t may be short of its timestep


def precise(x: Tensor) -> Tensor:
    """x in float64; on the CPU where its device has none, as Apple's.

    x   any shape, of few values
    """
    return (x.cpu() if x.device.type in NO_FLOAT64 else x).double()


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

    def sigmas(self, num_steps: Spacing) -> Tensor:
        """Noise levels sigma_t / alpha_t of a sampling run: strictly decreasing, the last is 0.

        num_steps   number of steps, at least 1; presets and lists are for discrete schedules
        returns     (num_steps + 1,) float64 on the CPU, evenly spaced in t from 1
        """
        num_steps = plain(num_steps)
        if not isinstance(num_steps, int):
            raise ValueError(
                f"timesteps: this stage's time is continuous and takes a number of steps, got "
                f"{num_steps!r}; leave timesteps empty and set steps"
            )
        if num_steps < 1:
            raise ValueError(f"steps must be at least 1, got {num_steps}")
        if num_steps > MOST_STEPS:
            raise ValueError(f"steps must be at most {MOST_STEPS}, got {num_steps}")
        t = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64, device="cpu")
        sigmas = (-0.5 * self.logsnr(t)).exp()
        sigmas[-1] = 0.0
        return sigmas


@dataclass(frozen=True)
class DiscreteSchedule:
    """The 1000-step cosine schedule of DeepFloyd IF (diffusers: squaredcos_cap_v2); t = timestep / 1000.

    name            says in a file which schedule it is
    num_timesteps   timesteps of the model

    Improved DDPM, arXiv:2102.09672, Eq. 17, betas cut at 0.999.
    """

    name: Literal["squaredcos_cap_v2"] = "squaredcos_cap_v2"
    num_timesteps: int = 1000

    def __post_init__(self):
        if type(self.num_timesteps) is not int or not 2 <= self.num_timesteps <= MOST_TIMESTEPS:
            raise ValueError(
                f"num_timesteps: expected a whole number from 2 to {MOST_TIMESTEPS}, got "
                f"{self.num_timesteps!r}"
            )

    def table(self, device: torch.device | str = "cpu") -> Tensor:
        """Log signal-to-noise ratio of every timestep: (num_timesteps,) float64, decreasing.

        device   it is made and moved there once
        """
        return _table(self.num_timesteps, torch.device(device))

    def logsnr(self, t: Tensor) -> Tensor:
        """Log signal-to-noise ratio of the timestep at or before 1000 t.

        t   any shape, 0..1
        """
        last = self.num_timesteps - 1
        index = (precise(t) * self.num_timesteps + T_ROUNDING).floor().clamp(0, last).long()
        return self.table(index.device)[index].to(t)

    def t(self, logsnr: Tensor) -> Tensor:
        """The t of this log signal-to-noise ratio, between timesteps in proportion.

        logsnr   any shape
        """
        x = precise(logsnr)
        rising = self.table(x.device).flip(0)
        x = x.clamp(rising[0], rising[-1])
        above = torch.searchsorted(rising, x.contiguous()).clamp(1, self.num_timesteps - 1)
        low, high = rising[above - 1], rising[above]
        from_top = above - 1 + (x - low) / (high - low)
        return ((self.num_timesteps - 1 - from_top) / self.num_timesteps).to(logsnr)

    def sigmas(self, num_steps: Spacing) -> Tensor:
        """Noise levels of a sampling run: strictly decreasing, the last is 0.

        num_steps   a number, a preset or a list: see `respacing.timesteps`
        returns     (steps + 1,) float64 on the CPU
        """
        num_steps = plain(num_steps)
        if isinstance(num_steps, int) and num_steps < 1:
            raise ValueError(f"steps must be at least 1, got {num_steps}")
        visited = self.table()[timesteps(num_steps, self.num_timesteps)]
        return torch.cat(
            [(-0.5 * visited).exp(), torch.zeros(1, dtype=torch.float64, device="cpu")]
        )


AnySchedule = Schedule | DiscreteSchedule

_T_MIN = math.atan(math.exp(-0.5 * LOGSNR_MAX))
_T_MAX = math.atan(math.exp(0.5 * LOGSNR_MAX))


def _cosine_logsnr(t: Tensor) -> Tensor:
    return -2 * torch.log(torch.tan(_T_MIN + t * (_T_MAX - _T_MIN)))


def _cosine_t(logsnr: Tensor) -> Tensor:
    return (torch.atan(torch.exp(-0.5 * logsnr)) - _T_MIN) / (_T_MAX - _T_MIN)


# (Eq. 17)
@lru_cache(maxsize=8)
def _table(num_timesteps: int, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return _table(num_timesteps, torch.device("cpu")).to(device)
    with torch.inference_mode(False):
        edges = torch.linspace(0, 1, num_timesteps + 1, dtype=torch.float64, device="cpu")
        alpha_bar = torch.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp_max(0.999)
        return torch.logit((1 - betas).cumprod(0))


# alpha_t^2 = exp(-(1e-4 + 10 t^2)): betas from 1e-4 to 0.02 over 1000 steps in the limit of small steps.
def _linear_logsnr(t: Tensor) -> Tensor:
    return -torch.log(torch.expm1(1e-4 + 10 * t.square()))


def _linear_t(logsnr: Tensor) -> Tensor:
    return ((torch.nn.functional.softplus(-logsnr) - 1e-4).clamp_min(0) / 10).sqrt()
