"""Schedules against their closed forms: inverses, end points, the variance-preserving identity."""

import math

import pytest
import torch

from imagen_nodes.imagen_core.diffusion.denoiser import target, x0_from_output
from imagen_nodes.imagen_core.diffusion.schedules import LOGSNR_MAX, Schedule, alpha_sigma

SCHEDULES = [
    Schedule("cosine"),
    Schedule("cosine", 0.25),
    Schedule("linear"),
    Schedule("linear", 4.0),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_t_and_logsnr_are_inverse(schedule):
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert torch.allclose(schedule.t(schedule.logsnr(t)), t, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_noise_grows_with_t(schedule):
    logsnr = schedule.logsnr(torch.linspace(0, 1, 1001, dtype=torch.float64))
    assert (logsnr.diff() < 0).all()


def test_cosine_is_the_closed_form_between_its_ends():
    schedule = Schedule("cosine")
    ends = schedule.logsnr(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert torch.allclose(ends, torch.tensor([LOGSNR_MAX, -LOGSNR_MAX], dtype=torch.float64))
    t = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    assert torch.allclose(schedule.logsnr(t), -2 * torch.log(torch.tan(math.pi * t / 2)), atol=2e-3)


def test_linear_follows_the_thousand_step_betas():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bar = (1 - betas).cumprod(0)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    discrete = torch.log(alpha_bar / (1 - alpha_bar))
    continuous = Schedule("linear").logsnr(t)
    assert (continuous - discrete)[50:].abs().max() < 0.17


def test_shift_moves_logsnr_by_twice_its_log():
    t = torch.linspace(0.1, 0.9, 9)
    moved = Schedule("cosine", 0.25).logsnr(t) - Schedule("cosine").logsnr(t)
    assert torch.allclose(moved, torch.full_like(moved, 2 * math.log(0.25)), atol=1e-5)


def test_amplitudes_preserve_variance_and_give_the_logsnr_back():
    logsnr = torch.linspace(-15, 15, 61, dtype=torch.float64)
    alpha_t, sigma_t = alpha_sigma(logsnr)
    assert torch.allclose(alpha_t**2 + sigma_t**2, torch.ones_like(logsnr), atol=1e-12)
    assert torch.allclose(2 * torch.log(alpha_t / sigma_t), logsnr, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 2, 50])
def test_grid_falls_to_zero(schedule, num_steps):
    sigmas = schedule.sigmas(num_steps)
    assert sigmas.shape == (num_steps + 1,) and sigmas.dtype == torch.float64
    assert (sigmas.diff() < 0).all() and sigmas[-1] == 0
    assert math.isclose(
        -2 * math.log(sigmas[0]), schedule.logsnr(torch.ones(1, dtype=torch.float64))
    )


def test_faults_are_named():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        Schedule().sigmas(0)
    with pytest.raises(ValueError, match="'karras'"):
        Schedule("karras")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="shift must be > 0"):
        Schedule(shift=0.0)


@pytest.mark.parametrize("prediction", ["v", "eps", "x0"])
def test_the_clean_image_comes_back_from_what_a_network_should_put_out(prediction):
    x0, eps = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64)
    for logsnr in torch.tensor([-3.0, 0.0, 4.0], dtype=torch.float64):
        alpha, sigma = alpha_sigma(logsnr)
        output = target(prediction, x0, eps, logsnr)
        found = x0_from_output(prediction, output, alpha * x0 + sigma * eps, logsnr)
        torch.testing.assert_close(found, x0)


def test_a_prediction_that_is_unknown_is_refused():
    x, logsnr = torch.zeros(1, 3, 4, 4), torch.tensor(0.0)
    for convert in (x0_from_output, target):
        with pytest.raises(
            ValueError, match="prediction must be 'eps', 'v' or 'x0', got 'epsilon'"
        ):
            convert("epsilon", x, x, logsnr)
