"""Stage files: the weights of a U-Net, with the stage's configuration in the header."""

import json
from pathlib import Path

import torch
from torch import Tensor

from ..stage import Stage, StageConfig, build_unet
from .errors import CheckpointError
from .files import open_tensors, write_tensors

FORMAT = "imagen_nodes.stage"


def save_stage(stage: Stage, path: str | Path) -> None:
    """Write a stage to one safetensors file; it appears whole or not at all.

    stage   in the dtype that is to be stored
    path    of the file
    """
    metadata = {"format": FORMAT, "config": json.dumps(stage.config.to_dict())}
    write_tensors(Path(path), stage.unet.state_dict(), metadata)


def load_stage(
    path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Stage:
    """The stage in a file that `save_stage` wrote.

    path     of the file
    device   where the weights go
    dtype    what the network is to compute in; None = as stored
    """
    path = Path(path)
    with open_tensors(path) as file:
        config = read_config(path, file.metadata() or {}, list(file.keys()))
        with torch.device("meta"):
            unet = build_unet(config.unet)
        check_names_and_shapes(
            path,
            {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()},
            {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()},  # noqa: SIM118
        )
        tensors = {name: placed(file.get_tensor(name), device, dtype) for name in unet.state_dict()}
    unet.load_state_dict(tensors, assign=True)
    return Stage(config, unet.requires_grad_(False).eval())


def read_config(path: Path, metadata: dict[str, str], names: list[str]) -> StageConfig:
    """The configuration in a stage file's header.

    path       for the error
    metadata   of the header
    names      of the tensors, which tell a foreign file's kind
    """
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: not an Imagen stage: its header has no configuration; it looks like "
            f"{guess(names)}"
        )
    try:
        return StageConfig.from_dict(json.loads(metadata["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its header holds a bad configuration: {error!r}") from error


def guess(names: list[str]) -> str:
    """What a foreign file seems to be, for an error.

    names   of its tensors
    """
    signs = {
        "a T5 encoder (use Load T5 Encoder)": "SelfAttention",
        "a DeepFloyd IF or diffusers U-Net": "add_embedding.pool",
        "a diffusers U-Net": "down_blocks.",
        "a Stable Diffusion checkpoint": "model.diffusion_model.",
        "a LoRA": "lora_",
    }
    for what, sign in signs.items():
        if any(sign in name for name in names):
            return what
    return f"something else, with tensors such as {', '.join(sorted(names)[:3]) or '(none)'}"


def check_names_and_shapes(
    path: Path, expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]
) -> None:
    """Raise one CheckpointError that lists every missing, unexpected and mis-shaped tensor.

    path              for the error
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
            f"{path}: {len(lines)} tensors do not fit its configuration:\n  " + "\n  ".join(lines)
        )


def placed(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None) -> Tensor:
    """A weight where and as it is to be used; convolutions channels last.

    tensor   of the file
    device   target
    dtype    None = as stored
    """
    tensor = tensor.to(device, dtype)
    return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
