"""The diffusion loss: what a stage's network should have put out, weighted by min-SNR.

The conversions between prediction types are the denoiser's own, so training and sampling agree.

References: Imagen, arXiv:2205.11487, appendix A; min-SNR, arXiv:2303.09556; stratified t, VDM,
arXiv:2107.00630, appendix I.1.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from ..diffusion.denoiser import Prediction, target, x0_from_output
from ..diffusion.lowres import Lowres
from ..diffusion.schedules import DiscreteSchedule, alpha_sigma, precise
from ..stage import Stage
from ..text.embedding import TextEmbedding

Weighting = Literal["min_snr", "flat"]
Variance = Literal["hybrid", "keep"]
MIN_SNR_GAMMA = 5.0


def stratified_t(batch: int, offset: Tensor) -> Tensor:
    """Noise times that cover [0, 1) evenly: (offset + i / batch) modulo 1, shape (batch,).

    batch    number of images
    offset   one uniform draw from [0, 1)
    """
    return (offset + torch.arange(batch, device=offset.device) / batch) % 1.0


def min_snr_weight(prediction: Prediction, logsnr: Tensor, gamma: float = MIN_SNR_GAMMA) -> Tensor:
    """Weight of a squared error in the network's own output; in x0 it is min(snr, gamma).

    prediction   "eps", "v" or "x0"
    logsnr       any shape
    gamma        bound on the weight in x0

    Min-SNR, arXiv:2303.09556, section 3.4.
    """
    snr = logsnr.exp()
    weight = snr.clamp(max=gamma)
    if prediction == "v":
        return weight / (snr + 1)
    return weight / snr if prediction == "eps" else weight


def diffusion_loss(
    stage: Stage,
    x0: Tensor,
    text: TextEmbedding,
    t: Tensor,
    noise: Tensor,
    lowres: Lowres | None = None,
    weight: Tensor | None = None,
    weighting: Weighting = "min_snr",
    variance: Variance = "hybrid",
) -> Tensor:
    """Weighted squared error of each image in the network's own output: (b,), float32.

    stage    network, schedule and prediction type
    x0       b 3 h w in [-1, 1]
    text     b rows, the null text where the caption is dropped
    t        (b,) noise times in [0, 1)
    noise    b 3 h w, unit normal
    lowres   up-sampled and augmented conditioning of an SR stage
    weight   b 1 h w, of the error at each pixel
    weighting   "min_snr", or "flat": every noise level weighs the same
    variance    of a stage that puts out its variance too: "hybrid" adds the bound that trains it
    """
    schedule = stage.schedule
    logsnr = schedule.logsnr(t)[:, None, None, None]
    alpha_t, sigma_t = alpha_sigma(logsnr)
    x_t = alpha_t * x0 + sigma_t * noise
    context = stage.unet.prepare(text)
    seen = t
    if isinstance(schedule, DiscreteSchedule):  # such a network was shown whole timesteps alone
        seen = schedule.t(logsnr.flatten())
    output = stage.unet(x_t, 1000 * seen, context, *(() if lowres is None else lowres)).float()
    predicted, learned = output[:, : x0.shape[1]], output[:, x0.shape[1] :]
    squared = (predicted - target(stage.prediction, x0, noise, logsnr)).square()
    error = mean_of(squared, weight)
    if weighting != "flat":
        error = error * min_snr_weight(stage.prediction, logsnr.flatten())
    if learned.numel() and variance == "hybrid" and isinstance(schedule, DiscreteSchedule):
        found = x0_from_output(stage.prediction, predicted.detach(), x_t, logsnr)
        bound = variance_bound(schedule, t, x0, x_t, found.clamp(-1, 1), learned)
        error = error + mean_of(bound, weight)
    return error


def mean_of(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of each image, (b,); weighted by pixel where there is a weight.

    values   b c h w
    weight   b 1 h w; one that is 0 everywhere gives 0
    """
    if weight is None:
        return values.mean(dim=(1, 2, 3))
    return (values.mean(dim=1) * weight[:, 0]).sum(dim=(1, 2)) / weight.sum(
        dim=(1, 2, 3)
    ).clamp_min(1)


def variance_bound(
    schedule: DiscreteSchedule, t: Tensor, x0: Tensor, x_t: Tensor, found: Tensor, learned: Tensor
) -> Tensor:
    """The variational bound of one step as a function of the learned variance: b 3 h w, in bits.

    t           (b,), noise times
    x0, x_t     b 3 h w, clean and noisy
    found       b 3 h w, the network's estimate of x0, without gradient
    learned     b 3 h w in about [-1, 1]: between the posterior's variance and the forward step's

    Divergence of the true step from the network's; at the first timestep the likelihood of x0 itself.
    Improved DDPM, arXiv:2102.09672, Eq. 15 and section 3.4.
    """
    exact = precise(t)
    now = schedule.logsnr(exact)
    before = schedule.logsnr((exact - 1 / schedule.num_timesteps).clamp_min(0))
    first = exact * schedule.num_timesteps < 1
    bar, bar_before = torch.sigmoid(now), torch.sigmoid(before).where(~first, 1.0)
    beta = 1 - bar / bar_before
    posterior = beta * (1 - bar_before) / (1 - bar)
    # At the first timestep the posterior has no variance; the one after it stands in, as in the source.
    posterior = posterior.where(~first, second_variance(schedule, exact.device))
    low, high, pull = (
        each[:, None, None, None].to(x0.device, torch.float32)
        for each in (posterior.log(), beta.log(), bar_before.sqrt() * beta / (1 - bar))
    )
    log_variance = torch.lerp(low, high, (learned + 1) / 2)
    distance = (pull * (x0 - found)).square()
    ratio = low - log_variance
    divergence = 0.5 * (ratio.exp() - ratio - 1 + distance * (-log_variance).exp())
    first = first[:, None, None, None].to(x0.device)
    nats = torch.where(first, likelihood(x0, found, log_variance), divergence)
    return nats / math.log(2)


def second_variance(schedule: DiscreteSchedule, device: torch.device) -> Tensor:
    """Variance of the posterior of the second timestep, float64 on a device that has it."""
    bars = torch.sigmoid(schedule.table(device)[:2])
    return (1 - bars[1] / bars[0]) * (1 - bars[0]) / (1 - bars[1])


def likelihood(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Minus the logarithm of the chance that a normal variable falls into the 8-bit level of x0, in nats."""
    spread = (0.5 * log_variance).exp()

    def below(edge: Tensor) -> Tensor:
        return torch.special.ndtr((edge - mean) / spread)

    upper = below(x0 + 1 / 255).where(x0 < 0.999, 1.0)
    lower = below(x0 - 1 / 255).where(x0 > -0.999, 0.0)
    return -(upper - lower).clamp_min(1e-12).log()
