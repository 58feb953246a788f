"""Attention of an image over two sources of keys, a text's and its own, in one pass (Triton).

The text's keys and values stay where they are, one row for all images of a prompt, and nothing is
concatenated: a running softmax takes in one block of keys after the other.

FlashAttention, arXiv:2205.14135; the running softmax, arXiv:1805.02867.
"""

from typing import Any, cast

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

from .precision import require_tensor_cores

NARROW = 128  # bytes of a position in one head, up to which a block of 64 fits any device's memory
MOST_ROWS = 2**16 - 1  # heads of all images: what CUDA launches side by side
LOG2_E = 1.4426950408889634


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
    q, text_k, text_v, k, v, mask, out, sums,
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
    sums            gets log2 of each query's sum of exp(score): b heads n
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
    tl.store(sums + tl.program_id(1) * queries + places, top + tl.log2(total), mask=there)
    tl.store(
        out + row * out_b + head * out_h + places[:, None] * out_n + columns[None, :],
        (acc / total[:, None]).to(out.dtype.element_ty), mask=there[:, None],
    )  # fmt: skip


@triton.jit
def score_gradients(
    q, out_grad, sums, weighted, keys, values, mask, there, rows, seen_rows,
    HEAD: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Weights of a block of queries over a block of keys, the scores' gradients, and the keys.

    q          scaled to powers of two
    weighted   sum of out * out_grad of each query
    """
    columns = tl.arange(0, HEAD)
    at = rows[:, None] * HEAD + columns[None, :]
    k = tl.load(keys + at, mask=seen_rows[:, None], other=0.0)
    v = tl.load(values + at, mask=seen_rows[:, None], other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    seen = seen_rows
    if MASKED:
        seen = seen & (tl.load(mask + rows, mask=seen_rows, other=0) != 0)
    weights = tl.where(seen[None, :] & there[:, None], tl.exp2(scores - sums[:, None]), 0.0)
    toward = tl.dot(out_grad, tl.trans(v), input_precision=PRECISION)
    return weights, weights * (toward - weighted[:, None]), k


@triton.jit
def query_gradients(
    acc, q, out_grad, sums, weighted, keys, values, mask, there, count,
    HEAD: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What one source's keys add to the gradients of a block of queries."""
    for first in range(0, count, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        _, grads, k = score_gradients(
            q, out_grad, sums, weighted, keys, values, mask, there, rows, rows < count,
            HEAD, MASKED, PRECISION,
        )  # fmt: skip
        acc += tl.dot(grads.to(k.dtype), k, input_precision=PRECISION)
    return acc


@triton.jit
def backward_queries(
    q, text_k, text_v, k, v, mask, out_grad, sums, weighted, q_grad,
    heads, each, queries, tokens, scale,
    HEAD: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of queries of one head of one image; all tensors contiguous.

    scale   of the scores, times log2 e
    """
    place = tl.program_id(1).to(tl.int64)
    row, head = place // heads, place % heads
    text = row // each
    places = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    there = places < queries
    at = (place * queries + places)[:, None] * HEAD + tl.arange(0, HEAD)[None, :]
    asked = tl.load(q + at, mask=there[:, None], other=0.0)
    asked = (asked.to(tl.float32) * scale).to(asked.dtype)
    grad = tl.load(out_grad + at, mask=there[:, None], other=0.0)
    sum_ = tl.load(sums + place * queries + places, mask=there, other=0.0)
    weight = tl.load(weighted + place * queries + places, mask=there, other=0.0)
    own, told = place * queries * HEAD, (text * heads + head) * tokens * HEAD
    acc = tl.zeros([QUERIES, HEAD], tl.float32)
    acc = query_gradients(
        acc, asked, grad, sum_, weight, text_k + told, text_v + told, mask + text * tokens, there,
        tokens, HEAD, KEYS, MASKED, PRECISION,
    )  # fmt: skip
    acc = query_gradients(
        acc, asked, grad, sum_, weight, k + own, v + own, mask, there, queries, HEAD, KEYS, False,
        PRECISION,
    )  # fmt: skip
    acc = acc * (scale * 0.6931471805599453)
    tl.store(q_grad + at, acc.to(q_grad.dtype.element_ty), mask=there[:, None])


@triton.jit
def backward_keys(
    q, keys, values, mask, out_grad, sums, weighted, keys_grad, values_grad,
    heads, each, queries, count, scale,
    HEAD: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of one source's keys and values, over all images that share them; all contiguous.

    each    images a row of the source
    scale   of the scores, times log2 e
    """
    place = tl.program_id(1).to(tl.int64)
    source, head = place // heads, place % heads
    columns, rows = tl.arange(0, HEAD), tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    seen = rows < count
    from_ = place * count * HEAD
    k_acc, v_acc = tl.zeros([KEYS, HEAD], tl.float32), tl.zeros([KEYS, HEAD], tl.float32)
    for image in range(0, each):
        start = ((source * each + image) * heads + head) * queries
        for first in range(0, queries, QUERIES):
            places = first + tl.arange(0, QUERIES)
            there = places < queries
            at = (start + places)[:, None] * HEAD + columns[None, :]
            plain = tl.load(q + at, mask=there[:, None], other=0.0)
            asked = (plain.to(tl.float32) * scale).to(plain.dtype)
            grad = tl.load(out_grad + at, mask=there[:, None], other=0.0)
            weights, grads, _ = score_gradients(
                asked, grad, tl.load(sums + start + places, mask=there, other=0.0),
                tl.load(weighted + start + places, mask=there, other=0.0), keys + from_,
                values + from_, mask + source * count, there, rows, seen, HEAD, MASKED, PRECISION,
            )  # fmt: skip
            v_acc += tl.dot(tl.trans(weights.to(grad.dtype)), grad, input_precision=PRECISION)
            k_acc += tl.dot(tl.trans(grads.to(plain.dtype)), plain, input_precision=PRECISION)
    at = from_ + rows[:, None] * HEAD + columns[None, :]
    k_acc = k_acc * (scale * 0.6931471805599453)
    tl.store(keys_grad + at, k_acc.to(keys_grad.dtype.element_ty), mask=seen[:, None])
    tl.store(values_grad + at, v_acc.to(values_grad.dtype.element_ty), mask=seen[:, None])


def options_of(
    head: int, dtype: torch.dtype, masked: bool, gradients: bool = False, amd: bool = False
) -> dict[str, Any]:
    """The kernels' compile-time arguments.

    head        width of a head
    gradients   whether these are the kernels of the gradients
    amd         AMD's compiler has no TF32

    QUERIES and KEYS of a block: with more, float32 leaves registers and shared memory. Three products in TF32
    are as precise as one in float32, which has no tensor cores; half precision is multiplied as it is.
    """
    narrow = head * dtype.itemsize <= NARROW
    return dict(
        HEAD=head, QUERIES=32 if gradients and not narrow else 64, KEYS=64 if narrow else 32, MASKED=masked,
        PRECISION="tf32x3" if dtype == torch.float32 and not amd else "ieee",
    )  # fmt: skip


def options_for(q: Tensor, mask: Tensor | None, gradients: bool = False) -> dict[str, Any]:
    """`options_of` these tensors on the installed torch's kind of GPU."""
    amd = torch.version.hip is not None
    return options_of(q.shape[-1], q.dtype, mask is not None, gradients, amd)


def require_fitting(q: Tensor, *more: Tensor) -> None:
    """Raise ValueError unless the kernels can address these tensors.

    q      b heads n d
    more   keys and values, likewise
    """
    head = q.shape[-1]
    if head < 16 or head & (head - 1):
        raise ValueError(f"q: expected heads of 16, 32, 64, … channels, got {head}")
    if any(each.stride(-1) != 1 for each in (q, *more)):
        raise ValueError("q, text, own: expected channels that are neighbours in memory")
    farthest = max(each.shape[2] * each.stride(2) for each in (q, *more))
    if farthest >= 2**31 or len(q) * q.shape[1] > MOST_ROWS:
        raise ValueError(
            f"q: expected up to {MOST_ROWS} heads of all images, and 2**31 values of one, got {list(q.shape)}"
        )


class TwoSource(torch.autograd.Function):
    """`two_source_attention` and its gradients: of q, the text's keys and values, and the image's own."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, *more: Any) -> Tensor:  # text k and v, own k and v, mask
        text_k, mask = more[0], more[4]
        batch, heads, queries, head = q.shape
        out = q.new_empty(batch, queries, heads, head)
        sums = q.new_empty(batch, heads, queries, dtype=torch.float32)
        tensors: list[Any] = [q, *more[:4], out.transpose(1, 2)]
        rows, tokens = text_k.shape[0], text_k.shape[2]
        seen = out if mask is None else mask.contiguous().view(torch.uint8)
        options = options_for(q, mask)
        grid = (triton.cdiv(queries, options["QUERIES"]), batch * heads)
        with torch.cuda.device_of(q):  # Triton launches on the current device
            forward[grid](  # pyright: ignore[reportIndexIssue]
                q, *more[:4], seen, out, sums,
                *(step for each in tensors for step in each.stride()[:3]), tokens,
                heads, batch // rows, queries, tokens, head**-0.5 * LOG2_E, **options,
            )  # fmt: skip
        ctx.save_for_backward(q, *more, out, sums)
        return out.flatten(2)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        *given, mask, out, sums = ctx.saved_tensors
        given = q, text_k, text_v, k, v = [each.contiguous() for each in given]
        batch, heads, queries, head = q.shape
        out_grad = grads[0].reshape(out.shape).transpose(1, 2).contiguous()
        weighted = (out_grad.float() * out.transpose(1, 2).float()).sum(-1)
        made = [torch.empty_like(each) for each in given]
        rows, tokens = text_k.shape[0], text_k.shape[2]
        seen = out if mask is None else mask.contiguous().view(torch.uint8)
        known, scale, each = (out_grad, sums, weighted), head**-0.5 * LOG2_E, batch // rows
        options = options_for(q, mask, gradients=True)
        blocks, of_keys = triton.cdiv(queries, options["QUERIES"]), options["KEYS"]
        with torch.cuda.device_of(q):
            backward_queries[(blocks, batch * heads)](  # pyright: ignore[reportIndexIssue]
                *given, seen, *known, made[0], heads, each, queries, tokens, scale, **options
            )
            backward_keys[(triton.cdiv(tokens, of_keys), rows * heads)](  # pyright: ignore
                q, text_k, text_v, seen, *known, *made[1:3], heads, each, queries, tokens, scale, **options,
            )  # fmt: skip
            backward_keys[(triton.cdiv(queries, of_keys), batch * heads)](  # pyright: ignore
                q, k, v, seen, *known, *made[3:], heads, 1, queries, queries, scale,
                **{**options, "MASKED": False},
            )  # fmt: skip
        return *made, None


def two_source_attention(
    q: Tensor, text: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], mask: Tensor | None = None
) -> Tensor:
    """Softmax attention of every query over the text's keys and the image's own: b n (heads d).

    q      b heads n d, d a power of two of at least 16, its channels neighbours in memory
    text   keys and values, p heads m d, p dividing b
    own    keys and values, b heads n d
    mask   p m bool, True = seen; None = all are

    ValueError and NotImplementedError where the shapes or the GPU are not for these kernels.
    """
    require_tensor_cores(q.device)
    require_fitting(q, *text, *own)
    return cast(Tensor, TwoSource.apply(q, *text, *own, mask))
