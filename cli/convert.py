"""`imagen convert`: a stage's weights from one layout to another."""

import argparse
from pathlib import Path
from typing import Any


def add_convert_options(sub: argparse.ArgumentParser) -> None:
    """The options of `imagen convert`.

    sub   receives them
    """
    sub.add_argument(
        "source", type=Path, help="a stage file, a DeepFloyd IF folder, or a file of it"
    )
    sub.add_argument(
        "target", type=Path, help="a .safetensors file, or a folder as it is published"
    )
    sub.add_argument(
        "--layout",
        choices=("imagen", "diffusers", "original"),
        help="of the target; default: diffusers', or the original one from diffusers'",
    )


def convert(options: argparse.Namespace) -> dict[str, Any]:
    """Write a stage's weights in another layout, bit for bit.

    options   of the command line
    """
    from ..imagen_core.formats.convert import convert as write

    layout = write(options.source, options.target, options.layout)
    if not options.json:
        print(f"{options.target}: {layout} layout")
    return {"target": str(options.target), "layout": layout}
