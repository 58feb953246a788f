"""`imagen generate`: pictures of a prompt, each with the workflow that makes the same one."""

import argparse
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from ..headless.graph import Graph, Link, Node, to_api
from ..headless.inputs import InputError
from ..nodes.widgets import SAMPLERS


def add_generate_options(sub: argparse.ArgumentParser) -> None:
    """The options of `imagen generate`.

    sub   receives them
    """
    add = sub.add_argument
    of_stage = "default: the stage's own"
    add("prompt", help="what the pictures show")
    about = "a .png file, numbered for several; in a folder, imagen.png; default: %(default)s"
    add("-o", "--out", type=picture_path, default=Path("imagen.png"), metavar="PATH", help=about)
    about = "a bundled cascade, or a folder with a cascade.json; default: %(default)s"
    add("--cascade", default="emoji", metavar="NAME", help=about)
    about = "side of the pictures: where the cascade ends; default: %(default)s"
    add("--upto", type=int, default=1024, choices=(64, 256, 1024), help=about)
    add("--negative", default="", metavar="TEXT", help="what to keep away from; default: nothing")
    about = f"how strongly the text pulls on the base, 1 = off; {of_stage}"
    add("--guidance", type=float, metavar="W", help=about)
    about = f"what keeps the base's values in range; {of_stage}"
    add("--threshold", choices=("dynamic", "static", "none"), help=about)
    about = f"of the dynamic threshold, over 0 and up to 1; {of_stage}"
    add("--percentile", type=float, metavar="P", help=about)
    about = f"bound on the dynamic threshold, 1 or more, 100 = none; {of_stage}"
    add("--max-value", type=float, metavar="V", help=about)
    about = f"sampler steps, of all stages or of each, base first; {of_stage}"
    add("--steps", type=numbers(int), metavar="N[,N[,N]]", help=about)
    about = (
        "for DeepFloyd IF, once a stage, base first: smart50, leading50, 10,10,0 or [999, 500, 0]"
    )
    add("--timesteps", action="append", default=[], metavar="PRESET|LIST", help=about)
    about = f"of all stages, one of {', '.join(SAMPLERS)}; {of_stage}"
    add("--sampler", metavar="NAME", help=about)
    about = f"noise on what the SR stages enlarge, 0 to 1, of both or of each; {of_stage}"
    add("--aug-level", type=numbers(float), metavar="F[,F]", help=about)
    about = "same seed, same picture; picture i of several has seed + i; default: %(default)s"
    add("--seed", type=int, default=0, metavar="N", help=about)
    add("--batch", type=int, default=1, metavar="N", help="pictures; default: %(default)s")
    about = "side of the SR stages' tiles, 0 = whole pictures; default: %(default)s"
    add("--tile", type=int, default=0, metavar="PIXELS", help=about)
    about = "auto (a GPU where there is one), cpu, cuda, cuda:1, mps, …; default: %(default)s"
    add("--device", default="auto", metavar="NAME", help=about)
    about = "of the networks; auto: float32 on a CPU, else half precision; default: %(default)s"
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help=about)


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
    return path / "imagen.png" if path.is_dir() or text.endswith(("/", os.sep)) else path


def chosen_device(name: str) -> Any:
    """The device that a name stands for; one that cannot be used raises InputError.

    name   "auto", or as torch calls it
    """
    import torch

    from ..nodes import host

    if name == "auto":
        return host.compute_device()
    try:
        torch.zeros(1, device=name).cpu()
        return torch.device(name)
    except (AssertionError, ImportError, RuntimeError) as error:
        there = ["auto", "cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        there += ["mps"] if torch.backends.mps.is_available() else []
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"--device: expected one that is here, such as {', '.join(there)}, got {name!r}: {reason}"
        ) from error


def generate(options: argparse.Namespace) -> dict[str, Any]:
    """Make pictures of a prompt and save them with the graph that makes the same ones.

    options   of the command line
    """
    from .. import imagen_core as core
    from ..headless.comfy_nodes.png import save_png
    from ..headless.engine.progress import StageBars
    from ..nodes import host

    if options.batch < 1:
        raise InputError(f"--batch: expected at least 1, got {options.batch}")
    started = time.monotonic()
    device = chosen_device(options.device)
    cascade = core.load_cascade(options.cascade, device, host.dtype(options.dtype, device))
    defaults = [stage.config.defaults for stage in cascade.stages_upto(options.upto)]
    guidance = cascade.base.guidance(
        guidance_scale=options.guidance,
        threshold=options.threshold,
        percentile=options.percentile,
        max_value=options.max_value,
    )
    loaded = time.monotonic()
    with StageBars(len(defaults)) as bars:
        images = cascade.generate(
            options.prompt,
            batch_size=options.batch,
            negative_prompt=options.negative,
            guidance=guidance,
            upto=options.upto,
            seed=options.seed,
            steps=stage_steps(options, len(defaults)),
            sampler=options.sampler,
            aug_level=options.aug_level,
            tile=options.tile,
            on_step=bars.on_step,
        )
    sampled = time.monotonic()
    graph = generate_graph(options, guidance, defaults)
    metadata = workflows_of(graph)
    paths = numbered(options.out, options.batch)
    for path, image in zip(paths, images, strict=True):
        save_png(path, image, metadata)
        print(path, file=sys.stderr)
    return {
        "files": [str(path) for path in paths],
        "seed": options.seed,
        "seconds": {"load": round(loaded - started, 2), "sample": round(sampled - loaded, 2)},
    }


def workflows_of(graph: Graph) -> dict[str, Any]:
    """A graph in both formats, as pictures carry it; in the API format alone where the other would differ.

    graph   of the picture

    A prompt with a comment loses it when the UI format is queued.
    """
    from ..headless.formats.queueing import Moment
    from ..headless.formats.ui_read import convert
    from ..headless.formats.ui_write import to_ui
    from .node_classes import default_registry

    registry, prompt = default_registry(), to_api(graph)
    workflow = to_ui(graph, registry)
    queued = convert(workflow, registry).queued(registry, Moment(random.Random(0)))
    same = all(node.inputs.items() <= queued[key].inputs.items() for key, node in graph.items())
    return {"prompt": prompt, "workflow": workflow} if same else {"prompt": prompt}


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

    options   of the command line
    stages    that run
    """
    from ..imagen_core.cascade import per_stage

    steps = per_stage("--steps", options.steps, stages)
    for i, spacing in enumerate(options.timesteps[:stages]):
        steps[i] = spacing or steps[i]
    return steps


def sampling_inputs(options: argparse.Namespace, defaults: Any, steps: Any) -> dict[str, Any]:
    """Seed, sampler and steps of a sampling node.

    options    of the command line
    defaults   of the stage
    steps      number, preset or timesteps; None = the stage's default
    """
    given = {"seed": options.seed, "sampler": options.sampler or defaults.sampler}
    spacing = defaults.steps if steps is None else steps
    if isinstance(spacing, int):
        return {**given, "steps": spacing}
    listed = spacing if isinstance(spacing, str) else str(list(spacing))
    return {**given, "steps": 32, "timesteps": listed}


def generate_graph(options: argparse.Namespace, guidance: Any, defaults: list[Any]) -> Graph:
    """The workflow that makes the pictures of a `generate` command.

    options    of the command line
    guidance   of the base
    defaults   of each stage that runs
    """
    from ..imagen_core.cascade import per_stage
    from ..nodes import NODE_DISPLAY_NAME_MAPPINGS as TITLES
    from ..nodes.conditioning import NO_BOUND

    steps = stage_steps(options, len(defaults))
    levels = per_stage("--aug-level", options.aug_level, len(defaults) - 1)
    graph: Graph = {}

    def add(class_type: str, **inputs: Any) -> str:
        node_id, title = str(len(graph) + 1), TITLES.get(class_type, "Save Image")
        graph[node_id] = Node(node_id, class_type, title, inputs)
        return node_id

    loader = add("ImagenLoadCascade", cascade=options.cascade, dtype=options.dtype)
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
    image = add(
        "ImagenBaseSample",
        stage=Link(loader, 1),
        text=Link(text, 0),
        width=64,
        height=64,
        batch_size=options.batch,
        strength=1.0,
        guidance=Link(guide, 0),
        **sampling_inputs(options, defaults[0], steps[0]),
    )
    for i, name in enumerate(("ImagenSR256", "ImagenSR1024")[: len(defaults) - 1], start=1):
        level = defaults[i].aug_level if levels[i - 1] is None else levels[i - 1]
        image = add(
            name,
            stage=Link(loader, i + 1),
            image=Link(image, 0),
            text=Link(text, 0),
            aug_level=level,
            tile=options.tile,
            **sampling_inputs(options, defaults[i], steps[i]),
        )
    add("SaveImage", images=Link(image, 0), filename_prefix="imagen")
    return graph
