"""From a network to a denoiser: everything a sampler must not know.

`make_denoiser` hides prediction type, scaling, precision, guidance, thresholding and tiling behind
`denoise(x, i)`, where i counts the levels of the sampling grid. All that depends on the grid or the
prompt alone is computed once, before the first step. The conversions between prediction types serve
the training loss too, so that the two cannot drift apart.

References: v-prediction, arXiv:2202.00512; Imagen, arXiv:2205.11487, section 2.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from ..text.embedding import EncodedPrompt
from ..unet.layers import TextContext
from .guidance import Guidance
from .lowres import Lowres
from .schedules import alpha_sigma
from .tiles import Window, blend
from .trace import Trace

if TYPE_CHECKING:
    from ..stage import Stage

Prediction = Literal["eps", "v", "x0"]


class Denoised(NamedTuple):
    """A denoiser's answer.

    x0         b c h w, estimate of the clean image, in [-1, 1] where a threshold acts
    variance   b c h w, where the net learned it: 0 = the posterior's variance, 1 = the forward step's
    """

    x0: Tensor
    variance: Tensor | None


Denoise = Callable[[Tensor, int], Denoised]


def x0_from_output(prediction: Prediction, output: Tensor, x_t: Tensor, logsnr: Tensor) -> Tensor:
    """The clean image that a network's output stands for.

    prediction   "eps", "v" or "x0"
    output, x_t  b c h w
    logsnr       broadcasts against x_t
    """
    alpha_t, sigma_t = alpha_sigma(logsnr)
    if prediction == "v":
        return alpha_t * x_t - sigma_t * output
    if prediction == "eps":
        return (x_t - sigma_t * output) / alpha_t
    if prediction == "x0":
        return output
    raise ValueError(f"prediction must be 'eps', 'v' or 'x0', got {prediction!r}")


def target(prediction: Prediction, x0: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
    """What a network of this prediction type should put out.

    prediction   "eps", "v" or "x0"
    x0, eps      b c h w, clean image and noise
    logsnr       broadcasts against x0
    """
    if prediction == "v":
        alpha_t, sigma_t = alpha_sigma(logsnr)
        return alpha_t * eps - sigma_t * x0
    if prediction == "eps":
        return eps
    if prediction == "x0":
        return x0
    raise ValueError(f"prediction must be 'eps', 'v' or 'x0', got {prediction!r}")


def guide(rows: Sequence[Tensor], mixer: float, scale: float, channels: int) -> Tensor:
    """One output from those of the prompt, of the second prompt and of the null text.

    rows       each b c h w; the second prompt's only where mixer > 0, the null text's where scale != 1
    mixer      weight of the second prompt, 0..1
    scale      guidance scale
    channels   of the prediction; what follows, a learned variance, is the prompt's as it is

    u + w * ((1 - m) * c + m * p - u), DeepFloyd IF's positive mixer; CFG, arXiv:2207.12598, with m = 0.
    """
    output, *others = rows
    prediction = output[:, :channels]
    if mixer:
        prediction = prediction.lerp(others[0][:, :channels], mixer)
    if scale != 1.0:
        prediction = others[-1][:, :channels].lerp(prediction, scale)
    return torch.cat([prediction, output[:, channels:]], dim=1)


def make_denoiser(
    stage: "Stage",
    prompt: EncodedPrompt,
    guidance: Guidance,
    sigmas: Tensor,
    batch: int,
    lowres: Callable[[], Lowres] | None = None,
    windows: list[Window] | None = None,
    trace: Trace | None = None,
) -> Denoise:
    """The function `denoise(x, i)` that a sampler calls at level i of its grid.

    stage      the network, its schedule and its prediction type
    prompt     text and null text, 1 or `batch` rows
    guidance   scale, interval and threshold
    sigmas     (num_steps + 1,) float64, the sampling grid
    batch      number of images in x
    lowres     gives each step the up-sampled and augmented conditioning of an SR stage
    windows    evaluate the network window by window and blend; None = the whole image at once
    trace      keeps what the threshold did at each level; None = nobody asks
    """
    logsnrs = -2 * sigmas[:-1].log()
    alphas = alpha_sigma(logsnrs)[0].tolist()
    timesteps = (1000 * stage.schedule.t(logsnrs)).to(stage.device, torch.float32)
    logsnrs = logsnrs.to(stage.device, torch.float32)
    scales = guidance.scales(len(alphas))
    cond = both = TextContext.cat(
        [stage.unet.prepare(text, pooled).expand(batch) for text, pooled in prompt.positives]
    )
    if any(scale != 1.0 for scale in scales):
        both = TextContext.cat([cond, stage.unet.prepare(prompt.null_text).expand(batch)])

    def evaluate(x_t: Tensor, i: int, shown: Lowres | None, window: Window | None = None) -> Tensor:
        """Guided network output for the whole image or one window: prediction, then variance."""
        context = cond if scales[i] == 1.0 else both
        rows = len(context) // batch
        given = None if shown is None else shown.crop(window).repeat(rows)
        output = stage.unet(
            x_t.to(stage.dtype).repeat(rows, 1, 1, 1),
            timesteps[i].expand(len(context)),
            context,
            *(() if given is None else (given.image.to(stage.dtype), given.timestep)),
        ).float()
        return guide(output.chunk(rows), prompt.mixer, scales[i], x_t.shape[1])

    def denoise(x: Tensor, i: int) -> Denoised:
        x_t = alphas[i] * x
        shown = None if lowres is None else lowres()
        if windows is None:
            output = evaluate(x_t, i, shown)
        else:
            output = blend(lambda window: evaluate(window.crop(x_t), i, shown, window), windows, x)
        prediction, variance = output[:, : x.shape[1]], output[:, x.shape[1] :]
        x0 = x0_from_output(stage.prediction, prediction, x_t, logsnrs[i])
        x0 = guidance.apply_threshold(x0, None if trace is None else partial(trace.record, i))
        return Denoised(x0, (variance + 1) / 2 if variance.numel() else None)

    return denoise
