"""The weights of foreign models: one file or shards, safetensors or torch files, mapped into memory."""

import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .errors import CheckpointError
from .files import inside, is_pickle, open_tensors

WEIGHT_NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")


@dataclass(frozen=True)
class Tensors:
    """Tensors of one or more open files.

    shapes     by name
    get        name -> tensor
    metadata   of the files' headers
    mapped     names whose tensors are memory-mapped; others are in memory already
    """

    shapes: dict[str, tuple[int, ...]]
    get: Callable[[str], Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    mapped: set[str] = field(default_factory=set)


def weight_files(path: Path) -> list[Path]:
    """The files that hold a model's weights, safetensors before pickles, full before fp16.

    path   a folder or one file
    """
    if path.is_file():
        return [path]
    for ending in ("safetensors", "bin"):
        for name in WEIGHT_NAMES:
            for variant in ("", ".fp16"):
                index = path / f"{name}.{ending}.index{variant}.json"
                if index.is_file():
                    return shards(path, index)
                whole = path / f"{name}{variant}.{ending}"
                if whole.is_file():
                    return [whole]
    raise CheckpointError(
        f"{path}: expected a file of weights such as diffusion_pytorch_model.safetensors"
    )


def shards(folder: Path, index: Path) -> list[Path]:
    """The files that an index of shards names, none outside its folder.

    folder   of the shards
    index    JSON with weight_map: tensor -> file
    """
    try:
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index}: not an index of shards: {error!r}") from error
    paths = [inside(folder, name, f"{index.name}: weight_map") for name in sorted(names)]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise CheckpointError(f"{index}: names shards that are not there: {', '.join(missing)}")
    return paths


@contextmanager
def open_all(paths: list[Path]) -> Iterator[Tensors]:
    """The tensors of all files together; pickles are read as weights only, never executed.

    paths   of the files
    """
    with ExitStack() as stack:
        getters: dict[str, Callable[[str], Tensor]] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        metadata: dict[str, str] = {}
        mapped: set[str] = set()
        for path in paths:
            if is_pickle(path):
                state = read_pickle(path)
                mapped |= state.keys() if zipfile.is_zipfile(path) else set()
                shapes |= {name: tuple(tensor.shape) for name, tensor in state.items()}
                getters |= dict.fromkeys(state, state.__getitem__)
            else:
                file = stack.enter_context(open_tensors(path))
                names = list(file.keys())
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in names}
                getters |= dict.fromkeys(names, file.get_tensor)
                metadata |= file.metadata() or {}
                mapped |= set(names)
        yield Tensors(shapes, lambda name: getters[name](name), metadata, mapped)


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a torch file, mapped where its age allows; anything else is refused, unexecuted.

    path   of the file
    """
    try:
        mapped = zipfile.is_zipfile(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path}: a pickled checkpoint that cannot be read as plain weights, and nothing in it was "
            f"executed: {reason}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path}: expected tensors by name")
    return state
