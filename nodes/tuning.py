"""What Fine-Tune Imagen Stage and Evaluate Cascade do: the core's training and evaluation in a host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import host

if TYPE_CHECKING:
    from torch import Tensor

    from ..imagen_core import Stage, TextEncoder
    from ..imagen_core.training.folder import Folder
    from ..imagen_core.training.recipe import DataSection, Recipe

WIDTH, CHART_HEIGHT, MARGIN = 512, 160, 18
PARTS = 1000  # of a run, in the progress bar


class Tuning:
    """One tuning of a stage, and what the node shows of it."""

    def __init__(self, stage: Stage, encoder: TextEncoder, others: Sequence[Stage | None]):
        """Keep what is tuned.

        others   base, SR 256 and SR 1024 of the cascade, as far as they are connected
        """
        self.stage, self.encoder, self.others = stage, encoder, others
        self.lines: list[dict[str, Any]] = []
        self.samples: Tensor | None = None
        self.changed = False

    @staticmethod
    def data(dataset: DataSection, mix: DataSection | None, part: float | None) -> DataSection:
        """A dataset with a part of another one; None = the dataset's own part."""
        if mix is None:
            return dataset
        part = dataset.mix_part if part is None else part
        return replace(dataset, mix=mix.folder, mix_part=part)

    def run(self, out: Path, data: DataSection, **wishes: Any) -> dict[str, Any]:
        """Train, or continue; what the node returns.

        out      folder of the run
        wishes   fields of training.finetune's Wishes; None = its own
        """
        import torch

        from ..imagen_core import apply_lora, load_lora
        from ..imagen_core.training.finetune import Wishes, recipe_for

        wanted = Wishes(**{name: value for name, value in wishes.items() if value is not None})
        wanted = replace(wanted, seed=begun_with(out).get("run.seed", wanted.seed))
        # ComfyUI runs nodes in inference mode, which has no gradients; a run seeds torch for itself.
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng():
            recipe = recipe_for(wanted, self.stage.config, data, out, "given")
            recipe = replace(recipe, run=replace(recipe.run, log_every=lines_every(recipe)))
            try:
                made = self.train(recipe)
            except KeyboardInterrupt:
                host.stop_if_interrupted()
                raise
            lora = load_lora(made, self.stage)
            tuned = apply_lora(self.stage, lora)
        loss = {"loss": [line["loss"] for line in self.lines]}
        text = f"{out}: step {self.lines[-1]['step']}, loss {loss['loss'][-1]:.4f}"
        ui = {"images": [host.save_temporary(self.picture())], "text": [text]}
        return {"ui": ui, "result": (tuned, lora, loss)}

    def train(self, recipe: Recipe) -> Path:
        """Follow the recipe with everything on its device; the LoRA's file."""
        from ..imagen_core.training.data import Prompts
        from ..imagen_core.training.finetune import captions_of, sample_prompts, sizes
        from ..imagen_core.training.folder import read_folder
        from ..imagen_core.training.loop import Given, Watch, train
        from ..imagen_core.training.progress import read_log
        from ..imagen_core.training.sources import least_side

        config, data, out = self.stage.config, recipe.data, Path(recipe.run.out)
        found = read_folder(data.folder, least_side(config, data.crop), data.trigger)
        prompts = sample_prompts(recipe, found)
        with host.on_device(self.encoder.model, role="text_encoder"):
            self.stage.check_text(self.encoder.encode([""]).embeds)
            Prompts(self.encoder, kept=out / "prompts").encode(["", *captions_of(found), *prompts])
        self.samples = last_samples(out)
        self.lines = read_log(out / "log.jsonl")
        told = host.long_progress()

        def step(_number: int, part: float) -> None:
            picture, self.changed = self.picture() if self.changed else None, False
            told(round(PARTS * part), PARTS, picture)

        watch = Watch(
            line=self.line, stop=host.interrupted, note=host.tell, step=step,
            sample=self.sampler(prompts, found, recipe.run.seed),
        )  # fmt: skip
        with host.on_device(self.stage.unet, sizes(self.stage, recipe)[2]):
            given = Given(self.stage, self.encoder, host.compute_device())
            return train(recipe, watch=watch, given=given)

    def line(self, values: dict[str, Any]) -> None:
        """Keep a line of the log; a continued run makes some again."""
        self.lines = [line for line in self.lines if line["step"] < values["step"]]
        self.lines.append(values)
        self.changed = True

    def sampler(
        self, prompts: Sequence[str], found: Folder, seed: int
    ) -> Callable[[Stage], Tensor]:
        """Makes images of the prompts through the connected stages; an SR stage alone enlarges the data's."""
        from ..imagen_core.training.finetune import enlarger_of, sampler_of
        from ..imagen_core.training.loop import grid_of

        chain, index = chain_of(self.stage, self.others)
        if chain:
            make = sampler_of(chain, index, self.encoder, prompts, seed)
        else:
            make = enlarger_of(found.pictures, self.stage.config, self.encoder, seed)

        def sample(stage: Stage) -> Tensor:
            with ExitStack() as stack:
                stack.enter_context(host.on_device(self.encoder.model, role="text_encoder"))
                for other in chain[:index] + chain[index + 1 :]:
                    side = other.config.resolution
                    needed = other.running_bytes(2 * len(prompts), side, side)
                    stack.enter_context(host.on_device(other.unet, needed))
                made = make(stage)
            self.samples, self.changed = grid_of(made), True
            return made

        return sample

    def picture(self) -> Tensor:
        """The latest samples above the chart of the loss: h w 3 in 0..1."""
        import torch
        from torch.nn.functional import interpolate

        parts = [loss_chart(self.lines)]
        if self.samples is not None:
            height, width = self.samples.shape[:2]
            size = (round(height * WIDTH / width), WIDTH)
            grid = self.samples.movedim(2, 0)[None]
            mode = "nearest" if width < WIDTH else "area"
            parts.insert(0, interpolate(grid, size, mode=mode)[0].movedim(0, 2))
        return torch.cat(parts)


def begun_with(out: Path) -> dict[str, Any]:
    """Settings of the run that a folder holds, by table and key; empty where there is none yet."""
    from ..imagen_core.training.checkpoint import counters, has_checkpoint

    kept = out / "checkpoint"
    return counters(kept)[1].get("recipe", {}) if has_checkpoint(kept) else {}


def last_samples(out: Path) -> Tensor | None:
    """The newest grid of samples that a run has left: h w 3 in 0..1."""
    import numpy as np
    import torch
    from PIL import Image

    grids = sorted((out / "samples").glob("step_*.png"))
    if not grids:
        return None
    with Image.open(grids[-1]) as grid:
        return torch.from_numpy(np.array(grid.convert("RGB"))).float() / 255


def lines_every(recipe: Recipe) -> int:
    """Steps between lines of the log, so that the chart has about two hundred points."""
    run = recipe.run
    return min(max(1, (run.steps or 2000) // 200), run.sample_every or 1)


def chain_of(stage: Stage, others: Sequence[Stage | None]) -> tuple[list[Stage], int]:
    """The cascade with a stage in its place, base first, and that place; none for an SR stage without a base.

    others   base, SR 256 and SR 1024, as far as they are connected
    """
    base, *enlarging = others
    side = stage.config.resolution
    sr = [each for each in enlarging if each is not None]
    after = [each for each in sr if each.config.resolution > side]
    if stage.config.kind == "base":
        return [stage, *after], 0
    if base is None:
        return [], 0
    before = [base, *(each for each in sr if each.config.resolution < side)]
    return [*before, stage, *after], len(before)


def loss_chart(lines: Sequence[dict[str, Any]]) -> Tensor:
    """The loss, and the held-out loss, over the steps: h w 3 in 0..1."""
    import numpy as np
    import torch
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (WIDTH, CHART_HEIGHT), "#16181d")
    draw = ImageDraw.Draw(image)
    held = [(line["step"], line["held_out"]) for line in lines if "held_out" in line]
    rows = [(line["step"], line["loss"]) for line in lines]
    if rows:
        values = [value for _, value in rows + held]
        low, high = min(values), max(values)
        first, last = rows[0][0], max(rows[-1][0], rows[0][0] + 1)
        across, up = WIDTH - 2 * MARGIN, CHART_HEIGHT - 2 * MARGIN - 8

        def place(step: int, value: float) -> tuple[float, float]:
            part = (value - low) / (high - low or 1)
            x = MARGIN + across * (step - first) / (last - first)
            return x, CHART_HEIGHT - MARGIN - up * part

        draw.line([place(*row) for row in rows], fill="#5fc9a8", width=2)
        draw.line([place(*row) for row in held], fill="#e8b04b", width=2)
        told = f"step {rows[-1][0]}   loss {rows[-1][1]:.4f}"
        told += f"   held out {held[-1][1]:.4f}" if held else ""
        draw.text((MARGIN, 4), told, fill="#d7dae0")
        draw.text((MARGIN, CHART_HEIGHT - 14), f"{low:.4g} to {high:.4g}", fill="#8b949e")
    return torch.from_numpy(np.array(image)).float() / 255


def measured(
    stage: Stage,
    encoder: TextEncoder,
    texts: str,
    limit: int,
    reference: DataSection | None,
    settings: dict[str, Any],
) -> tuple[str, Tensor]:
    """Tables as text, and the images that they are of: n h w 3.

    texts       one prompt a line; "" = those of the bundled cascade
    limit       prompts of each set; 0 = all
    reference   images to look for copies of
    settings    of sample_prompts
    """
    from ..imagen_core.evaluation.evaluate import Reference, evaluate, sample_prompts
    from ..imagen_core.evaluation.judge import bundled, bundled_judges, load_expert
    from ..imagen_core.evaluation.prompts import Prompt, limited, read_prompts
    from ..imagen_core.evaluation.report import text_table
    from ..imagen_core.training.finetune import middles
    from ..imagen_core.training.folder import read_folder

    written = [Prompt(line.strip()) for line in texts.splitlines() if line.strip()]
    prompts = limited(written or read_prompts(bundled("prompts.jsonl")), limit or None)
    told = host.long_progress()

    def on_batch(done: int) -> None:
        host.stop_if_interrupted()
        told(done, len(prompts), None)

    side = stage.config.resolution
    needed = stage.running_bytes(2 * settings["batch"], side, side)
    with host.on_device(encoder.model, role="text_encoder"), host.on_device(stage.unet, needed):
        seeded, images = sample_prompts(stage, encoder, prompts, on_batch=on_batch, **settings)
    images = images.cpu()
    judges = {path.stem: load_expert(path) for path in bundled_judges()}
    known = None
    if reference is not None:
        pictures = read_folder(reference.folder).pictures
        captions = tuple(picture.captions[0] for picture in pictures)
        known = Reference(middles(pictures, images.shape[1], reference.ground), captions)
    return text_table(evaluate(seeded, images, judges, known)["sets"], {}), images
