"""Classifier-free guidance on x0 and the thresholds that keep it in range.

Guiding x0 equals guiding epsilon, since the weights sum to one. Thresholds act per image.

References: CFG, arXiv:2207.12598; Imagen, arXiv:2205.11487, sections 2.2 and 2.3; oscillating
guidance, Imagen Video, arXiv:2210.02303; guidance interval, arXiv:2404.07724; APG, arXiv:2410.02416.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .respacing import number

ThresholdName = Literal["dynamic", "static", "none"]
THRESHOLDS: tuple[ThresholdName, ...] = ("dynamic", "static", "none")
QUANTILE_LIMIT = 2**20  # values of a picture: torch.quantile is slow beyond, and refuses over 2**24
SELECTING = ("cpu",)  # devices that find one value of many faster than they sort them


@dataclass(frozen=True)
class Guidance:
    """How strongly the text pulls, when, and what keeps the prediction in range.

    guidance_scale     w in w * cond + (1 - w) * null; 1 = off
    threshold          "dynamic", "static" or "none"
    percentile         quantile of |x0| for dynamic thresholding, (0, 1]
    max_value          upper bound on that quantile, >= 1; None = no bound
    start, end         part of the schedule in which guidance acts, 0 = first step, 1 = last
    oscillate          every other step of the interval's second half uses scale 1 instead
    skipped            steps of the schedule that come before the run, which starts at a picture
    parallel           part of guidance along the prompt's own estimate that is kept, 0..1: 1 = all, 0 = APG,
                       which leads to strong colours less (arXiv:2410.02416)
    """

    guidance_scale: float = 3.0
    threshold: ThresholdName = "dynamic"
    percentile: float = 0.995
    max_value: float | None = None
    start: float = 0.0
    end: float = 1.0
    oscillate: bool = False
    skipped: int = 0
    parallel: float = 1.0

    def __post_init__(self):
        if self.threshold not in THRESHOLDS:
            raise ValueError(f"threshold must be one of {THRESHOLDS}, got {self.threshold!r}")
        for name in ("guidance_scale", "percentile", "max_value", "start", "end", "parallel"):
            if name != "max_value" or self.max_value is not None:
                object.__setattr__(self, name, number(name, getattr(self, name)))
        if not 0 <= self.guidance_scale < math.inf:
            raise ValueError(f"guidance_scale must be at least 0, got {self.guidance_scale}")
        if not 0 < self.percentile <= 1:
            raise ValueError(f"percentile must be in (0, 1], got {self.percentile}")
        if self.max_value is not None and not self.max_value >= 1:
            raise ValueError(f"max_value must be at least 1, got {self.max_value}")
        if not 0 <= self.parallel <= 1:
            raise ValueError(f"parallel must be in [0, 1], got {self.parallel}")
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(
                f"start and end: expected 0 <= start <= end <= 1, got {self.start} and {self.end}"
            )

    def scales(self, num_steps: int) -> list[float]:
        """The guidance scale of each step.

        num_steps   steps of the run, the last ones of a schedule of skipped + num_steps: step i lies at
                    (skipped + i) / (skipped + num_steps) of it
        """
        total = self.skipped + num_steps
        first, last = self.start * total, self.end * total
        middle = (first + last) / 2
        return [
            self.guidance_scale
            if first <= i < last and not (self.oscillate and i >= middle and i % 2)
            else 1.0
            for i in range(self.skipped, total)
        ]

    def done(self, i: int, num_steps: int) -> float:
        """The part of the schedule before step i of the run, 0 to below 1.

        num_steps   steps of the run, the last ones of a schedule of skipped + num_steps
        """
        return (self.skipped + i) / (self.skipped + num_steps)

    def apply_threshold(
        self, x0: Tensor, on_bound: Callable[[Tensor, Tensor], None] | None = None
    ) -> Tensor:
        """x0 after this guidance's threshold.

        x0         b c h w
        on_bound   None, or called with x0 and what |x0| may reach in each picture, (b,)
        """
        if self.threshold == "none":
            return x0
        if self.threshold == "static":
            bound = x0.new_ones(len(x0))
        else:
            bound = dynamic_bound(x0, self.percentile, self.max_value)
        if on_bound is not None:
            on_bound(x0, bound)
        return rescale(x0, bound)


# APG (Eq. 7), on outputs of any kind, as these differ in x0 by the same factor
def project(guided: Tensor, cond: Tensor, x0: Tensor, parallel: float) -> Tensor:
    """A guided output whose difference from the prompt's keeps a part of what lies along x0.

    guided, cond   b c h w, with and without guidance; more channels, a learned variance, stay as they are
    x0             b c h w, the prompt's own estimate
    parallel       the part, 0..1

    APG, arXiv:2410.02416, Eq. 7.
    """
    axes, channels = (1, 2, 3), x0.shape[1]
    led = (guided - cond)[:, :channels]
    along = (led * x0).sum(axes, keepdim=True) / x0.square().sum(axes, keepdim=True).clamp_min(
        1e-12
    )
    kept = guided[:, :channels] - (1 - parallel) * along * x0
    return torch.cat([kept, guided[:, channels:]], dim=1)


def dynamic_threshold(
    x0: Tensor, percentile: float = 0.995, max_value: float | None = None
) -> Tensor:
    """Clip each image at its own quantile and rescale into [-1, 1].

    x0          b c h w, any range, float32 or wider
    percentile  quantile of |x0| per image, (0, 1]
    max_value   upper bound on that quantile, >= 1; None = no bound
    returns     b c h w, [-1, 1]; identity when nothing exceeds 1

    Imagen, arXiv:2205.11487, section 2.3.
    """
    return rescale(x0, dynamic_bound(x0, percentile, max_value))


def dynamic_bound(x0: Tensor, percentile: float, max_value: float | None) -> Tensor:
    """The threshold s of each image: (b,), at least 1.

    x0          b c h w, any range, float32 or wider
    percentile  quantile of |x0| per image, (0, 1]
    max_value   upper bound on that quantile, >= 1; None = no bound

    Imagen, arXiv:2205.11487, section 2.3.
    """
    magnitudes = x0.abs().flatten(1)
    quantile = torch.quantile if magnitudes.shape[1] <= QUANTILE_LIMIT else _large_quantile
    s = quantile(magnitudes, percentile, dim=1)
    return s.nan_to_num(nan=torch.inf).clamp(1.0, max_value)  # inf - inf in lerp


def rescale(x0: Tensor, bound: Tensor) -> Tensor:
    """x0 clipped to its bound and divided by it: in [-1, 1].

    x0      b c h w
    bound   (b,), at least 1
    """
    s = bound[:, None, None, None]
    return x0.clamp(-s, s) / s


def static_threshold(x0: Tensor) -> Tensor:
    """x0 clipped to [-1, 1].

    x0   any shape

    Imagen, arXiv:2205.11487, section 2.3.
    """
    return x0.clamp(-1.0, 1.0)


def _large_quantile(x: Tensor, q: float, dim: int) -> Tensor:
    """`torch.quantile` (linear interpolation) for large pictures; on a CPU without sorting them.

    On a GPU one block selects, and reads all values sixteen times, while all blocks sort; Apple's has no
    selection before torch 2.9.
    """
    last = x.shape[dim] - 1
    rank = q * last
    lower, upper = int(rank), min(int(rank) + 1, last)
    if x.device.type in SELECTING:
        below, above = (x.kthvalue(place + 1, dim=dim).values for place in (lower, upper))
    else:
        ordered = x.sort(dim=dim).values
        below, above = ordered.select(dim, lower), ordered.select(dim, upper)
    return torch.lerp(below, above, rank - lower)
