"""A cascade: a text encoder and the stages that were made for each other, used together."""

from collections.abc import Sequence

from torch import Tensor

from .diffusion.guidance import Guidance
from .sampling import sample_base, super_resolve
from .settings import OnStep
from .stage import Stage
from .text.encoder import TextEncoder


class Cascade:
    """A text encoder and up to three stages that were made for each other."""

    def __init__(
        self,
        text_encoder: TextEncoder,
        base: Stage,
        sr256: Stage | None = None,
        sr1024: Stage | None = None,
    ):
        self.text_encoder = text_encoder
        self.base = base
        self.sr256 = sr256
        self.sr1024 = sr1024

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        negative_prompt: str = "",
        guidance: Guidance | None = None,
        upto: int = 1024,
        batch_size: int = 1,
        seed: int = 0,
        steps: int | Sequence[int] | None = None,
        sampler: str | None = None,
        aug_level: float | Sequence[float] | None = None,
        tile: int = 0,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Pictures of the prompts, through the stages up to a resolution: b h w c in 0..1.

        prompts          one text, or one a picture; picture i uses seed + i
        batch_size       pictures of one text; not used with several
        negative_prompt  what guidance leads away from
        guidance         of the base; SR stages use their own defaults
        upto             64, 256 or 1024: the last stage's nominal resolution
        seed             0 to 2**64 - 1
        steps            for all stages, or one number a stage; None = each stage's default
        sampler          name in SAMPLERS; None = each stage's default
        aug_level        for both SR stages, or one a stage; None = each stage's default
        tile             side of the SR stages' tiles in pixels; 0 = whole pictures
        on_step          called with (step, num_steps, x0) after each step of each stage
        """
        stages = self.stages_upto(upto)
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        text = self.text_encoder.encode_prompt(prompts, negative_prompt)
        steps = per_stage("steps", steps, len(stages))
        aug_levels = per_stage("aug_level", aug_level, len(stages) - 1)
        image = sample_base(
            self.base, text, guidance=guidance, seed=seed,
            batch_size=len(prompts) if len(prompts) > 1 else batch_size,
            steps=steps[0], sampler=sampler, on_step=on_step,
        )  # fmt: skip
        for stage, count, level in zip(stages[1:], steps[1:], aug_levels, strict=True):
            image = super_resolve(
                stage, image, text, seed=seed, steps=count, sampler=sampler,
                aug_level=level, tile=tile, on_step=on_step,
            )  # fmt: skip
        return image

    def stages_upto(self, resolution: int) -> list[Stage]:
        """The stages that lead to a nominal resolution, base first.

        resolution   one of the stages' nominal resolutions
        """
        stages = [stage for stage in (self.base, self.sr256, self.sr1024) if stage is not None]
        sizes = [stage.config.resolution for stage in stages]
        if resolution not in sizes:
            raise ValueError(f"upto must be one of {sizes}, got {resolution}")
        return stages[: sizes.index(resolution) + 1]


def per_stage(name: str, value, count: int) -> list:
    """One value for each of `count` stages, from one for all, or from a sequence of at least that many.

    name    for the error
    value   None, a number, or a sequence of numbers
    count   number of stages
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [value] * count
    if len(value) == 1:
        return [value[0]] * count
    if len(value) < count:
        raise ValueError(f"{name}: expected 1 or {count} values, got {len(value)}")
    return list(value[:count])
