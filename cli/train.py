"""`imagen train`: a stage trained by a recipe."""

import argparse
import importlib.util
import sys
from typing import Any

from ..headless.inputs import InputError

TRAINS_WITH = ["accelerate", "tensorboard", *(["tomli"] if sys.version_info < (3, 11) else [])]


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Follow a training recipe."""
    require_packages("train")
    from ..imagen_core.training.loop import train as follow
    from ..imagen_core.training.recipe import load_recipe

    made = follow(load_recipe(options.recipe))
    print(f"made {made}: for Load Imagen Stage, or in a cascade by imagen new-cascade")
    return {"stage": str(made)}


def require_packages(command: str) -> None:
    """Raise InputError unless what training needs is installed."""
    missing = [name for name in TRAINS_WITH if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"{command} needs more packages ({', '.join(missing)}): pip install 'imagen-nodes[train]' "
            f"(in the clone: pip install -e '.[train]')"
        )
