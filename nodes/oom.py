"""What is done where there is too little memory.

The same work in smaller batches first (the pictures stay the same), then in tiles, then a clear message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from . import host

if TYPE_CHECKING:
    from torch import Tensor

TILES = (1024, 512, 256)


def smaller_parts(batch: int, tile: int, side: int = 0, least: int = 0) -> list[tuple[int, int]]:
    """Ways to split the work, each needing less memory than the one before: (pictures at once, tile).

    batch   pictures
    tile    side of a tile as asked for; 0 = whole pictures
    side    the longer side of the result in pixels; 0 = never in tiles
    least   smallest tile that the network takes
    """
    halves = [batch]
    while halves[-1] > 1:
        halves.append((halves[-1] + 1) // 2)
    ways = [(rows, tile) for rows in halves]
    limit = min(tile or side, side)
    return ways + [(1, smaller) for smaller in TILES if least <= smaller < limit]


def in_parts(
    make: Callable[[slice, int], Tensor], batch: int, ways: list[tuple[int, int]], node: str
) -> Tensor:
    """The pictures, made all at once or, where memory runs out, in ever smaller parts.

    make    makes the pictures of some rows of the batch, with a tile's side
    batch   pictures
    ways    from `smaller_parts`
    node    display name, for notes and the error
    """
    import torch

    kind: type[BaseException] = RuntimeError
    for rows, tile in ways:
        try:
            starts = range(0, batch, rows)
            parts = [make(slice(k, min(k + rows, batch)), tile) for k in starts]
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        except RuntimeError as error:
            if not host.out_of_memory(error):
                raise
            kind = type(error)
        # Outside the handler: the error's traceback held the tensors of the failed attempt.
        host.forget_unused()
        host.note(f"{node}: out of memory with {_described(rows, tile)}; trying with less")
    raise kind(
        f"{node}: out of memory, even with {_described(*ways[-1])}; make a smaller picture, choose "
        f"bfloat16 in the loader, or free memory that other programs hold"
    )


def _described(rows: int, tile: int) -> str:
    pictures = "1 picture" if rows == 1 else f"{rows} pictures"
    return f"{pictures} at a time" + (f" in tiles of {tile}" if tile else "")


def rows_of(tensor: Tensor | None, rows: slice) -> Tensor | None:
    """Some rows of a batch; all of one that has a single row, which stands for every picture.

    tensor   b …, or None
    rows     to take
    """
    return tensor if tensor is None or len(tensor) == 1 else tensor[rows]
