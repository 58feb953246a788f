"""A training recipe: everything that one run needs, read from a TOML file.

Paths in a recipe are relative to the file.
"""

import math
from dataclasses import dataclass, field, is_dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from ..diffusion.denoiser import Prediction
from ..diffusion.guidance import ThresholdName
from ..diffusion.schedules import Schedule
from ..formats.stage import read_stage_config
from ..stage import SamplingDefaults, StageConfig, StageKind, UNets
from ..unet.adm import ADMConfig
from ..unet.efficient import EfficientConfig
from ..unet.presets import PRESETS
from .loss import Weighting
from .optim import OptimizerName

Precision = Literal["auto", "float32", "bfloat16"]


class RecipeError(ValueError):
    """A recipe that cannot be followed; the message names the key."""


@dataclass(frozen=True)
class StageSection:
    """[stage]: what is trained.

    preset       name of a U-Net shape in PRESETS; or give unet; or neither, with start_from
    kind         "base" or "sr"
    resolution   nominal side of the output
    scale        output side over input side, 1 for a base
    prediction   "eps", "v" or "x0"
    schedule     noise schedule
    defaults     sampling settings that the weights will carry
    start_from   stage to start from, whose own settings count where neither preset nor unet is given;
                 "" = random weights
    grow_from    a stage whose network lacks the first level of this one's, or attention at some levels
    unet         a shape of one's own: kind ("adm" or "efficient") and the fields of its configuration
    """

    preset: str = ""
    kind: StageKind = "base"
    resolution: int = 0
    scale: int = 1
    prediction: Prediction = "v"
    schedule: Schedule = Schedule()
    defaults: SamplingDefaults = SamplingDefaults()
    start_from: str = ""
    grow_from: str = ""
    unet: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSection:
    """[data]: what it is trained on: a folder of pictures, or an array and its manifest.

    images         .npy file, uint8 n h w 3
    manifest       .json file: {"pictures": [{"captions": [[text, weight], ...], "weight": float}, ...]}
    row            field of a picture that holds its row in images, null = not there; "" = its place
    text_encoder   folder of the frozen encoder
    crop           side of the training crop in pixels; 0 = whole pictures
    text_dropout   part of the captions that is replaced by ""
    aug_max        highest level of noise on the low-resolution conditioning
    blur_max       strongest blur of it, 0..1
    workers        processes that make pictures, where they are made while the network trains
    folder         of pictures, with captions as `folder.py` describes them
    trigger        words put before every caption of the folder
    ground         colour behind transparent pictures
    random_crop    windows lie anywhere in a picture, else in its middle
    buckets        pictures of a base keep about their aspect ratio
    mix            a second folder of pictures that are kept as they are: prior preservation
    mix_part       part of the pictures that comes from it
    held_out       part of the folder that is never trained on, and measured
    prompts        folder where encoded captions are kept; "" = beside the run's checkpoints
    """

    text_encoder: str
    images: str = ""
    manifest: str = ""
    row: str = ""
    crop: int = 0
    text_dropout: float = 0.1
    aug_max: float = 0.4
    blur_max: float = 0.5
    workers: int = 1
    folder: str = ""
    trigger: str = ""
    ground: str = "white"
    random_crop: bool = True
    buckets: bool = False
    mix: str = ""
    mix_part: float = 0.3
    held_out: float = 0.0
    prompts: str = ""


@dataclass(frozen=True)
class TuneSection:
    """[tune]: which weights are trained.

    what          "all", "attention" (its layers alone), or "lora" (low-rank branches beside fixed weights)
    rank, alpha   of a LoRA; alpha 0 = rank, so that the scale alpha / rank is 1
    targets       of a LoRA: "attention", "convolutions" or "both"
    dora          directions and magnitudes apart (arXiv:2402.09353)
    variance      of a stage that learned its variance: "hybrid" trains it on, "keep" leaves it alone
    checkpointing activations are computed again in the backward pass: less memory, a third more time
    """

    what: Literal["all", "attention", "lora"] = "all"
    rank: int = 16
    alpha: float = 0.0
    targets: Literal["attention", "convolutions", "both"] = "both"
    dora: bool = False
    variance: Literal["hybrid", "keep"] = "hybrid"
    checkpointing: bool = False


@dataclass(frozen=True)
class DistillSection:
    """[distill]: a student of stage.start_from that samples in few evaluations (distill.py).

    steps            of the student, with the sampler ddim and no guidance; 0 = nothing is distilled
    teacher_steps    of the whole schedule, a multiple of steps
    guidance_scale   of the teacher, learned along
    threshold        of the teacher: "static", "dynamic" or "none"
    """

    steps: int = 0
    teacher_steps: int = 32
    guidance_scale: float = 2.0
    threshold: ThresholdName = "static"


@dataclass(frozen=True)
class OptimSection:
    """[optim]: how fast.

    optimizer      "adamw", "adamw8bit" (with bitsandbytes installed) or "muon"
    lr             peak learning rate
    weight_decay   decoupled decay of matrices
    warmup_steps   linear warm-up
    decay          part of the run over which the rate falls to zero
    clip           largest norm of a gradient
    ema_decay      decay of the average of weights
    weighting      "min_snr", or "flat": errors of the network's output weigh the same at every noise level
    """

    optimizer: OptimizerName = "adamw"
    lr: float = 3e-4
    weight_decay: float = 0.01
    warmup_steps: int = 500
    decay: float = 0.3
    clip: float = 1.0
    ema_decay: float = 0.9995
    weighting: Weighting = "min_snr"


@dataclass(frozen=True)
class RunSection:
    """[run]: how long, and where to.

    out            folder of checkpoints, logs and the finished stage
    steps          optimiser steps; 0 = until `minutes` are over
    minutes        length of the run where steps is 0; the learning rate follows the clock
    batch          pictures a step, over all processes
    accumulation   parts that a process's share of a batch is cut into
    seed           of weights and batches
    log_every      steps between log lines
    save_every     steps between checkpoints
    compile        compile the loss with torch.compile
    precision      of the network's arithmetic: "float32", "bfloat16", or "auto", as the processor has it
    sample_every   steps between pictures of the prompts; 0 = none
    samples        prompts of those pictures
    """

    out: str
    steps: int = 0
    minutes: float = 0.0
    batch: int = 64
    accumulation: int = 1
    seed: int = 0
    log_every: int = 50
    save_every: int = 1000
    compile: bool = False
    precision: Precision = "auto"
    sample_every: int = 0
    samples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """A whole run: its sections."""

    stage: StageSection
    data: DataSection
    optim: OptimSection
    run: RunSection
    tune: TuneSection = TuneSection()
    distill: DistillSection = DistillSection()

    def stage_config(self) -> StageConfig:
        """The configuration of the stage that the recipe trains; of a file nothing but its header is read."""
        if not self.stage.preset and not self.stage.unet:
            return read_stage_config(Path(self.stage.start_from))
        return StageConfig(
            kind=self.stage.kind,
            resolution=self.stage.resolution,
            scale=self.stage.scale,
            unet=self.shape(),
            schedule=self.stage.schedule,
            prediction=self.stage.prediction,
            defaults=self.stage.defaults,
        )

    def shape(self) -> ADMConfig | EfficientConfig:
        """The network's shape, by its preset or in full."""
        if not self.stage.unet:
            if self.stage.preset not in PRESETS:
                raise RecipeError(
                    f"stage.preset: expected one of {sorted(PRESETS)}, got {self.stage.preset!r}"
                )
            return PRESETS[self.stage.preset]
        fields_ = {k: tuple(v) if isinstance(v, list) else v for k, v in self.stage.unet.items()}
        kind = fields_.pop("kind", None)
        if kind not in UNets:
            raise RecipeError(f"stage.unet.kind: expected one of {sorted(UNets)}, got {kind!r}")
        try:
            return UNets[kind][0](**fields_)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"stage.unet: {str(error).replace('__init__() ', '')}") from error


def load_recipe(path: str | Path) -> Recipe:
    """The recipe in a TOML file, its paths made absolute."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib  # pyright: ignore[reportMissingImports]

    path = Path(path)
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path}: not a readable TOML file: {error}") from error
    try:
        return parse_recipe(data, path.parent)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def check_data(recipe: Recipe) -> None:
    """Raise RecipeError unless the array of pictures and its manifest are there and fit the stage.

    recipe   with absolute paths
    """
    for key in ("images", "manifest"):
        path = Path(getattr(recipe.data, key))
        if not path.is_file():
            raise RecipeError(
                f"data.{key}: expected a file, got {path}, which is not there; make it first "
                f"(for the bundled recipes: fetch.py, then render.py; see recipes/emoji/README.md)"
            )
    images = np.load(recipe.data.images, mmap_mode="r", allow_pickle=False)
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise RecipeError(
            f"data.images: {recipe.data.images}: expected uint8 of n x height x width x 3, got "
            f"{images.dtype} of {' x '.join(map(str, images.shape))}"
        )
    side = recipe.stage_config().resolution
    if recipe.stage_config().kind == "base" and not recipe.data.crop and images.shape[1] != side:
        raise RecipeError(
            f"data.images: {recipe.data.images}: expected images of {side} pixels, as stage.resolution "
            f"says, got {images.shape[2]} x {images.shape[1]}; set data.crop, or make them of that size"
        )


def parse_recipe(data: dict[str, Any], folder: Path) -> Recipe:
    """The recipe in parsed TOML.

    data     the tables
    folder   what relative paths start from
    """
    missing = [key for key in ("stage", "data", "optim", "run") if key not in data]
    if missing:
        raise RecipeError(
            f"[{missing[0]}]: this table is missing; a recipe has stage, data, optim, run"
        )
    recipe = _parse(Recipe, data, "")
    check_numbers(recipe)
    check_ground(recipe.data.ground)
    stage, source = recipe.stage, recipe.data
    if not (stage.preset or stage.unet or stage.start_from):
        raise RecipeError(
            "stage.preset: expected a preset, a table stage.unet, or stage.start_from"
        )
    if (stage.preset or stage.unet) and not stage.resolution:
        raise RecipeError(
            "stage.resolution: expected the side of the output in pixels, got nothing"
        )
    if stage.preset or stage.unet:
        recipe.shape()
    if (recipe.run.steps > 0) == (recipe.run.minutes > 0):
        raise RecipeError("run: expected one of steps and minutes, got both or neither")
    if source.folder and source.images:
        raise RecipeError("data: expected one of folder and images, got both")
    if source.crop % stage.scale:
        raise RecipeError(
            f"data.crop: expected a multiple of stage.scale {stage.scale}, got {source.crop}"
        )
    if recipe.tune.what != "all" and not stage.start_from:
        raise RecipeError(f"tune.what: {recipe.tune.what!r} needs weights: set stage.start_from")
    if recipe.optim.optimizer == "adamw8bit" and not find_spec("bitsandbytes"):
        raise RecipeError(
            "optim.optimizer: adamw8bit needs a package more: pip install bitsandbytes; or choose adamw"
        )
    if stage.start_from and stage.grow_from:
        raise RecipeError("stage: expected one of start_from and grow_from, got both")
    check_distill(recipe)
    return _absolute(recipe, folder)


def check_distill(recipe: Recipe) -> None:
    """Raise RecipeError unless what is to be distilled can be."""
    distill = recipe.distill
    if not distill.steps:
        return
    if distill.teacher_steps % distill.steps:
        raise RecipeError(
            f"distill.teacher_steps: expected a multiple of distill.steps {distill.steps}, got "
            f"{distill.teacher_steps}"
        )
    if not recipe.stage.start_from:
        raise RecipeError("distill.steps: needs a teacher: set stage.start_from")


def check_numbers(recipe: Recipe) -> None:
    """Raise RecipeError where a number is out of its range."""
    ranges = {
        "run": {"batch": (1, None), "accumulation": (1, None), "log_every": (1, None),
                "save_every": (1, None), "sample_every": (0, None), "steps": (0, None),
                "seed": (0, 2**63 - 1)},
        "data": {"text_dropout": (0, 1), "aug_max": (0, 1), "blur_max": (0, 1), "mix_part": (0, 1),
                 "held_out": (0, 0.9), "crop": (0, None), "workers": (0, None)},
        "optim": {"lr": (0, None), "decay": (0, 1), "ema_decay": (0, 1), "clip": (0, None)},
        "tune": {"rank": (1, None), "alpha": (0, None)},
        "distill": {"steps": (0, None), "teacher_steps": (1, None), "guidance_scale": (0, None)},
    }  # fmt: skip
    for section, keys in ranges.items():
        for key, (low, high) in keys.items():
            value = getattr(getattr(recipe, section), key)
            if not low <= value <= (math.inf if high is None else high):  # nor NaN
                upto = "or more" if high is None else f"to {high}"
                raise RecipeError(f"{section}.{key}: expected {low} {upto}, got {value}")
    check_parts(recipe, 1)


def check_ground(ground: str) -> None:
    """Raise RecipeError unless data.ground is a colour."""
    from PIL import ImageColor

    try:
        ImageColor.getrgb(ground)
    except ValueError:
        raise RecipeError(
            f"data.ground: expected a colour such as white or #202020, got {ground!r}"
        ) from None


def check_parts(recipe: Recipe, processes: int) -> None:
    """Raise RecipeError unless a batch can be shared among processes and cut into parts."""
    parts = processes * recipe.run.accumulation
    if recipe.run.batch % parts:
        raise RecipeError(
            f"run.batch: expected a multiple of run.accumulation x processes, {recipe.run.accumulation} x "
            f"{processes}, got {recipe.run.batch}"
        )


def _parse(kind: type, data: Any, where: str) -> Any:
    """A dataclass from a table: unknown, missing and mistyped keys are named."""
    if not isinstance(data, dict):
        raise RecipeError(f"{where.rstrip('.')}: expected a table, got {data!r}")
    hints = get_type_hints(kind)
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise RecipeError(f"{where}{unknown[0]}: unknown key; expected one of {sorted(hints)}")
    values = {}
    for key, value in data.items():
        hint = hints[key]
        if is_dataclass(hint):
            values[key] = _parse(hint, value, f"{where}{key}.")  # pyright: ignore[reportArgumentType]
        elif hint in (str, int, float, bool):
            number = hint is float and isinstance(value, int) and not isinstance(value, bool)
            if type(value) is not hint and not number:
                raise RecipeError(f"{where}{key}: expected {hint.__name__}, got {value!r}")
            values[key] = hint(value)
        else:
            if get_origin(hint) is Literal and value not in get_args(hint):
                raise RecipeError(f"{where}{key}: expected one of {get_args(hint)}, got {value!r}")
            values[key] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{where or 'recipe'}: {error}") from error


def _absolute(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with every path made absolute."""

    def resolved(section: Any, *names: str) -> Any:
        given = {name: getattr(section, name) for name in names}
        return replace(section, **{k: str((folder / v).resolve()) for k, v in given.items() if v})

    files = ("images", "manifest", "text_encoder", "folder", "mix", "prompts")
    return replace(
        recipe,
        stage=resolved(recipe.stage, "start_from", "grow_from"),
        data=resolved(recipe.data, *files),
        run=resolved(recipe.run, "out"),
    )
