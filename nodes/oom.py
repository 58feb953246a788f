"""Out-of-memory fallback.

The same work in smaller batches first (the pictures stay the same), then in tiles, then a clear message.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import host

if TYPE_CHECKING:
    from torch import Tensor

TILES = (1024, 512, 256)


def smaller_parts(batch: int, tile: int, side: int = 0, least: int = 0) -> list[tuple[int, int]]:
    """Ways to split the work, each needing less memory than the one before: (pictures at once, tile).

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


@dataclass
class Attempt:
    """The work split one way: `with` it, make its parts; that memory runs out in there ends the block alone.

    rows   of the batch, part by part
    tile   side of a tile; 0 = whole pictures
    made   the parts' pictures
    """

    rows: list[slice]
    tile: int
    made: list[Tensor] = field(default_factory=list)
    failure: type[BaseException] | None = None

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, place: object) -> bool:
        if error is None or not host.out_of_memory(error):
            return False
        self.failure = kind
        self.made.clear()
        return True

    def pictures(self) -> Tensor:
        """All parts in one batch."""
        import torch

        return self.made[0] if len(self.made) == 1 else torch.cat(self.made)


def attempts(node: str, batch: int, ways: list[tuple[int, int]]) -> Iterator[Attempt]:
    """Attempts at the whole work, each with less memory, until one succeeds.

    node    display name, for notes and the error
    ways    from `smaller_parts`
    """
    attempt = None
    for rows, tile in ways:
        parts = [slice(k, min(k + rows, batch)) for k in range(0, batch, rows)]
        attempt = Attempt(parts, tile)
        yield attempt
        if attempt.failure is None:
            return
        # Here the error's traceback, which held the tensors of the failed attempt, is gone.
        host.forget_unused()
        host.note(f"{node}: out of memory with {_described(rows, tile)}; trying with less")
    assert attempt is not None and attempt.failure is not None
    raise attempt.failure(
        f"{node}: out of memory, even with {_described(*ways[-1])}; make a smaller image, choose "
        f"bfloat16 in the loader, or free memory that other programs hold"
    )


def _described(rows: int, tile: int) -> str:
    images = "1 image" if rows == 1 else f"{rows} images"
    return f"{images} at a time" + (f" in tiles of {tile}" if tile else "")


def rows_of(tensor: Tensor | None, rows: slice) -> Tensor | None:
    """Some rows of a batch; all of one that has a single row, which stands for every picture.

    tensor   b …, or None
    """
    return tensor if tensor is None or len(tensor) == 1 else tensor[rows]
