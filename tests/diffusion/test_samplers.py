"""Samplers on Gaussian data, whose exact denoiser and whose exact result are known.

For data N(mu, s^2) the denoiser is x0 = (s^2 x + sigma^2 mu) / (s^2 + sigma^2). Without noise a path
that starts at x ends at mu + s (x - mu) / sqrt(s^2 + sigma_max^2). With noise everything stays linear:
give every draw an axis of its own, and the squared length of the result is its variance.
"""

import math

import pytest
import torch

from imagen_nodes.imagen_core.diffusion.denoiser import Denoised
from imagen_nodes.imagen_core.diffusion.samplers import SAMPLERS
from imagen_nodes.imagen_core.diffusion.schedules import DiscreteSchedule, Schedule

MU, S = 0.3, 0.5
ORDER = {"ddim": 1, "heun": 2, "dpmpp_2m": 2, "unipc": 3}
# Share of the variance that 256 steps may miss.
STOCHASTIC = {"ddpm": 0.03, "dpmpp_2m_sde": 0.005, "restart": 0.005}


def gaussian_denoiser(sigmas, mu=MU, s=S, fraction=None):
    def denoise(x, i):
        variance = sigmas[i].item() ** 2
        return Denoised((s**2 * x + variance * mu) / (s**2 + variance), fraction)

    return denoise


def no_noise():
    raise AssertionError("a deterministic sampler drew noise")


def deterministic_error(name, sigmas):
    """Distance from the closed form at the grid's last level, for a path from its first."""
    x = MU + sigmas[0] * torch.linspace(-2, 2, 41, dtype=torch.float64)
    exact = MU + (x - MU) * ((S**2 + sigmas[-1] ** 2) / (S**2 + sigmas[0] ** 2)).sqrt()
    result = SAMPLERS[name](gaussian_denoiser(sigmas), x, sigmas, no_noise, lambda i, x0: None)
    return (result - exact).abs().max().item()


def variance_of_result(name, num_steps, fraction=None):
    sigmas = Schedule().sigmas(num_steps)
    axes = iter(torch.eye(num_steps + 1, dtype=torch.float64))
    x = next(axes) * math.sqrt(S**2 + sigmas[0] ** 2)
    denoise = gaussian_denoiser(sigmas, mu=0.0, fraction=fraction)
    result = SAMPLERS[name](denoise, x, sigmas, lambda: next(axes), lambda i, x0: None)
    return result.square().sum().item()


def test_every_sampler_is_measured():
    assert set(SAMPLERS) == set(ORDER) | set(STOCHASTIC)


@pytest.mark.parametrize("name", ORDER)
def test_deterministic_samplers_land_on_the_closed_form(name):
    assert deterministic_error(name, Schedule().sigmas(250)) < 0.02 / ORDER[name] ** 4


@pytest.mark.parametrize("name", ORDER)
def test_deterministic_samplers_converge_at_their_order(name):
    grids = [torch.logspace(1, -2, n + 1, dtype=torch.float64) for n in (40, 80, 160)]
    coarse, fine, finest = (deterministic_error(name, grid) for grid in grids)
    assert coarse / fine == pytest.approx(2 ** ORDER[name], rel=0.15)
    assert fine / finest == pytest.approx(2 ** ORDER[name], rel=0.15)


@pytest.mark.parametrize("name", ORDER)
@pytest.mark.parametrize("num_steps", [2, 4, 8, 32])
def test_a_short_run_is_near_the_closed_form_though_its_first_steps_are_huge(name, num_steps):
    """The spread of the data is 0.5; sigma falls from 20000 to 20 or less in the first step."""
    assert deterministic_error(name, Schedule().sigmas(num_steps)) < 2.5 / num_steps


@pytest.mark.parametrize("preset", ["smart50", "smart100", "super27", "super40", "fast27"])
@pytest.mark.parametrize("name", ["heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_second_order_is_no_worse_than_first_on_presets_with_neighbours(name, preset):
    """In 800, 799 a step is a hundredth of the next one."""
    sigmas = DiscreteSchedule().sigmas(preset)

    def spread(name):
        axes = iter(torch.eye(len(sigmas), dtype=torch.float64))
        x = next(axes) * math.sqrt(S**2 + sigmas[0] ** 2)
        denoise = gaussian_denoiser(sigmas, mu=0.0)
        result = SAMPLERS[name](denoise, x, sigmas, lambda: next(axes), lambda i, x0: None)
        return result.square().sum().sqrt().item()

    first = "ddpm" if name in STOCHASTIC else "ddim"
    assert abs(spread(name) - S) < max(1.3 * abs(spread(first) - S), 0.03)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_reach_the_variance_of_the_data(name):
    coarse, fine, finest = (abs(variance_of_result(name, n) - S**2) for n in (64, 128, 256))
    assert finest < STOCHASTIC[name] * S**2
    if name != "restart":  # where its interval lies between the levels changes with their number
        assert coarse / fine > 1.6 and fine / finest > 1.6


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_gives_the_denoised_image(name):
    sigmas = Schedule().sigmas(1)
    x = sigmas[0] * torch.linspace(-1, 1, 5, dtype=torch.float64)
    steps = []
    result = SAMPLERS[name](
        gaussian_denoiser(sigmas), x, sigmas, no_noise, lambda i, x0: steps.append(i)
    )
    assert torch.equal(result, gaussian_denoiser(sigmas)(x, 0).x0)
    assert steps == [0]


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_step_is_reported_once_with_its_estimate(name):
    sigmas = Schedule().sigmas(7)
    generator = torch.Generator().manual_seed(0)
    seen = []
    SAMPLERS[name](
        gaussian_denoiser(sigmas),
        sigmas[0] * torch.ones(4, dtype=torch.float64),
        sigmas,
        lambda: torch.randn(4, generator=generator, dtype=torch.float64),
        lambda i, x0: seen.append((i, x0.shape)),
    )
    assert seen == [(i, (4,)) for i in range(7)]


def test_learned_variance_lies_between_posterior_and_forward():
    sigmas = Schedule().sigmas(4)
    zeros = torch.zeros(4, dtype=torch.float64)

    def spread(fraction):
        """Variance that the first step adds."""
        added = []

        def noise():
            added.append(1)
            return torch.full((4,), 1.0, dtype=torch.float64) if len(added) == 1 else zeros

        states = []

        def denoise(x, i):
            states.append(x)
            return Denoised(zeros, None if fraction is None else torch.full_like(zeros, fraction))

        SAMPLERS["ddpm"](denoise, zeros, sigmas, noise, lambda i, x0: None)
        return states[1][0].item() ** 2

    sigma, sigma_next = sigmas[0].item(), sigmas[1].item()
    alpha_bar, alpha_bar_next = 1 / (1 + sigma**2), 1 / (1 + sigma_next**2)
    beta = 1 - alpha_bar / alpha_bar_next
    posterior = beta * (1 - alpha_bar_next) / (1 - alpha_bar)
    assert spread(None) == pytest.approx(posterior / alpha_bar_next)
    assert spread(0.0) == pytest.approx(posterior / alpha_bar_next)
    assert spread(1.0) == pytest.approx(beta / alpha_bar_next)
    assert spread(0.5) == pytest.approx(math.sqrt(beta * posterior) / alpha_bar_next)


def test_restart_repeats_the_steps_of_its_interval_with_one_draw():
    sigmas = torch.tensor([80.0, 10.0, 1.9, 0.8, 0.3, 0.09, 0.02, 0.0], dtype=torch.float64)
    at, drawn, exact = [], [], gaussian_denoiser(sigmas)
    x = sigmas[0] * torch.ones(4, dtype=torch.float64)

    def noise():
        drawn.append(len(at))
        return torch.zeros(4, dtype=torch.float64)

    SAMPLERS["restart"](lambda x, i: at.append(i) or exact(x, i), x, sigmas, noise, lambda *_: None)
    assert at == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6]
    assert drawn == [5]
