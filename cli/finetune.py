"""`imagen finetune`: a stage of a cascade tuned on a folder of pictures, without a recipe."""

from __future__ import annotations

import argparse
import filecmp
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import replacing
from ..headless.inputs import InputError
from .loras import STAGES

if TYPE_CHECKING:
    from ..imagen_core import Cascade, StageConfig
    from ..imagen_core.training.recipe import Recipe

OPTIMIZERS = ("adamw", "adamw8bit", "muon")
TOGETHER = 16  # prior images in one batch
KEY = re.compile(r"(?<![\w./-])(data|run|optim|tune)\.([a-z_]+)\b(?!\.)")
NAMED_OTHERWISE = {"folder": "--images"}  # keys of a recipe whose option has another name
RATES = {"lora": 1e-3, "attention": 1e-4, "all": 1e-4}


def add_finetune_options(sub: argparse.ArgumentParser) -> None:
    """The options of `imagen finetune`."""
    add = sub.add_argument
    add("cascade", help="one that doctor lists, or a folder with a cascade.json")
    add("--stage", choices=STAGES, default="base", help="stage to tune; default: %(default)s")
    about = "folder of images, with captions in .txt files, metadata.jsonl or their names"
    add("--images", type=Path, required=True, metavar="DIR", help=about)
    about = "what is made: a .safetensors file; the run itself is kept in a folder beside it"
    add("-o", "--out", type=Path, required=True, metavar="FILE", help=about)
    about = "train a LoRA, the attention layers, or everything; default: %(default)s"
    add("--what", choices=tuple(RATES), default="lora", help=about)
    add("--rank", type=int, default=16, metavar="N", help="rank of the LoRA; default: %(default)s")
    add("--alpha", type=float, default=0.0, metavar="F", help="of the LoRA; default: the rank")
    about = "layers that the LoRA changes; default: %(default)s"
    add("--targets", choices=("attention", "convolutions", "both"), default="both", help=about)
    add("--dora", action="store_true", help="DoRA: train the weights' magnitudes too")
    add(
        "--steps", type=above_zero(int), default=0, metavar="N", help="training steps; default: 400"
    )
    about = "of training, in place of --steps"
    add("--minutes", type=above_zero(float), default=0.0, metavar="F", help=about)
    rates = ", ".join(f"{rate:g} ({what})" for what, rate in RATES.items())
    add("--lr", type=float, metavar="F", help=f"learning rate; default: {rates}")
    about = "adamw8bit: its state in a quarter of the memory, by bitsandbytes; default: %(default)s"
    add("--optimizer", choices=OPTIMIZERS, default="adamw", help=about)
    add("--batch", type=int, default=16, metavar="N", help="images a step; default: %(default)s")
    about = "gradient accumulation: parts that a batch is split into, to save memory; default: %(default)s"
    add("--accumulation", type=int, default=1, metavar="N", help=about)
    about = "side of the windows that an SR stage trains on; default: a quarter of its images"
    add("--crop", type=int, metavar="PIXELS", help=about)
    add("--trigger", default="", metavar="TEXT", help="words before every caption")
    add("--ground", default="white", metavar="COLOUR", help="colour behind transparent images")
    add("--buckets", action="store_true", help="keep the images' aspect ratios; for a base")
    about = "a second folder of images to mix in unchanged, so that the stage keeps what it knew"
    add("--mix", type=Path, metavar="DIR", help=about)
    about = "a file of prompts: the base's own images of them are mixed in (prior preservation)"
    add("--prior", type=Path, metavar="FILE", help=about)
    about = "fraction of the images taken from --mix or --prior; default: %(default)s"
    add("--mix-part", type=float, default=0.3, metavar="F", help=about)
    about = "fraction of the images that is only measured, not trained on; default: %(default)s"
    add("--held-out", type=float, default=0.05, metavar="F", help=about)
    about = "a prompt to make an image of from time to time; repeatable; default: four captions"
    add("--sample", action="append", default=[], metavar="PROMPT", help=about)
    about = "steps between those images; default: a tenth of the run"
    add("--sample-every", type=int, metavar="N", help=about)
    add("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    add("--workers", type=int, default=1, metavar="N", help="processes that decode images")
    add(
        "--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="of arithmetic"
    )
    about = "gradient checkpointing: less memory, a third more time"
    add("--checkpointing", action="store_true", help=about)
    add("--dry-run", action="store_true", help="only show what would be done")


def finetune(options: argparse.Namespace) -> dict[str, Any]:
    """Tune a stage on a folder of pictures; the same command goes on where it was stopped."""
    try:
        return tune(options)
    except ValueError as error:
        raise InputError(in_options(str(error))) from None


def above_zero(kind: type[int] | type[float]) -> Callable[[str], float]:
    """What reads an option's number; 0 would mean that the option is not given."""

    def read(text: str) -> float:
        number = kind(text)
        if not number > 0:
            raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
        return number

    read.__name__ = kind.__name__  # argparse names it where a text is no number
    return read


def tune(options: argparse.Namespace) -> dict[str, Any]:
    """What `finetune` does; some of its errors name keys of a recipe."""
    from .. import imagen_core as core
    from ..nodes import host

    if options.out.suffix != ".safetensors":
        raise InputError(f"--out: expected a .safetensors file, got {options.out}")
    folder = cascade_folder(options.cascade)
    work = options.out.with_name(f"{options.out.stem}.run")
    recipe, files = recipe_of(options, folder, work)
    prior = prompts_of(options.prior) if options.prior else []
    captions = describe(recipe, options, folder)
    if options.dry_run:
        return {"file": str(options.out), "dry_run": True}
    cascade = core.load_cascade(folder, host.compute_device())
    if prior:
        make_prior(prior, Path(recipe.data.mix), cascade)
    made = follow(recipe, cascade, STAGES.index(options.stage), captions)
    new = not options.out.is_file() or not filecmp.cmp(made, options.out, shallow=False)
    if new:
        with replacing(options.out) as temporary:
            shutil.copyfile(made, temporary)
    print(
        f"{'made' if new else 'unchanged:'} {options.out} ({in_units(options.out.stat().st_size)})"
    )
    say_how_to_use(options, captions)
    return {"file": str(options.out), "run": str(work), "from": str(files)}


def in_options(text: str) -> str:
    """A text about a recipe with the command's options in place of the recipe's keys."""
    return KEY.sub(lambda key: NAMED_OTHERWISE.get(key[2], f"--{key[2].replace('_', '-')}"), text)


def cascade_folder(name: str) -> Path:
    """The folder of a cascade that is listed, or is named by its path."""
    from ..nodes import host

    if name in host.cascade_names():
        return host.cascade_folder(name)
    if (Path(name) / "cascade.json").is_file():
        return Path(name).resolve()
    raise InputError(
        f"expected a cascade, one of {', '.join(host.cascade_names())} or a folder with a cascade.json, "
        f"got {name!r}"
    )


def recipe_of(options: argparse.Namespace, folder: Path, work: Path) -> tuple[Recipe, Path]:
    """The recipe that the options are, and the file of the stage."""
    from ..imagen_core.formats import read_cascade
    from ..imagen_core.formats.stage import read_stage_config
    from ..imagen_core.training.finetune import Wishes, recipe_for
    from ..imagen_core.training.recipe import DataSection

    files = read_cascade(folder)
    index = STAGES.index(options.stage)
    if index >= len(files.stages):
        raise InputError(f"--stage: {options.cascade} has {', '.join(STAGES[: len(files.stages)])}")
    config = read_stage_config(files.stages[index])
    if options.prior and config.kind != "base":
        raise InputError("--prior: makes images of a base, so it goes with --stage base alone")
    if options.prior and options.mix:
        raise InputError("--prior: mixes in a folder of its own; expected one of --mix and --prior")
    mix = work / "prior" if options.prior else options.mix
    data = DataSection(
        text_encoder=str(files.text_encoder.resolve()), folder=str(options.images.resolve()),
        trigger=options.trigger, ground=options.ground, buckets=options.buckets,
        mix=str(Path(mix).resolve()) if mix else "", mix_part=options.mix_part,
        held_out=options.held_out, workers=options.workers,
    )  # fmt: skip
    wishes = Wishes.of(options)
    if options.lr is None:
        wishes = replace(wishes, lr=RATES[options.what])
    start = str(files.stages[index].resolve())
    return recipe_for(wishes, config, data, work.resolve(), start), files.stages[index]


def describe(recipe: Recipe, options: argparse.Namespace, folder: Path) -> list[str]:
    """Say what will be done, and what memory it takes; prompts to make pictures of. No weights are read.

    folder   of the cascade
    """
    import torch

    from ..imagen_core import Stage
    from ..imagen_core.formats import read_cascade
    from ..imagen_core.formats.stage import read_stage_config
    from ..imagen_core.training.finetune import sample_prompts, sizes
    from ..imagen_core.training.folder import read_folder
    from ..imagen_core.training.sources import least_side

    files = read_cascade(folder).stages[: STAGES.index(options.stage) + 1]
    configs = [read_stage_config(file) for file in files]
    config, data, run = configs[-1], recipe.data, recipe.run
    found = read_folder(data.folder, least_side(config, data.crop), data.trigger)
    with torch.device("meta"):
        total, trained, needed = sizes(Stage(config), recipe)
    prompts = sample_prompts(recipe, found)
    shown = max(memory_of(each, len(prompts)) for each in configs)
    side = data.crop or config.resolution
    length = f"{run.steps} steps" if run.steps else f"{run.minutes:g} minutes"
    what = {"lora": f"a LoRA of rank {recipe.tune.rank}", "attention": "its attention layers"}
    for line in (
        f"stage     {options.stage} of {options.cascade}: {config.kind}, {config.resolution} pixels, "
        f"{total / 1e6:.1f} M parameters",
        f"images    {len(found.pictures)} of {options.images}, at {side} x {side}; "
        f"{len(found.skipped)} files skipped",
        f"trained   {what.get(recipe.tune.what, 'everything')}: {trained / 1e6:.2f} M parameters",
        f"length    {length} of {run.batch} images, learning rate {recipe.optim.lr:g}",
        f"memory    about {in_units(needed)} to train, {in_units(shown)} for the images on the way",
        f"run       {run.out}: checkpoints, log.jsonl, samples/, and with tensorboard installed events/",
    ):
        print(line)
    for path, reason in found.skipped if options.dry_run else ():
        print(f"  skipped {path}: {reason}")
    if config.unet.out_channels > 3:
        print("variance  learned: trained on by the hybrid loss")
    return prompts


def memory_of(config: StageConfig, images: int) -> int:
    """Bytes that a stage takes to make some images at its own size, in float32."""
    import torch

    from ..imagen_core.peak import peak_of
    from ..nodes import host

    side, device = config.resolution, host.compute_device().type
    return peak_of(config, torch.float32, images, side, side, 0, device).total


def in_units(size: float) -> str:
    """A number of bytes in MiB, or in GiB from one GiB on."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def prompts_of(file: Path) -> list[str]:
    """The prompts of --prior, one a line; InputError where there are none."""
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"--prior: {file}: expected a text file of prompts: {reason}") from None
    if texts := [line.strip() for line in lines if line.strip()]:
        return texts
    raise InputError(f"--prior: {file}: expected a prompt a line, got none")


def make_prior(texts: list[str], folder: Path, cascade: Cascade) -> None:
    """The base's own pictures of prompts, with captions, in a folder; those of the same prompts stay."""
    from PIL import Image

    paths = [folder / f"{i:05d}.png" for i in range(len(texts))]
    for path in set(folder.glob("*.png")) - set(paths):
        path.unlink()
    for first in range(0, len(texts), TOGETHER):
        part = slice(first, first + TOGETHER)
        if all(map(made_from, paths[part], texts[part])):
            continue
        images = cascade.generate(texts[part], upto=cascade.base.config.resolution, seed=first)
        for path, text, image in zip(paths[part], texts[part], images, strict=True):
            path.with_suffix(".txt").unlink(missing_ok=True)
            with replacing(path) as temporary:
                Image.fromarray((image * 255).round().byte().cpu().numpy()).save(temporary, "PNG")
            path.with_suffix(".txt").write_text(text + "\n", "utf-8")


def made_from(path: Path, text: str) -> bool:
    """Whether a picture is there, and of this prompt."""
    caption = path.with_suffix(".txt")
    return path.is_file() and caption.is_file() and caption.read_text("utf-8").strip() == text


def follow(recipe: Recipe, cascade: Cascade, index: int, prompts: list[str]) -> Path:
    """Train; the file that the run makes."""
    from ..imagen_core.training.finetune import sampler_of
    from ..imagen_core.training.loop import Watch, train
    from ..imagen_core.training.progress import tell

    begun: list[float] = []

    def line(values: dict[str, Any]) -> None:
        tell(values)
        if not begun and values["step"] < recipe.run.steps:
            begun.append(1.0)
            left = (recipe.run.steps - values["step"]) * recipe.run.batch
            minutes, every = left / values["images_per_second"] / 60, recipe.run.sample_every
            grids = -(-recipe.run.steps // every) - values["step"] // every if every else 0
            print(f"about {minutes:.1f} minutes of training to go, beside {grids} grids of samples")

    stages = cascade.stages[: index + 1]
    sample = sampler_of(stages, index, cascade.text_encoder, prompts, recipe.run.seed)
    watch = Watch(line=line, sample=sample, note=lambda text: print(in_options(text)))
    return train(recipe, watch=watch)


def say_how_to_use(options: argparse.Namespace, prompts: list[str]) -> None:
    """Say how what was made is used."""
    prompt = prompts[0] if prompts else "a prompt"
    if options.what == "lora":
        print(
            f'  imagen generate "{prompt}" --cascade {options.cascade} --lora {options.out}:0.8\n'
            f"  in ComfyUI: put it into models/loras and Load Imagen LoRA behind the stage"
        )
    else:
        print(
            f"  imagen new-cascade NAME --like {options.cascade} --{options.stage} {options.out}\n"
            f'  imagen generate "{prompt}" --cascade NAME'
        )
