"""Everything that a run of a stage is told but its text and its pictures, in one record."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

import torch
from torch import Tensor

from .diffusion.editing import Inpainting, partial_grid
from .diffusion.guidance import Guidance
from .diffusion.lowres import AUG_NOISES, AugNoise
from .diffusion.noise import check_seeds
from .diffusion.respacing import Spacing, number, plain, whole, wholes
from .diffusion.samplers import SAMPLERS, Sampler
from .diffusion.trace import Trace
from .kernels import convolution
from .kernels.norm import NORM
from .stage import StageConfig
from .unet.attention import ATTENTION
from .unet.reuse import Reuse

OnStep = Callable[[int, int, Tensor], None]
Sigmas = Sequence[float] | Tensor
Quality = Literal["full", "fast"]
QUALITIES: tuple[Quality, ...] = ("full", "fast")
FAST_SAMPLER = "unipc"
# Part of the steps, and the fewest where there are as many; what that changes is in benchmarks/NOTES.md.
FAST = {"base": (5 / 8, 28), "sr": (3 / 8, 1)}


@dataclass(frozen=True, eq=False)
class Settings:
    """How a stage is sampled; None = the stage's own.

    guidance     scale, interval and threshold
    seed         picture i draws from seed + i, 0 to 2**64 - 1; or a list, one for each picture
    steps        sampler steps for the whole schedule; for a discrete one also a preset or timesteps
    sigmas       the noise levels themselves in place of steps: strictly decreasing, the last is 0
    sampler      name in SAMPLERS, or a function as `diffusion/samplers.py` describes it
    strength     part of the steps that is run on a picture, (0, 1]
    inpainting   how the pixels outside a mask are kept
    aug_level    of an SR stage: noise on what is enlarged, 0..1
    aug_noise    of an SR stage: "once", or "each step" to draw that noise anew
    tile         of an SR stage: side of the tiles in pixels; 0 = the whole picture
    on_step      called with (step, num_steps, x0) after each step
    trace        keeps what the threshold did at each step
    quality      "fast": FAST of the steps, by FAST_SAMPLER where no sampler is given; "full": all of them.
                 Of a preset and of timesteps "fast" visits every few; sigmas are visited as they are
    reuse        of deep features between steps, whole pictures only; None = every step runs all levels
    """

    guidance: Guidance | None = None
    seed: int | Sequence[int] = 0
    steps: Spacing | None = None
    sigmas: Sigmas | None = None
    sampler: str | Sampler | None = None
    strength: float = 1.0
    inpainting: Inpainting = Inpainting()
    aug_level: float | None = None
    aug_noise: AugNoise = "once"
    tile: int = 0
    on_step: OnStep | None = None
    trace: Trace | None = None
    quality: Quality = "full"
    reuse: Reuse | None = None

    def __post_init__(self):
        numbers = {
            "seed": wholes("seed", self.seed),
            "steps": None if self.steps is None else plain(self.steps),
            "tile": whole("tile", self.tile),
        }
        for name, value in numbers.items():
            object.__setattr__(self, name, value)
        for name, kind in (("guidance", Guidance), ("inpainting", Inpainting)):
            given = getattr(self, name)
            if given is not None and not isinstance(given, kind):
                raise TypeError(f"{name}: expected {kind.__name__}(…), got {given!r:.80}")
        if self.steps is not None and self.sigmas is not None:
            raise ValueError(
                "steps: sigmas are given, which say the steps; leave one of the two out"
            )

    def check(self, config: StageConfig) -> None:
        """Raise ValueError where a stage cannot be sampled so; its weights are not needed for that."""
        check_environment()
        check_seeds(self.seed)
        self.grid(config)
        self.sampler_of(config)
        if self.quality not in QUALITIES:
            raise ValueError(f"quality must be one of {QUALITIES}, got {self.quality!r}")
        if self.reuse is not None:
            self.reuse.check(config.unet)
        if config.kind == "base":
            return
        self.level(config)
        if self.aug_noise not in AUG_NOISES:
            raise ValueError(f"aug_noise must be one of {AUG_NOISES}, got {self.aug_noise!r}")
        least = 4 * config.unet.size_multiple
        if self.tile < 0 or 0 < self.tile < least:
            raise ValueError(f"tile must be 0 (whole image) or at least {least}, got {self.tile}")

    def grid(self, config: StageConfig) -> Tensor:
        """The noise levels of the run: (num_steps + 1,) float64 on the CPU."""
        return partial_grid(self.whole_grid(config), self.strength)

    def guidance_of(self, config: StageConfig) -> Guidance:
        """The guidance of the run, which knows how many steps of the schedule come before it."""
        levels = self.whole_grid(config)
        skipped = len(levels) - len(partial_grid(levels, self.strength))
        return replace(self.guidance or config.guidance(), skipped=skipped)

    def whole_grid(self, config: StageConfig) -> Tensor:
        """The noise levels of a run of the whole schedule, whatever the strength."""
        if self.sigmas is None:
            steps = config.defaults.steps if self.steps is None else self.steps
            sigmas = config.schedule.sigmas(steps)
            if self.quality != "fast":
                return sigmas
            part, fewest = FAST[config.kind]
            few = max(ceil(part * (len(sigmas) - 1)), min(fewest, len(sigmas) - 1))
            return config.schedule.sigmas(few) if isinstance(steps, int) else thinned(sigmas, few)
        try:
            sigmas = torch.as_tensor(self.sigmas, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"sigmas: expected noise levels, got {self.sigmas!r:.80}") from error
        falls = sigmas.ndim == 1 and len(sigmas) > 1 and bool((sigmas.diff() < 0).all())
        if not falls or sigmas[-1] != 0 or not sigmas.isfinite().all():
            raise ValueError(
                f"sigmas: expected noise levels that are strictly decreasing and end with 0, such as "
                f"[80, 10, 1, 0], got {sigmas.tolist()}"
            )
        return sigmas

    def sampler_of(self, config: StageConfig) -> Sampler:
        """The function that samples."""
        own = FAST_SAMPLER if self.quality == "fast" else config.defaults.sampler
        chosen = own if self.sampler is None else self.sampler
        if callable(chosen):
            return chosen
        if not isinstance(chosen, str) or chosen not in SAMPLERS:
            raise ValueError(
                f"sampler must be one of {sorted(SAMPLERS)} or a function, got {chosen!r}"
            )
        return SAMPLERS[chosen]

    def level(self, config: StageConfig) -> float:
        """The noise on what an SR stage enlarges, 0..1."""
        own = config.defaults.aug_level
        level = own if self.aug_level is None else number("aug_level", self.aug_level)
        if not 0 <= level <= 1:
            raise ValueError(f"aug_level must be in [0, 1], got {level}")
        return level


def thinned(sigmas: Tensor, few: int) -> Tensor:
    """Some levels of a grid, evenly chosen: the first, the last above 0, and 0 are among them.

    sigmas   (num_steps + 1,)
    few      steps of the result, 1 to num_steps
    """
    stride = (len(sigmas) - 2) / max(1, few - 1)
    return sigmas[[*(round(k * stride) for k in range(few)), -1]]


def check_environment() -> None:
    """Raise ValueError where IMAGEN_ATTENTION, _NORM or _CONVOLUTION holds a word that means nothing."""
    ATTENTION.forced()
    NORM.forced()
    convolution.plain()
