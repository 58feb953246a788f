"""Fine-tuning as people ask for it: from a few wishes to a recipe, what it takes, and images on the way.

The same code is under `imagen finetune` and under the node Fine-Tune Imagen Stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..cascade import Cascade
from ..sampling import super_resolve
from ..stage import Stage, StageConfig
from ..text.encoder import TextEncoder
from .folder import Folder, FolderMaker, Picture
from .loop import grid_of
from .optim import STATE_BYTES, OptimizerName
from .recipe import DataSection, Precision, Recipe, parse_recipe
from .tuning import prepare

STEPS, MOST_SAMPLES = 400, 4


@dataclass(frozen=True)
class Wishes:
    """What somebody asks of a fine-tuning; 0 and None are chosen by the stage.

    what           "lora", "attention" (its layers alone) or "all"
    rank, alpha    of a LoRA
    targets        of a LoRA: "attention", "convolutions" or "both"
    dora           DoRA in place of LoRA
    steps          optimiser steps; 0 = STEPS, unless there are minutes
    minutes        length in place of steps
    lr             peak learning rate
    batch          images a step
    accumulation   parts that a batch is cut into
    crop           side of the windows in pixels; None = whole images of a base, of an SR stage a quarter
    sample         prompts of the images on the way
    sample_every   steps between them; None = a tenth of the run
    log_every      steps between log lines; None = half of that
    """

    what: Literal["all", "attention", "lora"] = "lora"
    rank: int = 16
    alpha: float = 0.0
    targets: Literal["attention", "convolutions", "both"] = "both"
    dora: bool = False
    steps: int = 0
    minutes: float = 0.0
    lr: float = 1e-3
    optimizer: OptimizerName = "adamw"
    batch: int = 16
    accumulation: int = 1
    crop: int | None = None
    sample: Sequence[str] = ()
    sample_every: int | None = None
    log_every: int | None = None
    seed: int = 0
    precision: Precision = "auto"
    checkpointing: bool = False

    @staticmethod
    def of(options: object) -> Wishes:
        """The wishes among the attributes of an object, such as a command's options."""
        names = [field.name for field in fields(Wishes) if hasattr(options, field.name)]
        return Wishes(**{name: getattr(options, name) for name in names})


def recipe_for(
    wishes: Wishes, config: StageConfig, data: DataSection, out: Path, start_from: str
) -> Recipe:
    """The recipe that wishes come to, checked.

    config       of the stage
    data         what it is tuned on; `crop` is the wishes'
    out          folder of the run
    start_from   the stage's file, or a word for one that is loaded
    """
    steps = wishes.steps or (0 if wishes.minutes else STEPS)
    every = wishes.sample_every or max(1, (steps or 1000) // 10)
    crop = config.resolution // 4 if wishes.crop is None and config.kind == "sr" else wishes.crop
    tables = {
        "stage": {"start_from": start_from, "scale": config.scale},
        "data": {**asdict(data), "crop": crop or 0},
        "optim": {
            "optimizer": wishes.optimizer, "weight_decay": 0.0, "ema_decay": 0.99,
            "lr": wishes.lr,
            "warmup_steps": max(1, (steps or 200) // 20),
        },
        "tune": {
            "what": wishes.what, "rank": wishes.rank, "alpha": wishes.alpha,
            "targets": wishes.targets, "dora": wishes.dora, "checkpointing": wishes.checkpointing,
        },
        "run": {
            "out": str(out), "steps": steps, "minutes": wishes.minutes, "batch": wishes.batch,
            "accumulation": wishes.accumulation, "seed": wishes.seed, "save_every": every,
            "log_every": wishes.log_every or max(1, every // 2), "sample_every": every,
            "precision": wishes.precision, "samples": list(wishes.sample),
        },
    }  # fmt: skip
    return parse_recipe(tables, Path())


def sizes(stage: Stage, recipe: Recipe) -> tuple[int, int, float]:
    """Numbers in the network, those that are trained, and about how many bytes training takes."""
    tuned = prepare(stage, replace(recipe.tune, checkpointing=False))
    parameters = list(tuned.unet.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    stage.unet.requires_grad_(False)
    total = sum(p.numel() for p in parameters)
    side = recipe.data.crop or stage.config.resolution
    rows = recipe.run.batch // recipe.run.accumulation
    # Gradient and average in float32; activations are kept for the backward pass.
    states = 8 + STATE_BYTES[recipe.optim.optimizer]
    activations = 6 * stage.running_bytes(rows, side, side) * 4 / stage.dtype.itemsize
    return total, trained, 4 * total + states * trained + activations


def captions_of(found: Folder) -> list[str]:
    """The distinct captions of a folder's pictures."""
    return list(dict.fromkeys(text for p in found.pictures for text in p.captions))


def sample_prompts(recipe: Recipe, found: Folder) -> list[str]:
    """Prompts of the images on the way: the recipe's, or some captions from all over the folder."""
    captions = list(dict.fromkeys(p.captions[0] for p in found.pictures))
    step = max(1, len(captions) // MOST_SAMPLES)
    return list(recipe.run.samples) or captions[::step][:MOST_SAMPLES]


def sampler_of(
    stages: Sequence[Stage], index: int, encoder: TextEncoder, prompts: Sequence[str], seed: int
) -> Callable[[Stage], Tensor]:
    """Makes images of the prompts with a tuned stage in place of the cascade's own: b h w 3 in 0..1.

    stages   the cascade's, base first; those after the tuned one are used too
    index    of the tuned one
    """

    def sample(stage: Stage) -> Tensor:
        chain = [stage if i == index else each for i, each in enumerate(stages)]
        return Cascade(encoder, *chain).generate(prompts, seed=seed)

    return sample


def enlarger_of(
    pictures: Sequence[Picture], config: StageConfig, encoder: TextEncoder, seed: int
) -> Callable[[Stage], Tensor]:
    """Enlarges some of the data's own pictures with a tuned SR stage: b h w 3 in 0..1."""
    step = max(1, len(pictures) // MOST_SAMPLES)
    chosen = pictures[::step][:MOST_SAMPLES]
    small = middles(chosen, config.resolution // config.scale)
    text = encoder.encode_prompt([picture.captions[0] for picture in chosen])

    @torch.no_grad()
    def sample(stage: Stage) -> Tensor:
        return super_resolve(stage, small.to(stage.device), text, seed=seed)

    return sample


def contact_sheet(found: Folder, side: int, ground: str = "white", most: int = 64) -> Tensor:
    """Pictures of a folder beside each other, as training cuts them from the middle: h w 3 in 0..1.

    side   of each, in pixels
    most   pictures, evenly over the folder
    """
    step = max(1, -(-len(found.pictures) // most))
    return grid_of(middles(found.pictures[::step], side, ground))


def middles(pictures: Sequence[Picture], side: int, ground: str = "white") -> Tensor:
    """The largest square in the middle of each picture: n side side 3 in 0..1."""
    rng = np.random.default_rng(0)  # nothing is drawn from it
    makers = (FolderMaker((p,), side, ground=ground, random=False) for p in pictures)
    return torch.from_numpy(np.stack([make(rng)[0][..., :3] for make in makers])).float() / 255
