"""Cascade folders: cascade.json names the text encoder and the stage files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..cascade import Cascade
from ..weights.errors import CheckpointError
from ..weights.files import inside, read_json
from .stage import load_stage
from .t5 import load_text_encoder

BUNDLED = Path(__file__).parent.parent / "pretrained"
STAGES = ("base", "sr256", "sr1024")


@dataclass(frozen=True)
class CascadeFiles:
    """What a cascade is made of.

    text_encoder   T5's folder or file, which several cascades may share
    stages         files or folders of the stages, base first
    """

    text_encoder: Path
    stages: list[Path]


def bundled_cascades() -> list[str]:
    """Names of the cascades that ship in the package."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/cascade.json"))


def load_cascade(
    name_or_dir: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    text_dtype: torch.dtype | None = None,
) -> Cascade:
    """A cascade: one that ships in the package, or a folder with a cascade.json.

    name_or_dir   "emoji", or a folder
    device        where the weights go
    dtype         what the networks compute in
    text_dtype    what the text encoder computes in; None = dtype
    """
    files = read_cascade(name_or_dir)
    stages = [load_stage(path, device, dtype) for path in files.stages]
    encoder = load_text_encoder(files.text_encoder, device, text_dtype or dtype)
    return Cascade(encoder, *stages)


def read_cascade(name_or_dir: str | Path) -> CascadeFiles:
    """What a cascade is made of; no weights are read.

    name_or_dir   "emoji", or a folder with a cascade.json: "text_encoder", and either "base", "sr256" and
                  "sr1024" or a list "stages". Stages lie in the folder; the text encoder may be a link or
                  a path that leads elsewhere.
    """
    bundled = str(name_or_dir) in bundled_cascades()
    folder = BUNDLED / str(name_or_dir) if bundled else Path(name_or_dir)
    if not (folder / "cascade.json").is_file():
        raise CheckpointError(
            f"cascade: expected one of {bundled_cascades()} or a folder with a readable "
            f"cascade.json, got {str(name_or_dir)!r}"
        )
    names = read_json(folder / "cascade.json")
    stages = stage_names(names)
    encoder = names.get("text_encoder")
    if not stages or not isinstance(encoder, str):
        raise CheckpointError(
            f"{folder / 'cascade.json'}: expected at least the names text_encoder and base"
        )
    if encoder.startswith(("//", "\\\\")):
        raise CheckpointError(
            f"{folder / 'cascade.json'}: text_encoder: expected a path on this computer, got {encoder!r}"
        )
    if not (folder / encoder).exists():
        raise CheckpointError(
            f"{folder / 'cascade.json'}: text_encoder: no such file or folder: {folder / encoder}"
        )
    paths = [inside(folder, stages[key], f"cascade.json: {key}") for key in stages]
    return CascadeFiles(folder / encoder, paths)


def stage_names(names: dict[str, Any]) -> dict[str, str]:
    """The stages that a cascade.json names, base first, by key; none where one is no name."""
    listed = names.get("stages")
    if isinstance(listed, list):
        found = {f"stages[{i}]": name for i, name in enumerate(listed)}
    else:
        found = {key: names[key] for key in STAGES if key in names} if "base" in names else {}
    return found if all(isinstance(name, str) for name in found.values()) else {}
