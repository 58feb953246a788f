"""The memory that a run of a stage takes at its peak, from shapes alone: no weights are read.

The run itself is made on torch's meta device, whose tensors have shapes and no values, and every tensor's
bytes are counted from where it is made to where it is dropped.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .diffusion.tiles import windows
from .kernels.convolution import DTYPES, MOST_BYTES, Conv2d
from .memory import PART, free_bytes
from .sampling import sample_base, super_resolve
from .stage import Stage, StageConfig
from .text.embedding import TextEmbedding
from .text.prompt import EncodedPrompt

STEPS = 2  # of the run: later ones take what the second does
TOKENS = 77
TILES = (2048, 1536, 1024, 768, 512, 384, 256, 128)


class Peak(NamedTuple):
    """Bytes on the device where a stage runs.

    weights   of the network
    packed    copies of the convolutions' weights in oneDNN's layout, on a CPU
    running   the most that everything else takes at any time, the result included
    """

    weights: int
    packed: int
    running: int

    @property
    def total(self) -> int:
        """All three."""
        return sum(self)


class Allocations(TorchDispatchMode):
    """Counts the bytes of tensors on the meta device that are made inside: now, and the most so far."""

    def __init__(self, there: Iterable[Tensor]):
        """there   tensors from before, which are not counted, nor are views of them"""
        super().__init__()
        self.now = self.most = 0
        self.known = {each.untyped_storage()._cdata for each in there}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(each, Tensor) and each.device.type == "meta":
                self.count(each.untyped_storage())
        return made

    def count(self, storage: Any) -> None:
        """Count a storage, once, until it is gone."""
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self.forget, key, size)

    def forget(self, key: int, size: int) -> None:
        """A storage is gone."""
        self.known.discard(key)
        self.now -= size


class Shapes(TorchFunctionMode):
    """What has no shape alone: noise is not drawn, results stay on the meta device, and attention takes its
    result alone, as fused kernels do (torch's own for this device makes a matrix of scores).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        if func is torch.randn and "generator" in (kwargs or {}):
            return torch.empty(*args, device="meta")
        if func is Tensor.cpu:
            return args[0]
        return func(*args, **(kwargs or {}))


class Thinned:
    """A network of which only the first two evaluations of every step are made: one like any that follow."""

    def __init__(self, unet: Any, windows: int):
        self.unet, self.windows, self.done = unet, windows, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unet, name)

    def __call__(self, x: Tensor, *given: Any) -> Tensor:
        place, self.done = self.done % self.windows, self.done + 1
        if place < 2:
            return self.unet(x, *given)
        return x.new_empty(len(x), self.unet.config.out_channels, *x.shape[2:])


@lru_cache(maxsize=128)
def peak_of(
    config: StageConfig,
    dtype: torch.dtype,
    rows: int,
    height: int,
    width: int,
    tile: int = 0,
    device: str = "cpu",
) -> Peak:
    """What a run of a stage takes: its own settings, one prompt and its null text.

    dtype           of the weights
    rows            pictures of the batch
    height, width   pixels of the result
    tile            side of an SR stage's tiles; 0 = the whole picture
    device          type of the device: on a "cpu" convolutions keep packed weights
    """
    with torch.device("meta"):
        stage: Any = Stage(config).to(dtype=dtype)
        states = torch.empty(1, TOKENS, config.unet.text_dim)
        text = TextEmbedding(states, torch.ones(1, TOKENS, dtype=torch.bool))
    prompt, unet = EncodedPrompt(text, text), stage.unet
    given: dict[str, Any] = {"steps": STEPS} if isinstance(config.defaults.steps, int) else {}
    with torch.no_grad(), Shapes(), Allocations(unet.parameters()) as allocations:
        if config.kind == "base":
            sample_base(stage, prompt, batch_size=rows, height=height, width=width, **given)
        else:
            if tile:
                stage.unet = Thinned(unet, len(windows(height, width, tile, unet.size_multiple)))
            image = torch.zeros(
                rows, height // config.scale, width // config.scale, 3, device="cpu"
            )
            super_resolve(stage, image, prompt, tile=tile, **given)
    convolutions = [each for each in unet.modules() if isinstance(each, Conv2d)]
    packs = device == "cpu" and dtype in DTYPES
    packed = min(MOST_BYTES, sum(each.prepared_bytes() for each in convolutions)) if packs else 0
    return Peak(sum(each.nbytes for each in unet.parameters()), packed, allocations.most)


def fitting_tile(
    stage: Stage,
    rows: int,
    height: int,
    width: int,
    device: torch.device | None = None,
    budget: float | None = None,
) -> int:
    """The side of the largest tiles that keep an SR stage's run within a budget; 0 = the whole picture.

    rows            pictures of the batch
    height, width   pixels of the result
    device          where it will run; None = where the stage is now
    budget          bytes beside the weights; None = PART of what is free on the device

    Where even the smallest tiles are too large, their side.
    """
    device = device or stage.device
    if budget is None:
        there = device == stage.device
        weights = 0 if there else sum(each.nbytes for each in stage.unet.parameters())
        budget = PART * (free_bytes(device) - weights)
    least = 4 * stage.unet.size_multiple
    sides = [side for side in TILES if least <= side < max(height, width)]
    for tile in [0, *sides]:
        peak = peak_of(stage.config, stage.dtype, rows, height, width, tile, device.type)
        if peak.packed + peak.running <= budget:
            return tile
    return sides[-1] if sides else 0
