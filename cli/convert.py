"""`imagen convert`: a stage's weights from one layout to another."""

import argparse
from pathlib import Path
from typing import Any

from ..headless.inputs import InputError
from .loras import with_loras


def add_convert_options(sub: argparse.ArgumentParser) -> None:
    """The options of `imagen convert`."""
    sub.add_argument("source", type=Path, help="a stage file, or a folder or file of DeepFloyd IF")
    sub.add_argument(
        "target", type=Path, help="a .safetensors file, or a new folder in a published layout"
    )
    sub.add_argument(
        "--layout",
        choices=("imagen", "diffusers", "original"),
        help="layout of the target; default: original if the source is in diffusers' layout, else diffusers",
    )
    sub.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:STRENGTH]",
        help="a LoRA to merge into the weights, which the target then holds in the imagen layout; repeatable",
    )


def convert(options: argparse.Namespace) -> dict[str, Any]:
    """Write a stage's weights in another layout, bit for bit; or with LoRAs merged in."""
    from ..headless.files import remove_leftovers
    from ..imagen_core.formats.convert import convert as write

    remove_leftovers(options.target.absolute().parent)
    if options.lora:
        return merge(options)
    layout = write(options.source, options.target, options.layout)
    if not options.json:
        print(f"{options.target}: {layout} layout")
    return {"target": str(options.target), "layout": layout}


def merge(options: argparse.Namespace) -> dict[str, Any]:
    """Write a stage with LoRAs merged into its weights."""
    from ..imagen_core import load_stage, save_stage

    if options.layout not in (None, "imagen") or options.target.suffix != ".safetensors":
        raise InputError(
            "--lora: a merged stage is one .safetensors file in the imagen layout; convert that file next"
        )
    if options.target.exists():
        raise InputError(f"{options.target}: exists already; remove it or choose another name")
    save_stage(with_loras(load_stage(options.source), options.lora), options.target)
    if not options.json:
        print(f"{options.target}: imagen layout, {len(options.lora)} LoRAs merged")
    return {"target": str(options.target), "layout": "imagen", "loras": len(options.lora)}
