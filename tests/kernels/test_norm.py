"""Group norm in pieces against torch's own, and where it is used."""

import pytest
import torch
from torch import nn

from imagen_nodes.imagen_core.kernels import norm
from imagen_nodes.imagen_core.kernels.inplace import activate_, folded, scale_shift_
from imagen_nodes.imagen_core.kernels.norm import fused, fuses, norm_activate, normed


def random(batch, channels, height, width, dtype=torch.bfloat16, seed=0):
    torch.manual_seed(seed)
    x = (3 * torch.randn(batch, channels, height, width) + 1).to(dtype)
    level = tuple(torch.randn(2, batch, channels, 1, 1).to(dtype))
    layer = nn.GroupNorm(4, channels)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return x.contiguous(memory_format=torch.channels_last), layer.to(dtype), level


def plain(x, layer, act, level):
    h = layer(x)
    return act(h if level is None else h * (1 + level[0]) + level[1])


@pytest.mark.parametrize("shape", [(5, 64, 16, 16), (2, 12, 31, 17), (1, 16, 8, 6), (3, 8, 1, 1)])
@pytest.mark.parametrize("act", [nn.SiLU(), nn.GELU(), nn.Identity()])
@pytest.mark.parametrize("piece", [2**18, 2**10, 7])
@torch.no_grad()
def test_in_pieces_it_is_what_torch_computes(shape, act, piece, monkeypatch):
    monkeypatch.setattr(norm, "PIECE", piece)
    x, layer, level = random(*shape)
    for each in (level, None):
        wide = None if each is None else [part.float() for part in each]
        expected = plain(x.float(), nn.GroupNorm.float(layer), act, wide)
        made = fused(x, nn.GroupNorm.bfloat16(layer), act, each)
        assert made.dtype == x.dtype
        assert made.is_contiguous(memory_format=torch.channels_last)
        assert (made.float() - expected).abs().max() <= 1e-2 * expected.abs().max()


@torch.no_grad()
def test_it_serves_bfloat16_where_torchs_kernel_is_slow_and_nothing_else():
    x, layer, level = random(2, 64, 16, 16)
    assert fuses(x, layer)
    assert not fuses(x.contiguous(), layer)
    assert not fuses(x[:, :, :8, :8], layer)
    assert not fuses(*random(2, 64, 32, 32)[:2])
    with torch.enable_grad():
        assert not fuses(x, layer)
    x, layer, level = random(2, 64, 16, 16, torch.float32)
    assert not fuses(x, layer)
    expected = activate_(scale_shift_(layer(x), *level), nn.SiLU())
    assert torch.equal(norm_activate(x, layer, nn.SiLU(), level), expected)


@pytest.mark.parametrize("shape", [(1, 16, 64, 65), (2, 24, 50, 30), (1, 48, 41, 37)])
@torch.no_grad()
def test_scale_and_shift_of_folded_positions_are_the_same_bits(shape):
    x, _, (scale, shift) = random(*shape)
    assert folded(x).data_ptr() == x.data_ptr()
    expected = torch.addcmul(shift, x, 1 + scale)
    made = scale_shift_(x, scale, shift)
    assert made is x
    assert torch.equal(made, expected)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_bfloat16_has_torchs_gradients_in_float32(kind):
    x, layer, _ = random(3, 24, 10, 6)
    layer, above = layer.to(kind), torch.randn(x.shape).bfloat16()

    def gradients(dtype, layer, function):
        leaf = x.to(dtype).requires_grad_()
        made = function(leaf, layer)
        return [made, *torch.autograd.grad(made, [leaf, *layer.parameters()], above.to(dtype))]

    found = gradients(torch.bfloat16, layer, normed)
    assert found[0].grad_fn.name() == "WideNormBackward"
    assert [each.dtype for each in found] == [torch.bfloat16, torch.bfloat16, kind, kind]
    expected = gradients(torch.float32, layer.float(), lambda x, norm: norm(x))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= 5e-3 * theirs.abs().max()
    wide = x.float().requires_grad_()
    assert torch.equal(normed(wide, layer.float()), layer.float()(wide))
