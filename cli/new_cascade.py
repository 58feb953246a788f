"""`imagen new-cascade`: stages and a text encoder put together as a cascade that the loader offers."""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

from ..headless.inputs import InputError
from .loras import STAGES


def add_new_cascade_options(sub: argparse.ArgumentParser) -> None:
    """The options of `imagen new-cascade`."""
    add = sub.add_argument
    add("name", help="name of the folder to make in models/imagen, or a path")
    about = "a cascade that supplies the parts that are not given"
    add("--like", metavar="NAME", help=about)
    for stage in STAGES:
        add(f"--{stage}", type=Path, metavar="PATH", help="a stage file, or a DeepFloyd IF folder")
    add("--text-encoder", type=Path, metavar="PATH", help="a T5 folder or file; it is not copied")


def new_cascade(options: argparse.Namespace) -> dict[str, Any]:
    """Put a cascade together after a check that its parts fit each other."""
    from ..imagen_core.formats import read_cascade
    from ..nodes import host
    from .finetune import cascade_folder

    known = read_cascade(cascade_folder(options.like)) if options.like else None
    parts: dict[str, Path] = {}
    for i, stage in enumerate(STAGES):
        given = getattr(options, stage)
        if given is None and known is not None and i < len(known.stages):
            given = known.stages[i]
        if given is not None:
            parts[stage] = given
    encoder = options.text_encoder or (known.text_encoder if known is not None else None)
    if "base" not in parts or encoder is None:
        missing = "--base" if "base" not in parts else "--text-encoder"
        raise InputError(f"{missing}: is needed, or --like with a cascade that has it")
    check_parts(parts, encoder)
    path = Path(options.name)
    folder = host.home("imagen") / path if path.name == options.name else path  # "./x" is a path
    if folder.exists():
        raise InputError(f"{folder}: exists already; remove it or choose another name")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.writing")
    temporary.mkdir(parents=True)
    try:
        names = {stage: put(part, temporary, stage) for stage, part in parts.items()}
        names = {"text_encoder": str(Path(encoder).resolve()), **names}
        text = json.dumps(names, indent=1) + "\n"
        (temporary / "cascade.json").write_text(text, "utf-8")
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if not options.json:
        print(f'{folder}: {", ".join(parts)}\n  imagen generate "…" --cascade {options.name}')
    return {"cascade": str(folder), "stages": list(parts)}


def check_parts(parts: dict[str, Path], encoder: Path) -> None:
    """Raise InputError unless each stage is of its kind, enlarges the one before, and reads the text."""
    from ..imagen_core.formats.stage import open_stage
    from ..imagen_core.formats.t5 import load_text_encoder

    _, width = load_text_encoder(encoder).model.shared.shape
    before = 0
    for stage, path in parts.items():
        with open_stage(path) as stored:
            config = stored.config
        kind = "base" if stage == "base" else "sr"
        if config.kind != kind:
            raise InputError(
                f"--{stage}: expected a stage of kind {kind}, got {config.kind}: {path}"
            )
        if config.unet.text_dim != width:
            raise InputError(
                f"--{stage}: reads text states of width {config.unet.text_dim}, the text encoder makes "
                f"{width}: {path}"
            )
        if before and config.resolution != before * config.scale:
            raise InputError(
                f"--{stage}: enlarges {config.resolution // config.scale} to {config.resolution}, the stage "
                f"before makes {before}: {path}"
            )
        before = config.resolution


def put(part: Path, folder: Path, stage: str) -> str:
    """A stage's file or folder in a cascade's folder, as another name of the same file where that works."""
    part = part.resolve()
    if part.is_dir():
        shutil.copytree(part, folder / stage, copy_function=link)
        return stage
    link(str(part), str(folder / f"{stage}{part.suffix}"))
    return f"{stage}{part.suffix}"


def link(source: str, target: str) -> str:
    """Another name of a file; a copy where the disk has no such."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target
