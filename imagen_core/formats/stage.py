"""Stages on disk: our own files, with the configuration in the header, and DeepFloyd IF's as published.

`open_stage` says what a file or folder holds and gives its weights, memory-mapped, one by one.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from ..lora import merge_loras
from ..stage import Stage, StageConfig, new_unet
from ..unet.adm import ADMConfig, ADMUNet
from ..unet.efficient import EfficientUNet
from ..weights.errors import CheckpointError
from ..weights.files import release, write_tensors
from ..weights.tensors import Tensors, open_all, require_numbers, unwrapped, weight_files
from .deepfloyd import SIGNS, find_layout, other_network, read_config
from .deepfloyd_names import Entry, Layout, entries

FORMAT = "imagen_nodes.stage"
OURS = "pooled_text.pool.q_proj.weight"
COMPUTABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
KINDS = {
    # What is trained beside a network has the network's names in its own.
    "a LoRA": r"(^|[._])(lora|loha|lokr|dora|hada|oft|ia3)([._]|$)",
    "a textual inversion": r"^(emb_params|string_to_param|<.*>)$",
    "a ControlNet": r"controlnet_|^control_model\.|^input_hint_block\.",
    "an encoded prompt (use Imagen Load Text)": r"^text\.embeds$",
    "an Imagen stage that has lost the configuration in its header": r"(^|\.)pooled_text\.pool\.",
    "a T5 encoder (use Load T5 Encoder)": r"SelfAttention|^enc\.blk\.",
    "a CLIP text encoder": r"(^|\.)text_model\.encoder\.|(^|\.)transformer\.resblocks\.",
    "an autoencoder (VAE)": r"^(first_stage_model\.|(encoder|decoder)\.(down|up)_blocks|quant_conv)",
    "a diffusers U-Net that is not DeepFloyd IF's": r"(^|\.)down_blocks\.",
    "a Stable Diffusion checkpoint": r"^model\.diffusion_model\.",
    "a diffusion transformer": r"(^|\.)(double_blocks|joint_blocks|transformer_blocks)\.",
}
"""Signs in the names of tensors, the surest first."""


@dataclass(frozen=True)
class StoredStage:
    """A stage whose files are open.

    files     of the weights
    layout    how they are named and stacked
    config    of the stage
    unet      the network of its shape, on the meta device
    wanted    our tensors there, as the network has them
    table     which stored tensors make which of ours
    tensors   the stored ones
    """

    files: list[Path]
    layout: Layout
    config: StageConfig
    unet: ADMUNet | EfficientUNet
    wanted: dict[str, Tensor]
    table: dict[str, Entry]
    tensors: Tensors

    @property
    def head_dim(self) -> int:
        """Rows of one attention head."""
        return self.config.unet.head_dim

    def read(self, name: str, use: Callable[[Tensor], Tensor] = torch.clone) -> Tensor:
        """One of our tensors; what was read of a mapped file for it is given back where it was copied.

        use    makes what is wanted of the tensor, which may be a view of a mapped file
        """
        stored = {theirs: self.tensors.get(theirs) for theirs in self.table[name].theirs}
        tensor = use(self.table[name].read(list(stored.values()), self.head_dim))
        for theirs, source in stored.items():
            if theirs in self.tensors.mapped and tensor.data_ptr() != source.data_ptr():
                release(source)
        return tensor


def stage_files(path: Path) -> list[Path]:
    """The files of a stage's weights: a file itself, or those of a folder or of its unet folder.

    path   a stage file, a DeepFloyd IF model's folder, its unet folder, or a file of its weights
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    if (path / "cascade.json").is_file():
        raise CheckpointError(
            f"{path}: expected a stage, got a cascade's folder; load_cascade reads it"
        )
    return weight_files(path / "unet" if (path / "unet").is_dir() else path)


@contextmanager
def open_stage(path: str | Path) -> Iterator[StoredStage]:
    """The stage in a file or folder, its names and shapes checked.

    path   a stage file, a DeepFloyd IF model's folder, its unet folder, or a file of its weights
    """
    path = Path(path)
    files = stage_files(path)
    with open_weights(files) as tensors:
        layout, config = identify(files[0], tensors)
        try:
            with torch.device("meta"):
                unet = new_unet(config.unet)
        except (ValueError, TypeError, ZeroDivisionError, RuntimeError) as error:
            raise CheckpointError(f"{files[0]}: makes no network of its shape: {error}") from error
        wanted = unet.state_dict()
        table = table_of(config, layout, set(wanted))
        check_names_and_shapes(
            path, foreign_shapes(table, wanted, config.unet.head_dim), tensors.shapes
        )
        by_name = {entry.ours: entry for entry in table}
        for name in tensors.shapes:
            require_numbers(path, name, tensors.get(name))
        yield StoredStage(files, layout, config, unet, wanted, by_name, tensors)


@contextmanager
def open_weights(files: list[Path]) -> Iterator[Tensors]:
    """The tensors of a U-Net's files, without what wrappers put before their names."""
    with open_all(files) as tensors:
        yield unwrapped(files[0], tensors, (OURS, *SIGNS.values()))


def load_stage(
    path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Stage:
    """The stage in a file that `save_stage` wrote, or in DeepFloyd IF's files as published.

    path     a stage file, a DeepFloyd IF model's folder, its unet folder, or a file of its weights
    device   where the weights go
    dtype    what the network is to compute in; None = as stored, where that can be computed in
    """
    require_computable(dtype)
    with open_stage(path) as stored:
        dtype = dtype or computed_in(stored, torch.device(device))
        state = {
            name: stored.read(name, lambda tensor: placed(tensor, device, dtype))
            for name in stored.wanted
        }
    stored.unet.load_state_dict(state, assign=True)
    return Stage(stored.config, stored.unet.requires_grad_(False).eval())


def read_stage_config(path: str | Path) -> StageConfig:
    """What a stage's file says of it; whether its weights fit is not looked at.

    path   as for `open_stage`
    """
    files = stage_files(Path(path))
    with open_weights(files) as tensors:
        return identify(files[0], tensors)[1]


def require_computable(dtype: torch.dtype | None) -> None:
    """Raise ValueError where torch has no arithmetic in a dtype; None passes."""
    if dtype is not None and dtype not in COMPUTABLE:
        raise ValueError(
            f"dtype: expected what is computed in, one of {', '.join(map(str, COMPUTABLE))}, got {dtype}; "
            f"weights may be stored in fewer bits, and are expanded in use"
        )


def computed_in(stored: StoredStage, device: torch.device) -> torch.dtype:
    """The one dtype for a network whose files need not have one, or have one without arithmetic.

    device   where it is to compute; float8 becomes float32 on a CPU and float16, which is exact, elsewhere
    """
    wider = torch.float32 if device.type == "cpu" else torch.float16
    found = {stored.tensors.get(name).dtype for name in stored.tensors.shapes}
    return reduce(torch.promote_types, (d if d in COMPUTABLE else wider for d in found))


def save_stage(stage: Stage, path: str | Path) -> None:
    """Write a stage to one safetensors file, its LoRAs merged; it appears whole or not at all.

    stage   in the dtype that is to be stored
    path    of the file
    """
    stage = merge_loras(stage)
    write_tensors(Path(path), stage.unet.state_dict(), header(stage.config))


def header(config: StageConfig) -> dict[str, str]:
    """What a safetensors file that we write says about itself, in whatever layout."""
    return {"format": FORMAT, "config": json.dumps(config.to_dict())}


def identify(path: Path, tensors: Tensors) -> tuple[Layout, StageConfig]:
    """A stage's layout and configuration, from its header or as DeepFloyd IF's."""
    ours = tensors.metadata.get("format") == FORMAT
    layout = find_layout(tensors.shapes)
    if not ours and layout is None:
        raise CheckpointError(
            f"{path}: not an Imagen stage: its header has no configuration; it looks like "
            f"{guess(list(tensors.shapes))}{other_network(path)}"
        )
    if not ours and layout is not None:
        return layout, read_config(path, tensors.shapes, layout)
    try:
        return layout or "imagen", StageConfig.from_dict(json.loads(tensors.metadata["config"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its header holds a bad configuration: {error!r}") from error


def table_of(config: StageConfig, layout: Layout, names: set[str]) -> list[Entry]:
    """Which stored tensors make which of ours."""
    if layout == "imagen":
        return [Entry(name, (name,)) for name in sorted(names)]
    if not isinstance(config.unet, ADMConfig):
        raise CheckpointError(f"only DeepFloyd IF's networks have the {layout} layout")
    return entries(config.unet, layout, names)


def foreign_shapes(
    table: list[Entry], wanted: dict[str, Tensor], head_dim: int
) -> dict[str, tuple[int, ...]]:
    """The stored tensors' shapes.

    table      which of them make which of ours
    wanted     ours, on the meta device
    head_dim   rows of one head and part
    """
    return {
        name: tuple(part.shape)
        for entry in table
        for name, part in zip(entry.theirs, entry.write(wanted[entry.ours], head_dim), strict=True)
    }


def guess(names: list[str]) -> str:
    """What a foreign file seems to be, for an error."""
    for what, sign in KINDS.items():
        if any(re.search(sign, name) for name in names):
            return what
    return f"something else, with tensors such as {', '.join(sorted(names)[:3]) or '(none)'}"


def check_names_and_shapes(
    path: Path, expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]
) -> None:
    """Raise one CheckpointError that lists every missing, unexpected and mis-shaped tensor.

    expected, found   shapes by name
    """
    lines = [f"missing {name} {list(expected[name])}" for name in sorted(expected.keys() - found)]
    lines += [f"unexpected {name} {list(found[name])}" for name in sorted(found.keys() - expected)]
    lines += [
        f"{name}: expected {list(expected[name])}, found {list(found[name])}"
        for name in sorted(expected.keys() & found)
        if expected[name] != found[name]
    ]
    if lines:
        raise CheckpointError(
            f"{path}: {len(lines)} tensors do not fit the network's shape:\n  " + "\n  ".join(lines)
        )


def placed(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None) -> Tensor:
    """A weight where and as it is to be used; convolutions channels last.

    dtype    None = as stored
    """
    tensor = tensor.to(device, dtype)
    return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
