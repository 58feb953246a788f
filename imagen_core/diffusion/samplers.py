"""Samplers: plain functions over a denoiser, in units x = x0 + sigma * eps.

Each takes `denoise(x, i)` (estimate of x0 at level i), the grid `sigmas` (float64, decreasing, the last
is 0), `noise()` (a fresh unit-normal draw shaped like x) and `on_step(i, x0)`. One step works. What
is known of the grid alone is computed in float64 on the CPU.

References: DDPM, arXiv:2006.11239; DDIM, arXiv:2010.02502; EDM, arXiv:2206.00364; DPM-Solver++,
arXiv:2211.01095.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .denoiser import Denoise

Noise = Callable[[], Tensor]
OnStep = Callable[[int, Tensor], None]
Sampler = Callable[[Denoise, Tensor, Tensor, Noise, OnStep], Tensor]


# DDIM (Eq. 12)
def sample_ddim(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, on_step: OnStep
) -> Tensor:
    """Deterministic first-order sampling (DDIM with eta 0, the Euler method).

    noise     not drawn from

    DDIM, arXiv:2010.02502, Eq. 12.
    """
    for i, (sigma, sigma_next) in enumerate(_pairs(sigmas)):
        x0 = denoise(x, i).x0
        x = torch.lerp(x0, x, sigma_next / sigma)
        on_step(i, x0)
    return x


# DDPM (Eq. 7), with learned variance (Eq. 15)
def sample_ddpm(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, on_step: OnStep
) -> Tensor:
    """Ancestral sampling: the posterior of each step, with its own variance or a learned one.

    denoise   (x, i) -> estimate of x0 at sigmas[i], and the variance where the net learned it
    noise     one draw a step but the last

    DDPM, arXiv:2006.11239, Eq. 7; learned variance, arXiv:2102.09672, Eq. 15.
    """
    for i, (sigma, sigma_next) in enumerate(_pairs(sigmas)):
        x0, fraction = denoise(x, i)
        x = torch.lerp(x0, x, (sigma_next / sigma) ** 2)
        if sigma_next > 0:
            forward = (sigma**2 - sigma_next**2) * (1 + sigma_next**2) / (1 + sigma**2)
            posterior = sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2
            if fraction is None:
                x = x + math.sqrt(posterior) * noise()
            else:
                log_variance = torch.lerp(
                    torch.full_like(fraction, math.log(posterior)),
                    torch.full_like(fraction, math.log(forward)),
                    fraction,
                )
                x = x + (0.5 * log_variance).exp() * noise()
        on_step(i, x0)
    return x


# EDM (algorithm 1), exact in x (Eq. 8)
def sample_heun(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, on_step: OnStep
) -> Tensor:
    """Deterministic second-order sampling, two evaluations a step but the last: Heun's method on x0.

    The path between two levels is exact in x; x0, the one thing that is not known along it, is taken as
    the mean of its ends. A trapezoid of dx/dsigma would be ruined by the first steps of a short run, in
    which sigma falls from thousands to ten.

    noise     not drawn from

    Heun: EDM, arXiv:2206.00364, algorithm 1; exact in x: DPM-Solver++, arXiv:2211.01095, Eq. 8.
    """
    for i, (sigma, sigma_next) in enumerate(_pairs(sigmas)):
        x0 = mean = denoise(x, i).x0
        if sigma_next > 0:
            euler = torch.lerp(x0, x, sigma_next / sigma)
            mean = (x0 + denoise(euler, i + 1).x0) / 2
        x = torch.lerp(mean, x, sigma_next / sigma)
        on_step(i, x0)
    return x


# DPM-Solver++ (algorithm 2)
def sample_dpmpp_2m(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, on_step: OnStep
) -> Tensor:
    """Deterministic second-order multistep sampling, one evaluation a step.

    noise     not drawn from

    DPM-Solver++, arXiv:2211.01095, algorithm 2.
    """
    previous, h_previous = None, 0.0
    for i, (sigma, sigma_next) in enumerate(_pairs(sigmas)):
        x0 = denoise(x, i).x0
        h = _log_step(sigma, sigma_next)
        extrapolated = x0
        if previous is not None and sigma_next > 0:
            extrapolated = x0 + _reach(h, h_previous) * (x0 - previous)
        x = torch.lerp(extrapolated, x, sigma_next / sigma)
        previous, h_previous = x0, h
        on_step(i, x0)
    return x


def sample_dpmpp_2m_sde(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, on_step: OnStep
) -> Tensor:
    """Stochastic second-order multistep sampling, one evaluation and one draw a step.

    noise     one draw a step but the last

    SDE-DPM-Solver++(2M), arXiv:2211.01095, section 5 and appendix B.
    """
    previous, h_previous = None, 0.0
    for i, (sigma, sigma_next) in enumerate(_pairs(sigmas)):
        x0 = denoise(x, i).x0
        h = _log_step(sigma, sigma_next)
        extrapolated = x0
        if previous is not None and sigma_next > 0:
            extrapolated = x0 + _reach(h, h_previous) * (x0 - previous)
        x = torch.lerp(extrapolated, x, (sigma_next / sigma) ** 2)
        if sigma_next > 0:
            x = x + sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2) * noise()
        previous, h_previous = x0, h
        on_step(i, x0)
    return x


SAMPLERS: dict[str, Sampler] = {
    "ddim": sample_ddim,
    "ddpm": sample_ddpm,
    "heun": sample_heun,
    "dpmpp_2m": sample_dpmpp_2m,
    "dpmpp_2m_sde": sample_dpmpp_2m_sde,
}


def _pairs(sigmas: Tensor) -> list[tuple[float, float]]:
    values = sigmas.tolist()
    return list(zip(values[:-1], values[1:], strict=True))


def _log_step(sigma: float, sigma_next: float) -> float:
    """Step in half logsnr; infinite on the way to sigma 0."""
    return math.log(sigma / sigma_next) if sigma_next > 0 else math.inf


def _reach(h: float, h_previous: float) -> float:
    """How far two estimates are drawn on: to the middle of the step, but not past their own distance.

    Presets hold neighbours such as 800, 799; what differs between those is mostly noise. So where a step is
    over twice the one before, this differs from k-diffusion's sample_dpmpp_2m.
    """
    return min(h / (2 * h_previous), 1.0)
