"""The weights of foreign models: one file or shards, safetensors or torch files, mapped into memory."""

import functools
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .errors import CheckpointError
from .files import inside, is_pickle, open_tensors, read_json

WEIGHT_NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")
ENDINGS = ("safetensors", "bin")
VARIANTS = ("", "fp32", "ema", "fp16", "bf16", "non_ema")  # the best first
SHARD = re.compile(r"(.+)-(\d{1,6})-of-(\d{1,6})(\..+)")
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
MOST_SHARDS = 1000
MOST_SHARING = 8  # a table of tokens is stored under up to four names
MOST_NAMES = 8  # in a message


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
    """The files that hold a model's weights: those of a folder, or a file with all its shards.

    Of several in a folder, safetensors go before torch files, and whole precision before half.
    """
    if path.is_file():
        return sibling_shards(path)
    names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    for ending in ENDINGS:
        found = [name for name in names if name.endswith("." + ending)]
        for stem in WEIGHT_NAMES:
            variants = sorted(filter(None, (Variant.of(name, stem, ending) for name in names)))
            if variants and variants[0].kind == "index":
                return shards(path, path / variants[0].name)
            if variants:
                return sibling_shards(path / variants[0].name)
        if len(found) == 1 or (found and len(sibling_shards(path / found[0])) == len(found)):
            return sibling_shards(path / found[0])
    raise CheckpointError(
        f"{path}: expected a file of weights such as diffusion_pytorch_model.safetensors, found "
        f"{', '.join(names[:MOST_NAMES]) or 'nothing'}"
    )


class Variant(NamedTuple):
    """A file of weights as diffusers and transformers name them; the best comes first.

    rank   of what the name says of precision and averaging, then that name itself
    kind   "index" of shards or a "whole" file, which may be the first of its shards
    name   of the file
    """

    rank: tuple[int, str]
    kind: Literal["index", "whole"]
    name: str

    @staticmethod
    def of(name: str, stem: str, ending: str) -> "Variant | None":
        """The variant that a file is; None where it is none, or a shard that is not the first.

        stem, ending   such as "model" and "safetensors"
        """
        index = re.fullmatch(
            rf"{stem}(\.[\w-]+)?\.{ending}(\.[\w-]+)?\.index(\.[\w-]+)?\.json", name
        )
        whole = re.fullmatch(rf"{stem}(\.[\w-]+?)?(?:-0*1-of-\d+)?(\.[\w-]+)?\.{ending}", name)
        found = index or whole
        if found is None:
            return None
        said = next(filter(None, found.groups()), "").removeprefix(".")
        rank = VARIANTS.index(said) if said in VARIANTS else len(VARIANTS)
        return Variant((rank, said), "index" if index else "whole", name)


def sibling_shards(path: Path) -> list[Path]:
    """All shards of which a file is one, by its name; the file alone where that says nothing.

    path   such as model-00001-of-00002.safetensors
    """
    found = SHARD.fullmatch(path.name)
    if found is None:
        return [path]
    before, number, total, after = found.groups()
    if not 1 <= int(number) <= int(total) <= MOST_SHARDS:
        return [path]
    names = (f"{before}-{k:0{len(number)}}-of-{total}{after}" for k in range(1, int(total) + 1))
    paths = [path.with_name(name) for name in names]
    missing = [each.name for each in paths if not each.is_file()]
    if missing:
        raise CheckpointError(
            f"{path}: is one of {total} shards, of which these are not beside it: "
            f"{', '.join(missing[:MOST_NAMES])}"
        )
    return paths


def shards(folder: Path, index: Path) -> list[Path]:
    """The files that an index of shards names, none outside its folder.

    folder   of the shards
    index    JSON with weight_map: tensor -> file
    """
    try:
        weight_map = read_json(index).get("weight_map")
    except CheckpointError as error:
        raise CheckpointError(f"{error}; it is not an index of shards") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index}: not an index of shards: it has no weight_map of file names"
        )
    what = f"{index.name}: weight_map"
    paths = sorted({inside(folder, name, what) for name in weight_map.values()})
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise CheckpointError(f"{index}: names shards that are not there: {', '.join(missing)}")
    return paths


@contextmanager
def open_all(paths: list[Path]) -> Iterator[Tensors]:
    """The tensors of all files together; pickles are read as weights only, never executed."""
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


def unwrapped(path: Path, tensors: Tensors, signs: tuple[str, ...]) -> Tensors:
    """The same tensors by the model's own names, without what wrappers and whole pipelines put before.

    signs     names that the model itself has; what stands before one of them stands before all
    """
    own = {
        name: functools.reduce(lambda n, w: n.replace(w, ""), WRAPPERS, name)
        for name in tensors.shapes
    }
    ends = tuple("." + sign for sign in signs)
    prefix = ""
    if not any(name in signs for name in own.values()):
        found = next((name for name in own.values() if name.endswith(ends)), "")
        prefix = found.removesuffix(next((sign for sign in signs if found.endswith(sign)), ""))
    names: dict[str, str] = {}
    for stored, name in own.items():
        if names.setdefault(name.removeprefix(prefix), stored) != stored:
            raise CheckpointError(f"{path}: holds {name.removeprefix(prefix)} twice")
    return Tensors(
        {name: tensors.shapes[stored] for name, stored in names.items()},
        lambda name: tensors.get(names[name]),
        tensors.metadata,
        {name for name, stored in names.items() if stored in tensors.mapped},
    )


def require_numbers(path: Path, name: str, tensor: Tensor) -> None:
    """Raise CheckpointError where a weight is in whole numbers: without a scale they mean nothing.

    name     of the weight
    tensor   as stored
    """
    if not tensor.is_floating_point():
        raise CheckpointError(
            f"{path}: {name}: expected floating-point weights, got {tensor.dtype}; whole numbers are "
            f"quantised weights, which mean nothing without their scales"
        )


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a torch file, mapped where its age allows; anything else is refused, unexecuted."""
    try:
        mapped = zipfile.is_zipfile(path)
        if mapped:
            check_stored(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise CheckpointError(
            f"{path}: a pickled checkpoint that cannot be read as plain weights, and nothing in it was "
            f"executed: {reason}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path}: expected tensors by name")
    for name, tensor in state.items():
        whole = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not whole or tensor.is_quantized or tensor.untyped_storage().nbytes() < tensor.nbytes:
            raise CheckpointError(
                f"{path}: {name}: expected a plain tensor, got one of {list(tensor.shape)} that the file "
                f"does not hold the values of; save it again with `tensor.contiguous()`"
            )
    held = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in state.values()
    }
    bound = MOST_SHARING * sum(storage.nbytes() for storage in held.values())
    if sum(tensor.nbytes for tensor in state.values()) > bound:
        raise CheckpointError(
            f"{path}: holds tensors that share their values over {MOST_SHARING} times; save them apart"
        )
    return state


def check_stored(path: Path) -> None:
    """Raise ValueError where a torch file is larger unpacked than packed: torch.save never compresses."""
    with zipfile.ZipFile(path) as file:
        unpacked = sum(entry.file_size for entry in file.infolist())
    if unpacked > path.stat().st_size:
        raise ValueError(
            f"it is compressed, and would unpack to {unpacked} bytes; save it again with torch.save"
        )
