"""Attention of an image over two sources of keys, a text's and its own, in one pass (Triton).

The text's keys and values stay where they are, one row for all images of a prompt, and nothing is
concatenated: a running softmax takes in one block of keys after the other.

FlashAttention, arXiv:2205.14135; the running softmax, arXiv:1805.02867.
"""

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

QUERIES, KEYS = 64, 64  # of one block


@triton.jit
def take_in(
    acc, top, total, q, keys, values, mask, count, key_step, value_step,
    HEAD: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One source's keys and values taken into a running softmax: its values, highest score and sum.

    q             scaled to powers of two
    keys, values  pointers to the first of `count` rows, `key_step` and `value_step` values apart
    mask          pointer to `count` bytes, 0 = not seen; read where MASKED
    """
    columns, place = tl.arange(0, HEAD), tl.arange(0, BLOCK)
    for first in range(0, count, BLOCK):
        rows = first + place
        there = rows < count
        k = tl.load(
            keys + rows[None, :] * key_step + columns[:, None], mask=there[None, :], other=0.0
        )
        scores = tl.dot(q, k, input_precision=PRECISION)
        seen = there
        if MASKED:
            seen = there & (tl.load(mask + rows, mask=there, other=0) != 0)
        scores = tl.where(seen[None, :], scores, -1.0e30)
        higher = tl.maximum(top, tl.max(scores, 1))
        shrink = tl.exp2(top - higher)
        weights = tl.where(seen[None, :], tl.exp2(scores - higher[:, None]), 0.0)
        v = tl.load(
            values + rows[:, None] * value_step + columns[None, :], mask=there[:, None], other=0.0
        )
        acc = acc * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        total = total * shrink + tl.sum(weights, 1)
        top = higher
    return acc, top, total


@triton.jit
def forward(
    q, text_k, text_v, k, v, mask, out,
    q_b, q_h, q_n, text_k_b, text_k_h, text_k_n, text_v_b, text_v_h, text_v_n,
    k_b, k_h, k_n, v_b, v_h, v_n, out_b, out_h, out_n, mask_b,
    heads, each, queries, tokens, scale,
    HEAD: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A block of queries of one head of one image.

    x_b, x_h, x_n   values from one row, head and position of x to the next; channels are neighbours
    each            images that share a row of the text
    scale           of the scores, times log2 e
    """
    row, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    row, head = row.to(tl.int64), head.to(tl.int64)
    text = row // each
    places, columns = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES), tl.arange(0, HEAD)
    there = places < queries
    asked = tl.load(
        q + row * q_b + head * q_h + places[:, None] * q_n + columns[None, :],
        mask=there[:, None], other=0.0,
    )  # fmt: skip
    asked = (asked.to(tl.float32) * scale).to(asked.dtype)
    acc = tl.zeros([QUERIES, HEAD], tl.float32)
    top, total = tl.full([QUERIES], -1.0e30, tl.float32), tl.zeros([QUERIES], tl.float32)
    acc, top, total = take_in(
        acc, top, total, asked, text_k + text * text_k_b + head * text_k_h,
        text_v + text * text_v_b + head * text_v_h, mask + text * mask_b, tokens, text_k_n, text_v_n,
        HEAD, KEYS, MASKED, PRECISION,
    )  # fmt: skip
    acc, top, total = take_in(
        acc, top, total, asked, k + row * k_b + head * k_h, v + row * v_b + head * v_h, mask, queries,
        k_n, v_n, HEAD, KEYS, False, PRECISION,
    )  # fmt: skip
    tl.store(
        out + row * out_b + head * out_h + places[:, None] * out_n + columns[None, :],
        (acc / total[:, None]).to(out.dtype.element_ty), mask=there[:, None],
    )  # fmt: skip


def two_source_attention(
    q: Tensor, text: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], mask: Tensor | None = None
) -> Tensor:
    """Softmax attention of every query over the text's keys and the image's own: b n (heads d), no gradients.

    q      b heads n d, d a power of two of at least 16, its channels neighbours in memory
    text   keys and values, p heads m d, p dividing b
    own    keys and values, b heads n d
    mask   p m bool, True = seen; None = all are
    """
    batch, heads, queries, head = q.shape
    out = q.new_empty(batch, queries, heads, head)
    tensors: list[Any] = [q, *text, *own, out.transpose(1, 2)]
    if any(each.stride(-1) != 1 for each in tensors):
        raise ValueError("q, text, own: expected channels that are neighbours in memory")
    rows, tokens = text[0].shape[0], text[0].shape[2]
    seen = out if mask is None else mask.contiguous().view(torch.uint8)
    grid = (triton.cdiv(queries, QUERIES), batch * heads)
    forward[grid](  # pyright: ignore[reportIndexIssue]
        q, *text, *own, seen, out, *(step for each in tensors for step in each.stride()[:3]), tokens,
        heads, batch // rows, queries, tokens, head**-0.5 * 1.4426950408889634,
        HEAD=head, QUERIES=QUERIES, KEYS=KEYS, MASKED=mask is not None,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
    )  # fmt: skip
    return out.flatten(2)
