"""Cascade folders: cascade.json names the text encoder's folder and the stage files beside it."""

import json
from pathlib import Path

import torch

from ..cascade import Cascade
from ..weights.errors import CheckpointError
from ..weights.files import inside
from .stage import load_stage
from .t5 import load_text_encoder

BUNDLED = Path(__file__).parent.parent / "pretrained"
STAGES = ("base", "sr256", "sr1024")


def bundled_cascades() -> list[str]:
    """Names of the cascades that ship in the package."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/cascade.json"))


def load_cascade(
    name_or_dir: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Cascade:
    """A cascade: one that ships in the package, or a folder with a cascade.json.

    name_or_dir   "emoji", or a folder
    device        where the weights go
    dtype         what the networks compute in
    """
    bundled = str(name_or_dir) in bundled_cascades()
    folder = BUNDLED / str(name_or_dir) if bundled else Path(name_or_dir)
    try:
        names = json.loads((folder / "cascade.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cascade: expected one of {bundled_cascades()} or a folder with a readable "
            f"cascade.json, got {str(name_or_dir)!r}"
        ) from error
    required = {"text_encoder", "base"}
    if not isinstance(names, dict) or not required <= names.keys():
        raise CheckpointError(f"{folder / 'cascade.json'}: expected at least {sorted(required)}")
    stages = {
        stage: load_stage(inside(folder, names[stage], f"cascade.json: {stage}"), device, dtype)
        for stage in STAGES
        if stage in names
    }
    text_folder = inside(folder, names["text_encoder"], "cascade.json: text_encoder")
    return Cascade(load_text_encoder(text_folder, device, dtype), **stages)
