"""A training recipe: everything that one run needs, read from a TOML file.

Paths in a recipe are relative to the file.
"""

from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..diffusion.denoiser import Prediction
from ..diffusion.schedules import Schedule
from ..stage import SamplingDefaults, StageConfig, StageKind
from ..unet.presets import PRESETS
from .loss import Weighting

Precision = Literal["auto", "float32", "bfloat16"]


class RecipeError(ValueError):
    """A recipe that cannot be followed; the message names the key."""


@dataclass(frozen=True)
class StageSection:
    """[stage]: what is trained.

    preset       name of a U-Net shape in PRESETS
    kind         "base" or "sr"
    resolution   nominal side of the output
    scale        output side over input side, 1 for a base
    prediction   "eps", "v" or "x0"
    schedule     noise schedule
    defaults     sampling settings that the weights will carry
    start_from   stage file to start from; "" = random weights
    """

    preset: str
    kind: StageKind
    resolution: int
    scale: int = 1
    prediction: Prediction = "v"
    schedule: Schedule = Schedule()
    defaults: SamplingDefaults = SamplingDefaults()
    start_from: str = ""


@dataclass(frozen=True)
class DataSection:
    """[data]: what it is trained on.

    images         .npy file, uint8 n h w 3
    manifest       .json file: {"pictures": [{"captions": [[text, weight], ...], "weight": float}, ...]}
    row            field of a picture that holds its row in images, null = not there; "" = its place
    text_encoder   folder of the frozen encoder
    crop           side of the training crop in pixels; 0 = whole pictures
    text_dropout   part of the captions that is replaced by ""
    aug_max        highest level of noise on the low-resolution conditioning
    blur_max       strongest blur of it, 0..1
    workers        processes that make pictures, where they are made while the network trains
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


@dataclass(frozen=True)
class OptimSection:
    """[optim]: how fast.

    optimizer      "adamw" or "muon"
    lr             peak learning rate
    weight_decay   decoupled decay of matrices
    warmup_steps   linear warm-up
    decay          part of the run over which the rate falls to zero
    clip           largest norm of a gradient
    ema_decay      decay of the average of weights
    weighting      "min_snr", or "flat": errors of the network's output weigh the same at every noise level
    """

    optimizer: str = "adamw"
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
    precision      of the network's arithmetic: "auto", "float32" or "bfloat16"
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


@dataclass(frozen=True)
class Recipe:
    """A whole run: its four sections."""

    stage: StageSection
    data: DataSection
    optim: OptimSection
    run: RunSection

    def stage_config(self) -> StageConfig:
        """The configuration of the stage that the recipe trains."""
        if self.stage.preset not in PRESETS:
            raise RecipeError(
                f"stage.preset: expected one of {sorted(PRESETS)}, got {self.stage.preset!r}"
            )
        return StageConfig(
            kind=self.stage.kind,
            resolution=self.stage.resolution,
            scale=self.stage.scale,
            unet=PRESETS[self.stage.preset],
            schedule=self.stage.schedule,
            prediction=self.stage.prediction,
            defaults=self.stage.defaults,
        )


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
    return parse_recipe(data, path.parent)


def check_data(recipe: Recipe) -> None:
    """Raise RecipeError unless the files of pictures and captions are there.

    recipe   with absolute paths
    """
    for key in ("images", "manifest"):
        path = Path(getattr(recipe.data, key))
        if not path.is_file():
            raise RecipeError(
                f"data.{key}: expected a file, got {path}, which is not there; make it first "
                f"(for the bundled recipes: fetch.py, then render.py; see recipes/emoji/README.md)"
            )


def parse_recipe(data: dict[str, Any], folder: Path) -> Recipe:
    """The recipe in parsed TOML.

    data     the tables
    folder   what relative paths start from
    """
    recipe = _parse(Recipe, data, "")
    if (recipe.run.steps > 0) == (recipe.run.minutes > 0):
        raise RecipeError("run: expected one of steps and minutes, got both or neither")
    if recipe.data.crop % recipe.stage.scale:
        raise RecipeError(
            f"data.crop: expected a multiple of stage.scale {recipe.stage.scale}, got {recipe.data.crop}"
        )
    return _absolute(recipe, folder)


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
            values[key] = value
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{where or 'recipe'}: {error}") from error


def _absolute(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with every path made absolute."""

    def resolve(section: Any, *names: str) -> Any:
        changes = {f.name: getattr(section, f.name) for f in fields(section)}
        for name in names:
            if changes[name]:
                changes[name] = str((folder / changes[name]).resolve())
        return type(section)(**changes)

    return Recipe(
        stage=resolve(recipe.stage, "start_from"),
        data=resolve(recipe.data, "images", "manifest", "text_encoder"),
        optim=recipe.optim,
        run=resolve(recipe.run, "out"),
    )
