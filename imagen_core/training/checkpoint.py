"""A run's state on disk: enough to go on bit for bit. Tensors in safetensors, the rest in JSON.

One folder a checkpoint, written under another name and renamed when complete.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...files import lock
from .ema import EMA
from .recipe import RecipeError


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as flat names: "<parameter>.<key>", parameters numbered.

    optimizer   its state tensors and whole numbers only
    """
    # By torch's own method: bitsandbytes' nests what it has quantised, and counts steps in an int.
    state = torch.optim.Optimizer.state_dict(optimizer)["state"]
    return {
        f"{i}.{key}": torch.as_tensor(value).detach().cpu().clone().contiguous()
        for i, entry in state.items()
        for key, value in entry.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give an optimiser the state that `optimizer_tensors` took.

    optimizer   made as the saved one was
    tensors     by flat name
    """
    state: dict[int, dict[str, Any]] = {}
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    for name, tensor in tensors.items():
        i, key = name.split(".", 1)
        parameter = parameters[int(i)]
        if tensor.shape == parameter.shape:  # in its layout: fused optimisers read memory in order
            tensor = torch.empty_like(parameter, dtype=tensor.dtype, device="cpu").copy_(tensor)
        state.setdefault(int(i), {})[key] = tensor.item() if tensor.dtype == torch.int64 else tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def save_checkpoint(
    folder: Path,
    network: nn.Module,
    ema: EMA,
    optimizer: torch.optim.Optimizer,
    progress: dict[str, Any],
) -> None:
    """Write a run's state to `folder`, replacing what is there only when the new one is complete.

    network     its parameters, as trained
    ema         averages
    progress    JSON-able counters
    """
    temporary = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    weights = {
        name: p.detach().cpu().contiguous()
        for name, p in network.named_parameters()
        if p.requires_grad
    }
    averages = {str(i): average.cpu().contiguous() for i, average in enumerate(ema.averages)}
    save_file(weights, temporary / "weights.safetensors")
    save_file(averages, temporary / "ema.safetensors")
    save_file(optimizer_tensors(optimizer), temporary / "optimizer.safetensors")
    progress = {**progress, "ema_updates": ema.updates}
    (temporary / "progress.json").write_text(json.dumps(progress), "utf-8")
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)


@torch.no_grad()
def load_checkpoint(
    folder: Path,
    network: nn.Module,
    ema: EMA,
    optimizer: torch.optim.Optimizer,
    check: Callable[[dict[str, Any]], None] = lambda progress: None,
) -> dict[str, Any]:
    """Read a run's state into objects made as the saved ones were; the counters are returned.

    folder      of the checkpoint; the one before it serves where a crash left only that
    network     receives the parameters
    ema         receives the averages
    optimizer   receives the state
    check       is shown the counters before anything is read into the objects
    """
    folder, progress = counters(folder)
    check(progress)
    weights = load_file(folder / "weights.safetensors")
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            parameter.copy_(weights[name])
    averages = load_file(folder / "ema.safetensors")
    for i, average in enumerate(ema.averages):
        average.copy_(averages[str(i)])
    # Copies: the optimizer keeps them, and a folder with a mapped file cannot be replaced on Windows.
    state = load_file(folder / "optimizer.safetensors")
    restore_optimizer(optimizer, {name: tensor.clone() for name, tensor in state.items()})
    ema.updates = progress.pop("ema_updates")
    return progress


def counters(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Where a checkpoint stands, and its counters, the recipe's settings among them."""
    if not folder.exists():
        folder = folder.with_name(f".{folder.name}.old")
    return folder, json.loads((folder / "progress.json").read_text("utf-8"))


def has_checkpoint(folder: Path) -> bool:
    """Whether `load_checkpoint` would find something."""
    return folder.exists() or folder.with_name(f".{folder.name}.old").exists()


def hold(folder: Path) -> BinaryIO:
    """A run's folder for this process alone, until the file is closed; RecipeError where another has it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / ".imagen.lock").open("ab+")
    if not lock(file, alone=True):
        file.close()
        raise RecipeError(
            f"run.out: {folder}: another training works in this folder; wait for it, or choose another"
        )
    return file
