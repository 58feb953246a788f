"""A student that samples in few evaluations: multistep consistency distillation of a guided teacher.

The schedule is cut into as many segments as the student is to take steps. At any level inside a segment
the student learns the clean picture whose DDIM step lands where the teacher's small steps would land at the
end of the segment: one step of the teacher, and the rest of the way as the student itself goes now. The
teacher's guidance is learned along, so the student runs without.

References: Multistep Consistency Models, arXiv:2403.06807; guidance in the student, arXiv:2210.03142; DDIM,
arXiv:2010.02502.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..diffusion.denoiser import guide, target, x0_from_output
from ..diffusion.guidance import Guidance
from ..diffusion.lowres import Lowres
from ..diffusion.schedules import alpha_sigma, precise
from ..stage import Stage
from ..text.embedding import TextEmbedding
from .data import Batch
from .loss import Weighting, mean_of, min_snr_weight
from .recipe import DistillSection


class Levels(NamedTuple):
    """Noise times of one small step of the teacher, each (b,).

    now     where the noisy picture is, in (0, 1]
    next    where the teacher's step lands
    end     of the segment, where the student's step lands
    """

    now: Tensor
    next: Tensor
    end: Tensor


def levels_of(t: Tensor, teacher_steps: int, steps: int) -> Levels:
    """The teacher's step that a noise time lies in.

    t               (b,) in [0, 1)
    teacher_steps   of the whole schedule, a multiple of steps
    steps           of the student
    """
    number = (precise(t) * teacher_steps).floor()  # of the level where the step lands
    each = teacher_steps // steps
    end = (number / each).floor() * each
    levels = (n / teacher_steps for n in (number + 1, number, end))
    return Levels(*(level.to(t.device, torch.float32) for level in levels))


def ddim(stage: Stage, x: Tensor, x0: Tensor, now: Tensor, later: Tensor) -> Tensor:
    """The noisy picture at a later level, on the way from x to x0.

    x, x0        b 3 h w
    now, later   (b,), noise times
    """
    (alpha, sigma), (alpha_later, sigma_later) = scales(stage, now), scales(stage, later)
    return alpha_later * x0 + sigma_later / sigma * (x - alpha * x0)


def clean_end(stage: Stage, x: Tensor, reached: Tensor, now: Tensor, end: Tensor) -> Tensor:
    """The clean picture whose DDIM step from x lands on `reached`: b 3 h w."""
    (alpha, sigma), (alpha_end, sigma_end) = scales(stage, now), scales(stage, end)
    ratio = sigma_end / sigma
    return (reached - ratio * x) / (alpha_end - ratio * alpha)


def scales(stage: Stage, t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma at noise times, each b 1 1 1."""
    return alpha_sigma(stage.schedule.logsnr(t)[:, None, None, None])


def network_output(
    stage: Stage, x: Tensor, t: Tensor, text: TextEmbedding, lowres: Lowres | None
) -> Tensor:
    """What a stage's network puts out at noise times: b 3 h w, float32, without a learned variance."""
    context = stage.unet.prepare(text)
    output = stage.unet(x, 1000 * t, context, *(() if lowres is None else lowres))
    return output.float()[:, : x.shape[1]]


def clean(stage: Stage, x: Tensor, t: Tensor, output: Tensor) -> Tensor:
    """The clean picture that an output stands for."""
    return x0_from_output(
        stage.prediction, output, x, stage.schedule.logsnr(t)[:, None, None, None]
    )


@torch.no_grad()
def goal(
    student: Stage, teacher: Stage, x: Tensor, levels: Levels, text: TextEmbedding,
    null_text: TextEmbedding, guidance: Guidance, lowres: Lowres | None,
) -> Tensor:  # fmt: skip
    """The clean picture that the student should say at x: b 3 h w, in the range of the threshold."""
    rows = [network_output(teacher, x, levels.now, text, lowres)]
    if guidance.guidance_scale != 1:
        nothing = null_text.expand(len(x))
        rows.append(network_output(teacher, x, levels.now, nothing, lowres))
    output = guide(rows, [1.0], guidance.guidance_scale, x.shape[1])
    x0 = guidance.apply_threshold(clean(teacher, x, levels.now, output))
    after = ddim(teacher, x, x0, levels.now, levels.next)
    output = network_output(student, after, levels.next, text, lowres)
    onward = ddim(
        student, after, clean(student, after, levels.next, output), levels.next, levels.end
    )
    arrived = (levels.next == levels.end)[:, None, None, None]
    return clean_end(student, x, torch.where(arrived, after, onward), levels.now, levels.end)


class DistillLoss(nn.Module):
    """The loss of a student as a module, so that wrappers for several processes and compilers fit."""

    def __init__(
        self,
        student: Stage,
        teacher: Stage,
        null_text: TextEmbedding,
        section: DistillSection,
        weighting: Weighting,
    ):
        """Bind a student to its teacher.

        null_text   one row, what the teacher's guidance leads away from
        """
        super().__init__()
        self.unet = student.unet
        self.student, self.teacher = (
            [student],
            [teacher],
        )  # in lists: what a module holds is trained
        self.null_text, self.section, self.weighting = null_text, section, weighting
        self.guidance = Guidance(section.guidance_scale, section.threshold)

    def forward(self, batch: Batch) -> Tensor:
        student, x0 = self.student[0], batch.x0
        levels = levels_of(batch.t, self.section.teacher_steps, self.section.steps)
        alpha, sigma = scales(student, levels.now)
        x = alpha * x0 + sigma * batch.noise
        wanted = goal(
            student, self.teacher[0], x, levels, batch.text, self.null_text, self.guidance, batch.lowres
        )  # fmt: skip
        output = network_output(student, x, levels.now, batch.text, batch.lowres)
        logsnr = student.schedule.logsnr(levels.now)[:, None, None, None]
        wanted_output = target(student.prediction, wanted, (x - alpha * wanted) / sigma, logsnr)
        error = mean_of((output - wanted_output).square(), batch.weight)
        if self.weighting != "flat":
            error = error * min_snr_weight(student.prediction, logsnr.flatten())
        return error.mean()
