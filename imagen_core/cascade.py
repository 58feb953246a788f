"""A cascade: a text encoder and the stages that were made for each other, used together."""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from operator import mul
from typing import Any, Literal

import torch
from torch import Tensor

from .diffusion.guidance import Guidance
from .diffusion.noise import seeds_of
from .diffusion.samplers import Sampler
from .memory import pictures_at_once
from .peak import fitting_tile
from .sampling import sample_base, super_resolve
from .settings import OnStep, Quality
from .stage import Stage, StageConfig
from .text.encoder import TextEncoder


class Cascade:
    """A text encoder and the stages that were made for each other: a base, then SR stages in order.

    text_encoder   T5 and its tokenizer
    stages         the base, and any number of SR stages; None is left out
    """

    def __init__(self, text_encoder: TextEncoder, *stages: Stage | None):
        self.text_encoder = text_encoder
        self.stages = [stage for stage in stages if stage is not None]
        if not self.stages:
            raise ValueError("stages: expected a base stage and SR stages, got none")
        for i, stage in enumerate(self.stages):
            if not isinstance(stage, Stage):
                raise TypeError(
                    f"stages: expected each as an argument of its own, base first, got {type(stage).__name__}"
                )
            stage.check_kind("sr" if i else "base")

    @property
    def base(self) -> Stage:
        """The first stage, which makes a picture of the text."""
        return self.stages[0]

    @property
    def sr256(self) -> Stage | None:
        """The second stage, whatever it enlarges to; None where the cascade ends before."""
        return self.stages[1] if len(self.stages) > 1 else None

    @property
    def sr1024(self) -> Stage | None:
        """The third stage, whatever it enlarges to; None where the cascade ends before."""
        return self.stages[2] if len(self.stages) > 2 else None

    @torch.no_grad()
    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        negative_prompt: str = "",
        guidance: Guidance | None = None,
        upto: int | None = None,
        batch_size: int = 1,
        seed: int | Sequence[int] = 0,
        steps: int | Sequence[int] | None = None,
        sampler: str | Sampler | None = None,
        aug_level: float | Sequence[float] | None = None,
        tile: int | Literal["auto"] = 0,
        on_step: OnStep | None = None,
        quality: Quality = "full",
    ) -> Tensor:
        """Pictures of the prompts, through the stages up to a resolution: b h w c in 0..1, no gradients.

        prompts          one text, or one a picture
        batch_size       pictures of one text; not used with several
        negative_prompt  what guidance leads away from
        guidance         of the base; SR stages use their own defaults
        seed             picture i uses (seed + i) % 2**64; or one for each picture
        upto             side of the pictures, such as 256: where one of the stages ends; None = all stages
        steps            for all stages, or one number a stage; None = each stage's default
        sampler          name in SAMPLERS or a function; None = each stage's default
        aug_level        for all SR stages, or one a stage; None = each stage's default
        tile             side of the SR stages' tiles in pixels; 0 = whole, "auto" = what memory takes
        on_step          called with (step, num_steps, x0) after each step of each stage and part of a batch
        quality          "full" or "fast", as in `Settings`
        """
        stages = self.stages_upto(upto)
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        batch = batch_of(len(prompts), batch_size)
        seeds = seeds_of(seed, batch)
        text = self.text_encoder.encode_prompt(prompts, negative_prompt)
        steps = per_stage("steps", steps, len(stages))
        aug_levels = per_stage("aug_level", aug_level, len(stages) - 1)
        common: dict[str, Any] = dict(sampler=sampler, on_step=on_step, quality=quality)
        image = torch.cat([
            sample_base(
                self.base, text.take(rows), guidance=guidance, seed=seeds[rows],
                batch_size=rows.stop - rows.start, steps=steps[0], **common,
            )
            for rows in parts_of(self.base, batch, self.base.config.resolution)
        ])  # fmt: skip
        for stage, count, level in zip(stages[1:], steps[1:], aug_levels, strict=True):
            side = stage.config.scale * image.shape[1]
            own = fitting_tile(stage, 1, side, side) if tile == "auto" else tile
            image = torch.cat([
                super_resolve(
                    stage, image[rows], text.take(rows), seed=seeds[rows], steps=count,
                    aug_level=level, tile=own, **common,
                )
                for rows in parts_of(stage, batch, min(own or side, side))
            ])  # fmt: skip
        return image

    def stages_upto(self, resolution: int | None) -> list[Stage]:
        """The stages that lead to a resolution, base first.

        resolution   where one of the stages ends, as they follow each other here; None = the last one
        """
        return self.stages[: stages_upto([s.config for s in self.stages], resolution)]


def batch_of(prompts: int, batch_size: int) -> int:
    """Pictures of a call: one for each prompt, or several of one; ValueError where the two do not fit."""
    if batch_size != 1 and prompts not in (1, batch_size):
        raise ValueError(
            f"batch_size: expected {prompts}, one for each prompt, got {batch_size}; leave it out"
        )
    return prompts if prompts > 1 else batch_size


def parts_of(stage: Stage, batch: int, side: int) -> list[slice]:
    """A batch in parts, each as large as memory allows.

    side   pixels, of the square output or of a tile of it
    """
    size = pictures_at_once(stage, batch, side, side)
    return [slice(first, min(first + size, batch)) for first in range(0, max(batch, 1), size)]


def sizes_of(configs: Sequence[StageConfig]) -> list[int]:
    """The side that each stage's pictures have after those before it: the base's, enlarged by each."""
    return list(
        accumulate((config.scale for config in configs[1:]), mul, initial=configs[0].resolution)
    )


def stages_upto(configs: Sequence[StageConfig], resolution: int | None) -> int:
    """How many stages lead to a resolution.

    configs      of the stages, base first
    resolution   one of `sizes_of` them; None = the last
    """
    sizes = sizes_of(configs)
    if resolution is None:
        return len(sizes)
    if resolution not in sizes:
        raise ValueError(f"upto must be one of {sizes}, got {resolution}")
    return sizes.index(resolution) + 1


def per_stage(name: str, value, count: int) -> list:
    """One value for each of `count` stages, from one for all, or from a sequence of at least that many.

    value   None, a number, or a sequence of numbers
    """
    if isinstance(value, str) or not isinstance(value, Iterable):
        return [value] * count
    value = list(value)
    if len(value) == 1:
        return [value[0]] * count
    if len(value) < count:
        raise ValueError(f"{name}: expected 1 or {count} values, got {len(value)}")
    return list(value[:count])
