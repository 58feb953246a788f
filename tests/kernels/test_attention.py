"""Attention in pieces is attention written out, whatever the pieces and the batch."""

import pytest
import torch

from imagen_nodes.imagen_core.kernels import attention as kernel
from imagen_nodes.imagen_core.unet.attention import attention, attention_reference

SHAPES = [(2, 6, 128, 205, 64), (1, 9, 33, 110, 64), (3, 2, 64, 96, 32), (2, 4, 256, 77, 16)]


def given(batch, heads, queries, keys, width):
    """Views such as layers make: queries of one product of all three, keys joined."""
    both = torch.randn(batch, queries, 3 * heads * width).bfloat16()
    q = both[..., : heads * width].unflatten(-1, (heads, width)).transpose(1, 2)
    k, v = torch.randn(2, batch, heads, keys, width).bfloat16()
    return 3 * q, k, v


@pytest.mark.parametrize("piece", [1, 2**10, 2**14, 2**20])
@pytest.mark.parametrize("shape", SHAPES)
def test_in_pieces_it_is_the_reference(shape, piece, monkeypatch):
    monkeypatch.setattr(kernel, "PIECE", piece)
    q, k, v = given(*shape)
    made = kernel.attention_in_pieces(q, k, v)
    expected = attention_reference(q.double(), k.double(), v.double())
    assert made.shape == expected.shape and made.dtype == torch.bfloat16
    assert (made - expected).norm() / expected.norm() < 2e-2


@pytest.mark.parametrize(("heads", "queries", "keys"), [(6, 128, 205), (1, 1, 9), (7, 33, 10)])
@pytest.mark.parametrize("piece", [1, 500, 2**12, 2**20])
def test_pieces_hold_every_score_once(heads, queries, keys, piece, monkeypatch):
    monkeypatch.setattr(kernel, "PIECE", piece)
    seen = torch.zeros(heads, queries)
    for place in kernel.pieces(heads, queries, keys):
        part = seen[place]
        part += 1
        assert part.numel() * keys <= max(2 * piece, keys)
    assert (seen == 1).all()


def test_a_picture_does_not_depend_on_its_batch():
    q, k, v = given(4, 6, 128, 205, 64)
    with torch.no_grad():
        assert kernel.serves(q, k)
        together = attention(q, k, v)
        for i in range(len(q)):
            alone = attention(*(each[i : i + 1] for each in (q, k, v)))
            assert torch.equal(alone[0], together[i])


def test_it_serves_bfloat16_of_some_size_without_gradients_and_nothing_else():
    q, k, _ = given(2, 6, 128, 205, 64)
    small, few, _ = given(2, 2, 16, 20, 64)
    with torch.no_grad():
        assert kernel.serves(q, k)
        assert not kernel.serves(small, few)
        assert kernel.serves(q[:1], k[:1])  # a picture is as large in any batch
        for dtype in (torch.float32, torch.float16):
            assert not kernel.serves(q.to(dtype), k.to(dtype))
    with torch.enable_grad():
        assert not kernel.serves(q, k)
