"""Random numbers of a batch: each image has its own generator, so batches change pictures by rounding."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .respacing import wholes


def check_seeds(seed: Any) -> int | tuple[int, ...]:
    """A seed, or one for each image, as ints; ValueError unless a generator takes them.

    seed   a whole number, or a sequence of some
    """
    given = wholes("seed", seed)
    for each in given if isinstance(given, tuple) else (given,):
        if not 0 <= each < 2**64:
            raise ValueError(f"seed must be an integer from 0 to 2**64 - 1, got {each}")
    return given


def seeds_of(seed: Any, batch: int) -> list[int]:
    """The seed of each image of a batch; ValueError unless a generator takes them all.

    seed   of the first image, or one for each
    """
    given = check_seeds(seed)
    if isinstance(given, int):
        return [(given + i) % 2**64 for i in range(batch)]
    if len(given) != batch:
        raise ValueError(f"seed: expected one, or {batch}, one for each image, got {len(given)}")
    return list(given)


class ImageNoise:
    """Normal noise for a batch; image i draws from `torch.Generator("cpu").manual_seed(seed + i)`.

    At batch 1 the draws are those of diffusers' pipelines given `torch.Generator().manual_seed(seed)`. Like
    those, seeds that differ by a multiple of 2**32 draw the same: torch keeps the lower 32 bits.
    """

    def __init__(self, seed: int | Sequence[int], batch: int, device: torch.device | str = "cpu"):
        """Make the generators.

        seed   of the first image, or one for each
        """
        if batch < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch}")
        self.device = torch.device(device)
        self.generators = [
            torch.Generator("cpu").manual_seed(each) for each in seeds_of(seed, batch)
        ]

    def randn(self, channels: int, height: int, width: int) -> Tensor:
        """The next draw of every image: b channels height width, float32, on the device.

        channels, height, width   shape of one image's draw
        """
        shape = channels, height, width
        draws = [
            torch.randn(shape, generator=each, dtype=torch.float32, device="cpu")
            for each in self.generators
        ]
        return sent(torch.stack(draws), self.device)


def sent(x: Tensor, device: torch.device) -> Tensor:
    """x of the CPU on a device; what a CUDA device computes before it is not waited for.

    x   any shape, not changed afterwards
    """
    if device.type != "cuda" or x.is_cuda:
        return x.to(device)
    # Of memory that is not pinned, CUDA copies when all before is done. Torch keeps pinned memory until then.
    return x.pin_memory().to(device, non_blocking=True)
