"""One layout of a stage's weights to another, bit for bit, one tensor at a time."""

import json
import os
import shutil
from dataclasses import replace
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from ...files import replacing, sync_folder, temporary_path
from ..unet.adm import ADMConfig
from ..weights.errors import CheckpointError
from ..weights.files import open_tensors, write_tensors
from .deepfloyd import from_original, stage_config, to_original
from .deepfloyd_names import Layout
from .diffusers_config import from_diffusers, to_diffusers
from .stage import StoredStage, foreign_shapes, header, open_stage, table_of

LAYOUTS: tuple[Layout, ...] = ("imagen", "diffusers", "original")


def convert(source: str | Path, target: str | Path, layout: Layout | None = None) -> Layout:
    """Write a stage's weights in another layout; they appear whole or not at all.

    source    anything that `load_stage` takes
    target    a .safetensors file; or, for a published layout, a folder that is not there yet
    layout    "imagen", "diffusers" or "original"; None = diffusers', or the original one from diffusers'
    returns   the layout that was written
    """
    target = Path(target)
    if layout is not None and layout not in LAYOUTS:
        raise CheckpointError(f"layout must be one of {LAYOUTS}, got {layout!r}")
    if target.exists():
        raise CheckpointError(f"{target}: exists already; remove it or choose another name")
    with open_stage(source) as stored:
        layout = layout or ("original" if stored.layout == "diffusers" else "diffusers")
        if target.suffix == ".safetensors":
            write_file(stored, target, layout)
        elif target.suffix or layout == "imagen":
            raise CheckpointError(
                f"{target}: expected a name that ends in .safetensors"
                + ("" if layout == "imagen" else ", or a folder's name without an ending")
            )
        else:
            write_folder(stored, target, layout)
    return layout


def write_file(stored: StoredStage, target: Path, layout: Layout) -> None:
    """Write one safetensors file, its header holding the configuration."""
    require_layout(stored, layout)
    head_dim = stored.config.unet.head_dim
    plan: dict[str, Tensor] = {}
    origin: dict[str, tuple[str, int]] = {}
    table = {entry.ours: entry for entry in table_of(stored.config, layout, set(stored.wanted))}
    for name, entry in table.items():
        stacked = [stored.tensors.get(theirs).dtype for theirs in stored.table[name].theirs]
        like = stored.wanted[name].to(reduce(torch.promote_types, stacked))
        for i, part in enumerate(entry.write(like, head_dim)):
            plan[entry.theirs[i]], origin[entry.theirs[i]] = part, (name, i)

    def produce(theirs: str) -> Tensor:
        name, i = origin[theirs]
        return table[name].write(stored.read(name), head_dim)[i]

    write_tensors(target, plan, header(stored.config), produce)


def write_folder(stored: StoredStage, target: Path, layout: Layout) -> None:
    """Write a folder as it is published: weights and configuration."""
    require_layout(stored, layout, alone=True)
    config = stored.config.unet
    assert isinstance(config, ADMConfig)
    folder = temporary_path(target)
    folder.mkdir(parents=True)
    try:
        if layout == "diffusers":
            write_file(stored, folder / "diffusion_pytorch_model.safetensors", layout)
            text = json.dumps(to_diffusers(config, stored.config.resolution), indent=2)
            (folder / "config.json").write_text(text + "\n", "utf-8")
        else:
            weights = folder / "pytorch_model.safetensors"
            write_file(stored, weights, layout)
            to_torch_file(weights, folder / "pytorch_model.bin")
            weights.unlink()
            dtype = stored.tensors.get(stored.table["conv_in.weight"].theirs[0]).dtype
            # JSON is YAML, and needs no library.
            text = json.dumps(to_original(config, dtype, stored.config.resolution), indent=2)
            (folder / "config.yml").write_text(text + "\n", "utf-8")
        os.replace(folder, target)
        sync_folder(target.parent)
    except OSError as error:
        raise CheckpointError(f"{target}: could not be written: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def to_torch_file(source: Path, target: Path) -> None:
    """The tensors of a safetensors file as torch.save stores them, straight from the mapped file."""
    with open_tensors(source) as read, replacing(target) as temporary, temporary.open("wb") as file:
        # Into a file, not to a path: that would put the temporary's name into the bytes.
        torch.save({name: read.get_tensor(name) for name in read.keys()}, file)  # noqa: SIM118


def require_layout(stored: StoredStage, layout: Layout, alone: bool = False) -> None:
    """Raise CheckpointError unless a layout's own configuration can say what the network is.

    alone    it is all that is written, so that it must also say what the stage is, but for its defaults
    """
    config, unet = stored.config, stored.config.unet
    if layout == "imagen":
        return
    try:
        if not isinstance(unet, ADMConfig) or unet.patch != 1:
            raise ValueError(f"the network is of another kind, {type(unet).__name__}")
        read = read_again(stored, unet, layout)
        if read != unet:
            raise ValueError(f"its configuration would be read as {read}")
        if (
            alone
            and replace(stage_config(read, config.resolution), defaults=config.defaults) != config
        ):
            raise ValueError("its schedule, prediction, kind and scale are not DeepFloyd IF's")
    except ValueError as error:
        raise CheckpointError(
            f"{stored.files[0]}: only DeepFloyd IF's networks have the {layout} layout, this stage can "
            f"be written as 'imagen' alone: {error}"
        ) from error


def read_again(stored: StoredStage, unet: ADMConfig, layout: Layout) -> ADMConfig:
    """The shape that is read from a layout's configuration of a network.

    unet     its shape
    """
    side = stored.config.resolution
    if layout == "diffusers":
        return from_diffusers(to_diffusers(unet, side))
    table = table_of(stored.config, layout, set(stored.wanted))
    shapes = foreign_shapes(table, stored.wanted, unet.head_dim)
    return from_original(to_original(unet, torch.float32, side), shapes)
