"""`imagen train`: a stage trained by a recipe."""

import argparse
import importlib.metadata
import importlib.util
import sys
from typing import Any

from ..headless.inputs import InputError

TRAINS_WITH = ["accelerate", "tensorboard", *(["tomli"] if sys.version_info < (3, 11) else [])]


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Follow a training recipe."""
    missing = [name for name in TRAINS_WITH if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"train needs more packages ({', '.join(missing)}): pip install 'imagen-nodes[train]' "
            f"(in the clone: pip install -e '.[train]')"
        )
    from ..imagen_core.training.loop import train as follow
    from ..imagen_core.training.recipe import load_recipe

    return {"stage": str(follow(load_recipe(options.recipe)))}
