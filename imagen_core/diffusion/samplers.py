"""Samplers: plain functions over a denoiser, in units x = x0 + sigma * eps.

Each takes `denoise(x, i)` (estimate of x0 at level i), the grid `sigmas` (float64, decreasing, the last
is 0), `noise()` (a fresh unit-normal draw shaped like x) and `on_step(i, x0)`. One step works. What
is known of the grid alone is computed in float64 on the CPU.

References: DDPM, arXiv:2006.11239; DDIM, arXiv:2010.02502; EDM, arXiv:2206.00364; DPM-Solver++,
arXiv:2211.01095; UniPC, arXiv:2302.04867; Restart, arXiv:2306.14878.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .denoiser import Denoise

RESTART = 2.0, 0.1  # sigma, as for Stable Diffusion in the paper
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
    return _multistep(denoise, x, sigmas, range(len(sigmas) - 1), on_step)


def _multistep(
    denoise: Denoise, x: Tensor, sigmas: Tensor, steps: range, on_step: OnStep
) -> Tensor:
    """Some steps of `sample_dpmpp_2m`: x at the level after them.

    steps   by the numbers of the levels where they begin
    """
    previous, h_previous, pairs = None, 0.0, _pairs(sigmas)
    for i in steps:
        sigma, sigma_next = pairs[i]
        x0 = denoise(x, i).x0
        h = _log_step(sigma, sigma_next)
        slope = None if previous is None else x0 - previous
        x = torch.lerp(_extrapolated(x0, slope, h, h_previous, sigma_next), x, sigma_next / sigma)
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
        slope = None if previous is None else x0 - previous
        x = torch.lerp(
            _extrapolated(x0, slope, h, h_previous, sigma_next), x, (sigma_next / sigma) ** 2
        )
        if sigma_next > 0:
            x = x + sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2) * noise()
        previous, h_previous = x0, h
        on_step(i, x0)
    return x


# UniPC (algorithms 1 and 2), of second order, B(h) = exp(-h) - 1
def sample_unipc(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, on_step: OnStep
) -> Tensor:
    """Deterministic third-order multistep sampling, one evaluation a step.

    Each step is `sample_dpmpp_2m`'s; the estimate at its end then corrects it, with no evaluation more.

    noise     not drawn from

    UniPC, arXiv:2302.04867, algorithms 1 and 2.
    """
    begun, previous, h_previous = None, None, 0.0
    for i, (sigma, sigma_next) in enumerate(_pairs(sigmas)):
        x0 = denoise(x, i).x0
        h = _log_step(sigma, sigma_next)
        if begun is not None and previous is not None:
            started, slope, across, along, ratio = begun
            mean = previous + across * (x0 - previous)
            x = torch.lerp(mean if slope is None else mean + along * slope, started, ratio)
        slope = None if previous is None else x0 - previous
        across, along = _correction(h, h_previous)
        begun = x, slope, across, along, sigma_next / sigma
        x = torch.lerp(_extrapolated(x0, slope, h, h_previous, sigma_next), x, sigma_next / sigma)
        previous, h_previous = x0, h
        on_step(i, x0)
    return x


# Restart (algorithm 1), of one interval
def sample_restart(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, on_step: OnStep
) -> Tensor:
    """`sample_dpmpp_2m` that repeats the steps from RESTART[0] to RESTART[1] with fresh noise.

    noise     one draw, where the grid has steps in the interval
    on_step   not called for the steps that are repeated

    Restart, arXiv:2306.14878, algorithm 1.
    """
    levels, whole = sigmas.tolist(), len(sigmas) - 1
    high, low = (sum(level > end for level in levels[:-1]) for end in RESTART)
    x = _multistep(denoise, x, sigmas, range(low), on_step)
    if high < low < whole:
        x = x + math.sqrt(levels[high] ** 2 - levels[low] ** 2) * noise()
        x = _multistep(denoise, x, sigmas, range(high, low), lambda i, x0: None)
    return _multistep(denoise, x, sigmas, range(low, whole), on_step)


SAMPLERS: dict[str, Sampler] = {
    "ddim": sample_ddim,
    "ddpm": sample_ddpm,
    "heun": sample_heun,
    "dpmpp_2m": sample_dpmpp_2m,
    "dpmpp_2m_sde": sample_dpmpp_2m_sde,
    "unipc": sample_unipc,
    "restart": sample_restart,
}


def _pairs(sigmas: Tensor) -> list[tuple[float, float]]:
    values = sigmas.tolist()
    return list(zip(values[:-1], values[1:], strict=True))


def _log_step(sigma: float, sigma_next: float) -> float:
    """Step in half logsnr; infinite on the way to sigma 0."""
    return math.log(sigma / sigma_next) if sigma_next > 0 else math.inf


def _extrapolated(
    x0: Tensor, slope: Tensor | None, h: float, h_previous: float, sigma_next: float
) -> Tensor:
    """x0 carried on by its change over the step before; as it is in the first step and in the last.

    slope   that change; None = there is no step before
    """
    if slope is None or sigma_next <= 0:
        return x0
    return x0 + _reach(h, h_previous) * slope


def _correction(h: float, h_previous: float) -> tuple[float, float]:
    """Weights of the change of x0 across a step, and of its change across the one before it.

    Where a step is over twice the one before, that one says too little: the second is 0.
    """
    if not math.isfinite(h):
        return 0.0, 0.0
    if h_previous == 0 or h > 2 * h_previous:
        return 0.5, 0.0
    whole = math.expm1(-h)
    first = -whole / h - 1
    b_1, b_2 = first / whole, 2 * (-first / h - 0.5) / whole
    along = (b_1 - b_2) / (1 + h_previous / h)
    return b_1 - along, along * h / h_previous


def _reach(h: float, h_previous: float) -> float:
    """How far two estimates are drawn on: to the middle of the step, but not past their own distance.

    Presets hold neighbours such as 800, 799; what differs between those is mostly noise. So where a step is
    over twice the one before, this differs from k-diffusion's sample_dpmpp_2m.
    """
    return min(h / (2 * h_previous), 1.0)
