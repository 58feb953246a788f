"""Training of one stage, in reading order: data, network, optimiser, loop.

Runs through `accelerate`, so several GPUs work unchanged. On one, nothing in the loop waits for the device:
losses stay there until a log line or a checkpoint is due. Several agree after each step on whether it was the
last, which waits for them.
"""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..diffusion.schedules import DiscreteSchedule
from ..formats import load_stage, load_text_encoder, save_lora, save_stage
from ..formats.stage import read_stage_config
from ..kernels.precision import cpu_computes_bfloat16
from ..lora import apply_lora
from ..stage import Stage
from ..text.embedding import TextEmbedding
from ..text.encoder import TextEncoder
from .checkpoint import has_checkpoint, hold, load_checkpoint, save_checkpoint
from .data import Batch, MakePicture, add_noise
from .distill import DistillLoss
from .ema import EMA
from .grow import grown
from .loss import Variance, Weighting, diffusion_loss
from .optim import lr_factor, make_optimizer
from .processes import processes
from .progress import Clock, DivergedError, Log, stop_signals, tell
from .recipe import Recipe, RecipeError, check_data, check_parts
from .sources import open_source
from .tuning import lora_of, prepare

MAY_MOVE = {
    "text_encoder",
    "images",
    "manifest",
    "folder",
    "mix",
    "prompts",
    "start_from",
    "grow_from",
}
MAY_CHANGE = MAY_MOVE | {"workers", "defaults"}  # from one part of a run to the next
SLOW_BFLOAT16 = (
    "precision: this CPU does not multiply bfloat16 (no AVX-512 BF16 or AMX), and may take many times as "
    "long in it: choose float32"
)


@dataclass(frozen=True)
class Watch:
    """What whoever started a run is told, and may ask for.

    line     called with each line of the log
    stop     whether the run is to save and stop
    sample   pictures of the stage as it is, b h w 3 in 0..1, for a grid; None = none are made
    note     called with one line of text now and then
    step     called after each step with its number and the part of the run that is done, 0..1
    """

    line: Callable[[dict[str, Any]], None] = tell
    stop: Callable[[], bool] = lambda: False
    sample: Callable[[Stage], Tensor] | None = None
    note: Callable[[str], None] = print
    step: Callable[[int, float], None] = lambda number, part: None


@dataclass(frozen=True)
class Given:
    """Parts of a run that are loaded already, in place of the files that its recipe names.

    stage     to start from; it is copied
    encoder   the frozen text encoder
    device    to train on
    """

    stage: Stage
    encoder: TextEncoder
    device: torch.device


class StageLoss(nn.Module):
    """The loss of a stage as a module, so that wrappers for several processes and compilers fit."""

    def __init__(self, stage: Stage, weighting: Weighting, variance: Variance = "hybrid"):
        super().__init__()
        self.weighting: Weighting = weighting
        self.variance: Variance = variance
        self.unet = stage.unet
        self.stage = [stage]  # in a list: the stage is not a module

    def forward(self, batch: Batch) -> Tensor:
        losses = diffusion_loss(
            self.stage[0], *batch, weighting=self.weighting, variance=self.variance
        )
        return losses.mean()


def train(
    recipe: Recipe,
    make: MakePicture | None = None,
    watch: Watch | None = None,
    given: Given | None = None,
) -> Path:
    """Follow a recipe, from its last checkpoint where there is one; the finished stage's or LoRA's file.

    recipe   what, on what, how fast, how long
    make     makes each picture (h w 3, uint8) with its caption; None = those of [data]
    watch    is told of the run; None = lines are printed
    given    parts that are loaded already; None = those that the recipe names

    Ctrl-C and SIGTERM save first. A loss that is no number, or explodes, raises DivergedError and leaves
    the last checkpoint as it was.
    """
    watch = watch or Watch()
    first = os.environ.get("RANK", "0") == "0"  # of several processes
    held = hold(Path(recipe.run.out)) if first else nullcontext()
    with stop_signals() as signalled, held:
        run = Run(recipe, make, watch, given)
        try:
            run.go(lambda: signalled() or watch.stop())
        finally:
            run.log.close()
    return run.result


class Run:
    """A run in progress: network, data, optimiser, averages, clock and log."""

    def __init__(
        self, recipe: Recipe, make: MakePicture | None, watch: Watch, given: Given | None = None
    ):
        self.recipe, self.watch, self.out = recipe, watch, Path(recipe.run.out)
        on_cpu = given is not None and given.device.type == "cpu"
        self.accelerator = processes(recipe.run.precision, on_cpu)
        check_parts(recipe, self.accelerator.num_processes)
        if make is None and not recipe.data.folder:
            check_data(recipe)
        torch.manual_seed(recipe.run.seed)
        device = self.accelerator.device
        slow = device.type == "cpu" and not cpu_computes_bfloat16()
        if slow and recipe.run.precision == "bfloat16":
            watch.note(SLOW_BFLOAT16)
        start = make_stage(recipe) if given is None else trainable_copy(given.stage)
        self.plain = start.to(device)
        self.settings = settings_of(recipe)
        if recipe.stage.start_from:
            self.settings["stage.start_from"] = f"weights {fingerprint(start)}"
        self.stage = prepare(self.plain, recipe.tune)
        encoder = None if given is None else given.encoder
        encoder = encoder or load_text_encoder(recipe.data.text_encoder, device)
        self.source, self.held_out = open_source(recipe, make, encoder, self.stage, watch.note)
        optim = recipe.optim
        optimizer = make_optimizer(self.stage.unet, optim.optimizer, optim.lr, optim.weight_decay)
        self.ema = EMA(self.stage.unet, optim.ema_decay)
        kept: dict[str, Any] = {}
        kept_in = self.out / "checkpoint"
        if has_checkpoint(kept_in):
            kept = load_checkpoint(kept_in, self.stage.unet, self.ema, optimizer, self.check_same)
        self.clock = Clock(recipe, kept.get("step", 0), kept.get("seconds", 0.0))
        loss = make_loss(recipe, self.stage, self.plain, encoder).to(device).train()
        self.module, self.optimizer = self.accelerator.prepare(loss, optimizer)
        self.compute_loss = torch.compile(self.module) if recipe.run.compile else self.module
        self.log = Log(self.out, self.accelerator.is_main_process, kept, watch.line)
        self.begun = self.clock.step

    @property
    def result(self) -> Path:
        """The file that the run makes."""
        name = "lora" if self.recipe.tune.what == "lora" else "stage"
        return self.out / f"{name}.safetensors"

    def check_same(self, kept: dict[str, Any]) -> None:
        """Raise RecipeError where a checkpoint is of a recipe that differs in more than its length."""
        now, before = self.settings, kept.get("recipe", {})
        for key in sorted(before.keys() & now.keys()):
            if before[key] != now[key]:
                raise RecipeError(
                    f"{key}: the run in {self.out} was begun with {before[key]!r}, got {now[key]!r}; set it "
                    f"back, or begin another run under another name (run.out)"
                )

    def go(self, stopped: Callable[[], bool]) -> None:
        """Train until the clock says so; what a killed run had not exported is exported."""
        run, clock = self.recipe.run, self.clock
        clock.look(self.accelerator)
        if clock.done:
            self.export()
            self.watch.note(
                f"this run is finished: {self.result}; to train longer raise run.steps or run.minutes, to "
                f"begin anew choose another run.out"
            )
            return
        scale = self.stage.config.scale
        batches = self.source.batches(self.recipe.data, scale, run.batch, run.seed, clock.step)
        with closing(batches):  # ends the processes that make them, before this one ends
            while not clock.done:
                lr = self.step(next(batches))
                clock.look(self.accelerator, stopped())
                self.watch.step(clock.step, clock.progress)
                with self.log.untimed():
                    sampled = self.sample_if_due()
                if clock.step % run.log_every == 0 or clock.done:
                    self.check(lr)
                    self.log.write(clock, lr, run.batch, **sampled)
                if clock.step % run.save_every == 0 or clock.done or clock.stopped:
                    self.check(lr)
                    with self.log.untimed():
                        self.save()
                if clock.stopped and not clock.done:
                    raise KeyboardInterrupt(
                        f"stopped at step {clock.step}, and saved; started again, the same run continues"
                    )

    def step(self, drawn: Any) -> float:
        """One step of the optimiser; its learning rate."""
        recipe, clock, stage = self.recipe, self.clock, self.stage
        factor = lr_factor(
            clock.step, clock.progress, recipe.optim.warmup_steps, recipe.optim.decay
        )
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.optim.lr * factor
        config = stage.config
        batch = add_noise(
            drawn, recipe.data, stage.schedule, config.scale, recipe.run.seed, clock.step,
            config.align_corners,
        )  # fmt: skip
        accelerator = self.accelerator
        own = rows_of(batch, accelerator.process_index, accelerator.num_processes)
        loss = accumulate(accelerator, self.compute_loss, self.module, own, recipe)
        trained = [p for p in stage.unet.parameters() if p.requires_grad]
        norm = accelerator.clip_grad_norm_(trained, recipe.optim.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(stage.unet)
        clock.step += 1
        if accelerator.num_processes > 1:
            loss = cast(Tensor, accelerator.reduce(loss, "mean"))
        self.log.add(loss, norm)
        return recipe.optim.lr * factor

    def check(self, lr: float) -> None:
        """Raise DivergedError, saying what is kept, where the run went wrong."""
        try:
            self.log.check(self.clock.step, lr)
            if not all(average.isfinite().all() for average in self.ema.averages):
                raise DivergedError(f"weights are no numbers at step {self.clock.step}")
        except DivergedError as error:
            kept_in = self.out / "checkpoint"
            kept = f"the last good checkpoint is in {kept_in}"
            kept = kept if has_checkpoint(kept_in) else "nothing was saved"
            raise DivergedError(f"{error}; {kept}; lower optim.lr and begin another run") from None

    def sample_if_due(self) -> dict[str, float]:
        """Pictures of the stage as it is, in a file and in the log; and the loss on what is held out."""
        every, clock = self.recipe.run.sample_every, self.clock
        if not every or (clock.step % every and not clock.done):
            return {}
        if self.watch.sample is not None and self.accelerator.is_main_process:
            grid = grid_of(self.watch.sample(self.snapshot()))
            save_grid(grid, self.out / "samples" / f"step_{clock.step:06d}.png")
            self.log.picture(grid, clock.step)
        if not self.held_out:
            return {}
        with torch.no_grad(), self.accelerator.autocast():
            losses = [self.module(batch).item() for batch in self.held_out]
        return {"held_out": sum(losses) / len(losses)}

    def snapshot(self) -> Stage:
        """The stage as it would be used now: averaged weights, or the LoRA on what it started from."""
        if self.recipe.tune.what == "lora":
            return apply_lora(self.plain, lora_of(self.stage, self.averages(), {}))
        copy = Stage(self.stage.config).to(self.stage.device)
        copy.unet.load_state_dict(self.stage.unet.state_dict())
        self.ema.copy_to(copy.unet)
        copy.unet.requires_grad_(False)
        return copy

    def averages(self) -> dict[str, Tensor]:
        """Averages of the trained parameters, by name."""
        return dict(zip(self.ema.names, self.ema.averages, strict=True))

    def save(self) -> None:
        """Write a checkpoint, and what the run has made so far."""
        if not self.accelerator.is_main_process:
            return
        progress = {**self.clock.state(), **self.log.state(), "recipe": self.settings}
        plain = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it
        save_checkpoint(self.out / "checkpoint", self.stage.unet, self.ema, plain, progress)
        self.export()

    def export(self) -> None:
        """Write the averaged weights: a LoRA, or a stage in half precision."""
        if not self.accelerator.is_main_process:
            return
        if self.recipe.tune.what == "lora":
            about = {
                "training_steps": str(self.clock.step),
                "training": json.dumps(asdict(self.recipe.tune)),
            }
            save_lora(lora_of(self.stage, self.averages(), about), self.result)
        else:
            export(self.stage, self.ema, self.result)


def make_loss(recipe: Recipe, stage: Stage, plain: Stage, encoder: TextEncoder) -> nn.Module:
    """What a step makes smaller: the diffusion loss, or a student's distance from its teacher.

    stage     is trained
    plain     what it was made from; the weights stay as they are where a LoRA is trained, and then teach
    encoder   the frozen text encoder
    """
    weighting = recipe.optim.weighting
    if not recipe.distill.steps:
        return StageLoss(stage, weighting, recipe.tune.variance)
    if isinstance(stage.schedule, DiscreteSchedule):
        raise RecipeError(
            "distill: expected a stage with a continuous schedule, got a discrete one"
        )
    source = recipe.stage.start_from
    if recipe.tune.what == "lora":
        teacher = Stage(read_stage_config(source), plain.unet)
    else:
        teacher = load_stage(source, stage.device, torch.float32)
    null_text = encoder.encode([""]).to(stage.device)
    return DistillLoss(stage, teacher, null_text, recipe.distill, weighting)


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """What must stay the same from one part of a run to the next, by table and key."""
    found = {}
    for table in ("stage", "data", "optim", "tune", "distill"):
        section = asdict(getattr(recipe, table))
        found |= {
            f"{table}.{key}": value for key, value in section.items() if key not in MAY_CHANGE
        }
    found |= {f"run.{key}": getattr(recipe.run, key) for key in ("batch", "accumulation", "seed")}
    return json.loads(json.dumps(found))


def grid_of(images: Tensor) -> Tensor:
    """Pictures beside each other, about as many across as down: h w 3.

    images   b h w 3 in 0..1
    """
    images = images.float().cpu().clamp(0, 1)
    across = max(1, round(len(images) ** 0.5))
    rows = [torch.cat(list(images[i : i + across]), dim=1) for i in range(0, len(images), across)]
    width = rows[0].shape[1]
    rows = [nn.functional.pad(row, (0, 0, 0, width - row.shape[1]), value=1.0) for row in rows]
    return torch.cat(rows)


def save_grid(grid: Tensor, path: Path) -> None:
    """Write a picture as a PNG; it appears whole.

    grid   h w 3 in 0..1
    """
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    Image.fromarray((grid * 255).round().byte().numpy()).save(temporary, "PNG")
    temporary.replace(path)


def make_stage(recipe: Recipe) -> Stage:
    """A new stage, or the one that the recipe starts from with the recipe's own settings."""
    config = recipe.stage_config()
    if recipe.stage.grow_from:
        small = load_stage(recipe.stage.grow_from, dtype=torch.float32)
        try:
            return Stage(config, grown(small.unet, config.unet).requires_grad_(True))
        except ValueError as error:
            raise RecipeError(f"stage.grow_from: {recipe.stage.grow_from}: {error}") from error
    if not recipe.stage.start_from:
        return Stage(config)
    start = load_stage(recipe.stage.start_from, dtype=torch.float32)
    if start.config.unet != config.unet:
        raise ValueError(
            f"stage.start_from: expected a network of preset {recipe.stage.preset!r}, "
            f"got {start.config.unet}"
        )
    return Stage(config, start.unet.requires_grad_(True))


def trainable_copy(stage: Stage) -> Stage:
    """A float32 copy of a stage, whose weights ask for gradients."""
    if stage.loras:
        raise ValueError(
            "stage: expected one without a LoRA, as training makes one; connect or name the plain stage, or "
            "merge the LoRA into it first"
        )
    copy = Stage(stage.config).to(dtype=torch.float32)
    copy.unet.load_state_dict(stage.unet.state_dict())
    return Stage(stage.config, copy.unet.requires_grad_(True))


def fingerprint(stage: Stage) -> str:
    """What tells a stage's weights from others: a digest of some of each tensor's values."""
    digest = hashlib.sha256()
    for weight in stage.unet.state_dict().values():
        values = weight.flatten()[:: max(1, weight.numel() // 8)]
        digest.update(values.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def export(stage: Stage, ema: EMA, path: Path) -> None:
    """The averaged weights in half precision as a stage file; those that were not trained as they are.

    stage   gives the configuration
    ema     averages of its network's parameters
    """
    shipped = Stage(stage.config).to(dtype=torch.float16)
    shipped.unet.load_state_dict(stage.unet.state_dict())
    ema.copy_to(shipped.unet)
    save_stage(shipped, path)


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
        None if batch.weight is None else batch.weight[rows],
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
