"""A weight as its file holds it: expanded slab by slab while it is used, and by row for a table.

float8 with a scale, or blocks of a GGUF file, stay as they are in memory; so do half-precision weights
of a float32 encoder. What is computed is what the expanded matrix would give.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .block_formats import BlockFormat

SLAB = 2**23  # elements that are expanded at a time


class Matrix(nn.Module):
    """A matrix of out x in, which may be stored in fewer bits than it is computed in.

    It stands in for a linear layer without bias.
    """

    def __init__(
        self,
        stored: Tensor,
        compute: torch.dtype,
        scale: Tensor | None = None,
        blocks: BlockFormat | None = None,
    ):
        """Wrap a tensor without a copy.

        stored    out x in, or out x bytes where `blocks` is given
        compute   dtype of the products
        scale     that the stored values are multiplied by: one, or one a row; None = 1
        blocks    how bytes become values; None = they are values
        """
        super().__init__()
        self.stored = nn.Parameter(stored, requires_grad=False)
        self.scale = None if scale is None else nn.Parameter(scale.float(), requires_grad=False)
        self.compute = compute
        self.blocks = blocks

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the expanded matrix."""
        rows, width = self.stored.shape
        return rows, width if self.blocks is None else self.blocks.values(width)

    def expand(self, rows: slice | Tensor) -> Tensor:
        """Some rows as they would be in an uncompressed file: float32.

        rows   a slice, or indices of shape (n,)
        """
        raw = self.stored.view(torch.uint8) if self.stored.dtype.itemsize == 1 else self.stored
        taken = raw[rows]
        if self.blocks is not None:
            values = self.blocks.expand(taken)
        else:
            values = taken.view(self.stored.dtype).float()
        if self.scale is None:
            return values
        return values * (self.scale if self.scale.numel() == 1 else self.scale.view(-1, 1)[rows])

    def forward(self, x: Tensor) -> Tensor:
        """x times the transposed matrix: float32, … out.

        x   … in
        """
        x = x.to(self.compute)
        if self.stored.dtype == self.compute and self.scale is None:
            return F.linear(x, self.stored).float()
        return torch.cat([F.linear(x, slab) for slab in self._slabs()], dim=-1).float()

    def _slabs(self) -> Iterator[Tensor]:
        rows, columns = self.shape
        step = max(1, SLAB // columns)
        for first in range(0, rows, step):
            yield self.expand(slice(first, first + step)).to(self.compute)


class Table(Matrix):
    """A matrix that is looked up by row: token embeddings."""

    def forward(self, x: Tensor) -> Tensor:
        """Rows of the table: float32, b n in.

        x   b n, indices
        """
        values = self.expand(x.flatten())
        return values.to(self.compute).float().unflatten(0, x.shape)
