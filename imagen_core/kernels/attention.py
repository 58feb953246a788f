"""Attention of bfloat16 on a CPU: two matrix products with a softmax between them, in pieces.

Torch's fused attention multiplies bfloat16 on a CPU at a sixth of the speed of oneDNN's matrix products.
Scores of a few heads, or of a part of one, stay in the cache; they are rounded to bfloat16, as in attention
that is written out. A picture is computed by itself, so its values do not depend on its batch. Measured in
benchmarks/NOTES.md.
"""

import math

import torch
from torch import Tensor

from .precision import eager_bfloat16

PIECE = 2**20  # scores at once: 2 MiB
LEAST = 2**16  # scores of a picture; below, torch's own attention is as fast


def serves(q: Tensor, k: Tensor) -> bool:
    """Whether attention in pieces is the faster one.

    q   b heads n d
    k   b heads m d
    """
    return (
        not torch.is_grad_enabled()
        and eager_bfloat16(q)
        and q.shape[1:-1].numel() * k.shape[2] >= LEAST
    )


def attention_in_pieces(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of every query over every key, heads merged.

    q        b heads n d
    k, v     b heads m d
    returns  b n (heads d)
    """
    batch, heads, queries, width = q.shape
    made = q.new_empty(batch, queries, heads, v.shape[-1]).transpose(1, 2)
    keys, unread = k.transpose(2, 3), q.new_zeros(1)  # beta 0: what would be added is not read
    for picture in range(batch):
        for place in pieces(heads, queries, k.shape[2]):
            scores = torch.baddbmm(
                unread, q[picture][place], keys[picture, place[0]], beta=0, alpha=width**-0.5
            )
            torch.softmax(scores, -1, out=scores)
            made[picture][place] = torch.bmm(scores, v[picture, place[0]])
    return made.transpose(1, 2).flatten(2)


def pieces(heads: int, queries: int, keys: int) -> list[tuple[slice, slice]]:
    """Parts of a picture's heads and queries that have about PIECE scores, or one query."""
    heads_at_once = max(1, PIECE // (queries * keys))
    queries_at_once = max(1, queries // math.ceil(queries * keys / PIECE))
    return [
        (slice(head, head + heads_at_once), slice(first, first + queries_at_once))
        for head in range(0, heads, heads_at_once)
        for first in range(0, queries, queries_at_once)
    ]
