"""Training of one stage, in reading order: data, network, optimiser, loop.

Runs through `accelerate`, so several GPUs work unchanged. Nothing in the loop waits for the device:
losses stay there until a log line is due.
"""

import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..formats import load_stage, load_text_encoder, save_stage
from ..stage import Stage
from ..text.embedding import TextEmbedding
from .checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from .data import Batch, MakePicture, Source, Stream, add_noise, load_pairs
from .ema import EMA
from .loss import Weighting, diffusion_loss
from .optim import lr_factor, make_optimizer
from .recipe import Precision, Recipe, check_data


class StageLoss(nn.Module):
    """The loss of a stage as a module, so that wrappers for several processes and compilers fit."""

    def __init__(self, stage: Stage, weighting: Weighting):
        super().__init__()
        self.weighting: Weighting = weighting
        self.unet = stage.unet
        self.stage = [stage]  # in a list: the stage is not a module

    def forward(self, batch: Batch) -> Tensor:
        return diffusion_loss(self.stage[0], *batch, weighting=self.weighting).mean()


def train(recipe: Recipe, make: MakePicture | None = None) -> Path:
    """Follow a recipe, from its last checkpoint where there is one; the finished stage's file.

    recipe   what, on what, how fast, how long
    make     makes each picture (h w 3, uint8) with its caption; None = those of [data]
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # a run before this one in the process may have had another precision
    accelerator = Accelerator(mixed_precision=mixed_precision(recipe.run.precision))
    torch.manual_seed(recipe.run.seed)
    stage = make_stage(recipe).to(accelerator.device)
    source = open_source(recipe, make, accelerator.device)
    optimizer = make_optimizer(
        stage.unet, recipe.optim.optimizer, recipe.optim.lr, recipe.optim.weight_decay
    )
    ema = EMA(stage.unet, recipe.optim.ema_decay)

    out = Path(recipe.run.out)
    clock = Clock(recipe)
    if has_checkpoint(out / "checkpoint"):
        progress = load_checkpoint(out / "checkpoint", stage.unet, ema, optimizer)
        clock = Clock(recipe, progress["step"], progress["seconds"])
    loss_module, optimizer = accelerator.prepare(
        StageLoss(stage, recipe.optim.weighting).train(), optimizer
    )
    compute_loss = torch.compile(loss_module) if recipe.run.compile else loss_module
    log = Log(out, accelerator.is_main_process, clock.step)

    batches = source.batches(
        recipe.data, stage.config.scale, recipe.run.batch, recipe.run.seed, clock.step
    )
    while not clock.done:
        for group in optimizer.param_groups:
            group["lr"] = recipe.optim.lr * lr_factor(
                clock.step, clock.progress, recipe.optim.warmup_steps, recipe.optim.decay
            )
        batch = add_noise(
            next(batches), recipe.data, stage.schedule, stage.config.scale,
            recipe.run.seed, clock.step,
        )  # fmt: skip
        loss = accumulate(
            accelerator, compute_loss, loss_module, own_part(batch, accelerator), recipe
        )
        norm = accelerator.clip_grad_norm_(stage.unet.parameters(), recipe.optim.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(stage.unet)
        clock.tick()
        log.add(loss, norm)
        if clock.step % recipe.run.log_every == 0 or clock.done:
            log.write(clock, optimizer.param_groups[0]["lr"], recipe.run.batch)
        if accelerator.is_main_process and (clock.step % recipe.run.save_every == 0 or clock.done):
            save_checkpoint(out / "checkpoint", stage.unet, ema, optimizer.optimizer, clock.state())
            export(stage, ema, out / "stage.safetensors")
    return out / "stage.safetensors"


def open_source(recipe: Recipe, make: MakePicture | None, device: torch.device) -> Source:
    """Where a run's pictures come from, its text encoder bound to them.

    make   makes each picture with its caption; None = the arrays of [data]
    """
    if make is None:
        check_data(recipe)
    encoder = load_text_encoder(recipe.data.text_encoder, device)
    if make is None:
        return load_pairs(recipe.data, encoder, device)
    return Stream(make, encoder, device, recipe.data.workers)


def mixed_precision(precision: Precision) -> str:
    """accelerate's word for a recipe's precision; "auto" is bfloat16 on GPUs that have it."""
    if precision == "auto":
        fast = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return "bf16" if fast else "no"
    return "bf16" if precision == "bfloat16" else "no"


def make_stage(recipe: Recipe) -> Stage:
    """A new stage, or the one that the recipe starts from with the recipe's own settings.

    recipe   names preset and starting weights
    """
    config = recipe.stage_config()
    if not recipe.stage.start_from:
        return Stage(config)
    start = load_stage(recipe.stage.start_from, dtype=torch.float32)
    if start.config.unet != config.unet:
        raise ValueError(
            f"stage.start_from: expected a network of preset {recipe.stage.preset!r}, "
            f"got {start.config.unet}"
        )
    return Stage(config, start.unet.requires_grad_(True))


def export(stage: Stage, ema: EMA, path: Path) -> None:
    """The averaged weights in half precision as a stage file.

    stage   gives the configuration
    ema     averages of its network's parameters
    """
    shipped = Stage(stage.config).to(dtype=torch.float16)
    ema.copy_to(shipped.unet)
    save_stage(shipped, path)


def own_part(batch: Batch, accelerator: Any) -> Batch:
    """This process's rows of a batch that every process drew alike.

    batch         of all processes
    accelerator   knows how many there are
    """
    return rows_of(batch, accelerator.process_index, accelerator.num_processes)


def rows_of(batch: Batch, part: int, parts: int) -> Batch:
    """Every parts-th row of a batch, so that each part keeps a stratified t.

    batch         any number of rows, a multiple of parts
    part, parts   which of how many
    """
    rows = slice(part, None, parts)
    lowres = batch.lowres
    return Batch(
        batch.x0[rows],
        TextEmbedding(batch.text.embeds[rows], batch.text.mask[rows]),
        batch.t[rows],
        batch.noise[rows],
        None if lowres is None else type(lowres)(lowres.image[rows], lowres.timestep[rows]),
    )


def accumulate(
    accelerator: Any, compute_loss: Any, module: nn.Module, batch: Batch, recipe: Recipe
) -> Tensor:
    """Backward passes of all parts of a batch; the mean loss, still on the device.

    accelerator    scales and synchronises
    compute_loss   the module, compiled or not
    module         whose gradients are synchronised with the last part only
    batch          this process's rows
    recipe         says how many parts
    """
    parts = recipe.run.accumulation
    total = torch.zeros((), device=batch.x0.device)
    for k in range(parts):
        last = k == parts - 1
        with nullcontext() if last else accelerator.no_sync(module), accelerator.autocast():
            loss = compute_loss(rows_of(batch, k, parts)) / parts
            accelerator.backward(loss)
        total += loss.detach()
    return total


class Clock:
    """How far a run is: by steps, or by the time spent training where the recipe gives minutes."""

    def __init__(self, recipe: Recipe, step: int = 0, seconds: float = 0.0):
        self.steps, self.limit = recipe.run.steps, 60 * recipe.run.minutes
        self.step = step
        self.started = time.monotonic() - seconds

    @property
    def seconds(self) -> float:
        """Time spent training, over all parts of the run."""
        return time.monotonic() - self.started

    @property
    def progress(self) -> float:
        """Part of the run that is done, 0..1."""
        return self.step / self.steps if self.steps else min(1.0, self.seconds / self.limit)

    @property
    def done(self) -> bool:
        """Whether the run is over."""
        return self.progress >= 1

    def tick(self) -> None:
        """Count a step."""
        self.step += 1

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"step": self.step, "seconds": self.seconds}


class Log:
    """Loss, gradient norm, learning rate and pictures a second: TensorBoard events and JSON lines."""

    def __init__(self, out: Path, active: bool, step: int):
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.active, self.last_step, self.last_time = active, step, time.monotonic()
        if active:
            from torch.utils.tensorboard import SummaryWriter

            out.mkdir(parents=True, exist_ok=True)
            self.events = SummaryWriter(str(out / "events"), purge_step=step)
            self.lines = (out / "log.jsonl").open("a", encoding="utf-8")

    def add(self, loss: Tensor, norm: Tensor | None) -> None:
        """Keep a step's numbers on the device."""
        self.losses.append(loss)
        if norm is not None:
            self.norms.append(norm)

    def write(self, clock: Clock, lr: float, batch: int) -> None:
        """Write the means since the last line."""
        steps = len(self.losses)
        values = {
            "loss": torch.stack(self.losses).mean().item(),
            "grad_norm": torch.stack(self.norms).mean().item(),
            "lr": lr,
            "pictures_per_second": steps * batch / (time.monotonic() - self.last_time),
        }
        self.losses, self.norms, self.last_time = [], [], time.monotonic()
        if not self.active:
            return
        for name, value in values.items():
            self.events.add_scalar(name, value, clock.step)
        line = {"step": clock.step, "seconds": round(clock.seconds, 1), **values}
        self.lines.write(json.dumps(line) + "\n")
        self.lines.flush()
        print(" · ".join(f"{k} {v:.4g}" for k, v in line.items()), flush=True)
