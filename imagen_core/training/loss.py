"""The diffusion loss: what a stage's network should have put out, weighted by min-SNR.

The conversions between prediction types are the denoiser's own, so training and sampling agree.

References: Imagen, arXiv:2205.11487, appendix A; min-SNR, arXiv:2303.09556; stratified t, VDM,
arXiv:2107.00630, appendix I.1.
"""

from typing import Literal

import torch
from torch import Tensor

from ..diffusion.denoiser import Prediction, target
from ..diffusion.lowres import Lowres
from ..diffusion.schedules import alpha_sigma
from ..stage import Stage
from ..text.embedding import TextEmbedding

Weighting = Literal["min_snr", "flat"]
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
    weighting: Weighting = "min_snr",
) -> Tensor:
    """Weighted squared error of each image in the network's own output: (b,), float32.

    stage    network, schedule and prediction type
    x0       b 3 h w in [-1, 1]
    text     b rows, the null text where the caption is dropped
    t        (b,) noise times in [0, 1)
    noise    b 3 h w, unit normal
    lowres   up-sampled and augmented conditioning of an SR stage
    weighting   "min_snr", or "flat": every noise level weighs the same
    """
    logsnr = stage.schedule.logsnr(t)[:, None, None, None]
    alpha_t, sigma_t = alpha_sigma(logsnr)
    x_t = alpha_t * x0 + sigma_t * noise
    context = stage.unet.prepare(text)
    output = stage.unet(x_t, 1000 * t, context, *(() if lowres is None else lowres)).float()
    error = (output - target(stage.prediction, x0, noise, logsnr)).square().mean(dim=(1, 2, 3))
    if weighting == "flat":
        return error
    return error * min_snr_weight(stage.prediction, logsnr.flatten())
