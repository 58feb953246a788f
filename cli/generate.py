"""`imagen generate`: pictures of a prompt, each with the workflow that makes the same one."""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..headless.graph import Graph, Link, Node
from ..headless.inputs import InputError
from ..nodes.widgets import SAMPLERS
from .loras import chosen_loras
from .node_classes import default_registry, use_folders
from .run import require_writable

if TYPE_CHECKING:
    from ..imagen_core import Guidance, StageConfig
    from ..imagen_core.diffusion.respacing import Spacing

OPTIONS = {
    "guidance_scale": "--guidance", "upto": "--upto", "threshold": "--threshold",
    "percentile": "--percentile", "max_value": "--max-value", "steps": "--steps",
    "timesteps": "--timesteps", "sampler": "--sampler", "aug_level": "--aug-level", "seed": "--seed",
    "tile": "--tile",
}  # fmt: skip
"""What the library calls what an option gives."""
SAMPLING_NODES = ("ImagenBaseSample", "ImagenSR256", "ImagenSR1024")


def add_generate_options(sub: argparse.ArgumentParser) -> None:
    """The options of `imagen generate`."""
    add = sub.add_argument
    of_stage = "default: the stage's own"
    about = "what the images should show, in quotes; (word:1.2) makes a word stronger"
    add("prompt", help=about)
    about = "a .png file (numbered if there are several), or a folder for imagen.png; default: %(default)s"
    add("-o", "--out", type=picture_path, default=Path("imagen.png"), metavar="PATH", help=about)
    about = "a cascade that `imagen doctor` lists, or a folder with a cascade.json; default: %(default)s"
    add("--cascade", default="emoji", metavar="NAME", help=about)
    about = (
        "side of the images, where one of the stages ends: 64, 256, 1024; default: the last stage's"
    )
    add("--upto", type=int, metavar="N", help=about)
    about = "negative prompt: what to steer away from; default: empty"
    add("--negative", default="", metavar="TEXT", help=about)
    about = f"guidance scale of the base: how closely it follows the text, 1 = off; {of_stage}"
    add("--guidance", type=float, metavar="W", help=about)
    about = f"how the base's values are kept in range; {of_stage}"
    add("--threshold", choices=("dynamic", "static", "none"), help=about)
    about = f"percentile of the dynamic threshold, greater than 0 and at most 1; {of_stage}"
    add("--percentile", type=float, metavar="P", help=about)
    about = f"upper limit of the dynamic threshold, at least 1; 100 = no limit; {of_stage}"
    add("--max-value", type=float, metavar="V", help=about)
    about = f"sampler steps: one number for all stages, or one for each, base first; {of_stage}"
    add("--steps", type=numbers(int), metavar="N[,N[,N]]", help=about)
    about = (
        "for DeepFloyd IF in place of --steps, repeated for each stage, base first: smart50, leading50, "
        "10,10,0 or [999, 500, 0]"
    )
    add("--timesteps", action="append", default=[], metavar="PRESET|LIST", help=about)
    about = (
        "fast: about half the time, in fewer steps, of --timesteps evenly chosen ones, by unipc; "
        "default: %(default)s"
    )
    add("--quality", default="full", choices=("full", "fast"), help=about)
    about = f"sampler of all stages: {', '.join(SAMPLERS)}; {of_stage}"
    add("--sampler", metavar="NAME", help=about)
    about = f"noise added to what the SR stages enlarge, 0 to 1: one for all, or one for each; {of_stage}"
    add("--aug-level", type=numbers(float), metavar="F[,F]", help=about)
    about = (
        "a LoRA in models/loras, or its path, for the stage that it fits; add :stage=sr256 if it fits "
        "several; repeatable; default: none"
    )
    add("--lora", action="append", default=[], metavar="FILE[:STRENGTH]", help=about)
    about = (
        "the same seed gives the same image; image i of several uses seed + i; default: %(default)s"
    )
    add("--seed", type=int, default=0, metavar="N", help=about)
    add("--batch", type=int, default=1, metavar="N", help="number of images; default: %(default)s")
    about = (
        "side of the SR stages' tiles; 0 = whole images, auto = the largest that free memory takes; "
        "default: %(default)s"
    )
    add("--tile", type=tile_side, default=0, metavar="PIXELS|auto", help=about)
    about = "auto (an NVIDIA or AMD GPU where there is one), cpu, cuda, cuda:1, mps, …; default: %(default)s"
    add("--device", default="auto", metavar="NAME", help=about)
    about = "of the networks; auto: bfloat16 where the device has it; default: %(default)s"
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help=about)


def tile_side(text: str) -> int:
    """The side of tiles as the sampling nodes take it.

    text   of the command line: a number or auto
    """
    from ..nodes.widgets import FITTING

    if text == "auto":
        return FITTING
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"expected a side in pixels or auto, got {text!r}"
        ) from error


def numbers(kind: type) -> Any:
    """A parser of comma-separated numbers.

    kind   int or float
    """
    expected = (
        "whole numbers, such as 32 or 32,12,8" if kind is int else "numbers, such as 0.1 or 0.1,0.2"
    )

    def parse(text: str) -> list:
        try:
            return [kind(part) for part in text.split(",")]
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}") from error

    return parse


def picture_path(text: str) -> Path:
    """Where a picture goes: into a folder as imagen.png.

    text   of the command line; a folder exists, or ends with a slash
    """
    path = Path(text)
    return path / "imagen.png" if os.path.isdir(path) or text.endswith(("/", os.sep)) else path


def chosen_device(name: str) -> Any:
    """The device that a name stands for, None for "auto"; one that cannot be used raises InputError.

    name   "auto", or as torch calls it
    """
    if name == "auto":
        return None
    import torch

    try:
        torch.zeros(1, device=name).cpu()
        return torch.device(name)
    except (AssertionError, ImportError, RuntimeError) as error:
        there = ["auto", "cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        there += ["mps"] if torch.backends.mps.is_available() else []
        raise InputError(
            f"--device: expected one that is here, such as {', '.join(there)}, got {name!r}"
        ) from error


def generate(options: argparse.Namespace) -> dict[str, Any]:
    """Make pictures of a prompt and save them with the graph that makes the same ones."""
    from ..files import sync_folder
    from ..headless.comfy_nodes.folders import Folders
    from ..headless.engine.execute import execute
    from ..headless.engine.progress import Bar
    from ..headless.files import remove_leftovers, scratch_folder
    from ..headless.registry import declared_once
    from ..nodes import host

    started = time.monotonic()
    paths = targets(options)
    host.chosen_device.set(chosen_device(options.device))
    try:
        graph = generate_graph(options)
    except ValueError as error:
        raise InputError(as_option(str(error))) from error
    begun: dict[str, float] = {}

    def bar(node: Node) -> Bar:
        begun[node.class_type] = time.monotonic()
        return Bar(node)

    where = require_writable(paths[0].parent)
    remove_leftovers(where)
    with scratch_folder(where) as folder, declared_once():
        use_folders(Folders(output=folder, temp=folder / "temp"))
        execute(graph, default_registry(), workflow_of(graph), bar)
        for made, path in zip(sorted(folder.glob("*.png")), paths, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(made, path)
            sync_folder(path.parent)
            print(path, file=sys.stderr)
    loaded = begun["ImagenBaseSample"]
    sampled = time.monotonic() - loaded
    return {
        "files": [str(path) for path in paths],
        "seed": options.seed,
        "seconds": {"load": round(loaded - started, 2), "sample": round(sampled, 2)},
    }


def as_option(message: str) -> str:
    """An error of the library's about one of its parameters, by the option that gave it."""
    name = re.match(r"\w+", message)
    option = OPTIONS.get(name[0]) if name else None
    return message if name is None or option is None else option + message[name.end() :]


def targets(options: argparse.Namespace) -> list[Path]:
    """Where the pictures go; InputError before anything is loaded where they cannot."""
    if options.batch < 1:
        raise InputError(f"--batch: expected at least 1, got {options.batch}")
    paths = numbered(options.out, options.batch)
    require_writable(paths[0].parent, *(path.name for path in paths))
    for path in paths:
        if path.is_dir():
            raise InputError(f"--out: expected a .png file, got the folder {path}")
    return paths


def chosen_cascade(name: str) -> tuple[str, list[StageConfig]]:
    """What the loader calls a cascade, and what its stages' files say of them.

    name   of the command line: one that is listed, or a folder
    """
    from ..imagen_core.formats import read_cascade
    from ..imagen_core.formats.stage import read_stage_config
    from ..nodes import host

    listed = host.cascade_names()
    if name not in listed:
        folder = Path(os.path.abspath(name))
        if not (folder / "cascade.json").is_file():
            raise InputError(
                f"--cascade: expected one of {', '.join(listed)}, or a folder with a cascade.json, got "
                f"{name!r}"
            )
        same = [each for each in listed if host.cascade_folder(each).samefile(folder)]
        name = same[0] if same else str(folder)
    return name, [
        read_stage_config(path) for path in read_cascade(host.cascade_folder(name)).stages
    ]


def workflow_of(graph: Graph) -> dict[str, Any] | None:
    """A graph in the UI format, as pictures carry it; None where it would be another one once it is queued.

    graph   of the picture

    A prompt with a comment loses it when the UI format is queued.
    """
    from ..headless.formats.queueing import Moment
    from ..headless.formats.ui_read import convert
    from ..headless.formats.ui_write import to_ui

    registry = default_registry()
    workflow = to_ui(graph, registry)
    queued = convert(workflow, registry).queued(registry, Moment(random.Random(0)))
    same = all(node.inputs.items() <= queued[key].inputs.items() for key, node in graph.items())
    return workflow if same else None


def numbered(path: Path, count: int) -> list[Path]:
    """The path itself for one picture; name_1.png, name_2.png, … for several.

    path    given by the user; ".png" is added where there is no ending
    count   pictures
    """
    path = path if path.suffix else path.with_suffix(".png")
    if path.suffix.lower() != ".png":
        raise InputError(f"--out: expected a .png file, got {path}")
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}_{i + 1}{path.suffix}") for i in range(count)]


def stage_steps(options: argparse.Namespace, stages: int) -> list[Any]:
    """What each stage is told of its steps: timesteps where they are given, else a number or None.

    stages    that run
    """
    from ..imagen_core.cascade import per_stage

    steps = per_stage("--steps", options.steps, stages)
    for i, spacing in enumerate(options.timesteps[:stages]):
        steps[i] = spacing or steps[i]
    return steps


def spacing_inputs(spacing: Spacing) -> dict[str, Any]:
    """The inputs of a sampling node that say which steps it makes.

    spacing   number, preset or timesteps
    """
    if isinstance(spacing, int):
        return {"steps": spacing}
    return {"steps": 32, "timesteps": spacing if isinstance(spacing, str) else str(list(spacing))}


def generate_graph(options: argparse.Namespace) -> Graph:
    """The workflow that makes the pictures of a `generate` command; ValueError where it could not run."""
    from ..imagen_core.cascade import per_stage, sizes_of, stages_upto
    from ..imagen_core.settings import FAST_SAMPLER, Settings

    cascade, configs = chosen_cascade(options.cascade)
    for level in options.aug_level or [None]:  # of stages that do not run too: a slip is a slip
        for config in configs[1:]:
            Settings(aug_level=level, tile=max(options.tile, 0)).check(config)
    every, configs = len(configs), configs[: stages_upto(configs, options.upto)]
    for name, values, more in (("steps", options.steps, 0), ("aug-level", options.aug_level, 1)):
        counts = {1, len(configs) - more, every - more}
        if values is not None and len(values) not in counts:
            raise InputError(
                f"--{name}: expected one value, or one for each stage that it is for "
                f"({', '.join(map(str, sorted(counts - {1, 0})))}), got {len(values)}"
            )
    if len(configs) > len(SAMPLING_NODES):
        sizes = sizes_of(configs)
        raise InputError(f"--upto: expected one of {sizes[: len(SAMPLING_NODES)]}, got {sizes[-1]}")
    steps = stage_steps(options, len(configs))
    levels = [None, *per_stage("--aug-level", options.aug_level, len(configs) - 1)]
    samplings: list[dict[str, Any]] = []
    for i, config in enumerate(configs):
        own = config.defaults
        spacing = own.steps if steps[i] is None else steps[i]
        level = own.aug_level if levels[i] is None else levels[i]
        chosen: dict[str, Any] = {"aug_level": level, "tile": options.tile} if i else {}
        chosen |= {"seed": options.seed, "sampler": options.sampler or own.sampler}
        if options.quality == "fast":
            chosen |= {"quality": "fast", "sampler": options.sampler or FAST_SAMPLER}
        Settings(steps=spacing, **chosen | {"tile": max(chosen.get("tile", 0), 0)}).check(config)
        size = {} if i else {"width": config.resolution, "height": config.resolution}
        samplings.append(size | chosen | spacing_inputs(spacing))
    loras = chosen_loras(options.lora, configs)
    guidance = configs[0].guidance(
        guidance_scale=options.guidance,
        threshold=options.threshold,
        percentile=options.percentile,
        max_value=options.max_value,
    )
    return graph_of(options, cascade, guidance, samplings, loras)


def graph_of(
    options: argparse.Namespace,
    cascade: str,
    guidance: Guidance,
    samplings: list[dict[str, Any]],
    loras: list[list[tuple[str, float]]],
) -> Graph:
    """A loader, a prompt, guidance, and a sampling node for each stage.

    cascade     as the loader calls it
    guidance    of the base
    samplings   inputs of each stage's node, base first
    loras       each stage's LoRAs and their strengths
    """
    from ..nodes import NODE_DISPLAY_NAME_MAPPINGS as TITLES
    from ..nodes.conditioning import NO_BOUND

    graph: Graph = {}

    def add(class_type: str, **inputs: Any) -> str:
        node_id, title = str(len(graph) + 1), TITLES.get(class_type, "Save Image")
        graph[node_id] = Node(node_id, class_type, title, inputs)
        return node_id

    loader = add("ImagenLoadCascade", cascade=cascade, dtype=options.dtype)
    text = add(
        "ImagenT5Encode",
        text_encoder=Link(loader, 0),
        prompt=options.prompt,
        negative_prompt=options.negative,
    )
    guide = add(
        "ImagenDynamicThreshold",
        guidance_scale=guidance.guidance_scale,
        threshold=guidance.threshold,
        percentile=guidance.percentile,
        max_value=NO_BOUND if guidance.max_value is None else guidance.max_value,
        start=0.0,
        end=1.0,
    )
    image: dict[str, Any] = {}
    first = {"batch_size": options.batch, "strength": 1.0}
    samplings = [{**first, "guidance": Link(guide, 0), **samplings[0]}, *samplings[1:]]
    for i, inputs in enumerate(samplings):
        stage = Link(loader, 1 + i)
        for name, strength in loras[i]:
            stage = Link(add("ImagenLoadLoRA", stage=stage, lora=name, strength=strength), 0)
        inputs = {"stage": stage, **image, "text": Link(text, 0), **inputs}
        image = {"image": Link(add(SAMPLING_NODES[i], **inputs), 0)}
    add("SaveImage", images=image["image"], filename_prefix="imagen")
    return graph
