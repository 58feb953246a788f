"""From a network to a denoiser: everything a sampler must not know.

`make_denoiser` hides prediction type, scaling, precision, guidance, thresholding and tiling behind
`denoise(x, i)`, where i counts the levels of the sampling grid. All that depends on the grid or the
prompt alone is computed once, before the first step. The conversions between prediction types serve
the training loss too, so that the two cannot drift apart.

References: v-prediction, arXiv:2202.00512; Imagen, arXiv:2205.11487, section 2.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from ..text.embedding import TextEmbedding, starts_of
from ..text.prompt import EncodedPrompt, Positive, fitted
from ..unet.layers import Modulation, TextContext, modulations, residual_blocks, runs_on
from .guidance import Guidance, project
from .lowres import Lowres, Shown
from .schedules import AnySchedule, alpha_sigma
from .tiles import Tiles, Window
from .trace import Trace

Prediction = Literal["eps", "v", "x0"]
MOST_BYTES = 2**25  # of scales and shifts that are kept for the steps to come


class Network(Protocol):
    """What a denoiser asks of a U-Net."""

    def prepare(self, text: TextEmbedding, pooled: TextEmbedding | None = None) -> TextContext:
        """All that evaluations need of a prompt, computed once."""
        ...

    def parameters(self) -> Iterator[Tensor]:
        """The weights; the first one's device and dtype are the network's."""
        ...

    def __call__(
        self, x: Tensor, t: Tensor | Modulation, context: TextContext, *more: Any
    ) -> Tensor: ...


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


# (Eq. 2)
def guide(
    rows: Sequence[Tensor], shares: Sequence[float | Tensor], scale: float, channels: int
) -> Tensor:
    """One output from those of the positive prompts and of the null text.

    rows       each b c h w: one a share, then the null text's where scale != 1
    shares     of the positive prompts, together 1: numbers, or h w each where they differ from place to place
    channels   of the prediction; what follows, a learned variance, is the first prompt's as it is, or mixed
               by shares that differ from place to place

    u + w * ((1 - m) * c + m * p - u), DeepFloyd IF's positive mixer; with one prompt, classifier-free
    guidance: Imagen, arXiv:2205.11487, Eq. 2. In regions: MultiDiffusion, arXiv:2302.08113, section 4.2.
    """
    output = rows[0]
    if any(isinstance(share, Tensor) for share in shares):
        output = torch.stack([share * row for share, row in zip(shares, rows, strict=False)]).sum(0)
    prediction = output[:, :channels]
    if len(shares) == 2 and isinstance(shares[1], float):
        prediction = prediction.lerp(rows[1][:, :channels], shares[1])
    if scale != 1.0:
        prediction = rows[-1][:, :channels].lerp(prediction, scale)
    return torch.cat([prediction, output[:, channels:]], dim=1)


def guide_along(
    rows: Sequence[Tensor],
    shares: Sequence[float | Tensor],
    scale: float,
    channels: int,
    parallel: float,
    clean: Callable[[Tensor], Tensor],
) -> Tensor:
    """`guide`, and of what guidance adds only a part along the clean image: APG.

    rows, shares, scale, channels   as for `guide`
    parallel                        that part, 0..1; 1 = all of it
    clean                           the clean image that a prediction stands for
    """
    guided = guide(rows, shares, scale, channels)
    if parallel == 1.0 or scale == 1.0:
        return guided
    own = guide(rows, shares, 1.0, channels)
    return project(guided, own, clean(own[:, :channels]), parallel)


class Shares:
    """Each positive prompt's share of the prediction, its mask in the picture's size."""

    def __init__(self, positives: Sequence[Positive]):
        self.positives = positives
        self.made: list[float | Tensor] = []

    def __call__(self, x: Tensor, window: Window | None) -> list[float | Tensor]:
        """The shares in a window of the picture: numbers, or h w.

        x        b c h w, the whole picture, of one size at all steps
        window   None = the whole picture
        """
        if not self.made:
            size = x.shape[2], x.shape[3]
            self.made = [
                p.share if p.mask is None else (p.share * fitted(p.mask, size)).to(x.device)
                for p in self.positives
            ]
        if window is None:
            return self.made
        return [window.crop(each) if isinstance(each, Tensor) else each for each in self.made]


def prepared(
    unet: Network, text: TextEmbedding, pooled: TextEmbedding | None = None
) -> TextContext:
    """A text prepared once, though it may stand for several pictures.

    text, pooled   as for the network's `prepare`
    """
    if pooled is None or (len(pooled.shared()), len(text.shared())) == (1, 1):
        text, pooled = text.shared(), None if pooled is None else pooled.shared()
    return unet.prepare(text, pooled)


def joined_rows(contexts: list[TextContext], batch: int) -> TextContext:
    """The rows of several texts for one evaluation: one each, or where one has more, one a picture.

    contexts   of 1 or `batch` rows
    """
    if all(len(context) == 1 for context in contexts):
        return TextContext.cat(contexts)
    return TextContext.cat([context.expand(batch) for context in contexts])


class Levels:
    """What the network is told of each noise level: the level, or what follows from it, made once.

    All that a run's steps need is one matrix product a residual block, in parts of at most MOST_BYTES.
    In float32 on a CPU every evaluation makes its own, and gives the bytes that it always gave: a matrix
    product of fewer than four rows sums in another order.
    """

    def __init__(self, unet: Network, timesteps: Tensor, context: TextContext, rows: int):
        """timesteps (s,), 0..1000; rows of the evaluations"""
        self.unet, self.timesteps, self.rows = unet, timesteps, rows
        weight = next(unet.parameters())
        self.once = not (timesteps.device.type == "cpu" and weight.dtype == torch.float32)
        self.context, self.weight = context, weight
        self.first, self.made = 0, []

    def __call__(self, i: int, aug: Tensor | None) -> Tensor | Modulation:
        """Level i as the network takes it.

        aug   (rows,), noise level of the low-resolution conditioning, the same at all steps; or None
        """
        if not self.once:
            return self.timesteps[i].expand(self.rows)
        if not self.first <= i < self.first + len(self.made):
            pooled = self.context.pooled_for(self.rows)
            values = sum(2 * b.norm_2.num_channels for b in residual_blocks(self.unet))
            size = self.rows * values * self.weight.itemsize
            part = self.timesteps[i : i + max(1, MOST_BYTES // size)]
            self.first, self.made = i, modulations(self.unet, part, pooled, aug)
        return self.made[i - self.first]


class Said(NamedTuple):
    """What the network is told in the steps of one text: rows of an evaluation, their context and levels."""

    rows: int
    context: TextContext
    levels: Levels


class Texts:
    """What the network is told of the prompts at each step, all of it prepared before the first."""

    def __init__(
        self,
        unet: Network,
        prompt: EncodedPrompt,
        guidance: Guidance,
        timesteps: Tensor,
        batch: int,
    ):
        """timesteps (num_steps,), 0..1000; rows of a step: one a positive prompt, and the null text's"""
        positives, steps = prompt.positives, len(timesteps)
        guided = any(scale != 1.0 for scale in guidance.scales(steps))
        starts = starts_of([prompt.null_text, *(t for p in positives for t in (p.text, p.pooled))])
        parts = [guidance.done(i, steps) for i in range(steps)]
        self.stretch = [sum(start <= part for start in starts) - 1 for part in parts]
        self.said: dict[tuple[int, bool], Said] = {}
        for k in sorted(set(self.stretch)):
            start, known = starts[k], timesteps[: steps - self.stretch[::-1].index(k)]
            contexts = [prepared(unet, p.text.at(start), p.pooled.at(start)) for p in positives]
            for null in [False, True] if guided else [False]:
                if null:
                    contexts = [*contexts, prepared(unet, prompt.null_text.at(start))]
                rows, context = len(contexts), joined_rows(contexts, batch)
                levels = Levels(unet, known, context, rows * batch)
                self.said[k, null] = Said(rows, context, levels)

    def at(self, i: int, guided: bool) -> Said:
        """What is told at step i.

        guided   whether the null text is evaluated too
        """
        return self.said[self.stretch[i], guided]


def make_denoiser(
    unet: Network,
    schedule: AnySchedule,
    prediction: Prediction,
    prompt: EncodedPrompt,
    guidance: Guidance,
    sigmas: Tensor,
    batch: int,
    lowres: Callable[[], Lowres] | None = None,
    tiles: Tiles | None = None,
    trace: Trace | None = None,
) -> Denoise:
    """The function `denoise(x, i)` that a sampler calls at level i of its grid.

    unet         on its device, in the dtype that it computes in
    schedule     of its training, whose t it sees
    prompt       text and null text, 1 or `batch` rows
    sigmas       (num_steps + 1,) float64, the sampling grid
    batch        number of images in x
    lowres       gives each step the up-sampled and augmented conditioning of an SR stage
    tiles        evaluate the network window by window and blend; None = the whole image at once
    trace        keeps what the threshold did at each level; None = nobody asks
    """
    device, dtype = runs_on(unet), next(unet.parameters()).dtype
    logsnrs = -2 * sigmas[:-1].log()
    alphas = alpha_sigma(logsnrs)[0].tolist()
    timesteps = (1000 * schedule.t(logsnrs)).to(device, torch.float32)
    logsnrs = logsnrs.to(device, torch.float32)
    scales = guidance.scales(len(alphas))
    texts, shares = Texts(unet, prompt, guidance, timesteps, batch), Shares(prompt.positives)
    shown = None if lowres is None else Shown(lowres, dtype)
    windows = [None] if tiles is None else tiles.windows

    def denoise(x: Tensor, i: int) -> Denoised:
        rows, context, levels = texts.at(i, scales[i] != 1.0)
        x_t, channels = alphas[i] * x, x.shape[1]
        output: Any = None
        conditioning = None if shown is None else shown.step()
        level = levels(i, None if conditioning is None else conditioning.timestep.repeat(rows))
        for place, window in enumerate(windows):
            seen = x_t if window is None else window.crop(x_t)
            given = () if shown is None else shown.under(window, rows)
            made = unet(seen.to(dtype).repeat(rows, 1, 1, 1), level, context, *given).float()
            clean = partial(x0_from_output, prediction, x_t=seen, logsnr=logsnrs[i])
            guided = guide_along(
                made.chunk(rows), shares(x, window), scales[i], channels, guidance.parallel, clean
            )
            output = guided if tiles is None else tiles.add(output, place, guided)
        output = output if tiles is None else tiles.mean(output)
        predicted, variance = output[:, :channels], output[:, channels:]
        x0 = x0_from_output(prediction, predicted, x_t, logsnrs[i])
        x0 = guidance.apply_threshold(x0, None if trace is None else partial(trace.record, i))
        return Denoised(x0, (variance + 1) / 2 if variance.numel() else None)

    return denoise
